"""Say what is at work on a study: `digitcnn status study=NAME`."""

import functools

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered, run_command
from digitcnn.config import ReportConfig


def status(config: ReportConfig) -> int:
    """Print the state of a study; return the exit status."""
    for line in report.study_status(config):
        tables.print_line(line)
    return delivered(0)


main = functools.partial(run_command, "status", ReportConfig, status, study_by_name=True)
