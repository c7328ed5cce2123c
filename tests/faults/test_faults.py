"""Nothing is lost: workers and sweeps that are killed, signals, trials that crash, and records that disagree."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState

from digitcnn import evaluation, runner, study, tracking, training
from digitcnn.config import ConfirmConfig, SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.records import TrialRecord
from digitcnn.runner import Job
from digitcnn.runner.run import recorded_outcome
from digitcnn.study import storage
from digitcnn.tracking import operations
from digitcnn.tracking import queue as queue_module
from digitcnn.values import EpochMetrics
from tests.conftest import Command, command_line, with_study
from tests.support.processes import (
    FORKS,
    KILLED,
    KILLED_AT_THE_END,
    KILLED_BY_A_WORKER,
    KilledWithModel,
    KillingTrainer,
    start,
    wait_for,
    workers_of,
)
from tests.support.recorded import epoch
from tests.support.sweeps import Quiet, assert_stores_agree, open_records, work, worker_processes
from tests.support.trainers import InstantTrainer

# Ending takes 10 s at most by the design; a busy machine may make more of it, but not an endless run.
_ENDING_SECONDS = 60
_CRASHING = 100


def _epochs_recorded(root: Path) -> int:
    """How many values of epochs' metrics are recorded."""
    if not (root / "mlflow.db").exists():
        return 0
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        (count,) = database.execute("select count(*) from metrics where step > 0").fetchone()
    return int(count)


def _results(root: Path) -> dict[int, Any]:
    """The values of the trials that have a result."""
    opened = study.existing_study(root, "small")
    return (
        {}
        if opened is None
        else {trial.number: trial.values for trial in opened.trials if trial.state == TrialState.COMPLETE}
    )


def _assert_none_is_left(process: BaseProcess) -> None:
    # Five seconds where nothing else runs. A worker that is still importing notices only when it has done so.
    _, alive = psutil.wait_procs(workers_of(process), timeout=60)
    assert not alive


def _assert_nothing_runs(root: Path) -> None:
    opened, _, runs = open_records(root)
    assert not [run.info.run_name for run in runs if run.info.status == "RUNNING"]
    assert not opened.get_trials(states=(TrialState.RUNNING,))


def _assert_whole(root: Path, total: int, models: bool = False) -> None:
    """The study is at its total, both stores say the same, nothing runs, and each lost trial was repeated."""
    opened = open_records(root)[0]
    assert study.count_finished(opened) == total
    _assert_nothing_runs(root)
    assert_stores_agree(root, models=models)
    repeated = {trial.user_attrs.get("repeats"): trial for trial in opened.trials}
    for trial in opened.trials:
        if "lost" in trial.user_attrs and trial.params and trial.number in repeated:
            again = repeated[trial.number]
            assert again.params == trial.params or "lost" in again.user_attrs
    keys = [study.parameters_key(t.params) for t in opened.trials if t.state == TrialState.COMPLETE]
    trained = [t for t in opened.trials if t.state == TrialState.COMPLETE and "same_as" not in t.user_attrs]
    assert len({study.parameters_key(t.params) for t in trained}) == len(trained) == len(set(keys))


