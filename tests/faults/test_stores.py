"""Failures of a store: every fault is a real one, and nothing that was recorded may be lost."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState

from digitcnn import report, study, tracking, training
from digitcnn.config import (
    ConfirmConfig,
    ReportConfig,
    RunConfig,
    StudyReference,
    SweepConfig,
    TrackingConfig,
    load_config,
)
from digitcnn.errors import MachineError
from digitcnn.files import sqlite_url
from digitcnn.runner import sweep
from digitcnn.tracking import client as client_module
from digitcnn.tracking import operations, outbox
from digitcnn.tracking.local import process_id
from tests.conftest import Command, command_line, with_study
from tests.support import processes
from tests.support.processes import FORKS
from tests.support.recorded import STRANGE, assert_complete, config_in, epoch, record_a_run
from tests.support.servers import MLflowServer, Proxy, free_port
from tests.support.sweeps import Quiet, assert_stores_agree, open_records, work
from tests.support.trainers import BrokenTrainer, InstantTrainer


class During(Quiet):
    """Injects a fault at the end of the trial with a number."""

    def __init__(self, number: int, fault: Callable[[], object]) -> None:
        super().__init__()
        self.number, self.fault = number, fault

    def trial_ended(self, worker: int | None, trial: int, ending: str, value: float | None, best: str) -> None:
        super().trial_ended(worker, trial, ending, value, best)
        if trial == self.number:
            self.fault()


def in_folder(config: SweepConfig, root: Path, **tracking: str) -> SweepConfig:
    return load_config(SweepConfig, {**config.model_dump(), "tracking": {"root": str(root), **tracking}})


# An MLflow server that goes away.


@pytest.fixture(scope="module")
def server(empty_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(empty_records / "mlflow.db", folder)
    started = MLflowServer(folder, free_port())
    started.start()
    yield started
    started.kill()


@pytest.fixture
def proxy(server: MLflowServer) -> Iterator[Proxy]:
    opened = Proxy(server.port)
    yield opened
    opened.down()


def served_at(proxy: Proxy) -> str:
    return f"http://127.0.0.1:{proxy.port}"


def served(tmp_path: Path, proxy: Proxy) -> RunConfig:
    return config_in(tmp_path / "records", uri=served_at(proxy), experiment="served")


def test_open_store_refuses_a_server_that_is_down_in_one_line(tmp_path: Path) -> None:
    config = TrackingConfig(root=str(tmp_path / "records"), uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MachineError) as caught:
        tracking.open_store(config)
    assert str(caught.value) == (
        f"the MLflow store {config.uri} failed: Connection refused; what had been recorded is safe"
    )
    assert not (tmp_path / "records").exists()


def test_queue_delivers_what_was_logged_while_the_server_was_gone(tmp_path: Path, proxy: Proxy) -> None:
    config = served(tmp_path, proxy)

    def gone_for_two_epochs(number: int) -> None:
        if number == 2:
            proxy.down()
        if number == 4:
            proxy.up()

    run_id = record_a_run(config, gone_for_two_epochs, tmp_path)
    assert_complete(config, run_id)
    assert tracking.pending_message(config.tracking) == ""
    assert list((tmp_path / "records" / "outbox").iterdir()) == []


def test_queue_keeps_what_a_server_gone_for_good_did_not_take(
    tmp_path: Path, proxy: Proxy, messages: list[str]
) -> None:
    config = served(tmp_path, proxy)
    run_id = record_a_run(config, lambda number: proxy.down() if number == 2 else None, tmp_path)
    folder = tmp_path / "records" / "outbox"
    assert tracking.pending_message(config.tracking) == (
        f"the MLflow store did not take all records of 1 run; they are kept in {folder}, "
        "and the next command that reaches it delivers them"
    )
    # A command that does not reach it either changes nothing.
    with pytest.raises(MachineError, match="Connection refused"):
        tracking.open_store(config.tracking)
    proxy.up()
    opened = tracking.open_store(config.tracking)
    # Cut off after the model and before its run knows of it, delivery begins again: nothing is there twice.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", lambda *_: proxy.down())
        with pytest.raises(MlflowException):
            tracking.deliver(opened)
    proxy.up()
    tracking.deliver(opened)
    assert messages[-1:] == ["delivered 9 records of 1 run that had been kept"]
    assert tracking.pending_message(config.tracking) == ""
    assert_complete(config, run_id)


def test_queue_quarantines_what_a_server_refuses(tmp_path: Path, proxy: Proxy, messages: list[str]) -> None:
    config = served(tmp_path, proxy)
    run_id = record_a_run(config, lambda number: proxy.down() if number == 2 else None, tmp_path)
    outbox.enqueue(tmp_path / "records" / "outbox", config.tracking.store_uri, "0" * 32, tracking.tags({"a": "b"}))
    proxy.up()
    tracking.deliver(tracking.open_store(config.tracking))
    assert_complete(config, run_id)
    refused = tmp_path / "records" / "outbox" / "refused" / ("0" * 32)
    assert any(f"it stays in {refused}" in text for text in messages)
    assert "journal.jsonl" in {item.name for item in refused.iterdir()}


def test_create_run_waits_for_the_server(tmp_path: Path, proxy: Proxy, messages: list[str]) -> None:
    config = served(tmp_path, proxy)
    opened = tracking.open_store(config.tracking)
    proxy.down()
    threading.Timer(2.0, proxy.up).start()
    run_id = tracking.create_training_run(opened, config, "late", {})
    assert opened.client.get_run(run_id).info.run_name == "late"
    assert len(messages) == 2
    assert "does not answer (Connection refused)" in messages[0]
    assert messages[1].endswith("answers again")


def test_create_run_is_not_repeated_when_only_its_answer_was_lost(tmp_path: Path, proxy: Proxy) -> None:
    config = served(tmp_path, proxy)
    opened = tracking.open_store(config.tracking)
    create = opened.client.create_run
    with pytest.MonkeyPatch.context() as patch:

        def created_and_cut_off(*arguments: Any) -> Any:
            run = create(*arguments)
            proxy.down()
            threading.Timer(1.0, proxy.up).start()
            return run

        patch.setattr(opened.client, "create_run", created_and_cut_off)
        run_id = tracking.create_training_run(opened, config, "unanswered", {})
    (run,) = opened.client.search_runs([opened.experiment_id], "attributes.run_name = 'unanswered'")
    assert run.info.run_id == run_id
    assert run.data.params == {name: str(value) for name, value in config.parameters().items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_sweep_while_the_server_is_gone(
    sweep_config: SweepConfig, tmp_path: Path, proxy: Proxy, number: signal.Signals
) -> None:
    config = in_folder(with_study(sweep_config, workers=1), tmp_path / "records", uri=served_at(proxy))
    _end_while_the_server_is_gone(config, tmp_path / "lines", proxy, number)


def test_signal_ends_a_confirmation_while_the_server_is_gone(
    sweep_config: SweepConfig, tmp_path: Path, proxy: Proxy
) -> None:
    config = in_folder(with_study(sweep_config, workers=1, trials=2), tmp_path / "records", uri=served_at(proxy))
    work(config, InstantTrainer())
    confirm = {"study": {"name": config.study.name}, "confirm": {"top": 1, "seeds": 2, "workers": 1}}
    confirmed = load_config(ConfirmConfig, confirm | {"tracking": config.tracking.model_dump()})
    _end_while_the_server_is_gone(confirmed, tmp_path / "lines", proxy, signal.SIGINT)


def _end_while_the_server_is_gone(
    config: SweepConfig | ConfirmConfig, lines: Path, proxy: Proxy, number: signal.Signals
) -> None:
    process = processes.start(config, InstantTrainer(0.3), lines)
    processes.wait_for(lines, "epoch 1", process)
    proxy.down()
    # The next run waits for it.
    processes.wait_for(lines, "does not answer", process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 128 + number, lines.read_text()
    said = [text for text in lines.read_text().splitlines() if text.startswith("interrupted: ")]
    assert len(said) == 1
    assert f"they are kept in {config.tracking.folder}/outbox" in said[0]


# A database that another process holds.


@contextlib.contextmanager
def locked(path: Path, seconds: float = 600) -> Iterator[Callable[[], None]]:
    """Another process holds the database for some seconds, or until it is told to let go; gives what tells it."""
    program = f"""
