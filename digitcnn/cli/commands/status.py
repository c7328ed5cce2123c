"""Say what is at work on a study: `digitcnn status study=NAME`."""

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered
from digitcnn.config import ReportConfig


def main(config: ReportConfig) -> int:
    """Print the state of a study; return the exit status."""
    for line in report.study_status(config):
        tables.print_line(line)
    return delivered(0)
