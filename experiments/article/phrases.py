"""Phrase the numbers of the published tables: cells, clauses and sentences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from digitcnn import evaluation
from digitcnn.evaluation import MARGIN, Contrast, Summary
from digitcnn.formatting import format_interval, format_p, format_percent, format_points
from digitcnn.records import Column
from digitcnn.study import format_cell, parameter_in_words, parameters_among


def settings(row: pd.Series[Any], names: Sequence[str]) -> str:
    """Return these parameters of a config in words: `batch size 250, epochs 9`."""
    return ", ".join(f"{parameter_in_words(name)} {format_cell(name, row[name])}" for name in names)


def changed_names(confirmation: pd.DataFrame) -> list[str]:
    """Return the parameters in which the configs of a confirmation differ."""
    return [name for name in parameters_among(confirmation) if confirmation[name].nunique() > 1]


def summary_cells(summary: Summary) -> list[str]:
    """Return the cells n, accuracy, sd and interval of a table."""
    interval = format_interval(summary.low, summary.high)
    return [str(summary.n), format_percent(summary.mean), format_percent(summary.sd), interval]


def verdict_of(each: Contrast) -> str:
    """Return a contrast's verdict in words."""
    return evaluation.format_verdict(each.verdict, MARGIN, each.n, each.seeds_needed)


def interval_of(each: Contrast) -> str:
    """Return a contrast's interval in words (points)."""
    return format_interval(each.low, each.high, signed=True)


def finding_of(row: pd.Series[Any]) -> str:
    """Return the interval, the seeds and the verdict of a confirmation's config in parentheses."""
    interval = format_interval(row[Column.DIFFERENCE_LOW], row[Column.DIFFERENCE_HIGH], signed=True)
    return f"({interval}, n = {row['n']}; {evaluation.verdict_of_row(row)})"


def contrast_clause(what: str, each: Contrast, other: str) -> str:
    """Return the verdict on a difference as a clause."""
    claims = {
        "better": f"{what} is better than {other}",
        "worse": f"{what} is worse than {other}",
        "equivalent": f"{what} is equivalent to {other} within {100 * MARGIN:.3g} points",
        "undecided": f"{what} could not be shown to differ from {other}",
    }
    return f"{claims[each.verdict]} ({format_points(each.difference)} points, {interval_of(each)})"


def contrast_cells(each: Contrast | None) -> list[str]:
    """Return the cells difference, p and verdict of a table; empty ones for what is compared with nothing."""
    if each is None:
        return ["", "", ""]
    return [f"{format_points(each.difference)} ({interval_of(each)})", format_p(each.p), verdict_of(each)]


def power_sentence(compared: Iterable[Contrast]) -> str:
    """Return the smallest difference that a table's runs find."""
    least = max(compared, key=lambda each: each.detectable)
    return f"These {least.n} seeds find differences of {100 * least.detectable:.2f} points and more with 80 % power."


def mean_in_words(summary: Summary) -> str:
    """Return a mean accuracy with its n and interval."""
    interval = format_interval(summary.low, summary.high)
    return f"{format_percent(summary.mean)} % (n = {summary.n}, 95 % interval {interval})"