import select, sqlite3, sys
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA busy_timeout = 60000")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
select.select([sys.stdin], [], [], {seconds})
connection.execute("ROLLBACK")
"""
    line = [sys.executable, "-c", program]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process.stdin.close
        process.wait()


def test_run_goes_on_while_the_database_is_locked_for_longer_than_mlflow_waits(
    root: Path, tmp_path: Path, messages: list[str]
) -> None:
    config = config_in(root)
    with contextlib.ExitStack() as held:

        def lock(number: int) -> None:
            if number == 2:
                let_go.append(held.enter_context(locked(root / "mlflow.db")))
            if number == 4:
                # MLflow waited for 20 seconds in vain: two epochs are kept.
                assert outbox.pending_runs(root / "outbox", "mlflow.db")
                let_go[0]()

        let_go: list[Callable[[], None]] = []
        run_id = record_a_run(config, lock, tmp_path)
    assert "does not answer (database is locked): what runs goes on and is kept" in messages[0]
    tracking.deliver(tracking.open_store(config.tracking))
    assert_complete(config, run_id)


# A disk that is full, or can only be read.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Writes until the disk is full and returns the file to delete."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 2**9, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def test_full_disk_ends_a_run_in_one_line_and_leaves_earlier_runs_intact(
    disk: Path, root: Path, tmp_path: Path
) -> None:
    config = config_in(shutil.copytree(root, disk / "records"))
    before = record_a_run(config, lambda _: None, tmp_path)

    def full(number: int) -> None:
        if number == 3:
            fill(disk)

    with pytest.raises(MachineError, match="database or disk is full.*what had been recorded is safe") as caught:
        record_a_run(config, full, tmp_path)
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    with contextlib.closing(sqlite3.connect(disk / "records" / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_complete(config, before)
    assert_complete(config, record_a_run(config, lambda _: None, tmp_path))


def test_abandoned_run_is_closed_by_the_next_command(
    disk: Path, root: Path, tmp_path: Path, messages: list[str]
) -> None:
    """Given a process that could not say that its run ended, and others that are at work or of another machine."""
    config = config_in(shutil.copytree(root, disk / "records"))
    process = FORKS.Process(target=_record_until_full, args=(config.model_dump(), disk))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    (disk / "filler").unlink()
    with tracking.start_run(config, {}, training.describe_environment(1)) as run:
        assert [line.rpartition(", ")[2] for line in messages] == ["and its process is gone: it is closed"]
        elsewhere = tracking.create_training_run(
            run.store, config, "elsewhere", {"host": "elsewhere, process 1 of 2026-01-01"}
        )
        of_a_study = tracking.create_training_run(
            run.store, config, "trial", {"study": "a", "host": "b, process 1 of c"}
        )
        # A number that no process has.
        gone = {"host": re.sub(r"process \d+", f"process {2**22 + 1}", process_id())}
        kept = tracking.create_training_run(run.store, config, "its end is kept", gone)
        outbox.enqueue(run.store.outbox, run.store.name, kept, operations.ended("FINISHED"))
        tracking.close_abandoned_runs(run.store)
        client = run.store.client
        states = {each.info.run_id: each.info.status for each in client.search_runs([run.store.experiment_id])}
    (left,) = set(states) - {run.run_id, elsewhere, of_a_study, kept}
    assert states[left] == "KILLED"
    assert [states[each] for each in (run.run_id, elsewhere, of_a_study)] == ["RUNNING"] * 3
    assert states[kept] == "FINISHED"
    assert "failure" not in client.get_run(kept).data.tags
    assert client.get_run(left).data.tags["failure"] == "its process ended"


def _record_until_full(values: dict[str, Any], disk: Path) -> None:
    try:
        with tracking.start_run(load_config(RunConfig, values), {}, training.describe_environment(1)) as run:
            run.log_epoch(epoch(1))
            fill(disk)
            run.ending = "completed"
    except MachineError:
        sys.exit(1)


def test_full_disk_leaves_no_half_of_a_model(disk: Path, root: Path, tmp_path: Path) -> None:
    """The artifacts are on another disk than the database."""
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    (root / "artifacts").symlink_to(disk)
    config = config_in(root)
    run_ids: list[str] = []

    def full(number: int) -> None:
        if number == 5:
            run_ids.extend(run.info.run_id for run in MlflowClient(config.tracking.store_uri).search_runs(["1"]))
            fill(disk)

    with pytest.raises(OSError, match="No space left on device"):
        record_a_run(config, full, tmp_path)
    client = MlflowClient(config.tracking.store_uri)
    run = client.get_run(run_ids[0])
    assert run.info.status == "FAILED"
    assert "No space left on device" in run.data.tags["failure"]
    assert [point.step for point in client.get_metric_history(run_ids[0], "train_loss")] == [1, 2, 3, 4, 5]
    assert client.search_logged_models([run.info.experiment_id]) == []


def test_full_disk_stops_a_sweep_in_one_line_and_it_resumes(disk: Path, root: Path, sweep_config: SweepConfig) -> None:
    shutil.copytree(root, disk / "records")
    config = with_study(in_folder(sweep_config, disk / "records"), workers=2)
    with pytest.raises(MachineError, match="full|No space left on device") as caught:
        work(config, InstantTrainer(0.1), During(2, lambda: fill(disk)))
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    opened, _, _ = open_records(disk / "records")
    finished = {trial.number: trial.values for trial in opened.trials if trial.values}
    assert finished
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    opened, _, runs = open_records(disk / "records")
    assert {number: opened.trials[number].values for number in finished} == finished
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert_stores_agree(disk / "records", models=False)


def test_full_disk_leaves_leaderboard_and_report_whole(
    disk: Path, root: Path, sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: FORKS)
    # Given a sweep that finds no space for its leaderboard
    (root / "reports").symlink_to(disk)
    fill(disk)
    swept = with_study(sweep_config, workers=1, trials=2)
    with pytest.raises(MachineError, match=r"leaderboard.csv cannot be written: No space left on device"):
        work(swept, InstantTrainer())
    (disk / "filler").unlink()
    # Then the next one has nothing to train.
    assert work(swept, BrokenTrainer()).finished == 2
    assert (disk / "small" / "leaderboard.csv").read_text().count("\n") == 3
    # Given a report that finds no space for the next one
    config = ReportConfig(study=StudyReference(name="small"), tracking=sweep_config.tracking)
    report.write_report(config)
    before = {path.name: path.read_bytes() for path in (disk / "small").iterdir()}
    assert before["report.html"].endswith(b"</html>")
    fill(disk)
    with pytest.raises(MachineError) as caught:
        report.write_report(config)
    # Then the old one is as it was.
    page = root / "reports" / "small" / "report.html"
    assert str(caught.value) == f"{page} cannot be written: No space left on device; the study is recorded"
    assert {path.name: path.read_bytes() for path in (disk / "small").iterdir()} == before


@pytest.fixture
def read_only(disk: Path, root: Path, tmp_path: Path) -> Iterator[RunConfig]:
    """Records with one run, in a folder that can only be read: permissions do not bind root."""
    record_a_run(config_in(shutil.copytree(root, disk / "records")), lambda _: None, tmp_path)
    folder = tmp_path / "read-only"
    folder.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield config_in(folder / "records")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_folder_is_named_and_can_be_read(
    read_only: RunConfig, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    folder = read_only.tracking.folder
    with pytest.raises(MachineError, match="attempt to write a readonly database"):
        record_a_run(read_only, lambda _: None, tmp_path)
    for config in (config_in(folder / "new").tracking, config_in(folder.parent / "other").tracking):
        with pytest.raises(MachineError, match="the records folder .* cannot be used: Read-only file system"):
            tracking.open_store(config)
    with pytest.raises(MachineError, match="the records folder .* cannot be used: Read-only file system"):
        work(in_folder(sweep_config, folder), InstantTrainer())
    opened = tracking.open_store(read_only.tracking)
    (run,) = opened.client.search_runs([opened.experiment_id])
    assert tracking.read_text(opened, run.info.run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(read_only, run.info.run_id)


# The same with whole sweeps and commands.


def assert_all_is_there_once(config: SweepConfig, result: sweep.SweepResult) -> None:
    assert (result.finished, result.total) == (6, 6)
    assert_stores_agree(config.tracking.folder, models=False)
    assert tracking.pending_message(config.tracking) == ""


@pytest.mark.soak
@pytest.mark.parametrize(("seconds", "names"), [(15, ("mlflow.db", "optuna.db")), (120, ("mlflow.db",))])
def test_sweep_goes_on_after_a_database_was_locked(
    root: Path, sweep_config: SweepConfig, seconds: int, names: tuple[str, ...], messages: list[str]
) -> None:
    config = with_study(in_folder(sweep_config, root), workers=2)
    with contextlib.ExitStack() as held:

        def lock() -> None:
            for name in names:
                held.enter_context(locked(root / name, seconds))

        shown = During(1, lock)
        result = work(config, InstantTrainer(0.5), shown)
    assert_all_is_there_once(config, result)
    # 20 seconds are MLflow's patience.
    said = [note for note in messages if "does not answer (database is locked)" in note]
    assert len(said) == (1 if seconds > 20 else 0)


@pytest.mark.soak
def test_sweep_whose_study_is_locked_for_two_minutes_stops_in_one_line_and_loses_no_result(
    root: Path, sweep_config: SweepConfig
) -> None:
    config = with_study(in_folder(sweep_config, root), workers=2)
    with contextlib.ExitStack() as held:
        shown = During(1, lambda: held.enter_context(locked(root / "optuna.db", 125)))
        with pytest.raises(MachineError, match="optuna.db failed: .*database is locked") as caught:
            work(config, InstantTrainer(0.5), shown)
    assert "\n" not in str(caught.value)
    _, _, runs = open_records(root)
    finished = {run.info.run_id for run in runs if run.info.status == "FINISHED" and "trial" in run.data.tags}
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    opened, _, runs = open_records(root)
    complete = {trial.user_attrs["run_id"] for trial in opened.trials if trial.state == TrialState.COMPLETE}
    assert finished <= complete
    assert len(complete) == 6
    assert not [run for run in runs if run.info.status == "RUNNING"]


def assert_served_sweep_is_complete(config: SweepConfig) -> None:
    """Each trial's run has its epochs once, and ended as its trial did."""
    opened = study.existing_study(config.tracking.folder, "small")
    assert opened is not None
    client = MlflowClient(config.tracking.store_uri)
    assert len(opened.get_trials(states=(TrialState.COMPLETE,))) == 6
    for trial in opened.get_trials(states=(TrialState.COMPLETE,)):
        run = client.get_run(trial.user_attrs["run_id"])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [point.step for point in history] == list(range(1, trial.user_attrs["epochs_run"] + 1))
        assert run.data.metrics["validation_accuracy"] == pytest.approx(trial.values[0])
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert not [run.info.run_id for run in found if run.info.status == "RUNNING"]
    assert tracking.pending_message(config.tracking) == ""


