"""Put recorded runs side by side: `digitcnn diff RUN RUN [KEY=VALUE ...]`."""

import contextlib
import sys

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered
from digitcnn.config import DiffConfig
from digitcnn.records import Column


def main(config: DiffConfig) -> int:
    """Print how runs differ; return the exit status."""
    # Whatever is said of the records is no part of CSV.
    with contextlib.redirect_stdout(sys.stderr if config.format == "csv" else sys.stdout):
        found = report.compare_runs(config)
    if config.format == "csv":
        print(found.differing.T.to_csv(index_label=Column.RUN_ID), end="")
    else:
        tables.print_comparison(found)
    return delivered(0)
