"""Write what a study found, or compare runs: `digitcnn report study=NAME | compare='[RUN,RUN]'`."""

from collections.abc import Sequence
from typing import NoReturn

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import run_command, settled
from digitcnn.config import ReportConfig


def tell(config: ReportConfig) -> int:
    """Write a report; or, with `compare`, print how runs differ. Return the exit status."""
    if config.compare is not None:
        found = report.compare_runs(config.compare, config.study, config.tracking)
        tables.print_comparison(found)
        return 0
    print(f"written: {report.write_report(config)}, and report.md and the tables beside it")
    return settled(config.tracking)


def main(arguments: Sequence[str]) -> NoReturn:
    """Run the command with what was typed after its name."""
    run_command("report", ReportConfig, tell, arguments=arguments, study_by_name=True)
