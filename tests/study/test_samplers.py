"""Samplers: the baseline first, the seed, and combinations that are refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from optuna.trial import TrialState

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.errors import ConfigError
from tests.conftest import with_study
from tests.support.studies import open_in, run_all, space_of

SAMPLERS = ["tpe", "random", "grid", "qmc", "cmaes", "nsgaii"]
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


def test_sampler_draws_by_the_seed(sweep_config: SweepConfig, tmp_path: Path) -> None:
    space = {"training": {"batch_size": {"low": 1, "high": 10**6}}}
    drawn = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / folder).mkdir()
        config = with_study(sweep_config, sampler="random", seed=seed, space=space)
        opened = open_in(config, tmp_path / folder)
        run_all(opened, config)
        drawn.append({trial.params["training.batch_size"] for trial in opened.trials})
    assert drawn[0] == drawn[1] != drawn[2]
