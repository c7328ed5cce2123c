"""What happens when a store fails: every fault is a real one, and nothing that was recorded may be lost."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
import sqlalchemy
from mlflow import MlflowClient

from digitcnn import embedded, outbox, records, storage, store, study, tracking, writes
from digitcnn.config import RunConfig, TrackingConfig, load
from digitcnn.errors import ConfigError, MachineError
from digitcnn.outbox import Record
from digitcnn.training import EpochMetrics
from tests.conftest import REPOSITORY

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


def record_a_run(config: RunConfig, at_epoch: Callable[[int], None], folder: Path, epochs: int = 5) -> str:
    """A run with epochs, tags, a file, data and a model; `at_epoch` is called before each epoch is recorded."""
    with tracking.run(config, {"study": "none"}) as run:
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
