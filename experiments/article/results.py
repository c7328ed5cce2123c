"""Read the published tables from their CSV files and render RESULTS.md from them alone."""

from __future__ import annotations

from collections.abc import Callable, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from digitcnn import evaluation
from digitcnn.records import Column, Metric
from experiments.article import answers, headlines, provenance
from experiments.article.contrasts import Tables

FILTERS, DEFAULT = "filters", "around_article"
# The tables of each question.
TABLES = {
    "article": ("article",),
    "batch_size": ("batch_size", "batch_size_curves"),
    "filters": ("filters",),
    "backends": ("backends",),
    "default": ("leaderboard", "confirmation", "confirmation_runs"),
}
# The table of how all of the runs were made.
_MADE = "provenance"
# The figure's panels, by question.
PANELS = {
    "batch_size": "batch size at two budgets",
    "filters": "filter counts and their cost",
    "default": "the default study confirmed",
}
_TEMPLATE = files("experiments.article") / "results.md"


def read_tables(folder: Path, without: Set[str] = frozenset()) -> dict[str, pd.DataFrame]:
    """Return the published tables by name: those whose files exist, except the ones named in `without`."""
    names = {_MADE, *(name for its in TABLES.values() for name in its)} - without
    tables: dict[str, pd.DataFrame] = {}
    # Backwards: the runs of the confirmation come before what is said of them.
    for name in sorted(names, reverse=True):
        path = folder / f"{name}.csv"
        if path.exists():
            tables[name] = parse_table(name, path, tables.get("confirmation_runs"))
    return tables


def parse_table(name: str, file: Path | TextIO, confirmation_runs: pd.DataFrame | None) -> pd.DataFrame:
    """Return a published table, parsed from its CSV; the verdicts of the first edition are made again from its runs."""
    if name == _MADE:
        # Versions and commits are no numbers.
        texts = pd.read_csv(file, dtype=str, keep_default_na=False)
        return texts.astype(dict.fromkeys(("runs", "wall_seconds", Metric.CPU_SECONDS), int))
    if name == "confirmation":
        return evaluation.read_confirmation(file, confirmation_runs)
    table = pd.read_csv(file, float_precision="round_trip")
    return table.fillna({Column.NOTE: ""}) if name == "leaderboard" else table


def render_text(tables: Tables) -> str:
    """Return RESULTS.md, with a section for each question whose tables are there."""
    import jinja2

    sections: dict[str, Callable[[Tables], Any]] = {
        "article": answers.networks,
        "batch_size": answers.batch_size,
        "filters": answers.filters,
        "backends": answers.backends,
        "default": answers.default,
    }
    said = {name: section(tables) if has(tables, name) else None for name, section in sections.items()}
    made = tables[_MADE]
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        headline="\n".join(headline(tables)),
        figure="; ".join(panel for question, panel in PANELS.items() if has(tables, question)).capitalize(),
        commands=lambda *parts: provenance.commands(made, parts),
        made=provenance.describe(made),
        **said,
    )


def has(tables: Tables, question: str) -> bool:
    """Return True if a question's tables are all there."""
    return set(TABLES[question]) <= set(tables)


def headline(tables: Tables) -> list[str]:
    """Return the result in a few lines, one for each headline question whose tables are there."""
    lines = {
        "article": headlines.line_of_article,
        "batch_size": headlines.line_of_batch_size,
        "default": headlines.line_of_default,
    }
    return [f"- {line(tables)}" for question, line in lines.items() if has(tables, question)]
