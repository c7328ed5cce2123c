"""The leaderboard: ranks, fronts, and trials without a result."""

from __future__ import annotations

import tracemalloc

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial
from rich.text import Text

from digitcnn.cli import tables
from digitcnn.config import RunConfig
from digitcnn.study import best_against_baseline, differences_in_words, pareto_ranks, rank_trials


def _study(*objectives: str) -> optuna.Study:
    directions = ["maximize" if "accuracy" in objective else "minimize" for objective in objectives]
    study = optuna.create_study(directions=directions)
    study.set_metric_names(list(objectives))
    return study


def _add(study: optuna.Study, batch_size: int, values: list[float] | None, **attributes: object) -> None:
    state = attributes.pop("state", TrialState.COMPLETE)
    study.add_trial(
        create_trial(
            state=state,  # type: ignore[arg-type]
            values=values,
            params={"training.batch_size": batch_size},
            distributions={"training.batch_size": IntDistribution(1, 999)},
            user_attrs={"run_id": f"run{batch_size}", "epochs_run": 3, "cpu_seconds": 1.5, **attributes},
        )
    )


def test_leaderboard_ranks_completed_trials_and_equals_share_a_rank() -> None:
    study = _study("validation_accuracy")
    _add(study, 250, [0.97], baseline=True)
    _add(study, 100, [0.99])
    _add(study, 10, None, state=TrialState.FAIL, failure="the loss became nan in epoch 1")
    _add(study, 50, [0.97])
    _add(study, 20, [0.5], state=TrialState.PRUNED)
    _add(study, 30, [0.98], same_as=1)
    table = rank_trials(study)
    assert table["trial"].tolist() == [1, 5, 0, 3, 4, 2]
    assert table["rank"].tolist()[:4] == [1, 2, 3, 3]
    assert table["rank"].isna().tolist() == [False] * 4 + [True] * 2
    assert table["state"].tolist() == ["complete"] * 4 + ["pruned", "failed"]
    assert table["training.batch_size"].tolist() == [100, 30, 250, 50, 20, 10]
    assert table["run_id"].tolist()[0] == "run100"
    assert table["note"].tolist()[1:3] == ["same parameters as trial 1, not trained again", "baseline"]
    assert table["note"].tolist()[5] == "the loss became nan in epoch 1"
    _add(study, 10, None, state=TrialState.FAIL, lost="interrupted")
    assert rank_trials(study)[["trial", "state", "note"]].to_numpy().tolist()[-2:] == [
        [2, "failed", "the loss became nan in epoch 1"],
        [6, "lost", "interrupted"],
    ]
    line = best_against_baseline(table, ["validation_accuracy"])
    assert line == (
        "best: trial 1, validation_accuracy 99.00 %; baseline: trial 0, 97.00 % (difference +2.00 points, one run each)"
    )


def test_best_against_baseline_says_no_error_where_one_has_a_single_seed() -> None:
    study = _study("validation_accuracy")
    _add(study, 250, [0.97], baseline=True, seeds=1)
    _add(study, 64, [0.99], seeds=3, seeds_sd=0.001)
    line = best_against_baseline(rank_trials(study), ["validation_accuracy"])
    assert line.endswith("(difference +2.00 points, 3 and 1 seeds)")


def test_leaderboard_ranks_no_failed_trial_first() -> None:
    study = _study("validation_loss")
    _add(study, 1, None, state=TrialState.FAIL)
    table = rank_trials(study)
    assert best_against_baseline(table, ["validation_loss"]) == "no trial has completed"
    _add(study, 2, [0.5])
    _add(study, 3, [0.3])
    assert rank_trials(study)["trial"].tolist() == [2, 1, 0]


def test_leaderboard_ranks_two_objectives_by_front() -> None:
    study = _study("validation_accuracy", "cpu_seconds")
    for batch_size, values in ((1, [0.9, 10]), (2, [0.95, 20]), (3, [0.9, 12]), (4, [0.94, 25]), (5, [0.89, 26])):
        _add(study, batch_size, [float(value) for value in values])
    ranks = rank_trials(study).set_index("training.batch_size")["rank"]
    assert ranks.to_dict() == {1: 1, 2: 1, 3: 2, 4: 2, 5: 3}


