"""One page a run: words, figures and groups of answers, drawn from what the run directory holds."""

from calibrant.report.analysis import write_analysis_report
from calibrant.report.page import write_report
from calibrant.report.picture import write_picture

__all__ = ["write_analysis_report", "write_picture", "write_report"]
