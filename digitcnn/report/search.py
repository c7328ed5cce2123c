"""Curves: if early epochs tell the end, the best so far for what was spent, and those of repeated seeds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from plotly import graph_objects as go

from digitcnn import study
from digitcnn.drawing import BLUE, GREEN, INK, ORANGE, PURPLE, SKY
from digitcnn.records import PRUNING_METRICS, Column, Metric, Tag, is_maximized
from digitcnn.report import charts
from digitcnn.report.record import StudyRecord

_MIN_TRIALS = 4
_COLOURS = (INK, BLUE, ORANGE, GREEN, PURPLE, SKY)
# Of the best of k random trials, the interval that holds it in nine of ten searches.
_BAND = (0.05, 0.95)


@dataclass(frozen=True)
class EarlyEpoch:
    """An epoch beside the end of the `trials` that went on after it.

    `correlation` is Spearman's, NaN where all are equal; `cut` the fraction of those in the better half at the end that
    the median of this epoch would have pruned.
    """

    epoch: int
    trials: int
    correlation: float
    cut: float


def early_epochs_of(found: StudyRecord) -> list[EarlyEpoch]:
    """Return the early epochs of a study's completed trials, by the metric that its pruner would judge."""
    metric = PRUNING_METRICS.get(found.objectives[0], Metric.VALIDATION_ACCURACY)
    judged = found.curves[Column.STATE].isin(("complete", "infeasible")) & ~found.curves[Column.TRIAL].isin(
        _copies(found)
    )
    return early_epochs(found.curves[judged], metric)


def early_epochs(curves: pd.DataFrame, metric: str) -> list[EarlyEpoch]:
    """Return what each epoch tells of the end, as long as at least four trials went on after it.

    `curves` has a row per trial and epoch.
    """
    table = curves.pivot_table(index=Column.TRIAL, columns=Column.EPOCH, values=metric)
    values = table.to_numpy(float) * (1 if is_maximized(metric) else -1)
    last = np.isfinite(values).sum(axis=1)
    ends = values[np.arange(len(values)), last - 1]
    best = np.fmax.accumulate(values, axis=1)
    rows = []
    for place, epoch in enumerate(table.columns):
        on = last > place + 1
        if on.sum() < _MIN_TRIALS:
            break
        better = ends[on] >= np.median(ends[on])
        pruned = best[on, place] < np.median(values[on, place])
        correlation = pd.Series(values[on, place]).rank().corr(pd.Series(ends[on]).rank())
        rows.append(EarlyEpoch(int(epoch), int(on.sum()), float(correlation), float(pruned[better].mean())))
    return rows


def early_table(epochs: Sequence[EarlyEpoch]) -> pd.DataFrame:
    """Return the epochs as a table of texts."""
    head = ["epoch", "trials that went on", "rank correlation with the end", "of the better half, pruned by a median"]
    rows = [(str(e.epoch), str(e.trials), _correlation(e), f"{100 * e.cut:.0f} %") for e in epochs]
    return pd.DataFrame(rows, columns=head)


def _correlation(epoch: EarlyEpoch) -> str:
    return "all equal" if math.isnan(epoch.correlation) else f"{epoch.correlation:.2f}"


def early_sentence(epochs: Sequence[EarlyEpoch]) -> str:
    """Return what the first epoch that a pruner may judge tells of the end; empty if there are too few trials."""
    if not epochs:
        return ""
    first = study.judged_from(epochs[-1].epoch + 1)
    each = next((each for each in epochs if each.epoch == first), epochs[-1])
    return (
        f"Can early epochs be trusted? Epoch {each.epoch} has a rank correlation of {_correlation(each)} with the end "
        f"(n = {each.trials}); a median there would have pruned {100 * each.cut:.0f} % of the better half."
    )


def spent_seconds(found: StudyRecord) -> pd.Series:
    """Return the CPU seconds that each trial cost, by its number: nothing where an earlier result was taken over."""
    costs = found.table.set_index(Column.TRIAL)[Metric.CPU_SPENT].astype(float).fillna(0.0).sort_index()
    costs[_copies(found)] = 0.0
    return costs


def _copies(found: StudyRecord) -> list[int]:
    """Return the numbers of the trials that took over the result of an earlier one."""
    records = {each.number: study.read_trial(each) for each in found.study.get_trials(deepcopy=False)}
    return [number for number, each in records.items() if (each.same_as, each.prefix_of) != (None, None)]


def is_random(found: StudyRecord) -> bool:
    """Return True if every sweep of a study drew its trials at random."""
    return found.settings.get(Tag.STUDY_SAMPLER) == "random"


def tuning_curve(found: StudyRecord) -> go.Figure:
    """Draw the best objective so far over the CPU minutes spent; of a random search also what another would reach."""
    (name,) = found.objectives
    values = found.completed.set_index(Column.TRIAL)[name].astype(float).sort_index()
    minutes = spent_seconds(found).cumsum()[values.index] / 60
    best = values.cummax() if is_maximized(name) else values.cummin()
    figure = go.Figure()
    if is_random(found):
        low, high = (charts.scaled(name, each) for each in best_of_random(values.to_numpy(), is_maximized(name)))
        x = np.arange(1, len(values) + 1) * float(minutes.iloc[-1]) / len(values)
        look = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=x, y=low, showlegend=False, **look))
        figure.add_trace(go.Scatter(x=x, y=high, fill="tonexty", name="nine of ten random searches", **look))
    figure.add_trace(
        go.Scatter(x=minutes, y=charts.scaled(name, values), mode="markers", name="trial", marker={"color": BLUE})
    )
    line = {"color": ORANGE, "shape": "hv"}
    figure.add_trace(go.Scatter(x=minutes, y=charts.scaled(name, best), mode="lines", name="best so far", line=line))
    return charts.finish(figure, "CPU time spent (min)", charts.title_of(name))


def seed_curves(curves: pd.DataFrame) -> go.Figure:
    """Draw the training loss of each config over the epochs: the mean of its seeds, and a band from least to most."""
    figure = go.Figure()
    for (config, runs), color in zip(
        curves.groupby(Column.CONFIG, sort=False), itertools.cycle(_COLOURS), strict=False
    ):
        losses = runs.groupby(Column.EPOCH)[Metric.TRAIN_LOSS].agg(["min", "mean", "max"])
        look: dict[str, Any] = {"x": losses.index, "mode": "lines", "legendgroup": config, "line_color": color}
        band = {"line_width": 0, "showlegend": False, "hoverinfo": "skip"}
        for side, fill in (("min", None), ("max", "tonexty")):
            figure.add_scatter(y=losses[side], name=f"{config}, {side}", fill=fill, **look | band)
        figure.add_scatter(y=losses["mean"], name=str(config), **look)
    figure.update_yaxes(type="log")
    figure.update_xaxes(tickformat="d", **({"dtick": 1} if curves[Column.EPOCH].max() <= 15 else {}))
    return charts.finish(figure, "epoch", "training loss (nats, logarithmic)")


def best_of_random(values: NDArray[np.floating[Any]], larger: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 5 % and 95 % quantiles of the best of 1, 2, ... random trials, given all that were drawn.

    The best of k draws from the observed values is at most x with the probability F(x)^k (Dodge and others, 2019,
    doi:10.18653/v1/D19-1224).
    """
    draws = np.arange(1, len(values) + 1)
    ordered = values if larger else -values
    low, high = (np.quantile(ordered, q ** (1 / draws), method="inverted_cdf") for q in _BAND)
    return (low, high) if larger else (-high, -low)
