"""Contrasts of batch size, number of images and filter counts in the published tables, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from digitcnn import evaluation
from digitcnn.evaluation import PairedComparison
from digitcnn.records import Column, Metric
from digitcnn.study import pareto_ranks

# The studies: as the article counts epochs, and at an equal number of images.
BATCH_SIZE_STUDIES = ("batch_size_article", "batch_size")
ARTICLES_BATCH, ARTICLES_FILTERS = 250, (32, 64)
# One of the 10,000 images that judge a run, in validation as in test: no smaller difference can be seen.
_RESOLUTION = 1e-4

Tables = Mapping[str, pd.DataFrame]


def batch_size_comparisons(tables: Tables, study: str) -> dict[int, PairedComparison]:
    """Compare each batch size of a study with the article's, by batch size."""
    sizes = [size for size in _sizes(tables) if size != ARTICLES_BATCH]
    articles = _of_size(tables, study, ARTICLES_BATCH)
    return dict(zip(sizes, compare([(_of_size(tables, study, size), articles) for size in sizes]), strict=True))


def budget_comparisons(tables: Tables) -> dict[int, PairedComparison]:
    """Compare the article's number of images with the equal one, by batch size."""
    sizes = _sizes(tables)
    article, equal = BATCH_SIZE_STUDIES
    pairs = [(_of_size(tables, article, size), _of_size(tables, equal, size)) for size in sizes]
    return dict(zip(sizes, compare(pairs), strict=True))


def budget_effects(tables: Tables) -> dict[int, PairedComparison]:
    """Return the effect of the number of images: a batch size's difference to the article's in two studies."""

    def to_articles(study: str, size: int) -> pd.Series[float]:
        return _of_size(tables, study, size) - _of_size(tables, study, ARTICLES_BATCH)

    sizes = [size for size in _sizes(tables) if size != ARTICLES_BATCH]
    article, equal = BATCH_SIZE_STUDIES
    return dict(
        zip(sizes, compare([(to_articles(article, size), to_articles(equal, size)) for size in sizes]), strict=True)
    )


def _sizes(tables: Tables) -> list[int]:
    return [int(size) for size in sorted(tables["batch_size"]["training.batch_size"].unique())]


def _of_size(tables: Tables, study: str, size: int) -> pd.Series[float]:
    return accuracies(tables["batch_size"], **{"study": study, "training.batch_size": size})


def filter_summaries(tables: Tables) -> pd.DataFrame:
    """Return a row per pair of filter counts: mean and sd of the accuracy, mean CPU seconds, on the front or not."""
    groups = tables["filters"].groupby(["model.conv1_filters", "model.conv2_filters"])
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


def variance_shares(tables: Tables) -> dict[str, tuple[float, float]]:
    """Return the share of the accuracies' variance that each factor of the filters' grid explains, and the rest.

    The analysis of variance of a full grid: sums of squares of the factors' means. Each share comes with the one that
    pure chance would give on average: the factor's degrees of freedom divided by the total.
    """
    table = tables["filters"]
    factors = {"model.conv1_filters": "first layer", "model.conv2_filters": "second layer", Column.SEED: "seed"}
    mean = table[Metric.VALIDATION_ACCURACY].mean()
    total = float(((table[Metric.VALIDATION_ACCURACY] - mean) ** 2).sum())
    shares = {}
    for column, name in factors.items():
        groups = table.groupby(column)[Metric.VALIDATION_ACCURACY]
        share = float((groups.size() * (groups.mean() - mean) ** 2).sum()) / total
        shares[name] = (share, (groups.ngroups - 1) / (len(table) - 1))
    left = [1 - sum(column) for column in zip(*shares.values(), strict=True)]
    return shares | {"their interplay and chance": (left[0], left[1])}


def accuracies(table: pd.DataFrame, **where: object) -> pd.Series[float]:
    """Return the accuracies of the runs with these values, by seed."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table.set_index(Column.SEED)[Metric.VALIDATION_ACCURACY].sort_index()


def compare(pairs: Sequence[tuple[pd.Series[float], pd.Series[float]]]) -> list[PairedComparison]:
    """Compare candidates, each with its baseline, paired by seed. Raises KeyError if a candidate lacks a seed."""
    by_seed = [(candidate[baseline.index].tolist(), baseline.tolist()) for candidate, baseline in pairs]
    return evaluation.compare_pairs(by_seed, _RESOLUTION)
