"""Reports as single HTML pages: of a finished study, of an evaluation, and (`local`) of a hospital's own images."""

from voxring.report.evaluation import evaluation_report
from voxring.report.result import result_report

__all__ = ["evaluation_report", "result_report"]
