"""The search in a report: early epochs beside the end, and what another random search would reach."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from digitcnn.report import search
from tests.support.published import PUBLISHED


def _curves(*curves: list[float]) -> pd.DataFrame:
    rows = [(trial, epoch, value, -value) for trial, curve in enumerate(curves) for epoch, value in enumerate(curve, 1)]
    return pd.DataFrame(rows, columns=["trial", "epoch", "validation_accuracy", "validation_loss"])


def test_published_curves_show_why_no_trial_is_judged_early() -> None:
    """Given the curves from which docs/method.md has its numbers."""
    published = pd.read_csv(PUBLISHED / "batch_size_curves.csv").query("study == 'batch_size'")
    numbered = published.assign(trial=published.groupby(["batch_size", "seed"]).ngroup())
    epochs = search.early_epochs(numbered, "validation_accuracy")
    assert [(each.epoch, each.trials) for each in epochs] == [(1, 15), (2, 15), (3, 15), (4, 15)]
    assert epochs[1].correlation == pytest.approx(0.39, abs=0.005)
    assert epochs[1].cut == pytest.approx(0.44, abs=0.005)


def test_early_epochs_are_those_after_which_four_trials_went_on() -> None:
    curves = _curves([0.1, 0.2, 0.9], [0.2, 0.3, 0.8], [0.3, 0.4, 0.7], [0.4, 0.5, 0.6], [0.9])
    for metric in ("validation_accuracy", "validation_loss"):
        epochs = search.early_epochs(curves, metric)
        assert [(each.epoch, each.trials) for each in epochs] == [(1, 4), (2, 4)]
        # The order turned round: the median cuts just those that end best.
        assert [each.correlation for each in epochs] == pytest.approx([-1, -1])
        assert [each.cut for each in epochs] == [1, 1]
    equal = search.early_epochs(_curves(*[[0.5, 0.1 * end] for end in range(4)]), "validation_accuracy")
    assert search.early_table(equal).to_numpy().tolist() == [["1", "4", "all equal", "0 %"]]
    assert search.early_epochs(_curves([0.1, 0.2]), "validation_accuracy") == []
    assert search.early_sentence([]) == ""


@pytest.mark.parametrize("larger", [True, False])
def test_best_of_random_holds_nine_of_ten_searches(larger: bool) -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=5000)
    low, high = search.best_of_random(values, larger)
    drawn = generator.choice(values, size=(2000, 20))
    best = drawn.max(axis=1) if larger else drawn.min(axis=1)
    assert np.mean((best >= low[19]) & (best <= high[19])) == pytest.approx(0.9, abs=0.02)
    assert (np.diff(low if larger else -high) >= 0).all()


def test_seed_curves_are_the_mean_of_each_configs_seeds_within_their_least_and_most() -> None:
    rows = [("baseline", seed, epoch, seed / epoch) for seed in (1, 2, 6) for epoch in (1, 2)] + [
        ("trial 1", 1, 1, 5.0)
    ]
    figure = search.seed_curves(pd.DataFrame(rows, columns=["config", "seed", "epoch", "train_loss"]))
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert [drawn[f"baseline{side}"] for side in (", min", ", max", "")] == [[1, 0.5], [6, 3], [3, 1.5]]
    assert drawn["trial 1"] == [5]
    assert [trace.name for trace in figure.data if trace.showlegend is not False] == ["baseline", "trial 1"]