@pytest.fixture
def own_server(empty_records: Path, tmp_path: Path) -> Iterator[MLflowServer]:
    """A server that the test may kill."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_records / "mlflow.db", folder)
    started = MLflowServer(folder, free_port())
    started.start()
    yield started
    started.kill()


@pytest.mark.soak
def test_sweep_outlives_a_server_that_is_killed_and_started_again(
    own_server: MLflowServer, tmp_path: Path, sweep_config: SweepConfig, messages: list[str]
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)

    def kill() -> None:
        own_server.kill()
        threading.Timer(10.0, own_server.start).start()

    shown = During(1, kill)
    result = work(config, InstantTrainer(0.5), shown)
    assert (result.finished, result.total) == (6, 6)
    assert len([note for note in messages if "does not answer" in note]) == 1
    assert_served_sweep_is_complete(config)


@pytest.mark.soak
def test_sweep_whose_server_was_gone_for_good_is_completed_by_the_next(
    own_server: MLflowServer,
    tmp_path: Path,
    sweep_config: SweepConfig,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)
    monkeypatch.setattr(client_module, "RETRY_TIMEOUT_SECONDS", 3.0)
    with pytest.raises(MachineError, match="Connection refused; .* they are kept in .*/outbox"):
        work(config, InstantTrainer(0.5), During(1, own_server.kill))
    assert "they are kept in" in tracking.pending_message(config.tracking)
    own_server.start()
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    assert [note for note in messages if note.startswith("delivered ")]
    assert_served_sweep_is_complete(config)


SMALL = [
    *("data.path=mnist", "data.train_size=500", "data.validation_size=200", "model.conv1_filters=2"),
    *("model.conv2_filters=4", "model.dense_units=16", "training.epochs=2"),
]
STUDY = [
    *(
        "study=quick",
        *SMALL,
        "study.name=moved",
        "study.workers=1",
        "study.space.model.conv1_filters=null",
        "study.space.model.conv2_filters=null",
    )
]


@pytest.mark.soak
def test_moved_and_copied_study_works_with_its_champion(tmp_path: Path, command: Command) -> None:
    """In a folder whose name has spaces, % and other letters, with the commands and real Keras."""
    first, moved, copied = tmp_path / "a" / "records", tmp_path / STRANGE / "b", tmp_path / "c" / "records"
    space = ["study.space.training.epochs=null", "study.space.training.batch_size=[50,100]"]
    made = command("sweep", *STUDY, *space, "study.trials=2", f"tracking.root={first}", timeout=900)
    assert made.returncode == 0, made.stderr
    confirm = ["study=moved", "confirm.top=1", "confirm.seeds=2", "confirm.workers=1"]
    made = command("confirm", *confirm, f"tracking.root={first}", timeout=900)
    assert made.returncode == 0, made.stderr

    moved.parent.mkdir()
    shutil.move(first, moved)
    root = f"tracking.root={moved}"
    again = command("reproduce", "run=champion", root, timeout=900)
    assert again.returncode == 0, again.stderr
    assert f"the records were in {first}: the store now names their places in {moved}" in again.stdout
    assert "IDENTICAL: run" in again.stdout
    program = f"""
