"""Sweeps with real worker processes and real stores, in this process and as a command."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.trial import TrialState, create_trial

from digitcnn import runner, study
from digitcnn.config import SweepConfig, load_config
from digitcnn.errors import ConfigError
from digitcnn.runner.run import _load_once as load_once
from digitcnn.study.space import distributions
from tests.conftest import Command, command_line, with_study
from tests.support.studies import open_in, space_of
from tests.support.sweeps import Quiet, assert_stores_agree, in_folder, open_records, work, worker_processes
from tests.support.trainers import DivergingTrainer, InstantTrainer, SuicidalTrainer


@pytest.mark.usefixtures("spawned_workers")
def test_sweep_records_the_same_in_both_stores(sweep_config: SweepConfig) -> None:
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
    assert study.count_finished(opened, "tpe") == 12


def test_sweep_records_against_how_many_values_a_trial_was_pruned(sweep_config: SweepConfig) -> None:
    """Given a grid whose last point is the worst, one trial at a time."""
    tree = with_study(sweep_config, workers=1, pruner="median", sampler="grid", trials=9).model_dump()
    tree["training"]["epochs"] = 8
    tree["study"]["space"] = {"training": {"batch_size": [20, 50, 100, 150, 200]}}
    config = load_config(SweepConfig, tree)
    opened = open_in(config, config.tracking.folder, runner.check_run(config.baseline).sha256)
    for batch_size in (50, 100, 150, 200):
        opened.enqueue_trial({"training.batch_size": batch_size}, skip_if_exists=True)
    result = work(config, InstantTrainer())
    opened, client, _ = open_records(config.tracking.folder)
    pruned = opened.trials[4]
    assert (pruned.params["training.batch_size"], pruned.state) == (20, TrialState.PRUNED)
    assert (pruned.user_attrs["epochs_run"], pruned.user_attrs["pruned_against"]) == (4, 4)
    tags = client.get_run(pruned.user_attrs["run_id"]).data.tags
    assert (tags["pruned_after"], tags["pruned_against"]) == ("4", "4")
    assert result.leaderboard["note"].tolist()[-1] == "judged in epoch 4 against 4 values"
    assert_stores_agree(config.tracking.folder, models=False)


def test_sweep_does_not_train_identical_parameters_twice(sweep_config: SweepConfig) -> None:
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


def test_sweep_does_not_train_again_what_diverged(root: Path, sweep_config: SweepConfig) -> None:
    """Given few points, that are drawn again by the same sweep, a later one, and by one that tries the failed again."""
    config = with_study(
        sweep_config, workers=1, sampler="random", trials=6, space={"training": {"batch_size": [20, 50]}}
    )
    shown = Quiet()
    for total, retry_failed in ((6, False), (9, False), (9, True)):
        result = work(with_study(config, trials=total, retry_failed=retry_failed), DivergingTrainer(), shown)
    planned = [runner.plan_sweep(with_study(config, trials=9, retry_failed=again)).finished for again in (False, True)]
    assert planned == [9, 0]
    opened, client, _ = open_records(root)
    first, copy, *_ = opened.trials
    trained = [trial for trial in opened.trials if "same_as" not in trial.user_attrs]
    points = [(trial.params["training.batch_size"], "repeats" in trial.user_attrs) for trial in trained]
    assert sorted(points) == [(20, False), (20, True), (50, False), (50, True)]
    cause = "the loss became nan in epoch 1"
    assert {f"failed: {cause}", f"same as trial {first.number}"} <= set(shown.endings)
    assert {(trial.state, trial.user_attrs["failure"]) for trial in opened.trials} == {(TrialState.FAIL, cause)}
    run = client.get_run(copy.user_attrs["run_id"])
    assert (run.info.status, run.data.tags["failure"], run.data.tags["diverged"]) == ("FAILED", cause, "true")
    assert run.data.tags["same_as_run"] == first.user_attrs["run_id"]
    note = result.leaderboard.set_index("trial").loc[copy.number, "note"]
    assert note == f"same parameters as trial {first.number}, not trained again; {cause}"
    assert_stores_agree(root, models=False)


class _Best(Quiet):
    """A display that keeps the best trial so far, as it was told at each trial's end."""

    def __init__(self) -> None:
        super().__init__()
        self.best: list[str] = []

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        super().trial_ended(worker, trial, ending, value, best)
        self.best.append(best)


def test_resumed_sweep_takes_a_completed_trial_over_a_pruned_one_with_equal_parameters(
    copied: SweepConfig, opened: study.OpenStudy
) -> None:
    """Given the best trial, which was lost at first, with parameters with which another was pruned before."""
    run_id = opened.trials[1].user_attrs["run_id"]
    drawn, parameters = distributions(space_of(copied)), {"training.batch_size": 20}

    def add(state: TrialState, value: float | None, record: dict[str, object]) -> None:
        opened.add_trial(
            create_trial(state=state, value=value, params=parameters, distributions=drawn, user_attrs=record)
        )

    add(TrialState.PRUNED, None, {"run_id": run_id, "reached": {"validation_accuracy": 0.6}})
    add(TrialState.COMPLETE, 1.99, {"run_id": run_id, "lost": "its process ended", "validation_accuracy": 1.99})
    opened.enqueue_trial(parameters)
    shown = _Best()
    result = work(with_study(copied, trials=6), InstantTrainer(), shown)
    assert shown.endings == ["same as trial 4"]
    assert shown.best == ["1.9900 (trial 4)"]
    assert result.leaderboard["trial"].iloc[0] == 4
    recorded, client, _ = open_records(copied.tracking.folder)
    assert client.get_run(result.parent_run_id).data.metrics["best_trial.validation_accuracy"] == 1.99
    duplicate = recorded.trials[5]
    assert (duplicate.state, duplicate.values) == (TrialState.COMPLETE, [1.99])
    assert duplicate.user_attrs.keys() == {"run_id", "same_as", "validation_accuracy", "cpu_spent"}
    assert duplicate.user_attrs["run_id"] != run_id


