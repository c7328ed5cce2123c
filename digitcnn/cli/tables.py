"""Sentences and tables that a command prints at its end, as wide as the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from digitcnn.cli.display import text_console
from digitcnn.formatting import printable
from digitcnn.records import Column, Metric

if TYPE_CHECKING:
    import pandas as pd

    from digitcnn.evaluation import ComparedMetric
    from digitcnn.report import RunComparison


def print_line(text: str) -> None:
    """Print a line; in a terminal it is broken between words."""
    console = text_console()
    console.print(text, soft_wrap=not console.is_terminal)


def _console() -> Console:
    """Return a console for tables; without a terminal it is wide enough for a study's."""
    console = text_console()
    if not console.is_terminal:
        console.width = 160
    return console


def print_reproduction(metrics: Sequence[ComparedMetric]) -> None:
    """Print the metrics of a run and of its reproduction, a row per epoch and metric."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("epoch", "metric", "recorded", "repeated", "difference", "tolerance"):
        drawn.add_column(heading, justify="left" if heading == "metric" else "right")
    for each in metrics:
        difference = each.repeated - each.recorded
        drawn.add_row(
            str(each.epoch),
            each.metric,
            f"{each.recorded:.6f}",
            f"{each.repeated:.6f}",
            f"{difference:+.2g}" if difference else "0",
            f"{each.tolerance:.2g}",
        )
    text_console().print(drawn)


def print_comparison(comparison: RunComparison) -> None:
    """Print what differs between runs, a row per value and a column per run."""
    console = _console()
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    drawn.add_column("run")
    for run_id in comparison.differing.columns:
        drawn.add_column(str(run_id)[:8], overflow="fold")
    for name, row in comparison.differing.iterrows():
        cells = ["" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value) for value in row]
        drawn.add_row(*map(printable, (str(name), *cells)))
    console.print(drawn)
    print(f"the same in all: {comparison.alike} other values")


def print_leaderboard(
    table: pd.DataFrame, parameters: Sequence[str], objectives: Sequence[str], rows: int = 20
) -> None:
    """Print the first rows of a leaderboard, accuracies in percent, without columns that have no room.

    What it is ranked by is always shown.
    """
    console = _console()
    columns = [str(column) for column in table.columns]
    for dispensable in (Column.EPOCHS_RUN, Metric.CPU_SECONDS, Column.RUN_ID):
        if _least_width(table[columns].head(rows), parameters, console) <= console.width:
            break
        columns = [column for column in columns if column != dispensable or column in objectives]
    console.print(_drawn(table[columns].head(rows), parameters))
    if len(table) > rows:
        console.print(f"... and {len(table) - rows} more")


def _least_width(table: pd.DataFrame, parameters: Sequence[str], console: Console) -> int:
    """Return the width at which no word is cut; notes are folded."""
    drawn = _drawn(table.assign(note="") if Column.NOTE in table else table, parameters)
    # Measured where there is room: else all would be said to fit.
    return console.measure(drawn, options=console.options.update(max_width=10_000)).minimum


def _drawn(table: pd.DataFrame, parameters: Sequence[str]) -> Table:
    from digitcnn.study import column_heading, format_cell, parameter_in_words

    drawn = Table(box=None, padding=(0, 1, 0, 0))
    columns = {str(column): [format_cell(str(column), value) for value in table[column]] for column in table.columns}
    for column, texts in columns.items():
        # Narrow columns break a parameter's name between its words.
        heading = parameter_in_words(column) if column in parameters else column_heading(column)
        words = column in (Column.STATE, Column.RUN_ID, Column.NOTE)
        # Room for "baseline", which a narrow terminal would take from the last column first.
        least = 8 if column == Column.NOTE else max([0, *map(len, texts)])
        drawn.add_column(heading, justify="left" if words else "right", min_width=least, overflow="fold")
    for row in zip(*columns.values(), strict=True):
        drawn.add_row(*map(printable, row))
    return drawn
