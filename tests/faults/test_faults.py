"""Nothing is lost when workers and sweeps are killed, signals arrive, and trials crash."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import sqlite3
import subprocess
import threading
from contextlib import closing
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from digitcnn import tracking
from digitcnn.config import ConfirmConfig, SweepConfig, load_config
from digitcnn.errors import MachineError
from tests.conftest import Command, command_line, with_study
from tests.support.processes import (
    KILLED,
    KILLED_AT_THE_END,
    start,
    wait_for,
    workers_of,
)
from tests.support.sweeps import (
    Failing,
    assert_nothing_runs,
    assert_stores_agree,
    assert_whole,
    confirm_config,
    in_folder,
    open_records,
    recorded_epochs,
    recorded_results,
    work,
    worker_processes,
)
from tests.support.trainers import InstantTrainer

# Ending takes at most 10 s by the design; a busy machine may need more.
_ENDING_SECONDS = 60


def _assert_none_is_left(process: BaseProcess) -> None:
    # Five seconds where nothing else runs. A worker that is still importing notices only when it has done so.
    _, alive = psutil.wait_procs(workers_of(process), timeout=60)
    assert not alive


def _long(config: SweepConfig) -> SweepConfig:
    """Trials of so many epochs that a test interrupts them."""
    tree = config.model_dump()
    space = {"training": {"batch_size": [20, 50, 100]}}
    return load_config(
        SweepConfig,
        tree
        | {"training": tree["training"] | {"epochs": 1000}, "study": tree["study"] | {"space": space}}
        | {"workers": {"name": "local", "count": 2}},
    )


# SIGKILL of workers and of the owner


def _sweep_with_killed_workers(config: SweepConfig, kills: int, seconds: float, seed: int) -> int:
    """Run a sweep in this process while its workers are killed at random; return the number of kills."""
    chance, over, killed = random.Random(seed), threading.Event(), 0

    def kill() -> None:
        nonlocal killed
        while killed < kills and not over.wait(chance.uniform(0.5, 1.5) * seconds):
            workers = worker_processes(os.getpid())
            if workers:
                chance.choice(workers).kill()
                killed += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        while True:
            # Where more workers are killed than trials end, the sweep ends, and is to be begun again.
            with contextlib.suppress(MachineError):
                work(config, InstantTrainer(0.1))
                break
    finally:
        over.set()
        killer.join()
    return killed


@pytest.mark.parametrize(
    ("trials", "workers", "kills", "seconds", "seed"),
    [(12, 2, 5, 1.0, 1), *(pytest.param(40, 4, 20, 1.5, seed, marks=pytest.mark.soak) for seed in (1, 2, 3))],
)
@pytest.mark.usefixtures("spawned_workers")
def test_sweep_loses_no_trial_when_workers_are_killed_at_random(
    trials: int, workers: int, kills: int, seconds: float, seed: int, sweep_config: SweepConfig
) -> None:
    config = with_study(sweep_config, trials=trials, workers=workers, sampler="random")
    assert _sweep_with_killed_workers(config, kills, seconds, seed) >= 3
    assert_whole(config.tracking.folder, trials)
    # A kill from outside is not the trial's fault.
    assert len(recorded_results(config.tracking.folder)) == trials


def test_sweep_goes_on_after_a_kill_at_any_point(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """One study, whose sweep is killed at every point one after the other, the same command again each time."""
    # Where MLflow's tables are still to be created.
    config, lines = in_folder(with_study(sweep_config, trials=8, workers=1), tmp_path / "new"), tmp_path / "lines"
    root = config.tracking.folder
    results: dict[int, Any] = {}
    epochs = 0
    trainer = InstantTrainer(model=True)
    for point in (*KILLED, *KILLED_AT_THE_END):
        process = start(config, trainer, lines, point)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"not killed when {point}: {lines.read_text()}"
        _assert_none_is_left(process)
        assert results.items() <= recorded_results(root).items(), point
        assert epochs <= recorded_epochs(root), point
        results, epochs = recorded_results(root), recorded_epochs(root)
    process = start(config, trainer, lines)
    process.join(120)
    assert process.exitcode == 0, lines.read_text()
    assert_whole(root, 8, models=True)
    said = lines.read_text()
    assert "had been cut off; their parameters are queued again" in said
    assert "had finished unnoticed; their results count" in said


# Signals


def _interrupted(config: SweepConfig | ConfirmConfig, lines: Path, number: signal.Signals, twice: bool = False) -> None:
    """Signals a process that trains, and its workers as a terminal does; checks that it ends as it should."""
    process = start(config, InstantTrainer(60.0 if twice else 0.1), lines)
    wait_for(lines, " began" if twice else " epoch 2", process)
    assert workers_of(process)
    assert process.pid is not None
    os.killpg(process.pid, number)
    if twice:
        wait_for(lines, "stopping: what has run is being recorded", process)
        os.kill(process.pid, number)
    process.join(_ENDING_SECONDS)
    assert process.exitcode == 128 + number, lines.read_text()
    _assert_none_is_left(process)
    assert_nothing_runs(config.tracking.folder)


def _signalled(config: SweepConfig, lines: Path, point: str) -> None:
    """Starts a sweep that sends itself a signal at a point; checks that it ends as it should."""
    process = start(config, InstantTrainer(0.1), lines, point)
    process.join(_ENDING_SECONDS)
    assert process.exitcode == 128 + getattr(signal, point.partition(" ")[0]), lines.read_text()
    _assert_none_is_left(process)
    assert_nothing_runs(config.tracking.folder)


def test_signal_ends_a_sweep_in_order(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """Ctrl-C, SIGTERM, a closed terminal and Ctrl-C twice, one after the other on one study."""
    config = _long(sweep_config)
    root = config.tracking.folder
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        _interrupted(config, tmp_path / number.name, number)
    _interrupted(config, tmp_path / "twice", signal.SIGINT, twice=True)
    for point in ("SIGTERM while the workers start", "SIGINT when a trial is asked for"):
        _signalled(config, tmp_path / point, point)
    opened, client, runs = open_records(root)
    assert {run.info.status for run in runs} == {"KILLED"}
    assert not recorded_results(root)
    first = opened.trials[0]
    assert first.user_attrs["lost"] == "interrupted"
    assert len(client.get_metric_history(first.user_attrs["run_id"], "validation_accuracy")) >= 2
    assert_stores_agree(root, models=False)


# Failures of the process that owns the study


def _refuse(database: Path, table: str) -> None:
    """Makes a database fail to take new rows of a table."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            f"create trigger refusal before insert on {table} begin select raise(abort, 'out of order'); end"
        )


