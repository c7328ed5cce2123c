"""This machine: MLflow's variables, the local store's folder, wherever it was moved, and the processes that record."""

import calendar
import contextlib
import functools
import logging
import os
import re
import socket
import sqlite3
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psutil

from digitcnn.errors import ConfigError, MachineError
from digitcnn.files import check_database, connect_database, create_database, other_holder, sqlite_url

logger = logging.getLogger(__name__)

# The columns in which MLflow keeps where artifacts and models are. All are absolute: MLflow takes no relative ones.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
# How a server is reached, and what it asks for. Any other variable of MLflow would decide what the config says, such as
# the store and the registry, or what is recorded.
_SERVER_VARIABLES = re.compile(
    "MLFLOW_(TRACKING_(USERNAME|PASSWORD|TOKEN|AUTH|AWS_SIGV4|INSECURE_TLS|(SERVER|CLIENT)_CERT_PATH)"
    "|(HTTP|S3|GCS|BOTO|KERBEROS|PYARROW)_.*|.*MULTIPART.*|ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT)"
)
# MLflow's client would try for four minutes, and wait two for each answer: what fails is kept and delivered later.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_TIME = "%Y-%m-%d %H:%M:%S UTC"
# A clock that is set moves the start of a process by as much.
_TOLERANCE_SECONDS = 2 * 3600.0
# Earlier versions recorded it in the time zone of the process, at most 14 hours from UTC.
_ZONE_SECONDS = 14 * 3600.0


def settle_variables() -> None:
    """Remove MLflow's variables from this process but for those of a server, and set our own: before its import."""
    for name in _variables():
        if not _SERVER_VARIABLES.fullmatch(name):
            del os.environ[name]
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    if os.path.expanduser("~") == "~":  # noqa: PTH111
        # Neither HOME nor a user that the system knows, as in a container: MLflow's import fails without a home.
        os.environ["HOME"] = os.devnull


def _variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lstrip("_").startswith("MLFLOW_")}


@contextlib.contextmanager
def kept_variables() -> Iterator[None]:
    """Give this process, a program that may use MLflow itself, its variables of MLflow back when the body has ended."""
    before = _variables()
    try:
        yield
    finally:
        for name in _variables().keys() - before:
            del os.environ[name]
        os.environ.update(before)


def prepare_folder(folder: Path, reading: bool = False) -> None:
    """Create the folder of a local store and its database, or check those that there are.

    Raises MachineError if the folder cannot be used, or if the database is damaged or of another program or version;
    unless it is for `reading` alone, ConfigError if artifacts would be recorded outside the folder.
    """
    from mlflow.store.db.utils import _get_latest_schema_revision

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the records folder {folder} cannot be used: {error.strerror or error}") from None
    version = ("SELECT version_num FROM alembic_version", str(_get_latest_schema_revision()))  # type: ignore[no-untyped-call]
    check_database(folder / "mlflow.db", "MLflow", frozenset({"experiments", "alembic_version"}), version)
    create_database(folder / "mlflow.db", _create_tables)
    try:
        before = relocate_artifacts(folder)
    except ConfigError as error:
        if not reading:
            raise
        logger.warning(str(error))
        return
    if before is not None:
        logger.info(f"the records were in {before}: the store now names their places in {folder}")


def _create_tables(path: Path) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(sqlite_url(path))
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


def relocate_artifacts(folder: Path) -> str | None:
    """Make an MLflow store name the artifacts in its own folder; return their former folder, or None if that is it.

    A folder that was moved, renamed or copied still names its old place, since MLflow records absolute ones. The
    store of a copy names the copy's files from then on; the original is not touched. One transaction: all or nothing.
    Raises ConfigError, and changes nothing, if another process is at work in the folder, which then has two names.
    """
    path = folder / "mlflow.db"
    if not path.exists() or path.stat().st_size == 0:
        return None
    here = folder.absolute().as_uri()
    with connect_database(path) as connection:
        moved = [old for old in _recorded_folders(connection) if old != here and not _same(old, folder)]
        if not moved:
            return None
        before = unquote(urlsplit(moved[0]).path)
        holder = other_holder(folder / "locks")
        if holder is not None:
            raise ConfigError(
                f"tracking.root={folder}: the store names the places of files in {before}, where {holder} is at work; "
                "they stay so until it has ended"
            )
        connection.execute("BEGIN IMMEDIATE")
        for old in moved:
            for table, column in _PLACES:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (here, len(old) + 1, len(f"{old}/artifacts/"), f"{old}/artifacts/"),
                )
        connection.execute("COMMIT")
    return before


def _recorded_folders(connection: sqlite3.Connection) -> list[str]:
    """Return the records folders, as addresses, in which our experiments' artifacts are recorded to be."""
    rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ours = [(str(place), f"/artifacts/{quote(str(name))}") for name, place in rows if str(place).startswith("file:///")]
    return list(dict.fromkeys(place.removesuffix(end) for place, end in ours if place.endswith(end)))


def _same(recorded: str, folder: Path) -> bool:
    """Return True if a recorded place is this folder under another name, such as a link."""
    with contextlib.suppress(OSError):
        return Path(unquote(urlsplit(recorded).path)).samefile(folder)
    return False


@functools.cache
def process_id() -> str:
    """Return machine, number and start of this process; the start tells it from others that get the same number."""
    began = time.strftime(_TIME, time.gmtime(psutil.Process().create_time()))
    return f"{_machine()}, process {os.getpid()} of {began}"


@functools.cache
def _machine() -> str:
    """Return the host's name and a checksum: many machines and containers have the same name."""
    known = b""
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        with contextlib.suppress(OSError):
            known = known or Path(path).read_bytes().strip()
    with contextlib.suppress(OSError):
        known += str(Path("/proc/self/ns/pid").readlink()).encode()
    return f"{socket.gethostname()}-{zlib.crc32(known):08x}"


def process_is_gone(process: str) -> bool:
    """Return True if the process of a `process_id` ran on this machine and has ended; in doubt, False."""
    machine, _, rest = process.rpartition(", process ")
    number, _, began = rest.partition(" of ")
    if machine != _machine():
        return False
    try:
        now = psutil.Process(int(number)).create_time()
        recorded = calendar.timegm(time.strptime(f"{began.removesuffix(' UTC')} UTC", _TIME))
        return abs(now - recorded) > _TOLERANCE_SECONDS + (0 if began.endswith(" UTC") else _ZONE_SECONDS)
    except psutil.NoSuchProcess:
        return True
    except (ValueError, psutil.Error):
        return False
