"""Write what a study found: `digitcnn report study=NAME`."""

import functools

from digitcnn import report
from digitcnn.cli.command import run_command, settled
from digitcnn.config import ReportConfig


def tell(config: ReportConfig) -> int:
    """Write a report; return the exit status."""
    print(f"written: {report.write_report(config)}, and report.md and the tables beside it")
    return settled(config.tracking)


main = functools.partial(run_command, "report", ReportConfig, tell, study_by_name=True)
