"""Charts of small studies: the numbers, names and colours that are drawn."""

from __future__ import annotations

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import create_trial

from digitcnn.report import charts


def test_importances_are_those_of_the_best_trials_in_either_direction() -> None:
    """Given high values that `a` decides and low ones that `b` decides, `a` matters when the highest are wanted."""
    generator = np.random.default_rng(0)
    for direction, deciding in (("maximize", "a"), ("minimize", "b")):
        searched = optuna.create_study(directions=[direction, "minimize"])
        searched.set_metric_names(["validation_loss", "cpu_seconds"])
        for a, b in generator.uniform(size=(200, 2)):
            ranges = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}
            value = -10.0 - b if b > 0.8 else a
            searched.add_trial(create_trial(params={"a": a, "b": b}, distributions=ranges, values=[value, 1.0]))
        figure = charts.importances(charts.with_chart_units(searched))
        assert figure is not None
        bars = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
        assert max(bars, key=bars.__getitem__) == deciding
        assert sum(bars.values()) == pytest.approx(100)


def test_learning_curves_are_in_percent_and_faded_where_a_trial_ended_early() -> None:
    curves = pd.DataFrame(
        [(trial, f"run{trial}", "pruned" if trial == 2 else "complete", epoch, 0.9 + 0.01 * epoch) for trial in range(4)
         for epoch in (1, 2)],
        columns=["trial", "run_id", "state", "epoch", "validation_accuracy"],
    )  # fmt: skip
    figure = charts.learning_curves(curves, "validation_accuracy", best=1, baseline=0)
    drawn = {trace.name: trace for trace in figure.data if len(trace.x) > 1}
    assert drawn["trial 1, ranked first"].y[:2] == pytest.approx((91, 92))
    assert drawn["baseline"].line.dash == "dash"
    assert drawn["ended early"].opacity < drawn["completed"].opacity
    assert figure.layout.yaxis.title.text == "validation accuracy (%)"


def test_history_shows_accuracies_in_percent() -> None:
    one = optuna.create_study(direction="maximize")
    one.set_metric_names(["validation_accuracy"])
    choices = {"training.batch_size": CategoricalDistribution([20, 50])}
    one.add_trial(create_trial(params={"training.batch_size": 20}, distributions=choices, value=0.97))
    assert charts.history(charts.with_chart_units(one), 0).data[0].y == (97.0,)


def test_tradeoff_draws_the_front_apart() -> None:
    # Given: trial 2 is worse than the baseline in both measures, trial 3 has failed.
    table = pd.DataFrame(
        {
            "trial": [0, 1, 2, 3],
            "state": ["complete", "complete", "complete", "failed"],
            "validation_accuracy": [0.97, 0.98, 0.96, 0.99],
            "cpu_seconds": [2.0, 3.0, 2.5, 1.0],
            "training.batch_size": [50, 20, 100, 200],
        }
    )
    # When
    figure = charts.tradeoff(table, "cpu_seconds", "validation_accuracy", baseline=0)
    # Then
    drawn = {trace.name: (trace.x, trace.y) for trace in figure.data}
    assert drawn["trial"] == ((2.5,), pytest.approx((96.0,)))
    assert drawn["Pareto front"] == ((2.0, 3.0), pytest.approx((97.0, 98.0)))
    assert drawn["baseline"] == ((2.0,), pytest.approx((97.0,)))
    assert figure.data[0].text == ("trial 2<br>training.batch_size 100",)


def test_confusion_colours_mistakes_by_their_share_of_the_row() -> None:
    (cells,) = charts.confusion(np.array([[3, 1], [0, 2]])).data
    assert cells.z.tolist() == [[0.0, 25.0], [0.0, 0.0]]
    assert cells.text.tolist() == [["3", "1"], ["", "2"]]
