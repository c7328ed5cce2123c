"""The benchmark's config, and a line of its table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from digitcnn.config import Count, RunConfig

Row = Literal["a", "b", "c", "d", "e", "f", "g", "h"]


class BenchmarkConfig(RunConfig):
    """The rows that are measured, the rounds, and the numbers of images and trials."""

    backend: Literal["tensorflow"] = "tensorflow"
    rows: list[Row]
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    images: Count = 20_000
    trials: list[Count]


@dataclass(frozen=True)
class Measurement:
    """One line of the table: a value per round, or a ratio of two sides that alternated."""

    row: str
    what: str
    unit: str
    values: list[float]
    goal: str = ""
    ours: list[float] | None = None
    theirs: list[float] | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def markdown(self) -> str:
        """Return the line as a row of a Markdown table."""
        sides = ""
        if self.ours and self.theirs:
            sides = f"{_short(statistics.median(self.ours))} against {_short(statistics.median(self.theirs))}"
        spread = f"{_short(min(self.values))} to {_short(max(self.values))}, n = {len(self.values)}"
        return (
            f"| {self.row} | {self.what} | {sides} | **{_short(self.median)} {self.unit}** ({spread}) | {self.goal} |"
        )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def ratio(row: str, what: str, ours: list[float], theirs: list[float], goal: str) -> Measurement:
    """Return a line with the ratio of two sides, round by round."""
    values = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Measurement(row, what, "x", values, goal, ours, theirs)
