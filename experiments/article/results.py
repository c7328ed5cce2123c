"""Read the published tables from their CSV files and render RESULTS.md from them alone."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from digitcnn import evaluation
from digitcnn.records import Column, Metric
from experiments.article import answers, headlines, provenance
from experiments.article.contrasts import Tables

FILTERS, DEFAULT = "filters", "around_article"
# The studies that were searched and confirmed, by question.
CONFIRMED = {"default": DEFAULT, "beyond": "beyond", "cheapest": "cheapest"}
# The tables of each question.
TABLES = {
    "article": ("article",),
    "batch_size": ("batch_size", "batch_size_curves"),
    "filters": ("filters",),
    "backends": ("backends",),
    "default": ("leaderboard", "confirmation", "confirmation_runs"),
    "beyond": ("beyond_leaderboard", "beyond_confirmation", "beyond_confirmation_runs", "beyond_ablation"),
    "cheapest": ("cheapest_leaderboard", "cheapest_confirmation", "cheapest_confirmation_runs", "cheapest_ablation"),
}
# The table of how all of the runs were made.
_MADE = "provenance"
# The figure's panels, by question.
PANELS = {
    "batch_size": "batch size at two budgets",
    "filters": "filter counts and their cost",
    "default": "the default study, confirmed",
    "beyond": "the study of what would help, confirmed",
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
            tables[name] = parse_table(name, path, tables.get(f"{name}_runs"))
    return tables


def parse_table(name: str, file: Path | TextIO, runs: pd.DataFrame | None) -> pd.DataFrame:
    """Return a published table from its CSV; the verdicts of the first edition's confirmation anew, from its runs."""
    if name == _MADE:
        # Versions and commits are no numbers.
        texts = pd.read_csv(file, dtype=str, keep_default_na=False)
        return texts.astype(dict.fromkeys(("runs", "wall_seconds", Metric.CPU_SECONDS), int))
    if name.endswith("confirmation"):
        return evaluation.read_confirmation(file, runs)
    table = pd.read_csv(file, float_precision="round_trip")
    return table.fillna({Column.NOTE: ""}) if name.endswith("leaderboard") else table


def render_text(tables: Tables) -> str:
    """Return RESULTS.md, with a section for each question whose tables are there."""
    import jinja2

    sections: dict[str, Callable[[Tables], Any]] = {
        "article": answers.networks,
        "batch_size": answers.batch_size,
        "filters": answers.filters,
        "backends": answers.backends,
        **{question: partial(_confirmed, question) for question in CONFIRMED},
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


def _confirmed(question: str, tables: Tables) -> dict[str, str]:
    leaderboard, confirmation, runs, *_ = (tables[name] for name in TABLES[question])
    ablation = tables.get(f"{question}_ablation", pd.DataFrame())
    objective = Metric.CPU_SECONDS if question == "cheapest" else Metric.VALIDATION_ACCURACY
    return answers.confirmed(leaderboard, confirmation, runs, ablation, objective)


def has(tables: Tables, question: str) -> bool:
    """Return True if a question's tables are all there."""
    return set(TABLES[question]) <= set(tables)


def headline(tables: Tables) -> list[str]:
    """Return the result in a few lines, one for each headline question whose tables are there."""
    lines: dict[str, Callable[[Tables], str]] = {
        "article": headlines.line_of_article,
        "batch_size": headlines.line_of_batch_size,
        "default": lambda tables: headlines.line_of_confirmed(tables["confirmation"], "default study"),
        "beyond": lambda tables: headlines.line_of_confirmed(
            tables["beyond_confirmation"], "search for what would help"
        ),
        "cheapest": lambda tables: headlines.line_of_cheapest(tables["cheapest_confirmation"]),
    }
    return [f"- {line(tables)}" for question, line in lines.items() if has(tables, question)]
