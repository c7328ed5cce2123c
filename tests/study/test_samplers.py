"""Samplers: the baseline first, the seed, and combinations that are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from optuna.samplers import TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from digitcnn import study
from digitcnn.config import SweepConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.records import TrialRecord
from digitcnn.study.space import distributions
from tests.conftest import with_study
from tests.support.studies import open_in, run_all, run_trials, space_of

SAMPLERS = ["tpe", "random", "grid", "qmc", "nsgaii"]
if importlib.util.find_spec("torch"):
    SAMPLERS.append("gp")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_sampler_begins_with_the_baseline_and_stops_at_the_total(
    sampler: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    space = {**sweep_config.study.space, "model": {"conv1_filters": {"low": 3, "high": 9, "step": 5}}}
    config = with_study(sweep_config, sampler=sampler, trials=12, space=space)
    opened = open_in(config, tmp_path)
    run_all(opened, config)
    trials = opened.get_trials()
    # The baseline's 4 filters lie between the range's steps.
    assert trials[0].params == {"training.batch_size": 50, "training.epochs": 2, "model.conv1_filters": 4}
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert {trial.params["training.batch_size"] for trial in trials} <= {20, 50, 100}


def test_check_sampler_names_gps_missing_pytorch(sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="study.sampler=gp: needs PyTorch; pip install 'digitcnn\\[gp\\]'"):
        study.check_sampler(with_study(sweep_config, sampler="gp").study, space_of(sweep_config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "qmc", "startup_trials": 4}, "study.startup_trials=4: must be null with study.sampler=qmc"),
        ({"pruner": "median", "objective": ["validation_accuracy", "cpu_seconds"]}, "must be none with more than one"),
        ({"pruner": "median", "objective": ["cpu_seconds"]}, "must be none with study.objective=cpu_seconds"),
        (
            {"sampler": "grid", "space": {"training": {"learning_rate": {"low": 0.1, "high": 0.2}}}},
            "study.sampler=grid: study.space.training.learning_rate is continuous",
        ),
    ],
)
def test_check_sampler_refuses_what_does_not_go_together(
    values: dict[str, object], message: str, sweep_config: SweepConfig
) -> None:
    config = with_study(sweep_config, **values)
    with pytest.raises(ConfigError) as caught:
        study.check_sampler(config.study, space_of(config))
    assert message in str(caught.value)


def test_grid_is_walked_once_whatever_the_total(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": [20, 50, 100], "epochs": {"low": 1, "high": 2}}}
    config = with_study(sweep_config, sampler="grid", trials=100, space=space)
    for _ in range(2):
        opened = open_in(config, tmp_path)
        run_all(opened, config)
    points = [tuple(trial.params.values()) for trial in opened.get_trials()]
    assert points[0] == (50, 2)
    assert sorted(points) == [(size, epochs) for size in (20, 50, 100) for epochs in (1, 2)]


def test_grid_after_another_sampler_trains_the_points_that_are_missing(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    """Given nine random trials of four of a grid's five points, one of which was lost once more at last."""
    space = {"training": {"learning_rate": {"low": 0.0005, "high": 0.0025, "step": 0.0005}}}
    searched = with_study(sweep_config, sampler="random", trials=9, space=space)
    opened = open_in(searched, tmp_path)
    for step in (1, 0, 2, 3, 0, 1, 2, 3):
        opened.enqueue_trial({"training.learning_rate": 0.0005 + 0.0005 * step})
    run_trials(opened, searched, lambda trial: [0.0], 9)
    opened.enqueue_trial({"training.learning_rate": 0.001})
    study.record_trial(opened, opened.ask(distributions(space_of(searched))), TrialRecord())
    study.end_running_trials(opened)
    # The same number of trials is enough: it covers all points.
    grid = with_study(searched, sampler="grid")
    opened = open_in(grid, tmp_path)
    assert study.count_finished(opened, "random") == 9
    assert study.count_finished(opened, "grid") == 4
    queue = run_trials(opened, grid, lambda trial: [0.0], study.total_trials(grid.study, space_of(grid), grid.baseline))
    assert (queue.finished, queue.total, study.count_finished(opened, "grid")) == (5, 5, 5)
    assert [trial.params["training.learning_rate"] for trial in opened.trials[10:]] == [0.001, 0.0025]


def test_grid_has_a_baseline_on_a_step_of_a_fraction_once(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"momentum": {"low": 0.0, "high": 0.4, "step": 0.1}}}
    config = with_study(sweep_config, sampler="grid", trials=9, space=space)
    config = load_config(SweepConfig, config.model_dump() | {"training": {"optimizer": "sgd", "momentum": 0.3}})
    opened = open_in(config, tmp_path)
    run_trials(opened, config, lambda _: [0.0], study.total_trials(config.study, space_of(config), config.baseline))
    assert sorted(trial.params["training.momentum"] for trial in opened.trials) == [0.0, 0.1, 0.2, 0.3, 0.4]


