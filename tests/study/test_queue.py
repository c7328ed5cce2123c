"""The queue of trials: lost ones again, and none when time is up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
from optuna.trial import TrialState

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.study.space import distributions
from tests.support.studies import open_in, run_all, space_of


def test_queue_repeats_lost_trials_up_to_the_retries(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    deaths = []

    def objective(trial: optuna.Trial) -> list[float]:
        if trial.user_attrs.get("baseline"):
            deaths.append(trial.number)
            trial.set_user_attr("deaths", trial.user_attrs.get("deaths", 0) + 1)
            raise study.Lost("its worker process ended (SIGKILL)")
        return [float(trial.params["training.epochs"])]

    study.run_trials(opened, space_of(sweep_config), objective, 6, None, 2, 2, threading.Event())
    # The baseline was tried three times (two retries) and then counts as one failed trial of six.
    assert len(deaths) == 3
    assert study.count_finished(opened) == 6
    states = [trial.state for trial in opened.trials]
    assert (states.count(TrialState.FAIL), states.count(TrialState.COMPLETE)) == (3, 5)


def test_queue_repeats_trials_that_a_killed_sweep_left_running(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    drawn = distributions(space_of(sweep_config))
    opened.ask(drawn)
    sampled = opened.ask(drawn)
    opened.ask()  # killed before it had parameters: nothing is lost
    opened = open_in(sweep_config, tmp_path)
    assert [trial.number for trial in study.end_running_trials(opened)] == [0, 1, 2]
    assert study.end_running_trials(opened) == []
    run_all(opened, sweep_config)
    assert study.count_finished(opened) == 6
    repeats = [trial for trial in opened.trials if "repeats" in trial.user_attrs]
    assert [trial.params for trial in repeats] == [opened.trials[0].params, sampled.params]
    assert repeats[0].user_attrs["baseline"]


def test_queue_starts_no_trial_when_time_is_up(sweep_config: SweepConfig, tmp_path: Path) -> None:
    opened = open_in(sweep_config, tmp_path)
    study.run_trials(opened, space_of(sweep_config), lambda _: [0.0], 6, time.monotonic(), 2, 2, threading.Event())
    assert study.count_finished(opened) == 0
