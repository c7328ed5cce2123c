"""List the recorded studies: `digitcnn studies`."""

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered
from digitcnn.config import StudiesConfig


def main(config: StudiesConfig) -> int:
    """Print a line for each study; return the exit status."""
    tables.print_table(report.list_studies(config.tracking), hint="")
    return delivered(0)
