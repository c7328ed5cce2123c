"""Provenance of the published runs: command, date, machine, versions and time; as a table and in words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from digitcnn import training
from digitcnn.formatting import format_count
from digitcnn.records import Metric, Tag

_TAGS = (
    *(Tag.CPU, Tag.CORES, Tag.THREADS, Tag.ENGINE, Tag.PYTHON),
    *(f"{Tag.VERSION_PREFIX}{package}" for package in ("keras", "numpy")),
    *(f"{Tag.VERSION_PREFIX}{package}" for packages in training.BACKEND_PACKAGES.values() for package in packages),
    *(Tag.GIT_COMMIT, Tag.GIT_DIRTY),
)
COLUMNS = ("part", Tag.COMMAND, "runs", "wall_seconds", Metric.CPU_SECONDS, "date", *_TAGS)
_VERSIONS = {
    Tag.PYTHON: "Python",
    f"{Tag.VERSION_PREFIX}keras": "Keras",
    f"{Tag.VERSION_PREFIX}tensorflow": "TensorFlow",
    f"{Tag.VERSION_PREFIX}jax": "JAX",
    f"{Tag.VERSION_PREFIX}torch": "PyTorch",
}
# Between the values of a cell, if the runs of one command have several.
_SEPARATOR = "; "


def rows(part: str, runs: Sequence[Any]) -> list[dict[str, Any]]:
    """Return a row, of COLUMNS, per command that some of the runs were made by, the first command first.

    Runs without a recorded command are left out (cut off as they began, or duplicates, which took no time), and so are
    runs that have not ended. The wall time (s) is that in which at least one of the runs was at work, without the
    pauses between a sweep and its resumption.
    """
    by_command: dict[str, list[Any]] = {}
    made = [run for run in runs if Tag.COMMAND in run.data.tags and run.info.end_time is not None]
    for run in sorted(made, key=lambda each: each.info.start_time):
        by_command.setdefault(published_command(run.data.tags[Tag.COMMAND]), []).append(run)
    return [
        {
            "part": part,
            Tag.COMMAND: command,
            "runs": len(some),
            "wall_seconds": round(_busy([(run.info.start_time, run.info.end_time) for run in some]) / 1000),
            Metric.CPU_SECONDS: round(sum(_cpu_spent(run.data.metrics) for run in some)),
            "date": pd.Timestamp(min(run.info.start_time for run in some), unit="ms").strftime("%Y-%m-%d"),
        }
        | {
            tag: _SEPARATOR.join(dict.fromkeys(run.data.tags[tag] for run in some if tag in run.data.tags))
            for tag in _TAGS
        }
        for command, some in by_command.items()
    ]


def published_command(command: str) -> str:
    """Return a recorded command as anybody can type it: `digitcnn NAME ...` without where the records are.

    Runs of the first edition recorded `python .../NAME.py ...`.
    """
    words = shlex.split(command)
    if Path(words[0]).name.startswith("python"):
        words = words[1:]
    if Path(words[0]).stem in ("digitcnn", "__main__"):
        words = words[1:]
    kept = [word for word in words[1:] if not word.lstrip("+").startswith(("tracking.", "tracking="))]
    return shlex.join(["digitcnn", Path(words[0]).stem, *kept])


def _cpu_spent(metrics: Mapping[str, float]) -> float:
    """Return the CPU time (s) that a run took, without the epochs that it was given with a checkpoint."""
    # Earlier versions gave none.
    return metrics.get(Metric.CPU_SPENT, metrics.get(Metric.CPU_SECONDS, 0.0))


def _busy(intervals: Sequence[tuple[int, int]]) -> int:
    """Return the length of the union of some intervals."""
    total, until = 0, 0
    for begin, end in sorted(intervals):
        total += max(end - max(begin, until), 0)
        until = max(until, end)
    return total


def describe(made: pd.DataFrame) -> str:
    """Return the machines, versions and commits of all rows in words."""
    machines = dict.fromkeys(zip(made[Tag.CORES], made[Tag.CPU], strict=True))
    processors = " and ".join(f"{cores} cores of {cpu}" for cores, cpu in machines)
    versions = {label: " and ".join(_distinct(made, column)) for column, label in _VERSIONS.items()}
    commits = ", ".join(commit[:10] for commit in _distinct(made, Tag.GIT_COMMIT))
    dirty = ", and code that differed from its commit" if "true" in _distinct(made, Tag.GIT_DIRTY) else ""
    return (
        f"On {processors}.\n"
        + ", ".join(f"{label} {numbers}" for label, numbers in versions.items() if numbers)
        + f"; commits {commits}{dirty}.\nWall times include other load on the machine; "
        "compare CPU times."
    )


def _distinct(made: pd.DataFrame, column: str) -> list[str]:
    """Return every value that the runs have, each once."""
    return list(dict.fromkeys(value for cell in made[column] for value in cell.split(_SEPARATOR) if value))


def commands(made: pd.DataFrame, parts: Sequence[str]) -> str:
    """Return the commands of some parts as Markdown, with their runs, threads, engine, minutes and day."""
    lines = [
        f"{published_command(row[Tag.COMMAND])}    "
        f"# {format_count(row['runs'], 'run')} ({row[Tag.ENGINE]} engine, {row[Tag.THREADS]} thread(s) each), "
        f"{row['wall_seconds'] / 60:.0f} min, {row[Metric.CPU_SECONDS] / 60:.0f} CPU min, {row['date']}"
        for _, row in made[made["part"].isin(parts)].iterrows()
    ]
    return "\n".join(["```bash", *lines, "```"])
