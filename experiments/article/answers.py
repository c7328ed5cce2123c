"""Answer each question of RESULTS.md with Markdown tables and sentences, from the published tables alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from digitcnn import evaluation, report
from digitcnn.evaluation import PairedComparison, Summary
from digitcnn.formatting import format_interval, format_p, format_percent, format_points
from digitcnn.records import Column, Metric, Tag
from digitcnn.study import best_against_baseline, column_heading, format_cell, parameter_in_words, parameters_among
from experiments.article import contrasts
from experiments.article.contrasts import ARTICLES_BATCH, ARTICLES_FILTERS, BATCH_SIZE_STUDIES, Tables

# Source: the article; one run of each network, on the test set.
NETWORKS = {"cnn": 0.9929, "mlp": 0.9801}
_ROWS = 5
_SUMMARY = ("n", "accuracy (%)", "sd", "95 % interval")
_TEST = ("p (Holm)", "verdict")


def line_of_article(tables: Tables) -> str:
    """Return the headline's line about the two networks."""
    cnn, mlp = (
        evaluation.summarize(contrasts.accuracies(tables["article"], network=name).tolist()) for name in NETWORKS
    )
    return (
        f"The article's CNN gets {_mean(cnn)} of the test images right, its fully connected network {_mean(mlp)}; "
        f"the article says {format_percent(NETWORKS['cnn'])} and {format_percent(NETWORKS['mlp'])} %"
    )


def line_of_batch_size(tables: Tables) -> str:
    """Return the headline's line about the smallest batch size at two budgets."""
    smallest = int(tables["batch_size"]["training.batch_size"].min())
    as_article, equal = (contrasts.batch_size_comparisons(tables, study)[smallest] for study in BATCH_SIZE_STUDIES)
    return (
        f"Batch size {smallest} instead of {ARTICLES_BATCH}: {_points(as_article.difference)}, {as_article.verdict}, "
        f"as the article counts epochs, where larger batches see more images; {_points(equal.difference)}, "
        f"{equal.verdict}, at an equal number of images"
    )


def line_of_default(tables: Tables) -> str:
    """Return the headline's line about the confirmed default study."""
    table = tables["confirmation"]
    baseline, leading = table.iloc[0], table.iloc[evaluation.leading_row(table)]
    articles, its = settings(baseline), settings(leading)
    if leading[Column.CHAMPION]:
        subject = f"The champion of the default study ({its}) against the article's settings ({articles})"
    else:
        which = f"None of the {len(table) - 1} trials of the default study that were confirmed"
        nothing = f"{which} is better than the article's settings ({articles})"
        if leading["n"] == 0:
            return f"{nothing}: {leading[Column.VERDICT]}"
        subject = f"{nothing}; the best of them ({its})"
    names = (Column.DIFFERENCE, Column.DIFFERENCE_LOW, Column.DIFFERENCE_HIGH)
    mean, low, high = (float(leading[name]) for name in names)
    points = _points(Summary(int(leading["n"]), mean, float("nan"), low, high))
    return f"{subject}: {points} on the test set, {leading[Column.VERDICT]} (p {format_p(leading[Column.P_HOLM])})"


def networks(tables: Tables) -> dict[str, str]:
    """Compare the article's two networks, trained by its own protocol."""
    rows, said = [], []
    values = {name: contrasts.accuracies(tables["article"], network=name) for name in NETWORKS}
    for name, reported in NETWORKS.items():
        low, high = evaluation.prediction_interval(values[name].tolist())
        best = float(tables["article"].query("network == @name")[Metric.BEST_VALIDATION_ACCURACY].mean())
        single = format_interval(low, high)
        cells = _summary(evaluation.summarize(values[name].tolist()))
        rows.append([name.upper(), *cells, single, format_percent(best), f"{format_percent(reported)} (n = 1)"])
        place = "within" if low <= reported <= high else "below" if reported < low else "above"
        said.append(
            f"The article's {format_percent(reported)} % is {place} the prediction interval of the {name.upper()}."
        )
    cnn = values["cnn"]
    over = f"{sum(value > 0.99 for value in cnn)} of {len(cnn)} runs of the CNN exceed 99 %"
    mean = (
        "and so does their mean"
        if evaluation.summarize(cnn.tolist()).low > 0.99
        else "but the interval of their mean does not lie above it"
    )
    difference = contrasts.compare([(cnn, values["mlp"])])[0]
    head = ["network", *_SUMMARY, "95 % prediction interval of one run", "mean accuracy of the best epochs", "article"]
    return {
        "table": report.markdown_table(head, rows),
        "found": f"{over}, {mean}. {' '.join(said)} CNN against fully connected network: "
        f"{_points(difference.difference)}, p = {format_p(difference.p)}.",
    }


