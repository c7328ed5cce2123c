"""A study as one page, as Markdown, as tables and as MLflow's UI shows it; runs and studies listed."""

from digitcnn.report.page import drawings, html_summary, write_report
from digitcnn.report.record import StudyRecord, read_study
from digitcnn.report.runs import RunComparison, compare_runs, list_runs, list_studies, study_status
from digitcnn.report.text import confirmed_text, markdown_of, markdown_table, ranking
from digitcnn.report.views import describe_experiment, present_study
