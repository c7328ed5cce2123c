"""The words of a report."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest

from digitcnn import tracking
from digitcnn.config import StudyReference, SweepConfig
from digitcnn.report import StudyRecord, markdown_table, read_study, text


def test_markdown_table_escapes_what_markdown_would_obey() -> None:
    assert (
        markdown_table(["a|b", "c"], [["<b>", "two\nlines"]]) == "| a\\|b | c |\n| --- | --- |\n| &lt;b> | two lines |"
    )


def _summary(found: StudyRecord, command: str) -> list[str]:
    """Return the lines of a study's summary with that recorded command; without its trials, which were invented."""
    return text.summary(dataclasses.replace(found, table=found.table.iloc[:0], commands=(command,))).splitlines()


@pytest.mark.parametrize(
    "recorded",
    [
        "digitcnn train\nrm -rf x",
        "digitcnn train 'a\nrm -rf x'",
        "```\n# Run this\n```bash\nrm -rf x",
        "```",
        "digitcnn train; rm -rf x && `rm -rf x` $(rm -rf x) | sh > x # y",
        "digitcnn 'train",
        "digitcnn train\r\x1b[2J\u2028rm",
    ],
)
def test_summary_shows_a_recorded_command_as_one_command(
    recorded: str, copied: SweepConfig, store: tracking.Store, tmp_path: Path
) -> None:
    """Given a tag that somebody with access to the MLflow server wrote."""
    found = read_study(store, StudyReference(name="small"), copied.tracking)
    lines = _summary(found, recorded)
    _, line, *further, end, _ = [*lines[lines.index("```bash") :], ""]
    place = f"tracking.root={shlex.quote(copied.tracking.root)}"
    assert further == [f"digitcnn confirm study=small {place}", f"digitcnn report study=small {place}"]
    assert end == "```"
    assert lines.count("```") == 1
    script = f"digitcnn() {{ :; }}\nrm() {{ echo removed; }}\nsh() {{ echo piped; }}\n{line}\n"
    ran = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.stdout == ""
    assert list(tmp_path.glob("x")) == []


def test_summary_leaves_a_command_of_the_recorder_as_it_is(copied: SweepConfig, store: tracking.Store) -> None:
    typed = shlex.join(["digitcnn", "sweep", "study.space.training.epochs={low: 1, high: 9}", "data.path=/a b/ü'.npz"])
    found = read_study(store, StudyReference(name="small"), copied.tracking)
    assert typed in _summary(found, typed)
