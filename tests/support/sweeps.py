"""Sweeps in the test's own process, and the check that both stores agree on what they recorded."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import psutil
from mlflow import MlflowClient
from optuna.trial import TrialState

from digitcnn import evaluation, runner, study
from digitcnn.config import ConfirmConfig, SweepConfig, load_config
from digitcnn.runner import Trainer, sweep
from digitcnn.values import EpochMetrics
from tests.support.trainers import InstantTrainer

MATCHING = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


class Quiet:
    """A display that records how trials ended."""

    def __init__(self) -> None:
        self.endings: list[str] = []

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int, metrics: EpochMetrics) -> None: ...

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        self.endings.append(ending)


class Failing(Quiet):
    """A display at which something happens once, in the first epoch of a trial with this number or a later one."""

    def __init__(self, trial: int, happens: Callable[[], None]) -> None:
        super().__init__()
        self.trial, self.happens, self.happened = trial, happens, threading.Lock()

    def epoch(self, worker: int, trial: int, metrics: EpochMetrics) -> None:
        if trial >= self.trial and self.happened.acquire(blocking=False):
            self.happens()


class During(Quiet):
    """A display at which a fault happens at the end of the trial with this number, or of the run with this label."""

    def __init__(self, number: int | str, fault: Callable[[], object]) -> None:
        super().__init__()
        self.number, self.fault = number, fault

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        super().trial_ended(worker, trial, ending, value, best)
        if trial == self.number:
            self.fault()


def in_folder(config: SweepConfig, root: Path, **tracking: str) -> SweepConfig:
    """Return the config with its records in another folder, and other values of `tracking`."""
    return load_config(SweepConfig, {**config.model_dump(), "tracking": {"root": str(root), **tracking}})


def work(config: SweepConfig, trainer: Trainer, shown: Quiet | None = None) -> sweep.SweepResult:
    """Run a sweep in this process."""
    return runner.run_sweep(runner.plan_sweep(config), shown or Quiet(), trainer)


def open_records(root: Path, name: str = "small") -> tuple[optuna.Study, MlflowClient, list[Any]]:
    """Return a study, a client of the MLflow store beside it, and all runs there."""
    opened = study.existing_study(root, name)
    assert opened is not None
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    return opened, client, client.search_runs([experiment.experiment_id], max_results=1000)


def assert_stores_agree(root: Path, name: str = "small", models: bool = True) -> None:
    """Assert a child run for every trial: matching states, metrics of each epoch, models of completed trials only."""
    opened, client, runs = open_records(root, name)
    parent = client.get_run(opened.user_attrs["parent_run_id"])
    # What was created by a sweep that was killed before it could note it has nothing in it.
    others = [run for run in runs if run.info.run_name == name and run.info.run_id != parent.info.run_id]
    assert all(run.info.status == "KILLED" for run in others)
    children = {run.data.tags["trial"]: run for run in runs if "trial" in run.data.tags}
    assert all(run.data.tags["mlflow.parentRunId"] == parent.info.run_id for run in children.values())
    begun = [trial for trial in opened.get_trials() if trial.state != TrialState.WAITING]
    trials = [trial for trial in begun if "run_id" in trial.user_attrs]
    assert all("lost" in trial.user_attrs for trial in begun if "run_id" not in trial.user_attrs)
    assert sorted(children, key=int) == [str(trial.number) for trial in trials]
    for trial in trials:
        run = children[str(trial.number)]
        assert run.info.run_id == trial.user_attrs["run_id"]
        expected, lost = {MATCHING[trial.state]}, trial.user_attrs.get("lost")
        if lost is not None:
            # A store or a display that failed may have left the run to be closed by the next sweep.
            expected = {"KILLED"} if lost in ("interrupted", "its process ended") else {"FAILED", "KILLED"}
            if lost == "its process ended" and run.data.tags.get("failure", lost) != lost:
                # Who was killed had told MLflow already why the run has failed.
                expected = {"FAILED"}
        assert run.info.status in expected, trial
        # MLflow takes a run and its parameters one after the other: the owner may have been killed between the two.
        if run.data.params or lost is None:
            assert {key: run.data.params[key] for key in trial.params} == {k: str(v) for k, v in trial.params.items()}
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            history = client.get_metric_history(run.info.run_id, "validation_accuracy")
            steps = [metric.step for metric in history if metric.step > 0]
            assert sorted(set(steps)) == list(range(1, trial.user_attrs["epochs_run"] + 1))
    with_model = {model.source_run_id for model in client.search_logged_models([parent.info.experiment_id])}
    trained = {
        trial.user_attrs["run_id"]
        for trial in trials
        if trial.state == TrialState.COMPLETE and not {"same_as", "prefix_of"} & set(trial.user_attrs)
    }
    assert with_model == (trained if models else set())


def worker_processes(of: int) -> list[psutil.Process]:
    """Return the worker processes of a sweep, without multiprocessing's own."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def recorded_epochs(root: Path) -> int:
    """Return the number of recorded values of epochs' metrics."""
    if not (root / "mlflow.db").exists():
        return 0
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        (count,) = database.execute("select count(*) from metrics where step > 0").fetchone()
    return int(count)


def recorded_results(root: Path) -> dict[int, Any]:
    """Return the values of the completed trials by number."""
    opened = study.existing_study(root, "small")
    return (
        {}
        if opened is None
        else {trial.number: trial.values for trial in opened.trials if trial.state == TrialState.COMPLETE}
    )


def assert_nothing_runs(root: Path) -> None:
    """Assert that no run is RUNNING and no trial is."""
    opened, _, runs = open_records(root)
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    assert not opened.get_trials(states=(TrialState.RUNNING,))


def assert_whole(root: Path, total: int, models: bool = False) -> None:
    """Assert that the study is at its total, both stores agree, nothing runs, and each lost trial was repeated."""
    opened = open_records(root)[0]
    assert study.count_finished(opened, "tpe") == total
    assert_nothing_runs(root)
    assert_stores_agree(root, models=models)
    repeated = {trial.user_attrs.get("repeats"): trial for trial in opened.trials}
    for trial in opened.trials:
        if "lost" in trial.user_attrs and trial.params and trial.number in repeated:
            again = repeated[trial.number]
            # The owner may have been killed when it had drawn only some of them.
            assert trial.params.items() <= again.params.items() or "lost" in again.user_attrs
    keys = [study.parameters_key(t.params) for t in opened.trials if t.state == TrialState.COMPLETE]
    trained = [t for t in opened.trials if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs]
    assert len({study.parameters_key(t.params) for t in trained}) == len(trained) == len(set(keys))


def confirm_config(config: SweepConfig) -> ConfirmConfig:
    """Return the config that confirms a study's best trial with two seeds."""
    tree = {"study": {"name": "small"}, "tracking": config.tracking.model_dump(), "confirm": {"top": 1, "seeds": 2}}
    return load_config(ConfirmConfig, tree)


def confirm(config: SweepConfig, trainer: Trainer | None = None) -> None:
    """Confirm a study in this process."""
    plan = evaluation.plan_confirmation(confirm_config(config))
    evaluation.run_confirmation(plan, Quiet(), trainer or InstantTrainer())
