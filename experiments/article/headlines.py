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
    finding_of,
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
    baseline, candidates = table.iloc[0], table.iloc[1:]
    compared, better = candidates[candidates["n"] > 0], candidates[candidates[Column.VERDICT] == "better"]
    # The champion may be a cheaper one that is equivalent to the best, and not better itself.
    among, by = (candidates, ["mean"]) if better.empty else (better, [Column.CHAMPION, "mean"])
    leading = among.sort_values(by, ascending=False, kind="stable").iloc[0]
    articles, its = (settings(row, changed_names(table)) for row in (baseline, leading))
    if len(better):
        subject = f"A trial of the {name} ({its}) is better than the article's settings ({articles}): it gains"
    else:
        which = {1: "The confirmed trial", 2: "Neither of the two confirmed trials"}.get(len(table) - 1)
        which = which or f"None of the {len(table) - 1} confirmed trials"
        negated = "could not be shown" if len(table) == 2 else "could be shown"
        claim = f"{which} of the {name} {negated} to beat the article's settings ({articles})"
        if compared.empty:
            return f"{claim}: {evaluation.verdict_of_row(leading)}."
        verb = "gains" if leading[Column.DIFFERENCE] > 0 else "loses"
        leader = {2: "it", 3: "the better one"}.get(len(table), "the best of them")
        subject = f"{claim}; {leader} ({its}) {verb}"
    points = f"{100 * abs(leading[Column.DIFFERENCE]):.2f}"
    return f"{subject} {points} points on the test set {finding_of(leading)}."


def line_of_cheapest(table: pd.DataFrame) -> str:
    """Return the headline's line about the cheapest confirmed config that loses less than the margin, if there is one.

    Where there is none it is about the best of those that are cheaper than the article's settings.
    """
    baseline, margin = table.iloc[0], evaluation.format_margin(table[Column.MARGIN].iloc[0])
    cheaper = table[(table["n"] > 0) & (table[Metric.CPU_SECONDS] < baseline[Metric.CPU_SECONDS])]
    enough = cheaper[cheaper[Column.DIFFERENCE_LOW] > -cheaper[Column.MARGIN]]
    none = f"No cheaper configuration could be shown to lose less than {margin} against the article's settings"
    if cheaper.empty:
        return f"{none}."
    of_cost, of_accuracy = enough.sort_values(Metric.CPU_SECONDS), cheaper.sort_values("mean", ascending=False)
    named = (of_accuracy if enough.empty else of_cost).iloc[0]
    share = f"{100 * named[Metric.CPU_SECONDS] / baseline[Metric.CPU_SECONDS]:.0f} % of the CPU seconds"
    found = f"{format_points(named[Column.DIFFERENCE])} points on the test set {finding_of(named)}."
    its = settings(named, changed_names(table))
    if enough.empty:
        return f"{none}; the best of those that are takes {share} ({its}): {found}"
    aim = "do better" if named[Column.VERDICT] == "better" else f"lose less than {margin}"
    return f"{share} of the article's settings are enough to {aim} ({its}): {found}"
