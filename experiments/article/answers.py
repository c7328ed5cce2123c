"""Answer each question of RESULTS.md with Markdown tables and sentences, from the published tables alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from digitcnn import evaluation, report
from digitcnn.evaluation import Contrast
from digitcnn.formatting import format_interval, format_p, format_percent, format_points
from digitcnn.records import Column, Metric, Tag
from digitcnn.study import best_against_baseline, parameters_among
from experiments.article import contrasts
from experiments.article.contrasts import ARTICLES_BATCH, ARTICLES_FILTERS, BATCH_SIZE_STUDIES, IMAGES, LAYERS, Tables
from experiments.article.headlines import NETWORKS, line_of_article
from experiments.article.phrases import (
    changed_names,
    contrast_cells,
    contrast_clause,
    interval_of,
    power_sentence,
    settings,
    summary_cells,
    verdict_of,
)

_ROWS = 5
_SUMMARY = ("n", "accuracy (%)", "sd", "95 % interval")
_TEST = ("p", "verdict")
_CLAIMED = 0.99
_PRECISION = "training.precision"
# How the leaderboard notes a run that the study took over.
_TAKEN = r"(?:^|; )from (?:run|trial) "
# Earlier versions pruned before this epoch.
_EARLY = 4
_PRUNED_EARLY = (
    "\n{number} of its trials were pruned before their fourth epoch, by a rule that is gone: so early the number of "
    "updates decides."
)


def networks(tables: Tables) -> dict[str, str]:
    """Compare the article's two networks, trained by its own protocol."""
    from scipy import stats

    rows = []
    values = {name: list(contrasts.accuracies(tables["article"], network=name).values()) for name in NETWORKS}
    for name, reported in NETWORKS.items():
        summary = evaluation.summarize(values[name])
        error = format_percent(evaluation.standard_error(summary.mean, IMAGES))
        low, high = contrasts.prediction_interval(values[name])
        of_best = float(tables["article"].query("network == @name")[Metric.BEST_TEST_ACCURACY].mean())
        single = format_interval(low, high)
        rows.append(
            [
                name.upper(),
                *summary_cells(summary),
                error,
                single,
                format_percent(of_best),
                f"{format_percent(reported)} (n = 1)",
            ]
        )
    over = sum(value > _CLAIMED for value in values["cnn"])
    above = stats.ttest_1samp(values["cnn"], _CLAIMED, alternative="greater").pvalue
    answer = "Yes" if above < 0.05 else "Not shown"
    difference = contrasts.network_comparison(tables)
    head = ["network", *_SUMMARY, "standard error of the test images", "95 % prediction interval of one run"]
    return {
        "table": report.markdown_table([*head, "mean accuracy of the best epochs", "article"], rows),
        "found": f"{answer}: the mean of the CNN lies above {100 * _CLAIMED:.0f} % (p {format_p(above)}, one-sided "
        f"t-test), as do {over} of its {len(values['cnn'])} runs. {line_of_article(tables)} The CNN is "
        f"{verdict_of(difference)} than the fully connected network by {format_points(difference.difference)} points "
        f"({interval_of(difference)}, p {format_p(difference.p)}).",
    }


