"""The Optuna study: space, samplers, pruners, the baseline first, resuming."""

from __future__ import annotations

import importlib.util
import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.errors import ConfigError
from digitcnn.files import sqlite_url
from digitcnn.study import Space, parse_space
from tests.conftest import with_study


def _space(config: SweepConfig) -> Space:
    return parse_space(config.study.space, config.baseline)


def _open(config: SweepConfig, folder: Path) -> optuna.Study:
    return study.open_study(folder, config.study, _space(config), config.baseline)


def _work(opened: optuna.Study, config: SweepConfig, total: int | None = None) -> None:
    def objective(trial: optuna.Trial) -> list[float]:
        return [float(trial.params["training.batch_size"])] * len(config.study.objective)

    total = total or study.total_trials(config.study, _space(config), config.baseline)
    study.run_trials(opened, _space(config), objective, total, None, 2, config.study.retries, threading.Event())


SAMPLERS = ["tpe", "random", "grid", "qmc", "cmaes", "nsgaii"]
if importlib.util.find_spec("torch"):
    SAMPLERS.append("gp")


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_begins_with_the_baseline_and_stops_at_the_total(
    sampler: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    space = {**sweep_config.study.space, "model": {"conv1_filters": {"low": 3, "high": 9, "step": 5}}}
    config = with_study(sweep_config, sampler=sampler, trials=12, space=space)
    opened = _open(config, tmp_path)
    _work(opened, config)
    trials = opened.get_trials()
    # The baseline's 4 filters lie between the range's steps.
    assert trials[0].params == {"training.batch_size": 50, "training.epochs": 2, "model.conv1_filters": 4}
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 12
    assert {trial.params["training.batch_size"] for trial in trials} <= {20, 50, 100}


def test_gp_without_pytorch_is_one_line(sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="study.sampler=gp: needs PyTorch; .venv/bin/pip install -e '.\\[gp\\]'"):
        study.check_sampler(with_study(sweep_config, sampler="gp").study, _space(sweep_config))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "cmaes", "objective": ["validation_accuracy", "cpu_seconds"]}, "cmaes: has one objective"),
        ({"sampler": "cmaes", "space": {"training": {"epochs": [1, 2]}}}, "needs at least two ranges"),
        ({"pruner": "median", "objective": ["validation_accuracy", "cpu_seconds"]}, "must be none with more than one"),
        ({"pruner": "median", "objective": ["cpu_seconds"]}, "must be none with study.objective=cpu_seconds"),
        (
            {"sampler": "grid", "space": {"training": {"learning_rate": {"low": 0.1, "high": 0.2}}}},
            "study.sampler=grid: study.space.training.learning_rate is continuous",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    values: dict[str, object], message: str, sweep_config: SweepConfig
) -> None:
    config = with_study(sweep_config, **values)
    with pytest.raises(ConfigError) as caught:
        study.check_sampler(config.study, _space(config))
    assert message in str(caught.value)


def test_a_grid_is_walked_once_whatever_the_total(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": [20, 50, 100], "epochs": {"low": 1, "high": 2}}}
    config = with_study(sweep_config, sampler="grid", trials=100, space=space)
    for _ in range(2):
        opened = _open(config, tmp_path)
        _work(opened, config)
    points = [tuple(trial.params.values()) for trial in opened.get_trials()]
    assert points[0] == (50, 2)
    assert sorted(points) == [(size, epochs) for size in (20, 50, 100) for epochs in (1, 2)]


def test_a_study_is_resumed_to_its_total_with_new_parameters(sweep_config: SweepConfig, tmp_path: Path) -> None:
    config = with_study(sweep_config, sampler="random", space={"training": {"batch_size": {"low": 1, "high": 10**6}}})
    for total in (5, 5, 9):
        opened = _open(with_study(config, trials=total), tmp_path)
        _work(opened, config, total)
        assert study.count_finished(opened) == len(opened.trials) == total
    # The same seed goes on where it left off: nothing is drawn twice.
    assert len({trial.params["training.batch_size"] for trial in opened.trials}) == 9


def test_the_seed_decides_what_is_drawn(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": {"low": 1, "high": 10**6}}}
    drawn = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        config = with_study(sweep_config, sampler="random", seed=seed, space=space)
        opened = _open(config, tmp_path / folder)
        _work(opened, config)
        drawn.append({trial.params["training.batch_size"] for trial in opened.trials})
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"study": {"space": {"training": {"epochs": [1, 2]}}}}, "study.space.training.batch_size is left out: study"),
        ({"study": {"objective": ["validation_loss"]}}, "study.objective=['validation_loss']"),
        ({"training": {"learning_rate": 0.5}}, "training.learning_rate=0.5: study small was begun with 0.001"),
        ({"data": {"split_seed": 3}}, "data.split_seed=3"),
    ],
)
def test_another_study_under_the_same_name_is_refused(
    change: dict[str, dict[str, object]], message: str, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    _open(sweep_config, tmp_path)
    tree = sweep_config.model_dump()
    changed = SweepConfig.model_validate({**tree, **{group: {**tree[group], **new} for group, new in change.items()}})
    with pytest.raises(ConfigError) as caught:
        _open(changed, tmp_path)
    assert message in str(caught.value)
    assert "choose another study.name" in str(caught.value)


def test_a_foreign_study_is_refused(sweep_config: SweepConfig, tmp_path: Path) -> None:
    optuna.create_study(study_name="small", storage=sqlite_url(tmp_path / "optuna.db")).ask()
    with pytest.raises(ConfigError, match="was not made by digitcnn"):
        _open(sweep_config, tmp_path)


def test_lost_trials_are_queued_again_but_not_for_ever(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = _open(sweep_config, tmp_path)
    deaths = []

    def objective(trial: optuna.Trial) -> list[float]:
        if trial.user_attrs.get("baseline"):
            deaths.append(trial.number)
            trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) + 1)
            raise study.Lost("its worker process ended (SIGKILL)")
        return [float(trial.params["training.epochs"])]

    study.run_trials(opened, _space(sweep_config), objective, 6, None, 2, 2, threading.Event())
    # The baseline was tried three times (two retries) and then counts as one failed trial of six.
    assert len(deaths) == 3
    assert study.count_finished(opened) == 6
    states = [trial.state for trial in opened.trials]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (3, 5)


def test_trials_that_a_dead_sweep_left_running_are_ended_and_repeated(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    opened = _open(sweep_config, tmp_path)
    drawn = study.distributions(_space(sweep_config))
    opened.ask(drawn)
    sampled = opened.ask(drawn)
    opened.ask()  # killed before it had parameters: nothing is lost
    opened = _open(sweep_config, tmp_path)
    assert [trial.number for trial in study.end_running_trials(opened)] == [0, 1, 2]
    assert study.end_running_trials(opened) == []
    _work(opened, sweep_config)
    assert study.count_finished(opened) == 6
    repeats = [trial for trial in opened.trials if "repeats" in trial.user_attrs]
    assert [trial.params for trial in repeats] == [opened.trials[0].params, sampled.params]
    assert repeats[0].user_attrs["baseline"]


def test_time_that_is_up_starts_no_trial(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = _open(sweep_config, tmp_path)
    study.run_trials(opened, _space(sweep_config), lambda _: [0.0], 6, time.monotonic(), 2, 2, threading.Event())
    assert study.count_finished(opened) == 0
