"""Files that are written whole, and the SQLite files of the embedded stores: their addresses, and what is damaged."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from digitcnn import study, tracking
from digitcnn.config import TrackingConfig
from digitcnn.errors import MachineError
from digitcnn.files import create_database, sqlite_url, write_atomically
from tests.support.recorded import STRANGE


def test_write_atomically_replaces_a_link_and_leaves_nothing_beside_the_file(tmp_path: Path) -> None:
    # Given
    elsewhere, path = tmp_path / "elsewhere.txt", tmp_path / "folder" / "report.txt"
    elsewhere.write_text("of somebody else")
    path.parent.mkdir()
    path.symlink_to(elsewhere)
    # When
    write_atomically(path, "new", "nothing is lost")
    # Then
    assert (path.is_symlink(), path.read_text(), elsewhere.read_text()) == (False, "new", "of somebody else")
    assert list(path.parent.iterdir()) == [path]


def test_write_atomically_names_the_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        write_atomically(tmp_path / "file" / "report.txt", "new", "the study is recorded")
    assert str(caught.value) == f"{tmp_path}/file/report.txt cannot be written: File exists; the study is recorded"


def test_create_database_never_replaces_that_of_a_faster_process(tmp_path: Path) -> None:
    path = tmp_path / "x.db"

    def create_tables(new: Path) -> None:
        new.write_text("ours")
        path.write_text("of the faster one")

    create_database(path, create_tables)
    assert path.read_text() == "of the faster one"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["plain", STRANGE, "%41", "ünïcode ", "+&;=@:", "{0}", "a{b}", "c}"])
def test_sqlite_url_names_the_file_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "x.db"
    url = sqlite_url(path)
    assert sqlalchemy.make_url(url).database == str(path)
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite

    _make_parent_dirs_if_sqlite(url)
    assert {item.name for item in tmp_path.iterdir()} <= {name}


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


DAMAGES = {
    _random_bytes: r"is corrupt or truncated, or not a database \(file is not a database\)",
    _cut_off: r"is corrupt or truncated, or not a database",
    _damaged: r"is corrupt or truncated, or not a database",
    _of_another_program: "is another program's database",
    _of_another_version: "version",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
@pytest.mark.parametrize("name", ["mlflow.db", "optuna.db"])
def test_check_database_names_damage_and_leaves_the_file_as_it_is(
    root: Path, name: str, damage: Callable[[Path], None]
) -> None:
    url = sqlite_url(root / "optuna.db")
    optuna.create_study(study_name="x", storage=url)
    damage(root / name)
    before = (root / name).read_bytes()
    files = sorted(root.rglob("*"))
    opening: dict[str, Callable[[], object]] = {
        "mlflow.db": lambda: tracking.open_store(TrackingConfig(root=str(root))),
        "optuna.db": lambda: study.existing_study(root, "x"),
    }
    with pytest.raises(MachineError, match=DAMAGES[damage]) as caught:
        opening[name]()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (root / name).read_bytes() == before
    assert sorted(root.rglob("*")) == files