def batch_size(tables: Tables) -> dict[str, str]:
    """Compare each batch size with the article's at two budgets, and one budget with the other."""
    found = {study: contrasts.batch_size_comparisons(tables, study) for study in BATCH_SIZE_STUDIES}
    said = {}
    for study, name in zip(BATCH_SIZE_STUDIES, ("article", "equal"), strict=True):
        rows = []
        for size, part in tables["batch_size"].query("study == @study").groupby("training.batch_size"):
            cells = summary_cells(evaluation.summarize(part[Metric.VALIDATION_ACCURACY].tolist()))
            seen, updates = part[Metric.SAMPLES_SEEN].iloc[0], part[Metric.UPDATES].iloc[0]
            against = contrast_cells(found[study].get(int(str(size))))
            rows.append([str(size), f"{seen:,.0f}", f"{updates:,.0f}", *cells, *against])
        head = ["batch size", "images seen", "updates", *_SUMMARY, f"against {ARTICLES_BATCH} (points)", *_TEST]
        said[name] = f"{report.markdown_table(head, rows)}\n\n{power_sentence(found[study].values())}"
    seen = tables["batch_size"].groupby(["study", "training.batch_size"])[Metric.SAMPLES_SEEN].first()
    rows = [
        [str(size), *(f"{seen[study, size]:,.0f}" for study in BATCH_SIZE_STUDIES), *contrast_cells(each)]
        for size, each in contrasts.budget_comparisons(tables).items()
    ]
    head = ["batch size", "images, article", "images, equal", "article against equal (points)", *_TEST]
    sentences = []
    for size, budget in contrasts.budget_effects(tables).items():
        as_article = found[BATCH_SIZE_STUDIES[0]][size]
        sentences.append(
            f"Of the {format_points(as_article.difference)} points of batch size {size} against {ARTICLES_BATCH}, "
            f"{format_points(budget.difference)} come from the number of images ({interval_of(budget)}, "
            f"p {format_p(budget.p)})."
        )
    smallest = min(found[BATCH_SIZE_STUDIES[1]])
    gains = [each for each in found[BATCH_SIZE_STUDIES[1]].values() if each.verdict == "worse"]
    answer = (
        "Yes: also at an equal number of images a smaller batch is worse."
        if gains
        else "Not by themselves: at an equal number of images no smaller batch could be shown to be worse."
    )
    equal = contrast_clause(f"batch size {smallest}", found[BATCH_SIZE_STUDIES[1]][smallest], str(ARTICLES_BATCH))
    return said | {
        "budget": report.markdown_table(head, rows),
        "found": f"{answer} There {equal}. {' '.join(sentences)}",
    }


def filters(tables: Tables) -> dict[str, str]:
    """Compare every pair of filter counts with the article's; state its cost and the layers' effects."""
    summaries = contrasts.filter_summaries(tables)
    against = contrasts.filter_comparisons(tables)
    rows = []
    for index in np.argsort(summaries[Metric.CPU_SECONDS].to_numpy(), kind="stable"):
        row = summaries.iloc[index]
        pair = (int(row["model.conv1_filters"]), int(row["model.conv2_filters"]))
        cells = ["-".join(map(str, pair)), f"{row[Metric.PARAMETERS]:,.0f}", str(row["n"])]
        cells += [
            format_percent(row["mean"]),
            format_percent(row["sd"]),
            f"{row[Metric.CPU_SECONDS]:.0f} ({row['cpu_sd']:.0f})",
        ]
        rows.append([*cells, "yes" if row["front"] else "", *contrast_cells(against.get(pair))])
    articles = "-".join(map(str, ARTICLES_FILTERS))
    head = ["filters", "parameters", "n", "accuracy (%)", "sd", "CPU s (sd)", "front", f"against {articles} (points)"]
    counts = dict(zip(LAYERS, ARTICLES_FILTERS, strict=True))
    effects = [
        [f"{level} instead of {counts[layer]} filters in the {LAYERS[layer]}", *contrast_cells(each)]
        for (layer, level), each in contrasts.filter_effects(tables).items()
    ]
    variance = [
        [name, f"{100 * row['share']:.0f} %", f"{row['df']:.0f}", *(("", "") if name == "chance" else _f_and_p(row))]
        for name, row in ((str(name), row) for name, row in contrasts.variance_table(tables).iterrows())
    ]
    return {
        "table": f"{report.markdown_table([*head, *_TEST], rows)}\n\n{power_sentence(against.values())}",
        "effects": report.markdown_table(["effect", "points", *_TEST], effects),
        "variance": report.markdown_table(
            ["source", "share of the variance", "degrees of freedom", "F", "p"], variance
        ),
        "found": _filters_found(against, articles),
    }


def _f_and_p(row: pd.Series[Any]) -> tuple[str, str]:
    return f"{row['F']:.1f}", format_p(row[Column.P])


def _filters_found(against: dict[tuple[int, int], Contrast], articles: str) -> str:
    """Return which pairs of filter counts are worse than the article's and which are better."""
    names = {
        verdict: [
            f"{first}-{second} ({format_points(each.difference)} points)"
            for (first, second), each in against.items()
            if each.verdict == verdict
        ]
        for verdict in ("worse", "better")
    }
    found = {verdict: f"{verdict}: {', '.join(some)}" for verdict, some in names.items() if some}
    answer = (
        f"Against {articles} these are {'; '.join(found.values())}." if found else "No pair could be shown to differ."
    )
    larger = [pair for pair in against if all(a >= b for a, b in zip(pair, ARTICLES_FILTERS, strict=True))]
    if larger and all(against[pair].verdict != "better" for pair in larger):
        answer += " More filters than the article's could not be shown to help."
    return answer


