"""Reports: one HTML page per run, analysis or comparison, drawn from its saved files alone."""

from calibrant.report.analysis_page import write_analysis_report
from calibrant.report.comparison_page import write_comparison
from calibrant.report.run_page import write_picture, write_report

__all__ = ["write_analysis_report", "write_comparison", "write_picture", "write_report"]
