"""Sentences and tables that a command prints at its end, as wide as the terminal."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from digitcnn.cli.display import least_width, text_console
from digitcnn.formatting import format_count, printable
from digitcnn.records import Column, Metric

if TYPE_CHECKING:
    import pandas as pd

    from digitcnn.evaluation import ComparedMetric
    from digitcnn.report import RunComparison


# Of a comparison: the most runs that have a column each, and the longest text that is not folded or cut.
_MAX_COLUMNS, _MAX_WHOLE = 6, 16
# Of a leaderboard.
_MAX_ROWS = 20


def print_line(text: str) -> None:
    """Print a line; in a terminal it is broken between words."""
    console = text_console()
    console.print(text, soft_wrap=not console.is_terminal)


def _console() -> Console:
    """Return a console for tables; without a terminal it is wide enough for a study's."""
    console = text_console()
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdigit():
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
    console = text_console()
    if least_width(drawn, console) > console.width:
        # The terminal breaks its lines: no word is cut.
        console.width = console.measure(drawn, options=console.options.update(max_width=10_000)).maximum
    console.print(drawn)


def print_comparison(comparison: RunComparison) -> None:
    """Print what differs between runs: a row per value and a column per run, or of many runs a row per run."""
    console, table = _console(), comparison.differing
    drawn = _column_per_run(table)
    needed = sum((column.min_width or 0) + 2 for column in drawn.columns)
    if len(table.columns) > _MAX_COLUMNS or needed > console.width:
        _print_row_per_run(table)
    else:
        console.print(drawn)
    print(f"the same in all: {format_count(comparison.alike, 'other value')}")


def _column_per_run(table: pd.DataFrame) -> Table:
    """Return a table in which numbers and names are whole, and long texts, digests for example, are folded."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    drawn.add_column("run", min_width=max(map(len, map(str, table.index)), default=0), overflow="fold")
    texts = {str(run_id)[:8]: [printable(_cell(value)) for value in values] for run_id, values in table.items()}
    for run_id, cells in texts.items():
        least = max((len(cell) for cell in cells if len(cell) <= _MAX_WHOLE), default=0)
        drawn.add_column(run_id, min_width=max(8, least), overflow="fold")
    for name, *row in zip(map(str, table.index), *texts.values(), strict=True):
        drawn.add_row(printable(name), *row)
    return drawn


def _print_row_per_run(table: pd.DataFrame) -> None:
    """Print a row per run, accuracies first, then parameters; headings are broken between words, long texts cut."""
    names = sorted(map(str, table.index), key=lambda name: (not name.endswith("accuracy"), "." not in name))
    rows = table.loc[names].T.map(_cut)
    rows.columns = [re.sub(r"[._]", " ", name) for name in names]
    rows.insert(0, "run", [str(run_id)[:8] for run_id in rows.index])
    print_table(rows)


def _cut(value: object) -> object:
    return f"{value[: _MAX_WHOLE - 3]}..." if isinstance(value, str) and len(value) > _MAX_WHOLE else value


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def print_table(table: pd.DataFrame, hint: str = "; format=csv shows all") -> None:
    """Print a table with the columns that there is room for, and name those that have none."""
    console, columns = _console(), [str(column) for column in table.columns]
    while (drawn := _drawn(table[columns], [], console.width)) is None and len(columns) > 1:
        columns.pop()
    console.print(drawn or "\n".join(map(str, table[columns[0]])))
    if len(columns) < len(table.columns):
        left_out = [printable(str(name)) for name in table.columns[len(columns) :]]
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        print_line(f"no room for {', '.join(left_out[:5])}{more}{hint}")


def print_leaderboard(table: pd.DataFrame, parameters: Sequence[str], objectives: Sequence[str]) -> None:
    """Print the first rows of a leaderboard, accuracies in percent, without columns that have no room.

    What it is ranked by is always shown.
    """
    console = _console()
    shown, drawn, same = table.head(_MAX_ROWS), None, None
    if Metric.CPU_SPENT in table and table[Metric.CPU_SPENT].equals(table[Metric.CPU_SECONDS]):
        same = Metric.CPU_SPENT
    for dispensable in (same, Column.EPOCHS_RUN, Metric.CPU_SPENT, Metric.CPU_SECONDS, Column.RUN_ID):
        if dispensable not in objectives or dispensable == same:
            shown = shown[[column for column in shown.columns if column != dispensable]]
        drawn = drawn or _drawn(shown, parameters, console.width)
    if drawn is None:
        # The terminal breaks its lines.
        console.width = 10_000
        drawn = _drawn(shown, parameters, console.width)
    console.print(drawn)
    if len(table) > _MAX_ROWS:
        console.print(f"... and {len(table) - _MAX_ROWS} more")


def _drawn(table: pd.DataFrame, parameters: Sequence[str], width: int) -> Table | None:
    """Return a table of that width, or None if a word of it would be cut.

    Where there is no room, headings and notes are broken between their words. Rich would narrow any column.
    """
    from digitcnn.study import column_heading, format_cell, parameter_in_words

    names = list(map(str, table.columns))
    cells = [[printable(format_cell(name, value)) for value in table[name]] for name in names]
    headings = [parameter_in_words(name) if name in parameters else column_heading(name) for name in names]
    widths = [max(map(len, [heading, *texts])) for heading, texts in zip(headings, cells, strict=True)]
    if sum(widths) + len(names) > width:
        widths = [max(map(len, [*heading.split(), *texts])) for heading, texts in zip(headings, cells, strict=True)]
        if Column.NOTE in names:
            note, others = names.index(Column.NOTE), sum(widths) - widths[names.index(Column.NOTE)]
            # Room for "baseline".
            widths[note] = max(8, width - others - len(names))
    drawn = Table(box=None, padding=(0, 1, 0, 0))
    for name, heading, least in zip(names, headings, widths, strict=True):
        words = all(isinstance(value, str) for value in table[name])
        drawn.add_column(heading, justify="left" if words else "right", width=least, overflow="fold")
    for row in zip(*cells, strict=True):
        drawn.add_row(*row)
    return drawn if sum(widths) + len(names) <= width else None
