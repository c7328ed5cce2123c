"""Ablation: what each change from a study's baseline to its best trial brings, alone and beside the others.

Steps along one path would credit a change with what it does after those that happen to come before it. So each change
is made alone in the baseline, and taken back alone from the best trial: the two agree unless changes depend on another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from typing import Any

import pandas as pd

from digitcnn import runner, study
from digitcnn.config import RunConfig
from digitcnn.errors import ConfigError
from digitcnn.evaluation.statistics import Accuracies, compare
from digitcnn.formatting import format_interval, format_p, format_points, named_null
from digitcnn.records import Column

logger = logging.getLogger(__name__)


def step_configs(baseline: RunConfig, best: RunConfig) -> dict[str, tuple[dict[str, Any], RunConfig]]:
    """Return the changed values and the config of each step by its name, without those that cannot be trained.

    There are 2 k of k changes, 2 of 2, as one alone is the best without the other, and none of one.
    """
    changed, steps = _changes(baseline, best), dict[str, tuple[dict[str, Any], RunConfig]]()
    for keys in (keys for key in changed for keys in ({key}, changed.keys() - {key})):
        name = _name(keys, changed, "")
        if not keys or not name or name in steps:
            continue
        values = {key: value for key, value in changed.items() if key in keys}
        try:
            config = baseline.replace(values)
            runner.check_run(config)
        except ConfigError as error:
            logger.warning(f"confirm.ablation: {name} is left out: {error}")
        else:
            steps[name] = (values, config)
    return steps


def _changes(baseline: RunConfig, best: RunConfig) -> dict[str, Any]:
    """Return the best trial's values that differ from the baseline's, by their keys."""
    before = baseline.parameters()
    return {name: value for name, value in best.parameters().items() if value != before.get(name)}


def _name(keys: Set[str], changed: Mapping[str, Any], best: str) -> str:
    """Return the name of the config with some of the changes: `best` has all, the baseline none."""
    if len(keys) in (0, len(changed)):
        return best if keys else "baseline"
    if len(keys) == 1:
        return f"{study.parameter_in_words(*keys)} alone"
    (missing,) = changed.keys() - keys
    return f"without {study.parameter_in_words(missing)}"


def compare_steps(
    baseline: RunConfig, best: RunConfig, name: str, values: Accuracies, confirmed: pd.DataFrame
) -> pd.DataFrame:
    """Return a row per change and place, alone or in the best trial: the difference, its interval, p for all at once.

    `values` holds the accuracies by config, `confirmed` is the confirmation's table, whose look it is.
    """
    changed, before = _changes(baseline, best), baseline.parameters()
    contrasts: dict[str, dict[str, float]] = {}
    for key, value in changed.items():
        old, new = (study.format_cell(key, named_null(each)) for each in (before.get(key), value))
        change = f"{study.parameter_in_words(key)} {old} to {new}"
        others = changed.keys() - {key}
        for place, with_it, without in (("alone", {key}, set[str]()), (f"in {name}", changed.keys(), others)):
            weights = {_name(with_it, changed, name): 1.0, _name(without, changed, name): -1.0}
            if weights.keys() <= values.keys() and weights not in contrasts.values():
                contrasts[f"{change}, {place}"] = weights
    row = confirmed.iloc[0]
    used = {each: values[each] for each in values if any(each in weights for weights in contrasts.values())}
    resolution, look = 1 / len(runner.check_run(baseline).validation), int(row[Column.LOOK])
    found = compare(used, contrasts, look=look, resolution=resolution) if contrasts else {}
    rows = [
        (change, each.n, each.difference, each.low, each.high, each.p, row[Column.MARGIN], look)
        for change, each in found.items()
    ]
    names = [Column.CONFIG, "n", Column.DIFFERENCE, Column.DIFFERENCE_LOW, Column.DIFFERENCE_HIGH, Column.P]
    return pd.DataFrame(rows, columns=[*names, Column.MARGIN, Column.LOOK])


def ablation_texts(table: pd.DataFrame) -> pd.DataFrame:
    """Return an ablation's table as texts."""
    rows = [
        (
            row[Column.CONFIG],
            str(row["n"]),
            format_points(row[Column.DIFFERENCE]),
            format_interval(row[Column.DIFFERENCE_LOW], row[Column.DIFFERENCE_HIGH], signed=True),
            format_p(row[Column.P]),
        )
        for row in table.to_dict("records")
    ]
    return pd.DataFrame(rows, columns=["change", "n", "difference (points)", "simultaneous interval", Column.P])