@pytest.mark.usefixtures("spawned_workers")
def test_sweep_replaces_a_killed_worker_and_repeats_its_trial(sweep_config: SweepConfig, tmp_path: Path) -> None:
    work(sweep_config, SuicidalTrainer(folder=tmp_path, batch_sizes=(20, 50)))
    opened, client, _ = open_records(sweep_config.tracking.folder)
    failed = [trial for trial in opened.trials if trial.state == TrialState.FAIL]
    # The baseline's batch size is 50; the other need not be drawn.
    assert {trial.params["training.batch_size"] for trial in failed} | {20} == {20, 50}
    for trial in failed:
        repeated = next(other for other in opened.trials if other.user_attrs.get("repeats") == trial.number)
        assert (repeated.params, repeated.state) == (trial.params, TrialState.COMPLETE)
        tags = client.get_run(trial.user_attrs["run_id"]).data.tags
        assert tags["failure"] == "its worker process ended (SIGKILL)"
    assert study.count_finished(opened, "tpe") == 6
    assert_stores_agree(sweep_config.tracking.folder, models=False)


def test_plan_creates_nothing_and_checks_the_whole_space(sweep_config: SweepConfig, tmp_path: Path) -> None:
    sweep_config = in_folder(sweep_config, tmp_path / "none")
    plan = runner.plan_sweep(with_study(sweep_config, workers=2))
    assert (plan.total, plan.workers, plan.baseline.training.threads) == (6, 2, 1)
    too_large = with_study(sweep_config, space={"model": {"conv1_kernel": [3, 9], "conv2_kernel": [3, 12]}})
    with pytest.raises(ConfigError, match=r"study.space: at .*: model.conv2_kernel=12: leaves no pixels"):
        runner.plan_sweep(too_large)
    both = with_study(sweep_config, space={"training": {"early_stopping": [2], "schedule": ["cosine"]}})
    with pytest.raises(ConfigError, match=r"study.space: at .*: training.early_stopping=2: would cut the schedule"):
        runner.plan_sweep(both)
    assert not sweep_config.tracking.folder.exists()


def test_sweep_refuses_to_go_on_when_its_file_holds_other_images(sweep_config: SweepConfig, tmp_path: Path) -> None:
    data = shutil.copy(sweep_config.data.path, tmp_path / "images.npz")
    tree = {**sweep_config.model_dump(), "data": {"path": str(data), "validation_size": 100}}
    config = with_study(load_config(SweepConfig, tree), trials=2, workers=1)
    work(config, InstantTrainer())
    with np.load(data) as arrays:
        others = {name: array[::-1] for name, array in arrays.items()}
    np.savez(data, **others)
    # Another process would read the file anew.
    load_once.cache_clear()
    with pytest.raises(ConfigError, match=f"data.path={data}: holds other images now than study small"):
        runner.plan_sweep(with_study(config, trials=4))


def test_sweep_of_two_objectives_gives_a_front(sweep_config: SweepConfig) -> None:
    config = with_study(sweep_config, objective=["validation_accuracy", "cpu_seconds"], trials=8)
    table = work(config, InstantTrainer()).leaderboard
    front = table[table["rank"] == 1]
    assert front["validation_accuracy"].is_monotonic_decreasing
    assert front["cpu_seconds"].is_monotonic_decreasing
    assert (table["rank"] >= 1).all()


# With the command, real Keras and the real MNIST, as a person would.

SWEEP = [
    *("study=quick", "data.path=mnist", "data.train_size=500", "data.validation_size=200", "study.name=real"),
    *("workers.count=2", "model.dense_units=16", "training.epochs=2"),
    *("study.space.training.epochs=[1,2]", "study.space.model.conv1_filters=[2,4]"),
    "study.space.model.conv2_filters=null",
]


def test_sweep_command_survives_the_death_of_a_worker(tmp_path: Path, command: Command) -> None:
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
    assert study.count_finished(opened, "tpe") == 4
    assert_stores_agree(tmp_path / "records", "real")
    text = "".join(lines)
    assert "difference" in text
    assert "next: digitcnn ui" in text
    # The same command again has nothing to do, and says so in seconds.
    again = command("sweep", *overrides)
    assert again.returncode == 0
    assert "all 4 trials are recorded" in again.stdout
    assert len(open_records(tmp_path / "records", "real")[0].trials) == len(opened.trials)


def test_sweep_command_resumes_after_ctrl_c(tmp_path: Path, command: Command) -> None:
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
    assert opened.user_attrs["identity"]["baseline"]["training.epochs"] == 100
