"""Write what a study found: `digitcnn report study=NAME`."""

from digitcnn import report
from digitcnn.cli.command import settled
from digitcnn.config import ReportConfig


def main(config: ReportConfig) -> int:
    """Write a report; return the exit status."""
    print(f"written: {report.write_report(config)}, and report.md and the tables beside it")
    return settled(config.tracking)