import mlflow, numpy
mlflow.set_tracking_uri({sqlite_url(moved / "mlflow.db")!r})
print(mlflow.keras.load_model("models:/digitcnn@champion").predict(numpy.zeros((1, 28, 28)), verbose=0).shape)
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert loaded.stdout.endswith("(1, 10)\n"), loaded.stderr
    more = command("sweep", *STUDY, *space, "study.trials=3", root, timeout=900)
    assert more.returncode == 0, more.stderr
    assert "3 trials, 2 recorded before" in more.stdout
    more = command("confirm", *confirm, root, timeout=900)
    assert more.returncode == 0, more.stderr
    assert "all 4 runs are recorded" in more.stdout

    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    shutil.copytree(moved, copied)
    for name, overrides in (("confirm", confirm), ("reproduce", ["run=best", "study=moved"])):
        there = command(name, *overrides, f"tracking.root={copied}", timeout=900)
        assert there.returncode == 0, there.stderr
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    shutil.rmtree(moved)
    there = command("reproduce", "run=champion", f"tracking.root={copied}", timeout=900)
    assert there.returncode == 0, there.stderr
    assert "IDENTICAL: run" in there.stdout


@pytest.mark.soak
def test_train_whose_server_is_gone_for_good_says_where_its_records_are(
    tmp_path: Path, proxy: Proxy, command: Command
) -> None:
    where = [f"tracking.root={tmp_path}/records", f"tracking.uri=http://127.0.0.1:{proxy.port}"]
    where += ["tracking=server", "tracking.experiment=served"]
    process = subprocess.Popen(
        command_line("train", *SMALL, *where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for text in process.stdout:
        if "epoch 1/2" in text:
            proxy.down()
            break
    output, error = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "validation accuracy" in output
    assert error == (
        "error: the MLflow store did not take all records of 1 run; they are kept in "
        f"{tmp_path}/records/outbox, and the next command that reaches it delivers them\n"
    )
    proxy.up()
    ended = command("train", *SMALL, *where, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert "records of 1 run that had been kept" in ended.stdout
    client = MlflowClient(f"http://127.0.0.1:{proxy.port}")
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.model_sha256 LIKE '%'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert str(model.status) == "READY"


@pytest.mark.soak
def test_commands_name_a_full_disk_damage_and_a_missing_server_in_one_line(
    disk: Path, root: Path, command: Command
) -> None:
    down = f"tracking.uri=http://127.0.0.1:{free_port()}"
    fill(disk)
    optuna.create_study(study_name="moved", storage=sqlite_url(root / "optuna.db"))
    torn = shutil.copytree(root, root.with_name("torn"))
    (torn / "mlflow.db").write_text("not a database")
    (torn / "optuna.db").write_text("not a database")
    for name, more in (("train", SMALL), ("sweep", STUDY), ("confirm", ["study=moved"]), ("reproduce", [])):
        for overrides, cause in (
            ([f"tracking.root={torn}"], "is corrupt or truncated, or not a database"),
            ([f"tracking.root={disk}/new"], "No space left on device|disk is full|nothing is recorded|no such study"),
            ([f"tracking.root={root}", down], "Connection refused|no such study|not made by digitcnn"),
        ):
            ended = command(name, *more, *overrides, timeout=900)
            assert ended.returncode in (1, 2), (name, overrides, ended)
            assert len(ended.stderr.splitlines()) == 1, ended.stderr
            assert re.search(cause, ended.stderr), ended.stderr
