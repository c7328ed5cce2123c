"""What happens when a store fails: every fault is a real one, and nothing that was recorded may be lost."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import requests
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from optuna.trial import TrialState

from digitcnn import embedded, outbox, records, storage, store, study, sweep, tracking, writes
from digitcnn.config import RunConfig, SweepConfig, TrackingConfig, load
from digitcnn.errors import ConfigError, MachineError
from digitcnn.outbox import Record
from digitcnn.training import EpochMetrics
from tests.conftest import REPOSITORY, Command, command_line, with_study
from tests.test_sweep import Quiet, assert_stores_agree, open_records, work
from tests.trainers import BrokenTrainer, InstantTrainer

# A folder's name with all that an address of a file could stumble over.
STRANGE = "räcords of 50% a?b#c"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Records of nothing, made once: MLflow takes seconds to create its tables."""
    folder = tmp_path_factory.mktemp("template") / "records"
    tracking.open_store(TrackingConfig(root=str(folder)))
    return folder


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    """An empty records folder of the test's own."""
    folder = shutil.copytree(template, tmp_path / "records")
    embedded.bring_up_to_date(folder)
    return folder


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.0 / number, 0.5, 0.5, 0.9 + number / 100, 1.0, 100.0)


def config_in(root: Path, **tracking: str) -> RunConfig:
    return load(RunConfig, {"training": {"threads": 1}, "tracking": {"root": str(root), **tracking}})


def saved_model(folder: Path) -> Path:
    """A model as it is saved, without Keras."""
    from mlflow.models import Model

    folder.mkdir()
    Model(run_id="").save(str(folder / "MLmodel"))
    (folder / "weights").write_bytes(bytes(1000))
    return folder


def record_a_run(
    config: RunConfig,
    at_epoch: Callable[[int], None],
    folder: Path,
    epochs: int = 5,
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """A run with epochs, tags, a file, data and a model; `at_epoch` is called before each epoch is recorded."""
    with tracking.run(config, {"study": "none"}, say=say) as run:
        for number in range(1, epochs + 1):
            at_epoch(number)
            run.log_epoch(epoch(number))
        run.log_file("predictions.csv", "1,2,3\n")
        dataset = {"name": "mnist", "digest": "abc", "source": "{}", "source_type": "local"}
        store.put(run.store, run.run_id, writes.data({"training": dataset, "validation": {**dataset, "digest": "x"}}))
        store.put(run.store, run.run_id, writes.model(saved_model(folder / f"model-{run.run_id}"), {"a": "1"}))
        store.put(run.store, run.run_id, writes.tags({"weights_sha256": "abc"}))
        run.ending = "completed"
    return run.run_id


def files_at(config: RunConfig, place: str) -> set[str]:
    """By its address: MLflow's client remembers where the artifacts of a run were, which a move changes."""
    found = mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=config.tracking.store_uri)
    return {Path(item.path).name for item in found}


