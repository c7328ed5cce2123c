"""Writes what a study found, or compares runs: `experiments/report.py study=NAME | compare='[RUN,RUN]'`."""

from command import main, settled

from digitcnn import comparison, printing, report
from digitcnn.report import ReportConfig


def tell(config: ReportConfig) -> int:
    """One report as files; or, with `compare`, what differs between runs on the screen."""
    if config.compare is not None:
        found = comparison.compare(config.compare, config.study, config.tracking, print)
        printing.differences(found)
        return 0
    print(f"written: {report.write(config, print)}, and report.md and the tables beside it")
    return settled(config.tracking)


if __name__ == "__main__":
    main("report", ReportConfig, tell, texts=("compare",), study_by_name=True)
