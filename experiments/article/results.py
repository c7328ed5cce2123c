"""The published tables and their text: reads the CSV files, and makes RESULTS.md and README's lines of them alone."""

from __future__ import annotations

from collections.abc import Callable, Set
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from digitcnn import evaluation
from experiments.article import answers, provenance
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
# How all of them were made.
_MADE = "provenance"
# What the figure shows of each question that is in it.
PANELS = {
    "batch_size": "batch size at two budgets",
    "filters": "filter counts and their cost",
    "default": "the default study confirmed",
}
_TEMPLATE = files("experiments.article") / "results.md"


def read(folder: Path, without: Set[str] = frozenset()) -> dict[str, pd.DataFrame]:
    """The published tables by name: those whose files are there, without some."""
    names = {_MADE, *(name for its in TABLES.values() for name in its)} - without
    paths = {name: folder / f"{name}.csv" for name in sorted(names)}
    return {name: parsed(name, path) for name, path in paths.items() if path.exists()}


def parsed(name: str, file: Path | TextIO) -> pd.DataFrame:
    """A published table from its CSV."""
    if name == _MADE:
        # Versions and commits are no numbers.
        texts = pd.read_csv(file, dtype=str, keep_default_na=False)
        return texts.astype(dict.fromkeys(("runs", "wall_seconds", "cpu_seconds"), int))
    if name == "confirmation":
        return evaluation.read_confirmation(file)
    table = pd.read_csv(file, float_precision="round_trip")
    return table.fillna({"note": ""}) if name == "leaderboard" else table


def text(tables: Tables) -> str:
    """RESULTS.md: a section for each question whose tables are there."""
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
        made=provenance.described(made),
        **said,
    )


def has(tables: Tables, question: str) -> bool:
    """Whether a question's tables are there."""
    return set(TABLES[question]) <= set(tables)


def headline(tables: Tables) -> list[str]:
    """The result in three lines, of the questions whose tables are there."""
    lines = {
        "article": answers.line_of_article,
        "batch_size": answers.line_of_batch_size,
        "default": answers.line_of_default,
    }
    return [f"- {line(tables)}." for question, line in lines.items() if has(tables, question)]
