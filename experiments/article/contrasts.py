"""Contrasts of batch size, number of images, filter counts and backends in the published tables; seeds are blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from digitcnn import evaluation
from digitcnn.evaluation import Contrast
from digitcnn.records import Column, Metric, Tag
from digitcnn.study import pareto_ranks

# The studies: as the article counts epochs, and at an equal number of images.
BATCH_SIZE_STUDIES = ("batch_size_article", "batch_size")
ARTICLES_BATCH, ARTICLES_FILTERS = 250, (32, 64)
LAYERS = {"model.conv1_filters": "first layer", "model.conv2_filters": "second layer"}
# The images that judge a run, in validation as in test: no smaller difference than one of them can be seen.
IMAGES = 10_000

Tables = Mapping[str, pd.DataFrame]


def accuracies(table: pd.DataFrame, **where: object) -> dict[int, float]:
    """Return the accuracies of the runs with these values, by seed; on the test set where they were judged by that."""
    for column, value in where.items():
        table = table[table[column] == value]
    metric = Metric.TEST_ACCURACY if Metric.TEST_ACCURACY in table else Metric.VALIDATION_ACCURACY
    return dict(sorted(zip(table[Column.SEED].tolist(), table[metric].tolist(), strict=True)))


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval of 95 % of further single values, given a sample of at least two normal values."""
    summary = evaluation.summarize(values)
    spread = summary.sd * (1 + 1 / summary.n) ** 0.5
    low, high = stats.t.interval(0.95, summary.n - 1, summary.mean, spread)
    return float(low), float(high)


def _compare(
    values: Mapping[str, Mapping[int, float]], contrasts: Mapping[str, Mapping[str, float]] | None = None
) -> dict[str, Contrast]:
    return evaluation.compare(values, contrasts, resolution=1 / IMAGES)


def batch_size_comparisons(tables: Tables, study: str) -> dict[int, Contrast]:
    """Compare each batch size of a study with the article's, by batch size."""
    sizes = [ARTICLES_BATCH, *(size for size in _sizes(tables) if size != ARTICLES_BATCH)]
    compared = _compare({str(size): _cell(tables, study, size) for size in sizes})
    return {int(size): each for size, each in compared.items()}


def budget_comparisons(tables: Tables) -> dict[int, Contrast]:
    """Compare the article's number of images with the equal one, by batch size."""
    article, equal = BATCH_SIZE_STUDIES
    return _of_both(tables, {size: {(article, size): 1, (equal, size): -1} for size in _sizes(tables)})


def budget_effects(tables: Tables) -> dict[int, Contrast]:
    """Return the effect of the number of images: a batch size's difference to the article's in two studies."""
    article, equal = BATCH_SIZE_STUDIES
    to_articles = {
        size: {(article, size): 1, (article, ARTICLES_BATCH): -1, (equal, size): -1, (equal, ARTICLES_BATCH): 1}
        for size in _sizes(tables)
        if size != ARTICLES_BATCH
    }
    return _of_both(tables, to_articles)


def _of_both(tables: Tables, wanted: Mapping[int, Mapping[tuple[str, int], int]]) -> dict[int, Contrast]:
    """Compare cells of both studies, with the error that all cells share."""
    cells = [(study, size) for study in BATCH_SIZE_STUDIES for size in _sizes(tables)]
    values = {f"{study} {size}": _cell(tables, study, size) for study, size in cells}
    contrasts = {
        str(size): {f"{study} {size}": float(weight) for (study, size), weight in weights.items()}
        for size, weights in wanted.items()
    }
    return {int(size): each for size, each in _compare(values, contrasts).items()}


def _sizes(tables: Tables) -> list[int]:
    return [int(size) for size in sorted(tables["batch_size"]["training.batch_size"].unique())]


def _cell(tables: Tables, study: str, size: int) -> dict[int, float]:
    return accuracies(tables["batch_size"], **{"study": study, "training.batch_size": size})