def batch_size(tables: Tables) -> dict[str, str]:
    """Compare each batch size with the article's at two budgets, and one budget with the other."""
    found = {study: contrasts.batch_size_comparisons(tables, study) for study in BATCH_SIZE_STUDIES}
    said = {}
    for study, name in zip(BATCH_SIZE_STUDIES, ("article", "equal"), strict=True):
        rows = []
        for size, part in tables["batch_size"].query("study == @study").groupby("training.batch_size"):
            cells = _summary(evaluation.summarize(part[Metric.VALIDATION_ACCURACY].tolist()))
            seen, updates = part[Metric.SAMPLES_SEEN].iloc[0], part[Metric.UPDATES].iloc[0]
            against = _compared(found[study].get(int(str(size))))
            rows.append([str(size), f"{seen:,.0f}", f"{updates:,.0f}", *cells, *against])
        head = ["batch size", "images seen", "updates", *_SUMMARY, f"against {ARTICLES_BATCH} (points)", *_TEST]
        said[name] = report.markdown_table(head, rows)
    seen = tables["batch_size"].groupby(["study", "training.batch_size"])[Metric.SAMPLES_SEEN].first()
    rows = [
        [str(size), *(f"{seen[study, size]:,.0f}" for study in BATCH_SIZE_STUDIES), *_compared(each)]
        for size, each in contrasts.budget_comparisons(tables).items()
    ]
    head = ["batch size", "images, article", "images, equal", "article against equal (points)", *_TEST]
    sentences = []
    for size, budget in contrasts.budget_effects(tables).items():
        as_article, equal = (found[study][size] for study in BATCH_SIZE_STUDIES)
        sentences.append(
            f"{size} instead of {ARTICLES_BATCH} gives {format_points(as_article.difference.mean)} points as the "
            f"article counts and {format_points(equal.difference.mean)} at an equal number of images "
            f"({equal.verdict}). What comes with the number of images is the difference of the two: "
            f"{_points(budget.difference)}, p {format_p(budget.p_holm)} (Holm), {budget.verdict}."
        )
    return said | {"budget": report.markdown_table(head, rows), "found": " ".join(sentences)}


def filters(tables: Tables) -> dict[str, str]:
    """Compare every pair of filter counts with the article's; state its cost and the factors' effects."""
    summaries = contrasts.filter_summaries(tables)
    pairs = list(zip(summaries["model.conv1_filters"], summaries["model.conv2_filters"], strict=True))
    values = [
        contrasts.accuracies(tables["filters"], **{"model.conv1_filters": first, "model.conv2_filters": second})
        for first, second in pairs
    ]
    articles = pairs.index(ARTICLES_FILTERS)
    others = [index for index in range(len(pairs)) if index != articles]
    compared = contrasts.compare([(values[index], values[articles]) for index in others])
    against = dict(zip(others, compared, strict=True))
    rows = []
    for index in np.argsort(summaries[Metric.CPU_SECONDS].to_numpy(), kind="stable"):
        row = summaries.iloc[index]
        cells = ["-".join(map(str, pairs[index])), f"{row[Metric.PARAMETERS]:,.0f}", str(row["n"])]
        cells += [
            format_percent(row["mean"]),
            format_percent(row["sd"]),
            f"{row[Metric.CPU_SECONDS]:.0f} ({row['cpu_sd']:.0f})",
        ]
        rows.append([*cells, "yes" if row["front"] else "", *_compared(against.get(int(index)))])
    versus = f"against {'-'.join(map(str, ARTICLES_FILTERS))} (points)"
    head = ["filters", "parameters", "n", "accuracy (%)", "sd", "CPU s (sd)", "front", versus, *_TEST]
    shares = ", ".join(
        f"{name} {100 * share:.0f} % ({100 * chance:.0f})"
        for name, (share, chance) in contrasts.variance_shares(tables).items()
    )
    found = f"Of the variance of all accuracies in this grid, and in brackets what chance alone would give: {shares}."
    return {"table": report.markdown_table(head, rows), "found": found}