def _long(config: SweepConfig) -> SweepConfig:
    """Trials of so many epochs that a test interrupts them."""
    tree = config.model_dump()
    space = {"training": {"batch_size": [20, 50, 100]}}
    return load_config(
        SweepConfig,
        tree
        | {"training": tree["training"] | {"epochs": 1000}, "study": tree["study"] | {"space": space, "workers": 2}},
    )


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are forked from a process with everything imported: they begin in 0.1 s instead of 4."""
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)


# 1 to 3: SIGKILL


def _sweep_with_killed_workers(config: SweepConfig, kills: int, seconds: float, seed: int) -> int:
    """A sweep in this process while its workers are killed at random; returns how many were."""
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
        work(config, InstantTrainer(0.1))
    finally:
        over.set()
        killer.join()
    return killed


def test_workers_killed_at_random_lose_no_trial(sweep_config: SweepConfig) -> None:
    # A SIGKILL may be the system's, for lack of memory, so that it counts as a death of the trial whoever sent it.
    config = with_study(sweep_config, trials=12, retries=20, workers=2)
    assert _sweep_with_killed_workers(config, kills=5, seconds=1.0, seed=1) >= 3
    _assert_whole(config.tracking.folder, 12)


def test_a_sweep_killed_at_any_point_goes_on(sweep_config: SweepConfig, tmp_path: Path) -> None:
    """One study, whose sweep is killed at every point one after the other, the same command again each time."""
    config, lines = with_study(sweep_config, trials=8, workers=1, retries=0), tmp_path / "lines"
    root = config.tracking.folder
    results: dict[int, Any] = {}
    epochs = 0
    for point in (*KILLED, *KILLED_BY_A_WORKER, *KILLED_AT_THE_END):
        trainer = KillingTrainer(mark=tmp_path / point, point=point)
        process = start(config, trainer, lines, None if point in KILLED_BY_A_WORKER else point)
        process.join(120)
        assert process.exitcode == -signal.SIGKILL, f"not killed when {point}: {lines.read_text()}"
        _assert_none_is_left(process)
        assert results.items() <= _results(root).items(), point
        assert epochs <= _epochs_recorded(root), point
        results, epochs = _results(root), _epochs_recorded(root)
    process = start(config, KillingTrainer(), lines)
    process.join(120)
    assert process.exitcode == 0, lines.read_text()
    _assert_whole(root, 8, models=True)
    said = lines.read_text()
    assert "had been cut off; their parameters are queued again" in said
    assert "had finished unnoticed; their results count" in said


# 4: signals


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
    _assert_nothing_runs(config.tracking.folder)


def _signalled(config: SweepConfig, lines: Path, point: str) -> None:
    """Starts a sweep that sends itself a signal at a point; checks that it ends as it should."""
    process = start(config, InstantTrainer(0.1), lines, point)
    process.join(_ENDING_SECONDS)
    assert process.exitcode == 128 + getattr(signal, point.partition(" ")[0]), lines.read_text()
    _assert_none_is_left(process)
    _assert_nothing_runs(config.tracking.folder)


def test_a_signal_ends_a_sweep_in_order(sweep_config: SweepConfig, tmp_path: Path) -> None:
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
    assert not _results(root)
    first = opened.trials[0]
    assert first.user_attrs["lost"] == "interrupted"
    assert len(client.get_metric_history(first.user_attrs["run_id"], "validation_accuracy")) >= 2
    assert_stores_agree(root, models=False)


# 5: trials that fail


@dataclass(frozen=True)
class HungryTrainer(InstantTrainer):
    """Asks for more memory than its process may have, when the batch size is 100 or always."""

    always: bool = False

    def prepare(self, threads: int) -> None:
        in_use = psutil.Process().memory_info().vms
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**31, in_use + 2**31))

    def after_epoch(self, job: Job, metrics: EpochMetrics) -> None:
        if self.always or job.config.training.batch_size == _CRASHING:
            np.ones(2**33)


@pytest.mark.usefixtures("quick_workers")
def test_a_trial_without_enough_memory_ends_at_its_retries(sweep_config: SweepConfig) -> None:
    space = {"training": {"batch_size": [20, 50, _CRASHING]}}
    config = with_study(sweep_config, sampler="grid", retries=2, workers=1, space=space)
    assert work(config, HungryTrainer()).finished == 3
    opened, client, _ = open_records(config.tracking.folder)
    states = Counter((trial.params["training.batch_size"], trial.state) for trial in opened.trials)
    assert states == {(20, TrialState.COMPLETE): 1, (50, TrialState.COMPLETE): 1, (_CRASHING, TrialState.FAIL): 3}
    failed = next(trial for trial in opened.trials if trial.state == TrialState.FAIL)
    tags = client.get_run(failed.user_attrs["run_id"]).data.tags
    assert tags["failure"] == "its worker process ended (out of memory)"
    assert_stores_agree(config.tracking.folder, models=False)


@pytest.mark.usefixtures("quick_workers")
def test_three_trials_that_fail_in_a_row_for_one_cause_end_the_sweep(sweep_config: SweepConfig) -> None:
    space = {"training": {"batch_size": [20, 50, _CRASHING]}}
    config = with_study(sweep_config, sampler="grid", retries=0, workers=1, space=space)
    with pytest.raises(MachineError) as caught:
        work(config, HungryTrainer(always=True))
    cause = "its worker process ended (out of memory)"
    assert str(caught.value) == f"3 trials failed in a row: {cause}; what had run is recorded"
    _assert_nothing_runs(config.tracking.folder)


# Failures of the process that owns the study


class Failing(Quiet):
    """A display at which something happens once, in the first epoch of a trial with this number or a later one."""

    def __init__(self, trial: int, happens: Callable[[], None]) -> None:
        super().__init__()
        self.trial, self.happens, self.happened = trial, happens, threading.Lock()

    def epoch(self, worker: int, trial: int, metrics: EpochMetrics) -> None:
        if trial >= self.trial and self.happened.acquire(blocking=False):
            self.happens()


def _refuse(database: Path, table: str) -> None:
    """Makes a database fail to take new rows of a table."""
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            f"create trigger refusal before insert on {table} begin select raise(abort, 'out of order'); end"
        )


def _mend(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("drop trigger refusal")


@pytest.mark.usefixtures("quick_workers")
def test_an_error_that_nobody_expects_ends_the_sweep_and_loses_nothing(sweep_config: SweepConfig) -> None:
    """Given a display that raises, and each store failing, in the last trials, whose errors Optuna does not pass on."""
    config = with_study(sweep_config, trials=2, workers=2)
    root = config.tracking.folder

    def raise_error() -> None:
        raise RuntimeError("the screen is broken")

    with pytest.raises(RuntimeError, match="the screen is broken"):
        work(config, InstantTrainer(), Failing(1, raise_error))
    _assert_nothing_runs(root)
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
    _assert_whole(root, 6)


# 9 and 10: one process at a time, and records that disagree


@pytest.fixture(scope="module")
def finished_study(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A study of 3 trials that is finished, for copies."""
    tree = {
        "data": {"path": str(small_npz), "validation_size": 100},
        "model": {"name": "cnn", "conv1_filters": 4, "conv2_filters": 6, "dense_units": 16},
        "training": {"epochs": 40, "batch_size": 50, "threads": 1},
        "tracking": {"root": str(tmp_path_factory.mktemp("finished") / "records")},
        "study": {
            "name": "small",
            "objective": "validation_accuracy",
            "trials": 3,
            "pruner": "none",
            "workers": 1,
            "space": {"training": {"batch_size": [20, 50, 100, 150, 200]}},
        },
    }
    config = load_config(SweepConfig, tree)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(multiprocessing, "get_context", lambda _: FORKS)
        work(config, InstantTrainer())
    return config


