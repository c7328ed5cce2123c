"""The embedded stores' SQLite files: their addresses, whether a file is what it should be, and records that were moved.

`python -m digitcnn.embedded FOLDER` brings a records folder up to date and prints its MLflow store's address.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from digitcnn.files import connect_database, sqlite_url

# Where MLflow keeps the places of artifacts and models, all absolute: it knows no others.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def relocate_artifacts(folder: Path) -> str | None:
    """Makes an MLflow store name the artifacts in its own folder, and returns where they had been; None if there.

    A folder that was moved, renamed or copied still names its old place, since MLflow records absolute ones. The
    store of a copy names the copy's files from then on; the original is not touched. One transaction: all or nothing.
    """
    path = folder / "mlflow.db"
    if not path.exists() or path.stat().st_size == 0:
        return None
    here = folder.absolute().as_uri()
    with connect_database(path) as connection:
        moved = [old for old in _recorded_folders(connection) if old != here and not _same(old, folder)]
        if not moved:
            return None
        connection.execute("BEGIN IMMEDIATE")
        for old in moved:
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, len(f"{old}/artifacts/"), f"{old}/artifacts/"),
                )
        connection.execute("COMMIT")
    return unquote(urlsplit(moved[0]).path)


def _recorded_folders(connection: sqlite3.Connection) -> list[str]:
    """The records folders, as addresses, that our experiments' artifacts are recorded to be in."""
    rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ours = [(str(place), f"/artifacts/{quote(str(name))}") for name, place in rows if str(place).startswith("file:///")]
    return list(dict.fromkeys(place.removesuffix(end) for place, end in ours if place.endswith(end)))


def _same(recorded: str, folder: Path) -> bool:
    """Whether a recorded place is this folder under another name, such as a link."""
    with contextlib.suppress(OSError):
        return Path(unquote(urlsplit(recorded).path)).samefile(folder)
    return False


if __name__ == "__main__":
    try:
        relocate_artifacts(Path(sys.argv[1]))
    except sqlite3.Error as error:
        sys.exit(f"error: {sys.argv[1]}/mlflow.db cannot be used: {error}")
    print(sqlite_url(Path(sys.argv[1]).absolute() / "mlflow.db"))
