"""Reports as single HTML pages: of a finished study, and (`local`) of a hospital's own images, for it alone."""

from voxring.report.result import result_report

__all__ = ["result_report"]