@pytest.fixture
def copied(finished_study: SweepConfig, tmp_path: Path) -> SweepConfig:
    """The finished study in a folder of its own."""
    root = tmp_path / "copy"
    shutil.copytree(finished_study.tracking.folder, root)
    return load_config(SweepConfig, finished_study.model_dump() | {"tracking": {"root": str(root)}})


@pytest.fixture
def opened(copied: SweepConfig) -> study.OpenStudy:
    found = study.existing_study(copied.tracking.folder, "small")
    assert found is not None
    return found


@pytest.fixture
def store(copied: SweepConfig) -> tracking.Store:
    return tracking.open_store(copied.tracking)


def _confirm_config(config: SweepConfig) -> ConfirmConfig:
    tree = {"study": {"name": "small"}, "tracking": config.tracking.model_dump(), "confirm": {"top": 1, "seeds": 2}}
    return load_config(ConfirmConfig, tree)


@pytest.mark.usefixtures("quick_workers")
def test_a_second_process_on_a_study_is_refused_in_one_line(copied: SweepConfig, command: Command) -> None:
    refused = []
    with storage.lock(copied.tracking.folder, "small"):
        for again in (lambda: work(copied, InstantTrainer()), lambda: _confirm(copied)):
            with pytest.raises(ConfigError) as caught:
                again()
            refused.append(str(caught.value))
        ended = command("confirm", "study=small", f"tracking.root={copied.tracking.root}")
    refused.append(ended.stderr.removeprefix("error: ").strip())
    assert ended.returncode == 2
    for line in refused:
        assert line.startswith(f"study.name=small: process {os.getpid()}, since 20")
        assert "study.workers" in line
    # The file that is left says nothing, and is no obstacle.
    assert work(copied, InstantTrainer()).finished == 3


