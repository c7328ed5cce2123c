"""The comparison of a confirmation's runs: a table of configs with verdicts, and a table of runs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from digitcnn import tracking, training
from digitcnn.evaluation.plan import RecordedRuns
from digitcnn.evaluation.statistics import (
    MARGIN,
    Accuracies,
    compare,
    race,
    spread_between_seeds,
    standard_error,
    summarize,
)
from digitcnn.evaluation.verdicts import as_good_as, best_of, champion_of
from digitcnn.formatting import format_count, named_null
from digitcnn.records import Column, Metric, Tag
from digitcnn.study import parameters_among

# The columns of counts, which may be empty.
_IMAGES = (Column.ONLY_CANDIDATE_RIGHT, Column.ONLY_BASELINE_RIGHT)
_COUNTS = (*_IMAGES, Metric.PARAMETERS, Column.SEEDS_NEEDED, Column.DIVERGED_SEED, Column.RACED_OUT)
_MEASURED = (Metric.TEST_ACCURACY, Metric.TEST_LOSS, Metric.CPU_SECONDS)
# What may differ between runs and change their numbers.
_ORIGIN = (Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.ENGINE, Tag.CPU)
_PRECISION = "training.precision"


def compare_candidates(
    store: tracking.Store, recorded: RecordedRuns, look: int, margin: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per candidate, baseline first, and a row per run that was compared.

    Everything that is recorded counts, whatever is asked for now. Where a seed of a candidate diverged, its others
    alone would flatter it, so that its row has n = 0 and says only that.
    """
    rows, right, configs, images = [], dict[str, NDArray[np.float64]](), [], 1
    for candidate in recorded.candidates:
        of_images: list[NDArray[np.bool_]] = []
        parameters = {key: named_null(value) for key, value in candidate.parameters.items()}
        config = {Column.CONFIG: candidate.name, Column.TRIAL: candidate.trial, **parameters}
        config[Column.FEASIBLE] = candidate.feasible
        configs.append(config | {Column.DIVERGED_SEED: recorded.diverged.get(candidate.name)})
        if candidate.name in recorded.diverged:
            continue
        its = sorted((seed, run_id) for (name, seed), run_id in recorded.runs.items() if name == candidate.name)
        for seed, run_id in its:
            data = store.client.get_run(run_id).data
            run = {Column.CONFIG: candidate.name, Column.TRIAL: candidate.trial, Column.SEED: seed}
            run |= {Column.RUN_ID: run_id, **{key: data.metrics[key] for key in _MEASURED}}
            rows.append(run | _origin(data.tags, data.params))
            configs[-1][Metric.PARAMETERS] = int(data.metrics[Metric.PARAMETERS])
            predicted = tracking.read_predictions(store, run_id)
            images = len(predicted)
            of_images.append((predicted[Column.PREDICTED] == predicted[Column.LABEL]).to_numpy())
        right[candidate.name] = np.mean(of_images, axis=0)
        # More often right than the baseline, over the seeds, or less often.
        ahead = np.sign(right[candidate.name] - right["baseline"])
        configs[-1] |= {Column.ONLY_CANDIDATE_RIGHT: int((ahead > 0).sum())}
        configs[-1] |= {Column.ONLY_BASELINE_RIGHT: int((ahead < 0).sum())}
    runs = pd.DataFrame(rows)
    return judge_runs(pd.DataFrame(configs), runs, look, margin, images), runs


