"""The embedded stores' files: their addresses, what is torn or another program's, and folders that were moved."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from digitcnn import study, tracking
from digitcnn.config import TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import sqlite_path, sqlite_url
from digitcnn.tracking import local as local_module
from digitcnn.tracking import queue as queue_module
from tests.support.recorded import STRANGE, assert_complete, config_in, record_a_run


@pytest.mark.parametrize("name", ["plain", STRANGE, "%41", "ünïcode ", "+&;=@:"])
def test_an_address_names_the_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "x.db"
    url = sqlite_url(path)
    assert sqlalchemy.make_url(url).database == str(path)
    assert sqlite_path(url) == path
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
    _random_bytes: r"is corrupt or truncated, or not a database \(file is not a database\)",
    _cut_off: r"is corrupt or truncated, or not a database",
    _damaged: r"is corrupt or truncated, or not a database",
    _of_another_program: "is another program's database",
    _of_another_version: "version",
}


@pytest.mark.parametrize("tear", TORN, ids=lambda tear: tear.__name__.strip("_"))
@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_a_torn_or_foreign_database_is_named_and_left_as_it_is(
    root: Path, name: str, tear: Callable[[Path], None]
) -> None:
    url = sqlite_url(root / "optuna.db")
    optuna.create_study(study_name="x", storage=url)
    tear(root / name)
    before = (root / name).read_bytes()
    files = sorted(root.rglob("*"))
    opening: dict[str, Callable[[], object]] = {
        "mlflow.db": lambda: tracking.open_store(TrackingConfig(root=str(root))),
        "optuna.db": lambda: study.existing_study(root, "x"),
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
            for table, column in local_module._PLACES
            for row in connection.execute(f"SELECT {column} FROM {table}")
            if row[0] and "Default" not in str(row) and str(row[0]).startswith("file:")
        }


def test_a_folder_that_was_moved_and_copied_opens_and_the_original_is_untouched(
    root: Path, tmp_path: Path, messages: list[str]
) -> None:
    other = TrackingConfig(root=str(root), experiment="other-name")
    tracking.open_store(other)
    config = config_in(root)
    run_id = record_a_run(config, lambda _: None, tmp_path)
    opened = tracking.open_store(config.tracking)
    tracking.register_champion(opened, run_id, {}, "card")
    queue_module.enqueue(root / "outbox", "mlflow.db", run_id, tracking.tags({"kept": "before the move"}))
    original = (root / "mlflow.db").read_bytes()
    assert len(places(root / "mlflow.db")) >= 4

    copy = shutil.copytree(root, tmp_path / STRANGE / "records")
    there = tracking.open_store(TrackingConfig(root=str(copy)))
    assert messages == [f"the records were in {root}: the store now names their places in {copy}"]
    assert all(place.startswith(copy.as_uri() + "/") for place in places(copy / "mlflow.db"))
    assert (root / "mlflow.db").read_bytes() == original
    # The copy stands for itself: the original can go.
    shutil.rmtree(root)
    assert tracking.champion_run(there) == run_id
    assert tracking.read_text(there, run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(config_in(copy), run_id)
    tracking.deliver(there)
    assert there.client.get_run(run_id).data.tags["kept"] == "before the move"
    assert messages.pop() == "delivered 1 record of 1 run that had been kept"
    assert tracking.open_store(TrackingConfig(root=str(copy)))
    assert len(messages) == 1
    # A new run goes to the new place, and a link to a folder is no move.
    again = record_a_run(config_in(copy), lambda _: None, tmp_path)
    assert_complete(config_in(copy), again)
    (tmp_path / "link").symlink_to(copy)
    tracking.open_store(TrackingConfig(root=str(tmp_path / "link")))
    assert len(messages) == 1


def test_a_move_that_is_interrupted_changes_nothing(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root, tmp_path / "moved")
    path = Path(moved) / "mlflow.db"
    before = places(path)
    program = f"""
import os, sqlite3
from pathlib import Path
from digitcnn.tracking.local import relocate_artifacts

connect = sqlite3.connect
def killed_at_the_end(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(lambda statement: os.kill(os.getpid(), 9) if statement == "COMMIT" else None)
    return connection
sqlite3.connect = killed_at_the_end
relocate_artifacts(Path({str(moved)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    assert places(path) == before
    assert local_module.relocate_artifacts(Path(moved)) == str(root)
    assert all(place.startswith(Path(moved).as_uri()) for place in places(path))
