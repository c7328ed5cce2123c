"""The MLflow store: opened, written to, and waited for; what it does not take is kept in the outbox and delivered."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from digitcnn.config import TrackingConfig, without_credentials
from digitcnn.errors import MachineError, StoreAway
from digitcnn.files import check_database, create_database, sqlite_url
from digitcnn.formatting import format_count
from digitcnn.records import Tag
from digitcnn.tracking import local, operations, queue
from digitcnn.tracking.processes import process_is_gone
from digitcnn.tracking.queue import Operation

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from mlflow import MlflowClient

# How long a run that is to begin waits for a store that was there and is gone: time enough to start a server again.
RETRY_TIMEOUT_SECONDS = 600.0
# What a server that cannot be reached may cost each epoch, at most, while its records are kept.
_RETRY_SECONDS = 5.0
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
# MLflow's client would try for four minutes, and wait two for each answer: what fails is kept and delivered later.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_PROBE_SECONDS = 10
# These log each failure that they raise, with its traceback.
_LOUD = ("mlflow.store.db.utils", "urllib3.connectionpool", "urllib3.util.retry")

Result = TypeVar("Result")


@dataclass
class Store:
    """An MLflow store that is open, and the experiment in it that records go to.

    `kept_for` is what the outbox calls it, `stopped` says whether to wait no longer for a store that is gone.
    """

    client: MlflowClient
    uri: str
    experiment_id: str
    outbox: Path
    kept_for: str
    stopped: Callable[[], bool]
    away: bool = False
    retry_at: float = 0.0

    @property
    def place(self) -> str:
        """The store's address as it may be shown."""
        return without_credentials(self.uri)


def open_store(config: TrackingConfig, stopped: Callable[[], bool] = lambda: False, patient: bool = False) -> Store:
    """Opens the store, and creates it and its experiment if they are missing.

    Raises MachineError if it cannot; a store that is away is waited for only if `patient`.
    """
    with store_errors(config):
        return _until(lambda: _open(config, stopped), stopped, RETRY_TIMEOUT_SECONDS if patient else 0.0)


def _open(config: TrackingConfig, stopped: Callable[[], bool]) -> Store:
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if config.uri is None:
        _prepare(config.folder)
    else:
        _probe(config.uri)
    mlflow.set_tracking_uri(config.store_uri)
    client = MlflowClient(config.store_uri)
    experiment_id = _experiment(client, config)
    return Store(client, config.store_uri, experiment_id, config.folder / "outbox", _kept_for(config), stopped)


def _kept_for(config: TrackingConfig) -> str:
    """A store's name in the outbox: the embedded one's does not change when the folder is moved."""
    return without_credentials(config.uri) if config.uri else "mlflow.db"


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        # A server decides itself where artifacts go; the embedded store would put them below the current folder.
        location = None if config.uri else (config.folder / "artifacts" / config.experiment).as_uri()
        # Without its kind the UI shows the experiment as one of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return str(client.create_experiment(config.experiment, location, tags))
        except MlflowException:
            # Another process may have been faster.
            experiment = client.get_experiment_by_name(config.experiment)
            if experiment is None:
                raise
    return str(experiment.experiment_id)


def _prepare(folder: Path) -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the records folder {folder} cannot be used: {error.strerror or error}") from None
    version = ("SELECT version_num FROM alembic_version", str(_get_latest_schema_revision()))  # type: ignore[no-untyped-call]
    check_database(folder / "mlflow.db", "MLflow", frozenset({"experiments", "alembic_version"}), version)
    create_database(folder / "mlflow.db", _create_tables)
    before = local.relocate_artifacts(folder)
    if before is not None:
        logger.info(f"the records were in {before}: the store now names their places in {folder}")


def _create_tables(path: Path) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine(sqlite_url(path))
    _initialize_tables(engine)  # type: ignore[no-untyped-call]
    engine.dispose()


def _probe(uri: str) -> None:
    """Raises at once if no server is there; any answer will do."""
    import requests

    if uri.startswith(("http://", "https://")):
        requests.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS)


@contextlib.contextmanager
def store_errors(config: TrackingConfig) -> Iterator[None]:
    """Turns a failure of the MLflow store inside the body into a MachineError of one line, StoreAway if it is away."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, RequestException) as error:
        place = without_credentials(config.store_uri)
        away = is_away(error)
        safe = (pending_message(config) if away else "") or "what had been recorded is safe"
        raise (StoreAway if away else MachineError)(
            f"the MLflow store {place} failed: {_cause(error)}; {safe}"
        ) from None


def _cause(error: Exception) -> str:
    """One line without credentials: what the system or the database said, if that is to be found in the error."""
    text = without_credentials(str(error))
    said = re.search(r"\[Errno -?\d+\] ([\w ]+)|(timed out)|\(\w+\.\w+Error\) ([^\n]+)", text)
    return next(filter(None, said.groups())) if said else text.splitlines()[0]


def is_away(error: Exception) -> bool:
    """Whether a store failed only for now: locked by another process, a server that is gone or out of order."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    text = str(error)
    of_server = isinstance(error, RestException | RequestException) or (
        isinstance(error, MlflowException) and text.startswith("API request to")
    )
    return (of_server and not _is_refusal(error)) or "database is locked" in text


