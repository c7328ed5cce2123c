"""The benchmark's config, a line of its table, and the file that keeps a processor's lines."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import Field

from digitcnn.config import Count, RunConfig
from digitcnn.processor import cpu_model, instruction_sets

Row = Literal["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
RESULTS = Path(__file__).parent / "results"


class BenchmarkConfig(RunConfig):
    """The rows that are measured, the rounds, the numbers of images and trials, and the file that is written.

    With `from_tables` nothing is measured: docs/performance.md is made again from the committed tables.
    """

    backend: Literal["tensorflow"] = "tensorflow"
    rows: list[Row]
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    images: Count = 20_000
    grid_images: Count = 6_000
    trials: list[Count]
    from_tables: bool = False


@dataclass(frozen=True)
class Measurement:
    """One line of the table: a value per round, or a ratio of two sides that alternated."""

    row: str
    what: str
    unit: str
    values: Sequence[float]
    goal: str = ""
    ours: Sequence[float] = ()
    theirs: Sequence[float] = ()

    def markdown(self) -> str:
        """Return the line as a row of a Markdown table."""
        sides = ""
        if self.ours:
            sides = f"{_short(statistics.median(self.ours))} against {_short(statistics.median(self.theirs))}"
        median, low, high = self._spread()
        value = f"**{median} {self.unit}** ({low} to {high}, n = {len(self.values)})"
        return f"| {self.row} | {self.what} | {sides} | {value} | {self.goal} |"

    def outline(self) -> str:
        """Return the median of the rounds, and the smallest and the largest, for a table without their number."""
        median, low, high = self._spread()
        return f"{median} {self.unit} ({low} to {high})"

    def _spread(self) -> tuple[str, str, str]:
        return _short(statistics.median(self.values)), _short(min(self.values)), _short(max(self.values))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(row: str, what: str, ours: Sequence[float], theirs: Sequence[float], goal: str = "") -> Measurement:
    """Return a line with the ratio of two sides, round by round."""
    values = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Measurement(row, what, "x", values, goal, ours, theirs)


def machine_name(cores: int) -> str:
    """Return this machine as a table names it: the processor, its best instructions and the cores that were used."""
    return f"{cpu_model()} with {', '.join(instruction_sets()) or 'unnamed instructions'}, {cores} cores"


def file_name(machine: str) -> str:
    """Return the name of a machine's table."""
    return re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") + ".csv"


def write_table(path: Path, machine: str, versions: str, measured: Iterable[Measurement]) -> None:
    """Write measurements as a CSV, a line a round; those of other rows that are in it already stay."""
    rows = [
        {
            "machine": machine,
            "versions": versions,
            "row": each.row,
            "what": each.what,
            "goal": each.goal,
            "unit": each.unit,
            "round": number,
            "value": value,
            "ours": each.ours[number] if each.ours else None,
            "theirs": each.theirs[number] if each.ours else None,
        }
        for each in measured
        for number, value in enumerate(each.values)
    ]
    table = pd.DataFrame(rows)
    if path.exists():
        before = pd.read_csv(path, keep_default_na=False)
        table = pd.concat([before[~before["row"].isin(set(table["row"]))], table])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.sort_values("row", kind="stable").to_csv(path, index=False, float_format="%.5g")


def read_table(path: Path) -> tuple[str, str, list[Measurement]]:
    """Return the machine, the versions and the measurements of a CSV."""
    table = pd.read_csv(path).fillna({"goal": ""})
    measured = []
    for (row, what), part in table.groupby(["row", "what"], sort=False):
        sides = [part[side].tolist() if part[side].notna().all() else () for side in ("ours", "theirs")]
        first = part.iloc[0]
        measured.append(Measurement(str(row), str(what), first["unit"], part["value"].tolist(), first["goal"], *sides))
    return str(table["machine"].iloc[0]), str(table["versions"].iloc[0]), measured


def markdown(measured: Iterable[Measurement]) -> str:
    """Return measurements as a Markdown table."""
    head = ["| row | what | ours against theirs (medians) | median (min to max) | goal |", "|" + " --- |" * 5]
    return "\n".join([*head, *(each.markdown() for each in measured)])