def backends(tables: Tables) -> dict[str, str]:
    """Compare every backend and engine with TensorFlow's fit."""
    table = tables["backends"]
    groups = {(str(backend), str(engine)): part for (backend, engine), part in table.groupby([Tag.BACKEND, Tag.ENGINE])}
    reference = ("tensorflow", "keras")
    others = [name for name in groups if name != reference]
    values = {name: contrasts.accuracies(part) for name, part in groups.items()}
    compared = dict(zip(others, contrasts.compare([(values[name], values[reference]) for name in others]), strict=True))
    rows = []
    for name, part in groups.items():
        speed = part[Metric.IMAGES_PER_SECOND]
        cells = [*name, *_summary(evaluation.summarize(values[name].tolist()))]
        spread = f"{speed.median():,.0f} ({speed.min():,.0f} to {speed.max():,.0f})"
        rows.append([*cells, spread, *_compared(compared.get(name))])
    head = [
        "backend",
        "engine",
        *_SUMMARY,
        "images/s, median (min to max)",
        "against TensorFlow's fit (points)",
        *_TEST,
    ]
    differ = [
        f"{backend}, {engine}, is {each.verdict} than TensorFlow's fit."
        for (backend, engine), each in compared.items()
        if each.verdict != "not distinguishable"
    ]
    bounds = [abs(bound) for each in compared.values() for bound in (each.difference.low, each.difference.high)]
    widest = f"The intervals leave room for differences of up to {100 * max(bounds):.2f} points."
    found = " ".join([*(differ or ["None can be told from TensorFlow's fit by its accuracy."]), widest])
    return {"table": report.markdown_table(head, rows), "found": found}


def default(tables: Tables) -> dict[str, str]:
    """Return the first rows of the default study's leaderboard, its confirmation and its champion."""
    table, confirmation = tables["leaderboard"], tables["confirmation"]
    states = ", ".join(f"{number} {state}" for state, number in table[Column.STATE].value_counts().items())
    columns = [
        Column.RANK,
        Column.TRIAL,
        *parameters_among(table),
        Metric.VALIDATION_ACCURACY,
        Metric.CPU_SECONDS,
        Column.EPOCHS_RUN,
        Column.STATE,
        Column.NOTE,
    ]
    first = table[columns].head(_ROWS)
    rows = [[format_cell(name, row[name]) for name in columns] for _, row in first.iterrows()]
    grid = report.confirmed_text(confirmation)
    configs = [
        [name, settings(row), *cells]
        for (name, *cells), (_, row) in zip(grid.body, confirmation.iterrows(), strict=True)
    ]
    champion = confirmation[confirmation[Column.CHAMPION]].iloc[0]
    of_baseline = champion[Column.CONFIG] == "baseline"
    name, why = (
        ("the baseline", "nothing was better") if of_baseline else (champion[Column.CONFIG], champion[Column.VERDICT])
    )
    return {
        "trials": f"{len(table)} trials ({states})",
        "table": report.markdown_table([column_heading(name) for name in columns], rows),
        "search": f"In the search, {best_against_baseline(table, [Metric.VALIDATION_ACCURACY])}.",
        "confirmed": report.markdown_table([grid.head[0], "settings", *grid.head[1:]], configs),
        "champion": f"The champion is {name} ({settings(champion)}): {why}.",
    }


def settings(row: pd.Series[Any]) -> str:
    """Return a config's parameters in words: `batch size 250, epochs 9`."""
    names = parameters_among(row.index)
    return ", ".join(f"{parameter_in_words(name)} {format_cell(name, row[name])}" for name in names)


def _summary(summary: Summary) -> list[str]:
    interval = format_interval(summary.low, summary.high)
    return [str(summary.n), format_percent(summary.mean), format_percent(summary.sd), interval]


def _compared(each: PairedComparison | None) -> list[str]:
    if each is None:
        return ["", "", ""]
    interval = format_interval(each.difference.low, each.difference.high, signed=True)
    return [f"{format_points(each.difference.mean)} ({interval})", format_p(each.p_holm), each.verdict]


def _mean(summary: Summary) -> str:
    interval = format_interval(summary.low, summary.high)
    return f"{format_percent(summary.mean)} % (n = {summary.n}, 95 % interval {interval})"


def _points(difference: Summary) -> str:
    interval = format_interval(difference.low, difference.high, signed=True)
    return f"{format_points(difference.mean)} points (n = {difference.n}, 95 % interval {interval})"