def test_two_folders_of_records_with_one_study_file_are_used_one_after_the_other(
    copied: SweepConfig, tmp_path: Path
) -> None:
    linked = load_config(SweepConfig, copied.model_dump() | {"tracking": {"root": str(tmp_path / "linked")}})
    linked.tracking.folder.mkdir()
    (linked.tracking.folder / "optuna.db").symlink_to(copied.tracking.folder / "optuna.db")
    for held, refused in ((linked, copied), (copied, linked)):
        with (
            study.only_process(held.tracking.folder, "small"),
            pytest.raises(ConfigError, match=f"process {os.getpid()}, since .* is at work on this study"),
        ):
            work(refused, InstantTrainer())


def test_a_study_that_cannot_be_read_is_one_line(copied: SweepConfig) -> None:
    with closing(sqlite3.connect(copied.tracking.folder / "optuna.db")) as database, database:
        database.execute("alter table trial_values rename column value to lost")
    with pytest.raises(MachineError, match=r"^the study's store .* failed: .*no such column[^\n]*$"):
        runner.plan_sweep(copied)


def _confirm(config: SweepConfig) -> None:
    evaluation.run_confirmation(evaluation.plan_confirmation(_confirm_config(config)), Quiet(), InstantTrainer())


def test_a_second_sweep_does_not_disturb_the_first_whose_workers_do_not_hold_the_lock(copied: SweepConfig) -> None:
    held: list[str] = []

    def look() -> None:
        with pytest.raises(ConfigError, match=f"process {os.getpid()}, since .* is at work on this study"):
            work(copied, InstantTrainer())
        for each in psutil.Process().children(recursive=True):
            held.extend(file.path for file in each.open_files() if file.path.endswith(".lock"))
        assert any(file.path.endswith("small.lock") for file in psutil.Process().open_files())

    assert work(with_study(copied, trials=4), InstantTrainer(), Failing(3, look)).finished == 4
    assert held == []
    _assert_whole(copied.tracking.folder, 4)


def test_a_confirmation_that_is_interrupted_is_recorded_as_such(copied: SweepConfig, tmp_path: Path) -> None:
    config = _confirm_config(copied)
    for number in (signal.SIGINT, signal.SIGTERM):
        _interrupted(config, tmp_path / number.name, number)
    _, client, runs = open_records(copied.tracking.folder)
    confirming = [run for run in runs if "confirms" in run.data.tags]
    assert {run.info.status for run in confirming} == {"KILLED"}
    assert any(len(client.get_metric_history(run.info.run_id, "train_accuracy")) >= 2 for run in confirming)
    assert_stores_agree(copied.tracking.folder, models=False)