@pytest.mark.parametrize("sampler", ["random", "qmc"])
def test_sampler_draws_by_the_seed(sampler: str, sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": {"low": 1, "high": 10**6}}}
    drawn = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        config = with_study(sweep_config, sampler=sampler, seed=seed, space=space)
        opened = open_in(config, tmp_path / folder)
        run_all(opened, config)
        drawn.append({trial.params["training.batch_size"] for trial in opened.trials})
    assert drawn[0] == drawn[1] != drawn[2]


def _completed(opened: study.OpenStudy, config: SweepConfig, curve: list[float], **parameters: int) -> None:
    """Add a completed trial with these validation accuracies from its first epoch on."""
    searched = distributions(space_of(config))
    opened.add_trial(
        create_trial(
            value=curve[-1],
            params={"training.batch_size": 50, "model.conv1_filters": 2, "training.epochs": len(curve)}
            | {f"training.{name}": value for name, value in parameters.items()},
            distributions=searched,
            intermediate_values=dict(enumerate(curve, 1)),
        )
    )


def _judged(opened: study.OpenStudy, config: SweepConfig, curve: list[float]) -> list[int]:
    """Return for each epoch of another trial the number of values against which it is pruned."""
    first = study.first_judged_epoch(space_of(config), config.baseline)
    trial = opened.ask()
    return [
        study.report_epoch(trial, config.study, first, {"validation_accuracy": value}, epoch)
        for epoch, value in enumerate(curve, 1)
    ]


def test_no_trial_is_pruned_early_or_against_few_values(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Given a long baseline and short trials: in epoch 4 the baseline alone has a value."""
    space = {
        "training": {"batch_size": {"low": 1, "high": 100}, "epochs": {"low": 1, "high": 12}},
        "model": {"conv1_filters": [2, 4]},
    }
    config = with_study(sweep_config, pruner="median", space=space)
    opened = open_in(config, tmp_path)
    _completed(opened, config, [0.98] * 12)
    for batch_size in (1, 2, 3):
        _completed(opened, config, [0.97] * 3, batch_size=batch_size)
    assert _judged(opened, config, [0.979] * 12) == [0] * 12
    # The same curve with fewer epochs, and a duplicate, are no further values.
    for length in (12, 11, 10):
        _completed(opened, config, [0.98] * length)
    assert _judged(opened, config, [0.979] * 12) == [0] * 12
    for batch_size, accuracy in ((11, 0.99), (12, 0.98), (13, 0.96)):
        _completed(opened, config, [accuracy] * 6, batch_size=batch_size)
    assert _judged(opened, config, [0.979] * 7) == [0, 0, 0, 4, 4, 4, 0]
    # Its best value so far counts.
    assert _judged(opened, config, [0.98, 0.5, 0.5, 0.5, 0.5]) == [0] * 5


@pytest.mark.parametrize(("epochs", "first"), [(2, 4), (16, 4), (17, 5), (40, 10)])
def test_first_judged_epoch_is_a_quarter_of_the_longest(epochs: int, first: int, sweep_config: SweepConfig) -> None:
    searched = with_study(sweep_config, space={"training": {"epochs": {"low": 1, "high": epochs}}})
    fixed = sweep_config.baseline.replace({"training.epochs": epochs})
    assert study.first_judged_epoch(space_of(searched), searched.baseline) == first
    assert study.first_judged_epoch({}, fixed) == first


@pytest.mark.parametrize(
    ("values", "doubt"),
    [
        ({"pruner": "none", "trials": 1}, ""),
        ({"pruner": "median", "trials": 20}, "no trial has more than 3 epochs, and none is judged before epoch 4"),
        ({"pruner": "median", "trials": 20, "space": {"training": {"epochs": {"low": 1, "high": 9}}}}, ""),
        ({"pruner": "median", "trials": 19, "space": {"training": {"epochs": {"low": 1, "high": 9}}}}, "19 trials are"),
    ],
)
def test_pruning_doubt_names_what_is_too_small(
    values: dict[str, object], doubt: str, sweep_config: SweepConfig
) -> None:
    config = with_study(sweep_config, **values)
    said = study.pruning_doubt(config.study, space_of(config), config.baseline)
    assert said.startswith(doubt)
    assert bool(said) == bool(doubt)


@pytest.mark.parametrize(
    ("values", "number"),
    [({"trials": 12}, 4), ({"trials": 40}, 10), ({"trials": 40, "startup_trials": 3}, 3), ({"sampler": "random"}, 0)],
)
def test_startup_trials_are_a_quarter(values: dict[str, object], number: int, sweep_config: SweepConfig) -> None:
    assert study.startup_trials(with_study(sweep_config, **values).study) == number


def test_tpe_chooses_after_the_startup_trials(
    sweep_config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a default study's number of trials, of which Optuna's own ten start-up trials would leave one."""
    chosen: list[int] = []
    sample = TPESampler._sample

    def noted(sampler: TPESampler, opened: Study, trial: FrozenTrial, searched: dict[str, object]) -> dict[str, object]:
        chosen.append(trial.number)
        return dict(sample(sampler, opened, trial, searched))

    monkeypatch.setattr(TPESampler, "_sample", noted)
    opened = open_in(with_study(sweep_config, trials=12), tmp_path)
    for _ in range(12):
        trial = opened.ask(distributions(space_of(sweep_config)))
        opened.tell(trial, float(trial.params["training.epochs"]))
    assert sorted(set(chosen)) == list(range(4, 12))