def assert_complete(config: RunConfig, run_id: str, epochs: int = 5) -> None:
    """All that `record_a_run` recorded is there, once."""
    client = MlflowClient(config.tracking.store_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name, value in epoch(1).metrics().items():
        history = client.get_metric_history(run_id, name)
        assert [point.step for point in history] == list(range(1, epochs + 1)), name
        assert history[0].value == value
    assert run.data.params == {name: str(value) for name, value in config.parameters().items()}
    assert run.data.tags["weights_sha256"] == "abc"
    assert run.data.tags["threads"] == "1"
    assert files_at(config, run.info.artifact_uri) == {"config.yaml", "environment.json", "predictions.csv"}
    assert [(each.tags[0].value, each.dataset.digest) for each in run.inputs.dataset_inputs] == [
        ("training", "abc"),
        ("validation", "x"),
    ]
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY"
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert files_at(config, model.artifact_location) == {"MLmodel", "weights"}


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
    return load(SweepConfig, {**config.model_dump(), "tracking": {"root": str(root), **tracking}})


# The outbox itself.


def test_records_are_delivered_in_order_and_then_forgotten(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.txt").write_text("of the second record")
    outbox.keep(tmp_path / "outbox", "here", "run", Record("tags", {"n": 1}))
    outbox.keep(tmp_path / "outbox", "here", "run", Record("files", {}, files))
    shutil.rmtree(files)
    outbox.keep(tmp_path / "outbox", "here", "run", Record("tags", {"n": 3}))
    assert outbox.runs(tmp_path / "outbox", "here") == ["run"]
    assert outbox.runs(tmp_path / "outbox", "elsewhere") == []
    seen: list[Any] = []

    def write(record: Record) -> None:
        seen.append(record.content or (record.files and (record.files / "a.txt").read_text()))

    assert outbox.deliver(tmp_path / "outbox", "run", write) == 3
    assert seen == [{"n": 1}, "of the second record", {"n": 3}]
    assert list((tmp_path / "outbox").iterdir()) == []


def test_an_interrupted_delivery_begins_again_and_a_line_cut_off_is_no_record(tmp_path: Path) -> None:
    for number in (1, 2):
        outbox.keep(tmp_path, "here", "run", Record("tags", {"n": number}))
    with (tmp_path / "run" / "journal.jsonl").open("a") as journal:
        journal.write('{"kind": "tags", "content": {"n"')
    seen: list[Any] = []

    def write(record: Record) -> None:
        seen.append(record.content["n"])
        if len(seen) == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        outbox.deliver(tmp_path, "run", write)
    outbox.keep(tmp_path, "here", "run", Record("tags", {"n": 3}))
    assert outbox.deliver(tmp_path, "run", write) == 3
    assert seen == [1, 2, 1, 2, 3]


def test_writers_and_deliverers_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    seen: list[int] = []
    over = threading.Event()

    def deliver() -> None:
        while not over.is_set() or outbox.waiting(tmp_path, "run"):
            for run_id in outbox.runs(tmp_path, "here"):
                outbox.deliver(tmp_path, run_id, lambda record: seen.append(record.content["n"]))

    deliverers = [threading.Thread(target=deliver) for _ in range(2)]
    for thread in deliverers:
        thread.start()
    try:
        for number in range(200):
            outbox.keep(tmp_path, "here", "run", Record("tags", {"n": number}))
    finally:
        over.set()
        for thread in deliverers:
            thread.join(timeout=60)
    assert seen == list(range(200))


# Files that are not what they should be.


@pytest.mark.parametrize("name", ["plain", STRANGE, "%41", "ünïcode ", "+&;=@:"])
def test_an_address_names_the_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "x.db"
    url = embedded.sqlite_url(path)
    assert sqlalchemy.make_url(url).database == str(path)
    assert embedded.sqlite_path(url) == path
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite

    _make_parent_dirs_if_sqlite(url)
    assert {item.name for item in tmp_path.iterdir()} <= {name}


def test_a_folder_that_mlflow_would_look_for_elsewhere_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking.root=.*%20x: must have no % with two hexadecimal digits"):
        config_in(tmp_path / "records%20x")


def _random_bytes(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 40)


def _cut_off(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def _damaged(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(b"\xff" * 16384)


def _of_another_program(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")


def _of_another_version(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'v0'")
        connection.commit()


TORN = {
    _random_bytes: r"is torn, or no database at all \(file is not a database\)",
    _cut_off: r"is torn, or no database at all",
    _damaged: r"is torn, or no database at all",
    _of_another_program: "is another program's database",
    _of_another_version: "version",
}


@pytest.mark.parametrize("tear", TORN, ids=lambda tear: tear.__name__.strip("_"))
@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_a_torn_or_foreign_database_is_named_and_left_as_it_is(
    root: Path, name: str, tear: Callable[[Path], None]
) -> None:
    url = storage.sqlite_url(root / "optuna.db")
    optuna.create_study(study_name="x", storage=url)
    tear(root / name)
    before = (root / name).read_bytes()
    files = sorted(root.rglob("*"))
    opening: dict[str, Callable[[], object]] = {
        "mlflow.db": lambda: tracking.open_store(TrackingConfig(root=str(root))),
        "optuna.db": lambda: study.existing_study(url, "x"),
    }
    with pytest.raises(MachineError, match=TORN[tear]) as caught:
        opening[name]()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (root / name).read_bytes() == before
    assert sorted(root.rglob("*")) == files


# Records that were moved.


def places(path: Path) -> set[str]:
    """Every place that an MLflow database holds."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            str(row[0])
            for table, column in embedded._PLACES
            for row in connection.execute(f"SELECT {column} FROM {table}")
            if row[0] and "Default" not in str(row) and str(row[0]).startswith("file:")
        }


def test_a_folder_that_was_moved_and_copied_opens_and_the_original_is_untouched(root: Path, tmp_path: Path) -> None:
    other = TrackingConfig(root=str(root), experiment="other-name")
    tracking.open_store(other)
    config = config_in(root)
    run_id = record_a_run(config, lambda _: None, tmp_path)
    opened = tracking.open_store(config.tracking)
    records.register_champion(opened, run_id, {}, "card")
    original = (root / "mlflow.db").read_bytes()
    assert len(places(root / "mlflow.db")) >= 4

    copy = shutil.copytree(root, tmp_path / STRANGE / "records")
    said: list[str] = []
    there = tracking.open_store(TrackingConfig(root=str(copy)), said.append)
    assert said == [f"the records were in {root}: the store now names their places in {copy}"]
    assert all(place.startswith(copy.as_uri() + "/") for place in places(copy / "mlflow.db"))
    assert (root / "mlflow.db").read_bytes() == original
    # The copy stands for itself: the original can go.
    shutil.rmtree(root)
    assert records.champion(there) == run_id
    assert records.read_text(there, run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(config_in(copy), run_id)
    assert tracking.open_store(TrackingConfig(root=str(copy)), said.append)
    assert len(said) == 1
    # A new run goes to the new place, and a link to a folder is no move.
    again = record_a_run(config_in(copy), lambda _: None, tmp_path)
    assert_complete(config_in(copy), again)
    (tmp_path / "link").symlink_to(copy)
    tracking.open_store(TrackingConfig(root=str(tmp_path / "link")), said.append)
    assert len(said) == 1


def test_a_move_that_is_interrupted_changes_nothing(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root, tmp_path / "moved")
    path = Path(moved) / "mlflow.db"
    before = places(path)
    program = f"""
import os, sqlite3
from pathlib import Path
from digitcnn import embedded

connect = embedded.sqlite3.connect
def killed_at_the_end(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(lambda statement: os.kill(os.getpid(), 9) if statement == "COMMIT" else None)
    return connection
embedded.sqlite3.connect = killed_at_the_end
embedded.bring_up_to_date(Path({str(moved)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    assert places(path) == before
    assert embedded.bring_up_to_date(Path(moved)) == str(root)
    assert all(place.startswith(Path(moved).as_uri()) for place in places(path))


def test_the_ui_is_given_the_store_of_a_folder_that_was_moved(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root, tmp_path / STRANGE)
    line = [sys.executable, "-m", "digitcnn.embedded", str(moved)]
    ended = subprocess.run(line, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout == embedded.sqlite_url(Path(moved) / "mlflow.db") + "\n"
    assert all(place.startswith(Path(moved).as_uri()) for place in places(Path(moved) / "mlflow.db"))


# An MLflow server that goes away.


class Line:
    """A port that leads to another one while the line is up; while it is down, connections are refused."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.listener: socket.socket | None = None
        self.port = 0
        self.ends: list[socket.socket] = []
        self.up()

    def up(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        if self.listener is not None:
            # A thread that is accepting would keep the port open.
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass
class Server:
    """A real `mlflow server` on loopback that keeps its records in a folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store_uri = embedded.sqlite_url(self.folder / "mlflow.db")
        line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri, "--serve-artifacts"]
        line += ["--artifacts-destination", str(self.folder / "served"), "--host", "127.0.0.1"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*line, "--port", str(self.port), "--workers", "1"],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while requests_status(f"{self.uri}/health") != 200:
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def requests_status(url: str) -> int:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, timeout=5).status_code
    return 0


@pytest.fixture(scope="module")
def server(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(template / "mlflow.db", folder)
    started = Server(folder, free_port())
    started.start()
    yield started
    started.kill()


@pytest.fixture
def line(server: Server) -> Iterator[Line]:
    laid = Line(server.port)
    yield laid
    laid.down()


def served(tmp_path: Path, line: Line) -> RunConfig:
    return config_in(tmp_path / "records", uri=f"http://127.0.0.1:{line.port}", experiment="served")


def test_a_server_that_is_down_is_refused_in_one_line(tmp_path: Path) -> None:
    config = TrackingConfig(root=str(tmp_path / "records"), uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MachineError) as caught:
        tracking.open_store(config)
    assert str(caught.value) == (
        f"the MLflow store {config.uri} failed: Connection refused; what had been recorded is safe"
    )
    assert not (tmp_path / "records").exists()


def test_what_was_logged_while_the_server_was_gone_arrives_when_it_is_back(tmp_path: Path, line: Line) -> None:
    config = served(tmp_path, line)

    def gone_for_two_epochs(number: int) -> None:
        if number == 2:
            line.down()
        if number == 4:
            line.up()

    run_id = record_a_run(config, gone_for_two_epochs, tmp_path)
    assert_complete(config, run_id)
    assert store.kept(config.tracking) == ""
    assert list((tmp_path / "records" / "outbox").iterdir()) == []


def test_what_a_server_gone_for_good_did_not_take_is_kept_and_synced_later(tmp_path: Path, line: Line) -> None:
    config = served(tmp_path, line)
    run_id = record_a_run(config, lambda number: line.down() if number == 2 else None, tmp_path)
    folder = tmp_path / "records" / "outbox"
    assert store.kept(config.tracking) == (
        f"the MLflow store did not take all records of 1 run; they are kept in {folder}, "
        "and the next command that reaches it delivers them"
    )
    # A command that does not reach it either changes nothing.
    with pytest.raises(MachineError, match="Connection refused"):
        tracking.open_store(config.tracking)
    line.up()
    said: list[str] = []
    opened = tracking.open_store(config.tracking, said.append)
    # Cut off after the model and before its run knows of it, delivery begins again: nothing is there twice.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", lambda *_: line.down())
        with pytest.raises(MlflowException):
            tracking.deliver(opened)
    line.up()
    tracking.deliver(opened)
    assert said == ["delivered 9 records of 1 run that had been kept"]
    assert store.kept(config.tracking) == ""
    assert_complete(config, run_id)


def test_what_a_server_refuses_is_set_aside_and_holds_nothing_up(tmp_path: Path, line: Line) -> None:
    config = served(tmp_path, line)
    run_id = record_a_run(config, lambda number: line.down() if number == 2 else None, tmp_path)
    outbox.keep(tmp_path / "records" / "outbox", config.tracking.store_uri, "0" * 32, writes.tags({"a": "b"}))
    line.up()
    said: list[str] = []
    tracking.deliver(tracking.open_store(config.tracking, said.append))
    assert_complete(config, run_id)
    refused = tmp_path / "records" / "outbox" / "refused" / ("0" * 32)
    assert any(f"it stays in {refused}" in text for text in said)
    assert "journal.jsonl" in {item.name for item in refused.iterdir()}


def test_a_run_that_is_to_begin_waits_for_the_server(tmp_path: Path, line: Line) -> None:
    config = served(tmp_path, line)
    said: list[str] = []
    opened = tracking.open_store(config.tracking, said.append)
    line.down()
    threading.Timer(2.0, line.up).start()
    run_id = tracking.create_run(opened, config, "late", {})
    assert opened.client.get_run(run_id).info.run_name == "late"
    assert len(said) == 2
    assert "does not answer (Connection refused)" in said[0]
    assert said[1].endswith("answers again")


# A database that another process holds.


@contextlib.contextmanager
def locked(path: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process holds the database for some seconds; the body begins when it does."""
    program = f"""
import sqlite3, time
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA busy_timeout = 10000")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
time.sleep({seconds})
connection.execute("ROLLBACK")
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.wait()


def test_a_run_goes_on_while_the_database_is_locked_for_longer_than_mlflow_waits(root: Path, tmp_path: Path) -> None:
    config = config_in(root)
    said: list[str] = []
    with contextlib.ExitStack() as held:

        def lock(number: int) -> None:
            if number == 2:
                # MLflow gives up after 20 seconds.
                held.enter_context(locked(root / "mlflow.db", 21.5))

        run_id = record_a_run(config, lock, tmp_path, say=said.append)
    assert len(said) >= 1
    assert "does not answer (database is locked): what runs goes on and is kept" in said[0]
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


def test_a_full_disk_ends_a_run_in_one_line_and_all_before_is_intact(disk: Path, root: Path, tmp_path: Path) -> None:
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


def test_a_disk_full_at_the_model_leaves_no_half_of_it(disk: Path, root: Path, tmp_path: Path) -> None:
    """The artifacts are on another disk than the database."""
    (root / "artifacts").rmdir() if (root / "artifacts").exists() else None
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


def test_a_sweep_on_a_full_disk_stops_in_one_line_and_resumes(
    disk: Path, root: Path, sweep_config: SweepConfig
) -> None:
    shutil.copytree(root, disk / "records")
    config = with_study(in_folder(sweep_config, disk / "records"), workers=2)
    with pytest.raises(MachineError, match="full|No space left on device") as caught:
        work(config, InstantTrainer(0.1), During(2, lambda: fill(disk)))
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    opened, _, _ = open_records(disk / "records")
    finished = {trial.number: trial.values for trial in opened.trials if trial.values}
    assert 0 in finished
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    opened, _, runs = open_records(disk / "records")
    assert {number: opened.trials[number].values for number in finished} == finished
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert_stores_agree(disk / "records", models=False)


def test_a_report_that_finds_no_space_says_so_and_the_trials_are_there(
    disk: Path, root: Path, sweep_config: SweepConfig
) -> None:
    (root / "reports").symlink_to(disk)
    fill(disk)
    config = with_study(sweep_config, workers=1, trials=2)
    with pytest.raises(MachineError, match=r"leaderboard.csv cannot be written: No space left on device"):
        work(config, InstantTrainer())
    (disk / "filler").unlink()
    # Nothing is left to train.
    assert work(config, BrokenTrainer()).finished == 2
    assert (disk / "small" / "leaderboard.csv").read_text().count("\n") == 3


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


def test_a_folder_that_can_only_be_read_is_named_and_can_be_read(
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
    assert records.read_text(opened, run.info.run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(read_only, run.info.run_id)


# The same with whole sweeps and commands.


def assert_all_is_there_once(config: SweepConfig, result: sweep.SweepResult) -> None:
    assert (result.finished, result.total) == (6, 6)
    assert_stores_agree(config.tracking.folder, models=False)
    assert store.kept(config.tracking) == ""


@pytest.mark.soak
@pytest.mark.parametrize(("seconds", "names"), [(15, ("mlflow.db", "optuna.db")), (120, ("mlflow.db",))])
def test_a_sweep_goes_on_when_a_database_was_locked(
    root: Path, sweep_config: SweepConfig, seconds: int, names: tuple[str, ...]
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
    said = [note for note in shown.notes if "does not answer (database is locked)" in note]
    assert len(said) == (1 if seconds > 20 else 0)


@pytest.mark.soak
def test_a_study_whose_database_is_locked_for_two_minutes_stops_in_one_line_and_loses_no_result(
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
    assert_all_is_there_once(config, work(config, InstantTrainer(0.1)))
    opened, _, runs = open_records(root)
    complete = {trial.user_attrs["run_id"] for trial in opened.trials if trial.state == TrialState.COMPLETE}
    assert finished <= complete
    assert not [run for run in runs if run.info.status == "RUNNING"]


def assert_served_sweep_is_complete(config: SweepConfig) -> None:
    """Each trial's run has its epochs once, and ended as its trial did."""
    opened = study.existing_study(storage.sqlite_url(config.tracking.folder / "optuna.db"), "small")
    assert opened is not None
    client = MlflowClient(config.tracking.store_uri)
    trials = opened.get_trials()
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) == 6
    for trial in trials:
        run = client.get_run(trial.user_attrs["run_id"])
        if trial.state == TrialState.COMPLETE:
            assert run.info.status == "FINISHED"
            history = client.get_metric_history(run.info.run_id, "validation_accuracy")
            epochs = trial.user_attrs["epochs_run"]
            assert [point.step for point in history if point.step > 0] == list(range(1, epochs + 1))
            assert history[epochs - 1].value == pytest.approx(trial.values[0])
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert not [run.info.run_id for run in found if run.info.status == "RUNNING"]
    assert store.kept(config.tracking) == ""


@pytest.fixture
def own_server(template: Path, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(template / "mlflow.db", folder)
    started = Server(folder, free_port())
    started.start()
    yield started
    started.kill()


@pytest.mark.soak
def test_a_sweep_outlives_a_server_that_is_killed_and_started_again(
    own_server: Server, tmp_path: Path, sweep_config: SweepConfig
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)

    def kill() -> None:
        own_server.kill()
        threading.Timer(10.0, own_server.start).start()

    shown = During(1, kill)
    result = work(config, InstantTrainer(0.5), shown)
    assert (result.finished, result.total) == (6, 6)
    assert len([note for note in shown.notes if "does not answer" in note]) == 1
    assert_served_sweep_is_complete(config)


@pytest.mark.soak
def test_what_a_sweep_found_before_its_server_was_gone_for_good_is_recorded_by_the_next(
    own_server: Server, tmp_path: Path, sweep_config: SweepConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)
    monkeypatch.setattr(store, "PATIENCE_SECONDS", 3.0)
    with pytest.raises(MachineError, match="Connection refused; what had been recorded is safe"):
        work(config, InstantTrainer(0.5), During(1, own_server.kill))
    assert "they are kept in" in store.kept(config.tracking)
    own_server.start()
    shown = Quiet()
    result = work(config, InstantTrainer(0.1), shown)
    assert (result.finished, result.total) == (6, 6)
    assert [note for note in shown.notes if note.startswith("delivered ")]
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
def test_a_study_with_its_champion_works_where_it_was_moved_and_where_it_was_copied(
    tmp_path: Path, command: Command
) -> None:
    """In a folder whose name has spaces, % and other letters, with the commands and real Keras."""
    first, moved, copied = tmp_path / "a" / "records", tmp_path / STRANGE / "b", tmp_path / "c" / "records"
    space = ["study.space.training.epochs=null", "study.space.training.batch_size=[50,100]"]
    made = command("sweep", *STUDY, *space, "study.trials=2", f"tracking.root={first}")
    assert made.returncode == 0, made.stderr
    confirm = ["study=moved", "confirm.top=1", "confirm.seeds=2", "confirm.workers=1"]
    made = command("confirm", *confirm, f"tracking.root={first}")
    assert made.returncode == 0, made.stderr

    moved.parent.mkdir()
    shutil.move(first, moved)
    root = f"tracking.root={moved}"
    again = command("reproduce", "run=champion", root)
    assert again.returncode == 0, again.stderr
    assert f"the records were in {first}: the store now names their places in {moved}" in again.stdout
    assert "IDENTICAL: run" in again.stdout
    program = f"""
import mlflow, numpy
mlflow.set_tracking_uri({embedded.sqlite_url(moved / "mlflow.db")!r})
print(mlflow.keras.load_model("models:/digitcnn@champion").predict(numpy.zeros((1, 28, 28)), verbose=0).shape)
"""
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert loaded.stdout.endswith("(1, 10)\n"), loaded.stderr
    more = command("sweep", *STUDY, *space, "study.trials=3", root)
    assert more.returncode == 0, more.stderr
    assert "3 trials, 2 recorded before" in more.stdout
    more = command("confirm", *confirm, root)
    assert more.returncode == 0, more.stderr
    assert "4 runs, 4 recorded before" in more.stdout

    before = {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()}
    shutil.copytree(moved, copied)
    for name, overrides in (("confirm", confirm), ("reproduce", ["run=best", "study=moved"])):
        there = command(name, *overrides, f"tracking.root={copied}")
        assert there.returncode == 0, there.stderr
    assert {path: path.read_bytes() for path in moved.rglob("*") if path.is_file()} == before
    shutil.rmtree(moved)
    there = command("reproduce", "run=champion", f"tracking.root={copied}")
    assert there.returncode == 0, there.stderr
    assert "IDENTICAL: run" in there.stdout


@pytest.mark.soak
def test_a_training_whose_server_is_gone_for_good_says_where_its_records_are(
    tmp_path: Path, line: Line, command: Command
) -> None:
    where = [f"tracking.root={tmp_path}/records", f"tracking.uri=http://127.0.0.1:{line.port}"]
    where += ["tracking=server", "tracking.experiment=served"]
    process = subprocess.Popen(
        command_line("train", *SMALL, *where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for text in process.stdout:
        if "epoch 1/2" in text:
            line.down()
            break
    output, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "validation accuracy" in output
    assert error == (
        "error: the MLflow store did not take all records of 1 run; they are kept in "
        f"{tmp_path}/records/outbox, and the next command that reaches it delivers them\n"
    )
    line.up()
    ended = command("train", *SMALL, *where)
    assert ended.returncode == 0, ended.stderr
    assert "records of 1 run that had been kept" in ended.stdout
    client = MlflowClient(f"http://127.0.0.1:{line.port}")
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.model_sha256 LIKE '%'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert str(model.status) == "READY"


@pytest.mark.soak
def test_commands_name_what_is_full_torn_or_down_in_one_line(disk: Path, root: Path, command: Command) -> None:
    shutil.copytree(root, disk / "records")
    (disk / "records" / "mlflow.db").rename(disk / "records" / "kept.db")
    (disk / "records" / "mlflow.db").write_text("not a database")
    fill(disk)
    down = f"tracking.uri=http://127.0.0.1:{free_port()}"
    for name in ("train", "sweep", "confirm", "reproduce"):
        for overrides, cause in (
            ([f"tracking.root={disk}/records"], "is torn, or no database at all"),
            ([f"tracking.root={disk}/new"], "No space left on device|disk is full|nothing is recorded|no such study"),
            ([f"tracking.root={root}", down], "Connection refused|no such study"),
        ):
            more = SMALL if name == "train" else [*STUDY] if name == "sweep" else []
            ended = command(name, *more, *overrides)
            assert ended.returncode in (1, 2), (name, overrides, ended)
            assert len(ended.stderr.splitlines()) == 1, ended.stderr
            assert re.search(cause, ended.stderr), ended.stderr