def _rename_table(database: Path, table: str, name: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        # References in other tables keep the old name.
        connection.execute("pragma legacy_alter_table = on")
        connection.execute(f"alter table {table} rename to {name}")


def _mend(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("drop trigger refusal")


def test_study_that_cannot_be_read_any_more_leaves_no_study_run_open(sweep_config: SweepConfig) -> None:
    config = with_study(sweep_config, trials=4, workers=2)
    root = config.tracking.folder
    shown = Failing(1, lambda: _rename_table(root / "optuna.db", "trials", "unreadable"))
    with pytest.raises(MachineError, match=r"the study's store .* failed: .*no such table: trials"):
        work(config, InstantTrainer(), shown)
    _rename_table(root / "optuna.db", "unreadable", "trials")
    opened, client, _ = open_records(root)
    assert client.get_run(opened.user_attrs["parent_run_id"]).info.status == "FAILED"
    assert tracking.pending_message(config.tracking) == ""
    assert work(config, InstantTrainer()).finished == 4
    assert_nothing_runs(root)


def test_unexpected_error_ends_the_sweep_and_loses_nothing(sweep_config: SweepConfig) -> None:
    """Given a display that raises, and each store failing, in the last trials, whose errors Optuna does not pass on."""
    config = with_study(sweep_config, trials=2, workers=2)
    root = config.tracking.folder

    def raise_error() -> None:
        raise RuntimeError("the screen is broken")

    with pytest.raises(RuntimeError, match="the screen is broken"):
        work(config, InstantTrainer(), Failing(1, raise_error))
    assert_nothing_runs(root)
    config = with_study(sweep_config, trials=4, workers=2)
    number = len(open_records(root)[0].trials)
    with pytest.raises(MachineError, match=r"the study's store .* failed: the result of trial \d was not taken"):
        work(config, InstantTrainer(), Failing(number, lambda: _refuse(root / "optuna.db", "trial_values")))
    _mend(root / "optuna.db")
    config = with_study(sweep_config, trials=6, workers=2)
    number = len(open_records(root)[0].trials)
    with pytest.raises(MachineError, match=r"the MLflow store .* failed: .*out of order"):
        work(config, InstantTrainer(), Failing(number, lambda: _refuse(root / "mlflow.db", "metrics")))
    _mend(root / "mlflow.db")
    assert work(config, InstantTrainer()).finished == 6
    assert_whole(root, 6)


def test_signal_ends_a_confirmation_in_order(copied: SweepConfig, tmp_path: Path) -> None:
    config = confirm_config(copied)
    for number in (signal.SIGINT, signal.SIGTERM):
        _interrupted(config, tmp_path / number.name, number)
    _, client, runs = open_records(copied.tracking.folder)
    confirming = [run for run in runs if "confirms" in run.data.tags]
    assert {run.info.status for run in confirming} == {"KILLED"}
    assert any(len(client.get_metric_history(run.info.run_id, "train_accuracy")) >= 2 for run in confirming)
    assert_stores_agree(copied.tracking.folder, models=False)


def test_signal_lets_the_leaderboard_be_recorded(copied: SweepConfig, tmp_path: Path) -> None:
    before = (copied.tracking.folder / "reports" / "small" / "leaderboard.csv").read_text()
    _signalled(copied, tmp_path / "lines", "SIGHUP while the leaderboard is recorded")
    assert (copied.tracking.folder / "reports" / "small" / "leaderboard.csv").read_text() == before
    assert_whole(copied.tracking.folder, 3)


# make soak: longer, and with the commands and real Keras


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_sweep_goes_on_after_ten_kills_at_random(sweep_config: SweepConfig, tmp_path: Path, seed: int) -> None:
    config, lines, chance = with_study(sweep_config, trials=40, workers=4), tmp_path / "lines", random.Random(seed)
    root = config.tracking.folder
    results: dict[int, Any] = {}
    epochs = 0
    for _ in range(10):
        process = start(config, InstantTrainer(0.1), lines, spawn=True)
        process.join(chance.choice([chance.uniform(0, 3), chance.uniform(3, 15)]))
        process.kill()
        process.join()
        _assert_none_is_left(process)
        assert results.items() <= recorded_results(root).items()
        assert epochs <= recorded_epochs(root)
        results, epochs = recorded_results(root), recorded_epochs(root)
    process = start(config, InstantTrainer(0.1), lines, spawn=True)
    process.join()
    assert process.exitcode == 0, lines.read_text()
    assert_whole(root, 40)


REAL = [
    *("study=quick", "data.path=mnist", "data.train_size=500", "data.validation_size=200", "study.name=small"),
    *("workers.count=2", "model.dense_units=16", "training.epochs=30", "study.trials=6", "study.pruner=none"),
    *("study.space.training.epochs=null", "study.space.model.conv1_filters={low: 2, high: 8}"),
    "study.space.model.conv2_filters=null",
]


@pytest.mark.soak
def test_sweep_command_goes_on_after_three_kills(tmp_path: Path, command: Command) -> None:
    overrides = [*REAL, f"tracking.root={tmp_path}/records"]
    for kills in range(3):
        process = subprocess.Popen(command_line("sweep", *overrides), stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        begun = next(line for line in process.stdout if f"epoch {10 * kills + 5}/" in line or "complete" in line)
        workers = worker_processes(process.pid)
        process.kill()
        process.wait()
        assert begun
        assert workers
        assert not psutil.wait_procs(workers, timeout=60)[1]
    ended = command("sweep", *overrides, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert "had been cut off; their parameters are queued again" in ended.stdout
    assert_whole(tmp_path / "records", 6, models=True)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["sweep", "train"])
def test_closed_terminal_ends_a_command_in_order(name: str, tmp_path: Path) -> None:
    root = tmp_path / "records"
    keys = REAL if name == "sweep" else [*REAL[1:4], "model.dense_units=16", "training.epochs=1000"]
    ours, theirs = os.openpty()
    line = command_line(name, *keys, f"tracking.root={root}")
    # setsid --ctty makes the terminal the process's own, so that closing it hangs the process up.
    process = subprocess.Popen(["setsid", "--wait", "--ctty", *line], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    # A busy machine shows not every epoch.
    while not re.search(rb"\b([3-9]|\d\d+)/(30|1000)\b", seen.replace(b"\x1b[0m", b"")):
        try:
            seen += os.read(ours, 10_000)
        except OSError:
            pytest.fail(f"ended with {process.wait()} before its third epoch: {seen.decode()}")
    os.close(ours)
    assert process.wait(_ENDING_SECONDS) == 128 + signal.SIGHUP
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert any(client.get_metric_history(run.info.run_id, "validation_accuracy") for run in runs)
