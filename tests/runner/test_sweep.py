"""Sweeps: real worker processes, real stores, and workers and sweeps that are killed."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from digitcnn import runner, study
from digitcnn.config import SweepConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import sqlite_url
from digitcnn.runner import Trainer, sweep
from digitcnn.values import EpochMetrics
from tests.conftest import Command, command_line, with_study
from tests.support.trainers import BrokenTrainer, InstantTrainer, SuicidalTrainer

MATCHING = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


class Quiet:
    """A display that only remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.endings: list[str] = []

    def began(self, name: str, total: int, finished: int, workers: int, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int, metrics: EpochMetrics) -> None: ...

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        self.endings.append(ending)

    def note(self, text: str) -> None:
        self.notes.append(text)


def work(config: SweepConfig, trainer: Trainer, shown: Quiet | None = None) -> sweep.SweepResult:
    return runner.run_sweep(runner.plan_sweep(config), shown or Quiet(), trainer)


def open_records(root: Path, name: str = "small") -> tuple[optuna.Study, MlflowClient, list[Any]]:
    opened = study.existing_study(sqlite_url(root / "optuna.db"), name)
    assert opened is not None
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    return opened, client, client.search_runs([experiment.experiment_id], max_results=1000)


def assert_stores_agree(root: Path, name: str = "small", models: bool = True) -> None:
    """A child run for every trial, states matching, an epoch's metrics each, models of completed trials only."""
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
        assert run.info.status in expected, trial
        assert {key: run.data.params[key] for key in trial.params} == {k: str(v) for k, v in trial.params.items()}
        if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
            history = client.get_metric_history(run.info.run_id, "validation_accuracy")
            steps = [metric.step for metric in history if metric.step > 0]
            assert sorted(set(steps)) == list(range(1, trial.user_attrs["epochs_run"] + 1))
    with_model = {model.source_run_id for model in client.search_logged_models([parent.info.experiment_id])}
    trained = {
        trial.user_attrs["run_id"]
        for trial in trials
        if trial.state == TrialState.COMPLETE and "same_as" not in trial.user_attrs
    }
    assert with_model == (trained if models else set())


