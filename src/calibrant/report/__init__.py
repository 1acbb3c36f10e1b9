"""Reports: one HTML page per run or analysis, drawn from its saved files alone."""

from calibrant.report.analysis_page import write_analysis_report
from calibrant.report.run_page import write_picture, write_report

__all__ = ["write_analysis_report", "write_picture", "write_report"]