def network_comparison(tables: Tables) -> Contrast:
    """Compare the article's CNN with its fully connected network."""
    table = tables["article"]
    return _compare({name: accuracies(table, network=name) for name in ("mlp", "cnn")})["cnn"]


def backend_comparisons(tables: Tables) -> dict[tuple[str, str], Contrast]:
    """Compare each other backend and engine with TensorFlow's fit."""
    reference = ("tensorflow", "keras")
    by_backend = tables["backends"].groupby([Tag.BACKEND, Tag.ENGINE])
    groups = {(str(backend), str(engine)): part for (backend, engine), part in by_backend}
    order = [reference, *(name for name in groups if name != reference)]
    compared = _compare({" ".join(name): accuracies(groups[name]) for name in order})
    return {name: compared[" ".join(name)] for name in order[1:]}


def filter_summaries(tables: Tables) -> pd.DataFrame:
    """Return a row per pair of filter counts: mean and sd of the accuracy, mean CPU seconds, on the front or not."""
    groups = tables["filters"].groupby(list(LAYERS))
    table = groups.agg(
        n=(Column.SEED, "size"),
        parameters=(Metric.PARAMETERS, "first"),
        mean=(Metric.VALIDATION_ACCURACY, "mean"),
        sd=(Metric.VALIDATION_ACCURACY, "std"),
        cpu_seconds=(Metric.CPU_SECONDS, "mean"),
        cpu_sd=(Metric.CPU_SECONDS, "std"),
    ).reset_index()
    table["front"] = pareto_ranks(np.column_stack([-table["mean"], table[Metric.CPU_SECONDS]])) == 1
    return table


def filter_comparisons(tables: Tables) -> dict[tuple[int, int], Contrast]:
    """Compare each pair of filter counts with the article's."""
    compared = _compare(_filter_pairs(tables))
    return {_pair(name): each for name, each in compared.items()}


def filter_effects(tables: Tables) -> dict[tuple[str, int], Contrast]:
    """Return the effect of a filter count of a layer instead of the article's, over all counts of the other layer."""
    values = _filter_pairs(tables)
    contrasts: dict[str, dict[str, float]] = {}
    for place, (layer, articles) in enumerate(zip(LAYERS, ARTICLES_FILTERS, strict=True)):
        levels = sorted({_pair(name)[place] for name in values})
        others = len(values) // len(levels)
        for level in levels:
            if level != articles:
                signs = {level: 1.0, articles: -1.0}
                contrasts[f"{layer} {level}"] = {
                    name: signs[_pair(name)[place]] / others for name in values if _pair(name)[place] in signs
                }
    compared = _compare(values, contrasts)
    return {(name.split()[0], int(name.split()[1])): each for name, each in compared.items()}


def _pair(name: str) -> tuple[int, int]:
    first, second = name.split("-")
    return int(first), int(second)


def _filter_pairs(tables: Tables) -> dict[str, dict[int, float]]:
    """Return the accuracies of each pair of filter counts, the article's first."""
    groups = tables["filters"].groupby(list(LAYERS))
    found = {f"{first}-{second}": accuracies(part) for (first, second), part in groups}
    articles = "-".join(map(str, ARTICLES_FILTERS))
    return {articles: found.pop(articles), **found}


def variance_table(tables: Tables) -> pd.DataFrame:
    """Return the analysis of variance of the filters' grid, seeds as blocks.

    A row per source of variance: its share of all, degrees of freedom, F and p.
    """
    from statsmodels.formula.api import ols
    from statsmodels.stats.anova import anova_lm

    names = dict(zip(LAYERS, ("first", "second"), strict=True)) | {Metric.VALIDATION_ACCURACY: "accuracy"}
    table = anova_lm(ols("accuracy ~ C(first) * C(second) + C(seed)", tables["filters"].rename(columns=names)).fit())
    rows = [*LAYERS.values(), "seed", "interaction of the layers", "chance"]
    shares = table["sum_sq"] / table["sum_sq"].sum()
    columns = {"share": shares, "df": table["df"].astype(int), "F": table["F"], Column.P: table["PR(>F)"]}
    return pd.DataFrame(columns).set_axis(rows)