def worker_processes(of: int) -> list[psutil.Process]:
    """The worker processes of a sweep, without multiprocessing's own."""
    found = []
    for child in psutil.Process(of).children(recursive=True):
        try:
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_sweep_records_the_same_in_both_stores(sweep_config: SweepConfig) -> None:
    config = with_study(sweep_config, pruner="median", trials=12)
    result = work(config, InstantTrainer())
    root = config.tracking.folder
    assert (result.finished, result.total) == (12, 12)
    assert_stores_agree(root, models=False)
    table = pd.read_csv(root / "reports" / "small" / "leaderboard.csv")
    assert len(table) == 12
    assert table["rank"].dropna().is_monotonic_increasing
    assert table.loc[table["trial"] == 0, "note"].item() == "baseline"
    opened, client, runs = open_records(root)
    (parent,) = [run for run in runs if run.info.run_name == "small"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params["study.sampler"] == "tpe"
    assert parent.data.tags["version.optuna"] == optuna.__version__
    assert parent.data.metrics["best_trial.validation_accuracy"] == opened.best_value
    assert {"leaderboard.csv", "config.yaml"} <= {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert study.count_finished(opened) == 12


def test_identical_parameters_are_not_trained_twice(sweep_config: SweepConfig) -> None:
    config = with_study(sweep_config, sampler="random", trials=12, space={"training": {"batch_size": [20, 50]}})
    work(config, InstantTrainer(0.05))
    opened, client, _ = open_records(config.tracking.folder)
    trained = [trial for trial in opened.trials if "same_as" not in trial.user_attrs]
    assert len(trained) == len({trial.params["training.batch_size"] for trial in trained}) == 2
    repeated = next(trial for trial in opened.trials if "same_as" in trial.user_attrs)
    original = opened.trials[repeated.user_attrs["same_as"]]
    assert repeated.values == original.values
    tags = client.get_run(repeated.user_attrs["run_id"]).data.tags
    assert tags["same_as_run"] == original.user_attrs["run_id"]
    assert_stores_agree(config.tracking.folder, models=False)


def test_a_worker_killed_on_a_trial_is_replaced_and_the_trial_repeated(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    trainer = SuicidalTrainer(folder=tmp_path, trials=(0, 1))
    work(sweep_config, trainer)
    opened, client, _ = open_records(sweep_config.tracking.folder)
    failed = [trial for trial in opened.trials if trial.state == TrialState.FAIL]
    assert [trial.number for trial in failed] == [0, 1]
    for trial in failed:
        repeated = next(other for other in opened.trials if other.user_attrs.get("repeats") == trial.number)
        assert (repeated.params, repeated.state) == (trial.params, TrialState.COMPLETE)
        tags = client.get_run(trial.user_attrs["run_id"]).data.tags
        assert tags["failure"] == "its worker process ended (SIGKILL)"
    assert study.count_finished(opened) == 6
    assert_stores_agree(sweep_config.tracking.folder, models=False)


def test_three_failures_with_one_cause_end_the_sweep_with_it(sweep_config: SweepConfig) -> None:
    # The other worker may have begun a fourth.
    with pytest.raises(MachineError, match="[34] trials failed in a row: RuntimeError: the matrix is singular"):
        work(sweep_config, BrokenTrainer())
    _, _, runs = open_records(sweep_config.tracking.folder)
    assert not [run for run in runs if run.info.status in ("RUNNING", "FINISHED")]


def test_a_plan_creates_nothing_and_checks_the_whole_space(sweep_config: SweepConfig) -> None:
    plan = runner.plan_sweep(with_study(sweep_config, workers=2))
    assert (plan.total, plan.workers, plan.baseline.training.threads) == (6, 2, 1)
    too_large = with_study(sweep_config, space={"model": {"conv1_kernel": [3, 9], "conv2_kernel": [3, 12]}})
    with pytest.raises(ConfigError, match=r"study.space: at .*: model.conv2_kernel=12: leaves no pixels"):
        runner.plan_sweep(too_large)
    assert not sweep_config.tracking.folder.exists()


def test_two_objectives_give_a_front(sweep_config: SweepConfig) -> None:
    config = with_study(sweep_config, objective=["validation_accuracy", "cpu_seconds"], trials=8)
    table = work(config, InstantTrainer()).leaderboard
    front = table[table["rank"] == 1]
    assert front["validation_accuracy"].is_monotonic_decreasing
    assert front["cpu_seconds"].is_monotonic_decreasing
    assert (table["rank"] >= 1).all()


# With the command, real Keras and the real MNIST, as a person would.

SWEEP = [
    *("study=quick", "data.path=mnist", "data.train_size=500", "data.validation_size=200", "study.name=real"),
    *("study.workers=2", "model.dense_units=16", "training.epochs=2"),
    *("study.space.training.epochs=[1,2]", "study.space.model.conv1_filters=[2,4]"),
    "study.space.model.conv2_filters=null",
]


def test_a_real_sweep_survives_the_death_of_a_worker(tmp_path: Path, command: Command) -> None:
    overrides = [*SWEEP, "study.trials=4", f"tracking.root={tmp_path}/records"]
    process = subprocess.Popen(command_line("sweep", *overrides), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    killed = False
    for line in process.stdout:
        lines.append(line)
        if "epoch 1/" in line and not killed:
            worker_processes(process.pid)[0].kill()
            killed = True
    assert process.wait(timeout=300) == 0, lines
    opened, _, _ = open_records(tmp_path / "records", "real")
    assert study.count_finished(opened) == 4
    assert_stores_agree(tmp_path / "records", "real")
    text = "".join(lines)
    assert "difference" in text
    assert "next: make ui" in text
    # The same command again has nothing to do, and says so in seconds.
    again = command("sweep", *overrides)
    assert again.returncode == 0
    assert "all 4 trials are recorded" in again.stdout
    assert len(open_records(tmp_path / "records", "real")[0].trials) == len(opened.trials)


def test_ctrl_c_ends_a_real_sweep_cleanly_and_it_resumes(tmp_path: Path, command: Command) -> None:
    overrides = [*SWEEP, "study.trials=3", "training.epochs=100", f"tracking.root={tmp_path}/records"]
    overrides += ["study.space.training.epochs=null", "study.pruner=none"]
    process = subprocess.Popen(
        command_line("sweep", *overrides), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "epoch 2/100" in line:
            # Ctrl-C in a terminal reaches the workers too.
            os.killpg(process.pid, signal.SIGINT)
            break
    lines += process.stdout.readlines()
    assert process.wait(timeout=60) == 130
    again = re.search(r"resume with: (\S+) (\S+) study=quick", "".join(lines))
    assert again is not None
    assert (again[1], again[2]) == ("digitcnn", "sweep")
    opened, _, runs = open_records(tmp_path / "records", "real")
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert not opened.get_trials(states=(TrialState.RUNNING,))
    interrupted = {trial.number for trial in opened.trials if trial.user_attrs.get("lost") == "interrupted"}
    assert interrupted
    queued = [trial.user_attrs["repeats"] for trial in opened.get_trials(states=(TrialState.WAITING,))]
    assert sorted(queued) == sorted(interrupted)
    assert opened.user_attrs["identity"]["baseline"]["training.epochs"] == 100


@pytest.mark.soak
def test_a_sweep_that_is_killed_is_resumed_without_loss(tmp_path: Path, command: Command) -> None:
    overrides = [*SWEEP, "study.trials=4", f"tracking.root={tmp_path}/records"]
    process = subprocess.Popen(command_line("sweep", *overrides), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    workers: list[psutil.Process] = []
    for line in process.stdout:
        if "epoch 1/" in line:
            workers = worker_processes(process.pid)
            process.kill()
            break
    process.wait()
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert workers
    assert not alive
    result = command("sweep", *overrides)
    assert result.returncode == 0, result.stderr
    assert "had been cut off; their parameters are queued again" in result.stdout
    assert_stores_agree(tmp_path / "records", "real")
    with sqlite3.connect(tmp_path / "records" / "mlflow.db") as database:
        assert database.execute("select count(*) from runs where status = 'RUNNING'").fetchone() == (0,)
