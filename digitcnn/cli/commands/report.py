"""Write what a study found, or compare runs: `digitcnn report study=NAME | compare='[RUN,RUN]'`."""

import contextlib
import functools
import sys

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered, run_command, settled
from digitcnn.config import ReportConfig
from digitcnn.records import Column


def tell(config: ReportConfig) -> int:
    """Write a report; or, with `compare`, print how runs differ. Return the exit status."""
    if config.compare is not None:
        # Whatever is said of the records is no part of CSV.
        with contextlib.redirect_stdout(sys.stderr if config.format == "csv" else sys.stdout):
            found = report.compare_runs(config.compare, config.study, config.tracking)
        if config.format == "csv":
            print(found.differing.T.to_csv(index_label=Column.RUN_ID), end="")
        else:
            tables.print_comparison(found)
        return delivered(0)
    print(f"written: {report.write_report(config)}, and report.md and the tables beside it")
    return settled(config.tracking)


main = functools.partial(run_command, "report", ReportConfig, tell, study_by_name=True)
