"""Reports as single HTML pages: of a finished study, and of a hospital's own images, for the hospital alone."""

from voxring.report.result import result_report

__all__ = ["result_report"]
