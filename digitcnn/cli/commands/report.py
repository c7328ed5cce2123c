"""Writes what a study found, or compares runs: `digitcnn report study=NAME | compare='[RUN,RUN]'`."""

from digitcnn import report
from digitcnn.cli import tables
from digitcnn.cli.command import main, settled
from digitcnn.config import ReportConfig


def tell(config: ReportConfig) -> int:
    """One report as files; or, with `compare`, what differs between runs on the screen."""
    if config.compare is not None:
        found = report.compare_runs(config.compare, config.study, config.tracking)
        tables.print_comparison(found)
        return 0
    print(f"written: {report.write_report(config)}, and report.md and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("report", ReportConfig, tell, texts=("compare",), study_by_name=True)