def test_a_signal_while_the_leaderboard_is_recorded_lets_it_be_recorded(copied: SweepConfig, tmp_path: Path) -> None:
    before = (copied.tracking.folder / "reports" / "small" / "leaderboard.csv").read_text()
    _signalled(copied, tmp_path / "lines", "SIGHUP while the leaderboard is recorded")
    assert (copied.tracking.folder / "reports" / "small" / "leaderboard.csv").read_text() == before
    _assert_whole(copied.tracking.folder, 3)


def _unfinish(root: Path, number: int) -> None:
    """Makes a trial of which the study was never told the result."""
    with closing(sqlite3.connect(root / "optuna.db")) as database, database:
        (trial,) = database.execute("select trial_id from trials where number = ?", (number,)).fetchone()
        database.execute("update trials set state = 'RUNNING', datetime_complete = null where trial_id = ?", (trial,))
        database.execute("delete from trial_values where trial_id = ?", (trial,))
        database.execute(
            "delete from trial_user_attributes where trial_id = ? and key not in ('run_id', 'baseline')",
            (trial,),
        )


def test_a_result_that_the_study_was_never_told_counts(copied: SweepConfig, store: tracking.Store) -> None:
    root = copied.tracking.folder
    before = study.existing_study(root, "small").trials  # type: ignore[union-attr]
    for number in (0, 2):
        _unfinish(root, number)
    opened = study.existing_study(root, "small")
    assert opened is not None
    assert runner.repair_records(opened, store) == "trials 0, 2 had finished unnoticed; their results count"
    for trial, was in zip(opened.trials, before, strict=True):
        assert (trial.state, trial.values, trial.user_attrs) == (was.state, was.values, was.user_attrs)
    assert runner.repair_records(opened, store) == ""
    _assert_whole(root, 3)


def test_a_run_whose_last_words_were_kept_has_its_outcome(opened: study.OpenStudy, store: tracking.Store) -> None:
    """Given a worker that was killed after its run FINISHED, which a store that was away did not take."""
    trial = opened.trials[0]
    run_id = trial.user_attrs["run_id"]
    store.client.update_run(run_id, status="RUNNING")
    assert recorded_outcome(store, run_id) is None
    queue_module.enqueue(store.outbox, store.name, run_id, operations.ended("FINISHED"))
    outcome = recorded_outcome(store, run_id)
    assert outcome is not None
    assert outcome.summary["validation_accuracy"] == trial.values[0]


def test_a_trial_whose_pruning_the_study_was_never_told_is_not_trained_again(
    copied: SweepConfig, store: tracking.Store
) -> None:
    """Given a trial that was pruned after its second epoch, in whose place another would be trained."""
    root = copied.tracking.folder
    _unfinish(root, 2)
    opened = study.existing_study(root, "small")
    assert opened is not None
    trial = opened.trials[2]
    tags = {"study": "small", "trial": "2"}
    run_id = tracking.create_training_run(store, copied.baseline, "small-2", tags, opened.user_attrs["parent_run_id"])
    study.record_trial(opened, trial, TrialRecord(run_id=run_id))
    with tracking.start_run(copied.baseline, tags, training.describe_environment(1), run_id) as run:
        for number in (1, 2):
            run.log_epoch(epoch(number))
        tracking.put(store, run_id, tracking.metrics({"cpu_seconds": 2.0}, 2))
        run.ending = "pruned"
    assert runner.repair_records(opened, store) == "trials 2 had finished unnoticed; their results count"
    told = opened.trials[2]
    assert told.state == TrialState.PRUNED
    assert told.user_attrs["epochs_run"] == 2
    assert told.user_attrs["reached"] == {"validation_accuracy": epoch(2).validation_accuracy}
    assert study.count_finished(opened) == 3