def _origin(tags: Mapping[str, str], parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the commit, the engine, the processor, the precision and the versions of a run."""
    versions = {name: tags.get(f"{Tag.VERSION_PREFIX}{name}") for name in training.NUMERIC_PACKAGES}
    origin = {name: tags[name] for name in _ORIGIN if name in tags}
    if _PRECISION in parameters:
        origin[_PRECISION] = parameters[_PRECISION]
    return origin | {Column.VERSIONS: ", ".join(f"{name} {version}" for name, version in versions.items() if version)}


def mixed_runs(runs: pd.DataFrame) -> list[str]:
    """Return a sentence for each thing that differs between the runs of a confirmation and could change a number."""
    sentences = []
    for name in (*_ORIGIN, _PRECISION, Column.VERSIONS):
        counted = runs[name].astype(str).value_counts() if name in runs else pd.Series(dtype=int)
        if len(counted) > 1:
            sentences.append(f"the runs differ in {name}: {values_with_runs(counted.to_dict())}")
    return sentences


def values_with_runs(counted: Mapping[Any, int]) -> str:
    """Return values with their numbers of runs: fast (2 runs); keras (1 run)."""
    return "; ".join(f"{value} ({format_count(number, 'run')})" for value, number in counted.items())


def judge_runs(configs: pd.DataFrame, runs: pd.DataFrame, look: int, margin: float, images: int) -> pd.DataFrame:
    """Return a confirmation's table: `configs` with the statistics of their runs, verdicts and the champion.

    `configs` has a row per config, the baseline's first, and the seed with which one diverged.
    """
    values: Accuracies = {
        str(name): dict(zip(part[Column.SEED].tolist(), part[Metric.TEST_ACCURACY].tolist(), strict=True))
        for name, part in runs.groupby(Column.CONFIG, sort=False)
    }
    seconds = runs.groupby(Column.CONFIG)[Metric.CPU_SECONDS].mean()
    compared = compare(values, look=look, margin=margin, resolution=1 / images)
    spread, freedom = spread_between_seeds(values, 1 / images)
    raced = dict(zip(values, race(pd.DataFrame(values).sort_index().to_numpy(float), 1 / images), strict=True))
    most = max(map(len, values.values()))
    shared = {Column.SPREAD: spread if freedom else math.nan, Column.MARGIN: margin, Column.LOOK: look}
    rows = []
    for config in configs.to_dict("records"):
        name = str(config[Column.CONFIG])
        row: dict[str, Any] = {str(key): value for key, value in config.items()} | shared
        if name not in values:
            rows.append(row | {"n": 0, Column.VERDICT: "diverged"})
            continue
        summary = summarize(list(values[name].values()), 1 / images)
        contrast = compared.get(name)
        if contrast is not None:
            bounds = {Column.DIFFERENCE_LOW: contrast.low, Column.DIFFERENCE_HIGH: contrast.high}
            row |= vars(contrast) | bounds
        row |= vars(summary) | {Column.VERDICT: "" if contrast is None else contrast.verdict}
        # Who has all seeds lost none by being behind.
        row[Column.RACED_OUT] = raced[name] if raced[name] and summary.n < most else None
        row |= {Column.IMAGES_ERROR: standard_error(summary.mean, images), Metric.CPU_SECONDS: seconds[name]}
        rows.append(row)
    table = pd.DataFrame([{Column.FEASIBLE: True} | row for row in rows])
    best, *equals = as_good_as(best_of(table), values, look, margin, 1 / images)
    table[Column.AS_GOOD] = table[Column.CONFIG].isin(equals) & table[Column.FEASIBLE] | (table[Column.CONFIG] == best)
    table[Column.CHAMPION] = table[Column.CONFIG] == champion_of(table)
    return _in_order(table)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Return a confirmation's table with all of its columns, in their order, and counts as whole numbers."""
    parameters = parameters_among(table.columns)
    names = [Column.CONFIG, Column.TRIAL, *parameters, "n", "mean", "sd", "low", "high", Column.DIFFERENCE]
    names += [Column.DIFFERENCE_LOW, Column.DIFFERENCE_HIGH, Column.P, Column.SUPERIORITY, Column.SUPERIORITY_LOW]
    names += [Column.SUPERIORITY_HIGH, *_IMAGES, Column.IMAGES_ERROR, Metric.CPU_SECONDS, Metric.PARAMETERS]
    names += [Column.DETECTABLE, Column.SEEDS_NEEDED, Column.DIVERGED_SEED, Column.RACED_OUT, Column.VERDICT]
    names += [Column.FEASIBLE, Column.AS_GOOD, Column.CHAMPION, Column.SPREAD, Column.MARGIN, Column.LOOK]
    # A confirmation of an earlier version knew no constraints.
    table = table.reindex(columns=names).fillna({Column.FEASIBLE: True})
    return table.astype(dict.fromkeys(_COUNTS, "Int64") | {Column.FEASIBLE: bool})


def read_confirmation(file: Path | TextIO, runs: pd.DataFrame | None) -> pd.DataFrame:
    """Read a confirmation's table from its CSV; one of the first edition is judged anew from its runs, as one look.

    Raise ValueError if it is of the first edition, and there are no runs.
    """
    table = pd.read_csv(file, float_precision="round_trip").fillna({Column.VERDICT: ""})
    if Column.LOOK in table:
        return _in_order(table)
    if runs is None:
        raise ValueError("the runs of the confirmation are missing")
    diverged = [re.fullmatch(r"diverged with seed (\d+)", verdict) for verdict in table[Column.VERDICT]]
    table[Column.DIVERGED_SEED] = [None if each is None else int(each[1]) for each in diverged]
    kept = [Column.CONFIG, Column.TRIAL, *parameters_among(table), *_IMAGES, Metric.PARAMETERS, Column.DIVERGED_SEED]
    # An accuracy is a number of images divided by that of all.
    images = math.lcm(*(Fraction(each).limit_denominator(10**5).denominator for each in runs[Metric.TEST_ACCURACY]))
    return judge_runs(table[kept], runs, 1, MARGIN, images)
