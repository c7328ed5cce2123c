"""Say each headline question's result in a line, from the published tables alone."""

from __future__ import annotations

import pandas as pd

from digitcnn import evaluation
from digitcnn.formatting import format_interval, format_percent, format_points
from digitcnn.records import Column, Metric
from experiments.article import contrasts
from experiments.article.contrasts import ARTICLES_BATCH, BATCH_SIZE_STUDIES, Tables
from experiments.article.phrases import (
    changed_names,
    contrast_clause,
    interval_of,
    mean_in_words,
    settings,
    verdict_of,
)

# Source: the article; one run of each network, on the test set.
NETWORKS = {"cnn": 0.9929, "mlp": 0.9801}
_NAMES = {"cnn": "CNN", "mlp": "fully connected network"}


def line_of_article(tables: Tables) -> str:
    """Return the headline's line about the two networks."""
    return " ".join(_replication(tables, name) for name in NETWORKS)


def _replication(tables: Tables, name: str) -> str:
    """Return a sentence on whether the article's accuracy of a network lies within what one run can give."""
    values = list(contrasts.accuracies(tables["article"], network=name).values())
    low, high = contrasts.prediction_interval(values)
    reported, mean = f"{format_percent(NETWORKS[name])} %", mean_in_words(evaluation.summarize(values))
    single = f"one run in twenty lies outside {format_interval(low, high)}"
    if low <= NETWORKS[name] <= high:
        return f"The article's {reported} of its {_NAMES[name]} is reproduced: the mean is {mean}, and {single}."
    return f"The article's {reported} of its {_NAMES[name]} is not reproduced: the mean is {mean}, and {single}."


def line_of_batch_size(tables: Tables) -> str:
    """Return the headline's line about the smallest batch size at two budgets."""
    smallest = int(tables["batch_size"]["training.batch_size"].min())
    as_article, equal = (contrasts.batch_size_comparisons(tables, study)[smallest] for study in BATCH_SIZE_STUDIES)
    verb = "loses" if as_article.difference < 0 else "gains"
    equally = contrast_clause(f"batch size {smallest}", equal, str(ARTICLES_BATCH))
    return (
        f"As the article counts epochs, batch size {smallest} {verb} {100 * abs(as_article.difference):.2f} points "
        f"against {ARTICLES_BATCH} ({interval_of(as_article)}, {verdict_of(as_article)}), but there larger batches see "
        f"more images. With as many images for both, {equally}."
    )


def line_of_confirmed(table: pd.DataFrame, name: str) -> str:
    """Return the headline's line about a study's confirmation."""
    baseline, leading = table.iloc[0], table.iloc[evaluation.leading_row(table)]
    articles, its = (settings(row, changed_names(table)) for row in (baseline, leading))
    compared = table.iloc[1:][table.iloc[1:]["n"] > 0]
    if (compared[Column.VERDICT] == "better").any():
        subject = f"A trial of the {name} ({its}) is better than the article's settings ({articles}): it gains"
    else:
        which = {1: "The confirmed trial", 2: "Neither of the two confirmed trials"}.get(len(table) - 1)
        which = which or f"None of the {len(table) - 1} confirmed trials"
        negated = "could not be shown" if len(table) == 2 else "could be shown"
        claim = f"{which} of the {name} {negated} to beat the article's settings ({articles})"
        if compared.empty:
            return f"{claim}: {evaluation.verdict_of_row(leading)}."
        verb = "gains" if leading[Column.DIFFERENCE] > 0 else "loses"
        subject = f"{claim}; {'it' if len(table) == 2 else 'the better one'} ({its}) {verb}"
    interval = format_interval(leading[Column.DIFFERENCE_LOW], leading[Column.DIFFERENCE_HIGH], signed=True)
    points = f"{100 * abs(leading[Column.DIFFERENCE]):.2f}"
    return (
        f"{subject} {points} points on the test set ({interval}, n = {leading['n']}; "
        f"{evaluation.verdict_of_row(leading)})."
    )


def line_of_cheapest(table: pd.DataFrame) -> str:
    """Return the headline's line about the confirmed study of the cheapest configuration."""
    baseline, champion = table.iloc[0], table[table[Column.CHAMPION]].iloc[0]
    if champion[Column.CONFIG] == baseline[Column.CONFIG]:
        return "No cheaper configuration could be shown to be as good as the article's settings."
    share = champion[Metric.CPU_SECONDS] / baseline[Metric.CPU_SECONDS]
    interval = format_interval(champion[Column.DIFFERENCE_LOW], champion[Column.DIFFERENCE_HIGH], signed=True)
    its = settings(champion, changed_names(table))
    return (
        f"{100 * share:.0f} % of the CPU seconds of the article's settings are enough ({its}): "
        f"{format_points(champion[Column.DIFFERENCE])} points on the test set ({interval}, n = {champion['n']}; "
        f"{evaluation.verdict_of_row(champion)})."
    )