def test_a_run_ends_as_its_trial_did(copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store) -> None:
    runs = [trial.user_attrs["run_id"] for trial in opened.trials]
    store.client.update_run(runs[0], status="RUNNING")
    store.client.set_terminated(runs[1], "FAILED")
    store.client.set_tag(runs[1], "failure", "cut off")
    said = runner.repair_records(opened, store)
    assert said == "2 runs were marked as finished, as their trials are"
    assert "failure" not in store.client.get_run(runs[1]).data.tags
    _assert_whole(copied.tracking.folder, 3)


@pytest.mark.usefixtures("quick_workers")
def test_a_trial_without_a_run_and_runs_without_a_trial_are_ended(
    copied: SweepConfig, opened: study.OpenStudy, store: tracking.Store
) -> None:
    space = runner.plan_sweep(copied).space
    opened.enqueue_trial({"training.batch_size": 150})
    opened.ask(study.distributions(space))
    noted = opened.ask()
    parent = opened.user_attrs["parent_run_id"]
    unnoted = tracking.create_training_run(store, copied.baseline, "small-4", {"study": "small", "trial": "4"}, parent)
    nobody = tracking.create_training_run(store, copied.baseline, "small-99", {"study": "small", "trial": "99"}, parent)
    store.client.update_run(parent, status="RUNNING")
    # Of a study of the same name in another folder, which records in the same MLflow store.
    other = tracking.create_training_run(
        store, copied.baseline, "small-0", {"study": "small", "trial": "0"}, "another's run"
    )
    said = runner.repair_records(opened, store)
    assert said == "trials 3, 4 had been cut off; their parameters are queued again; 3 open runs were closed"
    assert [store.client.get_run(run).info.status for run in (unnoted, nobody, parent)] == ["KILLED"] * 3
    assert store.client.get_run(other).info.status == "RUNNING"
    assert opened.trials[noted.number].user_attrs["run_id"] == unnoted
    store.client.delete_run(nobody)
    # The first had parameters, and is repeated with them; the other had none.
    result = work(with_study(copied, trials=4), InstantTrainer())
    assert store.client.get_run(other).info.status == "RUNNING"
    store.client.delete_run(other)
    assert result.finished == 4
    repeated = [trial for trial in open_records(copied.tracking.folder)[0].trials if "repeats" in trial.user_attrs]
    assert [(each.user_attrs["repeats"], each.params) for each in repeated] == [(3, {"training.batch_size": 150})]
    _assert_whole(copied.tracking.folder, 4)


@pytest.mark.usefixtures("quick_workers")
def test_mlflow_records_that_were_deleted_do_not_stop_the_study(
    copied: SweepConfig, opened: study.OpenStudy, messages: list[str]
) -> None:
    root = copied.tracking.folder
    opened.enqueue_trial(opened.trials[1].params)
    (root / "mlflow.db").unlink()
    with pytest.raises(ConfigError, match="MLflow's records of it are gone; sweep it again"):
        _confirm(copied)
    messages.clear()
    assert work(with_study(copied, trials=4), InstantTrainer()).finished == 4
    assert messages == ["MLflow's records of it are gone; its trials count without them"]
    # What could have been taken over from a run that is gone was trained again.
    again = open_records(root)[0].trials[3]
    assert "same_as" not in again.user_attrs
    _assert_nothing_runs(root)
    messages.clear()
    work(with_study(copied, trials=4), InstantTrainer())
    assert messages == []


@pytest.mark.usefixtures("quick_workers")
def test_a_study_that_was_deleted_begins_anew_beside_its_old_runs(
    copied: SweepConfig, store: tracking.Store, messages: list[str]
) -> None:
    root = copied.tracking.folder
    before = {run.info.run_id: run.info.status for run in _children(store)}
    (root / "optuna.db").unlink()
    assert work(copied, InstantTrainer()).finished == 3
    assert messages == ["MLflow also has the runs of another study of this name"]
    after = {run.info.run_id: run.info.status for run in _children(store)}
    assert before.items() <= after.items()
    assert len(after) == 6
    assert {trial.user_attrs["run_id"] for trial in open_records(root)[0].trials} == set(after) - set(before)