def _is_refusal(error: Exception) -> bool:
    """Whether a store would say the same again: the run is gone, or the record makes no sense to it."""
    from mlflow.exceptions import MlflowException

    return isinstance(error, MlflowException) and error.error_code in _REFUSALS


def with_retries(store: Store, action: Callable[[], Result]) -> Result:
    """What `action` returns, as soon as the store answers. Raises as it does, at last after PATIENCE_SECONDS."""
    result = _until(action, store.stopped, RETRY_TIMEOUT_SECONDS, lambda error: _away(store, error))
    _back(store)
    return result


def _until(
    action: Callable[[], Result],
    stopped: Callable[[], bool],
    seconds: float,
    on_away: Callable[[Exception], None] = lambda _: None,
) -> Result:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except Exception as error:
            if not is_away(error) or stopped() or time.monotonic() > deadline:
                raise
            on_away(error)
            time.sleep(1)


def put(store: Store, run_id: str, record: Operation) -> None:
    """Writes a record to a run; keeps it in the outbox if the store is away, or if earlier ones are kept there."""
    if not queue.has_pending(store.outbox, run_id):
        try:
            operations.write(store.client, run_id, record)
        except Exception as error:
            if not is_away(error):
                raise
            _away(store, error)
        else:
            _back(store)
            return
    queue.enqueue(store.outbox, store.kept_for, run_id, record)
    if time.monotonic() >= store.retry_at:
        began = time.monotonic()
        try:
            deliver_run(store, run_id)
        except Exception as error:
            if not is_away(error):
                raise
            _away(store, error, time.monotonic() - began)


def _away(store: Store, error: Exception, seconds: float = 0.0) -> None:
    """Notes that the store failed for now, after some seconds, and says so the first time."""
    store.retry_at = time.monotonic() + max(_RETRY_SECONDS, 2 * seconds)
    if not store.away:
        store.away = True
        logger.warning(
            f"the MLflow store {store.place} does not answer ({_cause(error)}): what runs goes on and is kept in "
            f"{store.outbox}; what is to begin waits for up to {RETRY_TIMEOUT_SECONDS / 60:.0f} min"
        )


def _back(store: Store) -> None:
    if store.away:
        store.away = False
        logger.info(f"the MLflow store {store.place} answers again")


def deliver_run(store: Store, run_id: str) -> int:
    """Delivers what is kept for a run and returns how many records that was. Raises as the store does."""
    if not queue.has_pending(store.outbox, run_id):
        return 0
    try:
        delivered = queue.flush(
            store.outbox,
            run_id,
            lambda record: operations.write(store.client, run_id, record),
        )
    except Exception as error:
        if not _is_refusal(error):
            raise
        folder = queue.quarantine(store.outbox, run_id)
        logger.warning(
            f"the MLflow store refuses what was kept for run {run_id} ({_cause(error)}): it stays in {folder}"
        )
        return 0
    _back(store)
    return delivered


def deliver(store: Store) -> None:
    """Delivers what is kept of all runs, and says how much that was. Raises as the store does."""
    runs = records = 0
    try:
        for run_id in queue.pending_runs(store.outbox, store.kept_for):
            delivered = deliver_run(store, run_id)
            runs, records = runs + (delivered > 0), records + delivered
    finally:
        if records:
            sizes = f"{format_count(records, 'record')} of {format_count(runs, 'run')}"
            logger.info(f"delivered {sizes} that had been kept")


def close_run(store: Store, run_id: str, status: operations.Status, failure: str | None = None) -> None:
    """Closes a run, with the reason if it failed; a model it may have begun to write is kept only if it finished."""
    if failure is not None:
        put(store, run_id, operations.tags({Tag.FAILURE: failure}))
    if status != "FINISHED":
        put(store, run_id, operations.without_models())
    put(store, run_id, operations.ended(status))


def close_abandoned_runs(store: Store) -> None:
    """Ends runs of no study whose process on this machine is gone: a full disk or a SIGKILL kept it from doing so.

    Delivers what is kept first: the end of a run may be among it. Those of a study are ended by its sweep or
    confirmation. Raises as the store does.
    """
    deliver(store)
    for run in store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
        tags, run_id = run.data.tags, run.info.run_id
        if Tag.STUDY not in tags and process_is_gone(tags.get(Tag.HOST, "")):
            # It may have ended after it was looked for. Now that it is gone nobody writes of it any more.
            deliver_run(store, run_id)
            if store.client.get_run(run_id).info.status != "RUNNING":
                continue
            close_run(store, run_id, "KILLED", "its process ended")
            logger.warning(f"run {run_id} was still open, and its process is gone: it is closed")


def deliver_if_there(store: Store) -> None:
    """Delivers what is kept of all runs, if the store takes it: at the end of a command, which cannot wait."""
    try:
        deliver(store)
    except Exception as error:
        if not is_away(error):
            raise


def pending_message(config: TrackingConfig) -> str:
    """One line on what is still kept for the store, or an empty one."""
    folder = config.folder / "outbox"
    runs = queue.pending_runs(folder, _kept_for(config))
    if not runs:
        return ""
    return (
        f"the MLflow store did not take all records of {format_count(len(runs), 'run')}; they are kept "
        f"in {folder}, and the next command that reaches it delivers them"
    )