def backends(tables: Tables) -> dict[str, str]:
    """Compare every backend and engine with TensorFlow's fit."""
    table = tables["backends"]
    groups = {(str(backend), str(engine)): part for (backend, engine), part in table.groupby([Tag.BACKEND, Tag.ENGINE])}
    compared = contrasts.backend_comparisons(tables)
    rows = []
    for name, part in groups.items():
        speed = part[Metric.IMAGES_PER_SECOND]
        cells = [*name, *summary_cells(evaluation.summarize(part[Metric.VALIDATION_ACCURACY].tolist()))]
        spread = f"{speed.median():,.0f} ({speed.min():,.0f} to {speed.max():,.0f})"
        rows.append([*cells, spread, *contrast_cells(compared.get(name))])
    head = [
        "backend",
        "engine",
        *_SUMMARY,
        "images/s, median (min to max)",
        "against TensorFlow's fit (points)",
        *_TEST,
    ]
    differ = [
        f"{backend} ({engine} engine) is {each.verdict} than TensorFlow's fit."
        for (backend, engine), each in compared.items()
        if each.verdict in ("better", "worse")
    ]
    bounds = [abs(bound) for each in compared.values() for bound in (each.low, each.high)]
    found = " ".join(
        [
            *(differ or ["Not decided: no backend's accuracy differs measurably from TensorFlow's."]),
            f"The intervals leave room for differences of up to {100 * max(bounds):.2f} points.",
            power_sentence(compared.values()),
        ]
    )
    return {"table": report.markdown_table(head, rows), "found": found}


def confirmed(
    table: pd.DataFrame, confirmation: pd.DataFrame, runs: pd.DataFrame, ablation: pd.DataFrame, objective: str
) -> dict[str, str]:
    """Return the first rows of a study's leaderboard, its confirmation, its champion, and its ablation, if any."""
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
    configs, changed = report.confirmed_text(confirmation), changed_names(confirmation)
    configs.insert(1, "settings", [settings(row, changed) for _, row in confirmation.iterrows()])
    champion = confirmation[confirmation[Column.CHAMPION]].iloc[0]
    its = settings(champion, changed)
    ratio = champion[Metric.CPU_SECONDS] / confirmation[Metric.CPU_SECONDS].iloc[0]
    cost = "" if ratio == 1 else f", for {ratio:.2f} times the CPU seconds"
    basis = evaluation.basis_sentence(confirmation)
    taken = int(table[Column.NOTE].str.contains(_TAKEN).sum())
    before = f", {taken} of them from runs recorded before" if taken else ""
    early = table[(table[Column.STATE] == "pruned") & (table[Column.EPOCHS_RUN] < _EARLY)]
    return {
        "trials": f"{len(table)} trials ({states}){before}",
        "table": report.markdown_of(report.ranking(table[columns], _ROWS)),
        "search": f"In the search, {best_against_baseline(table, [objective])}.",
        "confirmed": report.markdown_of(configs),
        "champion": f"The champion is {evaluation.champion_sentence(confirmation)} ({its}){cost}.",
        "origin": _origin(runs),
        "basis": f"{basis[0].upper()}{basis[1:]}.",
        "ablation": "" if ablation.empty else _ablation(ablation),
        "pruning": "" if early.empty else _PRUNED_EARLY.format(number=len(early)),
    }


def _origin(runs: pd.DataFrame) -> str:
    """Return what precision and processor a confirmation's runs had; the first edition did not record it."""
    if _PRECISION not in runs:
        return ""
    made = runs[[_PRECISION, Tag.CPU]].drop_duplicates().itertuples(index=False, name=None)
    return f", {' and '.join(f'in {precision} on {cpu}' for precision, cpu in made)}"


def _ablation(table: pd.DataFrame) -> str:
    """Return an ablation's table, and which of its changes are told apart from none."""
    told = table[(table[Column.DIFFERENCE_LOW] > 0) | (table[Column.DIFFERENCE_HIGH] < 0)]
    names = "; ".join(told[Column.CONFIG]) if len(told) else "none"
    return f"{report.markdown_of(evaluation.ablation_texts(table))}\n\nIntervals without 0: {names}."
