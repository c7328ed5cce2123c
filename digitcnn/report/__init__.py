"""A study as one page, as Markdown and as tables; runs side by side."""

from digitcnn.report.comparison import RunComparison, compare_runs
from digitcnn.report.page import write_report
from digitcnn.report.record import StudyRecord, read_study
from digitcnn.report.text import confirmed_text, markdown_table

__all__ = [
    "RunComparison",
    "StudyRecord",
    "compare_runs",
    "confirmed_text",
    "markdown_table",
    "read_study",
    "write_report",
]
