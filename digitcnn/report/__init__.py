"""A study as one page, as Markdown, as tables and as MLflow's UI shows it; runs side by side."""

from digitcnn.report.comparison import RunComparison, compare_runs
from digitcnn.report.page import write_report
from digitcnn.report.record import StudyRecord, read_study
from digitcnn.report.text import confirmed_text, markdown_table
from digitcnn.report.views import present_study

__all__ = [
    "RunComparison",
    "StudyRecord",
    "compare_runs",
    "confirmed_text",
    "markdown_table",
    "present_study",
    "read_study",
    "write_report",
]