@pytest.mark.parametrize("objectives", [("validation_accuracy",), ("validation_accuracy", "cpu_seconds")])
def test_leaderboard_of_a_study_without_trials_is_empty(objectives: tuple[str, ...]) -> None:
    table = rank_trials(_study(*objectives))
    assert len(table) == 0
    assert best_against_baseline(table, objectives) == "no trial has completed"


def _ranks_of_all_pairs(points: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the fronts, from 1, by comparing each point with all others: (n, n) at once."""
    nowhere_worse = (points[:, None] <= points).all(axis=2)
    dominates = nowhere_worse & (points[:, None] < points).any(axis=2)
    ranks = np.zeros(len(points), dtype=np.int64)
    while (ranks == 0).any():
        left = ranks == 0
        ranks[left & (dominates[left].sum(axis=0) == 0)] = ranks.max() + 1
    return ranks


@settings(max_examples=300, deadline=None)
@given(
    strategies.integers(2, 4).flatmap(
        lambda objectives: arrays(
            np.float64,
            strategies.tuples(strategies.integers(1, 40), strategies.just(objectives)),
            # Few values: many are equal.
            elements=strategies.integers(-4, 4).map(float),
        )
    )
)
def test_pareto_ranks_are_those_of_comparing_all_pairs(points: NDArray[np.float64]) -> None:
    assert pareto_ranks(points).tolist() == _ranks_of_all_pairs(points).tolist()


@pytest.mark.parametrize("objectives", [2, 3])
def test_pareto_ranks_of_many_points_take_little_memory(objectives: int) -> None:
    points = np.random.default_rng(0).normal(size=(30_000, objectives))
    tracemalloc.start()
    ranks = pareto_ranks(points)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert ranks.min() == 1
    # A matrix of all pairs has 900 MB.
    assert peak < 20e6


def test_leaderboard_shows_what_a_pruned_trial_had_reached() -> None:
    """Optuna keeps the last value that its pruner saw, which may be worse than the best one before."""
    study = _study("best_validation_accuracy")
    trial = study.ask({"training.batch_size": IntDistribution(1, 999)})
    for epoch, accuracy in ((1, 0.97), (2, 0.99), (3, 0.95)):
        trial.report(accuracy, epoch)
    trial.set_user_attr("reached", {"best_validation_accuracy": 0.99})
    study.tell(trial, state=TrialState.PRUNED)
    _add(study, 20, [0.98])
    table = rank_trials(study)
    assert table["best_validation_accuracy"].tolist() == [0.98, 0.99]
    assert table["rank"].isna().tolist() == [False, True]


@pytest.mark.parametrize(("width", "whole"), [(130, True), (100, True), (80, False)])
def test_print_leaderboard_cuts_no_word_in_a_narrow_terminal(
    width: int, whole: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    parameters = [f"training.{name}" for name in ("batch_size", "epochs")] + [
        "model.conv1_filters",
        "model.conv2_filters",
    ]
    row = {"rank": 1, "trial": 12, **dict.fromkeys(parameters, 128), "validation_accuracy": 0.991, "cpu_seconds": 264.8}
    row |= {"epochs_run": 9, "state": "complete", "run_id": "87c85e8e00", "note": "baseline"}
    # When
    tables.print_leaderboard(pd.DataFrame([row]), parameters, ["validation_accuracy"])
    # Then
    lines = Text.from_ansi(capsys.readouterr().out).plain.splitlines()
    assert not [line for line in lines if "…" in line or len(line) > width]
    assert "99.10 %" in lines[-1]
    assert "87c85e8e baseline" in lines[-1]
    assert ("264.8" in lines[-1]) == whole


def test_differences_in_words_name_what_differs_from_the_baseline() -> None:
    baseline = RunConfig()
    values = {"training.batch_size": 125, "model.conv2_filters": 128, "training.epochs": 9, "training.threads": 3}
    assert differences_in_words(baseline.replace(values), baseline) == "batch 125, 32-128, 9 ep"
    deeper = {"model.conv3_filters": 8, "training.learning_rate": 0.01}
    assert differences_in_words(baseline.replace(deeper), baseline) == "32-64-8, learning rate 0.01"
    assert differences_in_words(baseline.replace({"augmentation.shift": 0.1}), baseline) == "shift 0.1"
    assert differences_in_words(baseline, baseline) == ""