def _children(store: tracking.Store) -> list[Any]:
    runs = store.client.search_runs([store.experiment_id])
    return [run for run in runs if "trial" in run.data.tags]


# Long versions: make soak


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_twenty_killed_workers_of_four_lose_none_of_forty_trials(
    sweep_config: SweepConfig, tmp_path: Path, seed: int
) -> None:
    disturbed = with_study(sweep_config, trials=40, retries=40, workers=4, sampler="random")
    undisturbed = load_config(
        SweepConfig, disturbed.model_dump() | {"tracking": {"root": str(tmp_path / "undisturbed")}}
    )
    seconds = []
    for config, kills in ((undisturbed, 0), (disturbed, 20)):
        began = time.monotonic()
        assert _sweep_with_killed_workers(config, kills, seconds=1.5, seed=seed) == kills
        seconds.append(time.monotonic() - began)
        _assert_whole(config.tracking.folder, 40)
    # Not asserted: trials of 0.2 s cost less than the start of the process that takes a killed one's place.
    print(f"undisturbed {seconds[0]:.1f} s, with 20 kills {seconds[1]:.1f} s: {seconds[1] / seconds[0]:.2f} times")


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_sweep_killed_ten_times_at_random_goes_on(sweep_config: SweepConfig, tmp_path: Path, seed: int) -> None:
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
        assert results.items() <= _results(root).items()
        assert epochs <= _epochs_recorded(root)
        results, epochs = _results(root), _epochs_recorded(root)
    process = start(config, InstantTrainer(0.1), lines, spawn=True)
    process.join()
    assert process.exitcode == 0, lines.read_text()
    _assert_whole(root, 40)


REAL = [
    *("study=quick", "data.path=mnist", "data.train_size=500", "data.validation_size=200", "study.name=small"),
    *("study.workers=2", "model.dense_units=16", "training.epochs=30", "study.trials=6", "study.pruner=none"),
    *("study.space.training.epochs=null", "study.space.model.conv1_filters={low: 2, high: 8}"),
    "study.space.model.conv2_filters=null",
]


@pytest.mark.soak
def test_a_real_sweep_killed_three_times_is_finished_by_the_same_command(tmp_path: Path, command: Command) -> None:
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
        assert not psutil.wait_procs(workers, timeout=5)[1]
    ended = command("sweep", *overrides, timeout=900)
    assert ended.returncode == 0, ended.stderr
    _assert_whole(tmp_path / "records", 6, models=True)


@pytest.mark.soak
@pytest.mark.parametrize("name", ["sweep", "train"])
def test_a_closed_terminal_ends_a_real_command_in_order(name: str, tmp_path: Path) -> None:
    root = tmp_path / "records"
    keys = REAL if name == "sweep" else [*REAL[1:4], "model.dense_units=16", "training.epochs=1000"]
    ours, theirs = os.openpty()
    line = command_line(name, *keys, f"tracking.root={root}")
    # setsid --ctty makes the terminal the process's own, so that closing it hangs the process up.
    process = subprocess.Popen(["setsid", "--wait", "--ctty", *line], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while b"epoch 3/" not in seen.replace(b"\x1b[0m", b"") and b" 3/" not in seen:
        seen += os.read(ours, 10_000)
    os.close(ours)
    assert process.wait(_ENDING_SECONDS) == 128 + signal.SIGHUP
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    assert {run.info.status for run in runs} == {"KILLED"}
    assert any(client.get_metric_history(run.info.run_id, "validation_accuracy") for run in runs)


@pytest.mark.soak
def test_a_worker_killed_while_it_records_a_real_model_leaves_no_half_of_one(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    config = with_study(sweep_config, trials=3, workers=1)
    work(config, KilledWithModel(mark=tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    _assert_whole(config.tracking.folder, 3, models=True)
