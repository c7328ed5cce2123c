"""List the recorded runs: `digitcnn runs [study=NAME] [KEY=VALUE ...]`."""

import contextlib
import sys

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import delivered
from digitcnn.config import RunsConfig


def main(config: RunsConfig) -> int:
    """Print the runs as text, CSV or JSON; return the exit status."""
    # Whatever is said of the records is no part of CSV or JSON.
    with contextlib.redirect_stdout(sys.stdout if config.format == "text" else sys.stderr):
        found = report.list_runs(config)
    if config.format == "csv":
        print(found.to_csv(index=False), end="")
    elif config.format == "json":
        print(found.to_json(orient="records", indent=2))
    elif found.empty:
        of_study = f" of study {config.study.name}" if config.study.name else ""
        tables.print_line(
            f"no run{of_study} is recorded{f' that passes filter={config.filter}' if config.filter else ''}"
        )
    else:
        tables.print_table(found)
    return delivered(0)
