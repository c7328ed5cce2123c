"""The MLflow store: opening it, the errors it raises, and waiting for one that is away."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from digitcnn.config import TrackingConfig, without_credentials
from digitcnn.errors import RECORDS_SAFE, ConfigError, MachineError, StoreAway
from digitcnn.formatting import format_count
from digitcnn.imports import large_imports
from digitcnn.tracking import local, outbox

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

# How long a run that is to begin waits for a store that was there and is gone: time enough to start a server again.
RETRY_TIMEOUT_SECONDS = 600.0
# What a server that cannot be reached may cost each epoch, at most, while its records are kept.
_RETRY_SECONDS = 5.0
# The refusals by HTTP status after which the same request may be taken: a timeout, and too many requests.
_LATER = (408, 429)
# Those of the local store, whose other codes may also mean that its database fails.
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE")
_PROBE_SECONDS = 10
# The last three log each failure that they raise, with its traceback.
_LOG_LEVELS = {
    **dict.fromkeys(("mlflow", "alembic"), logging.WARNING),
    **dict.fromkeys(("mlflow.store.db.utils", "urllib3.connectionpool", "urllib3.util.retry"), logging.CRITICAL),
}

# Threads that find the same thing deleted restore it once.
_RESTORING = threading.Lock()
_DELETED = "{} was deleted in MLflow while this command records in it: it is restored"

Result = TypeVar("Result")


class ArtifactsAway(Exception):
    """The place of a server's files, such as a bucket, did not take some for now; in the words of its own library."""


@dataclass
class Store:
    """An open MLflow store and one of its experiments, empty if it was opened to read and there is none of that name.

    `outbox` is the folder of operations that are to be delivered, `name` the store's name in it. Once `stopped`
    returns True, a store that is away is not waited for.
    """

    client: MlflowClient
    uri: str
    name: str
    experiment_id: str
    outbox: Path
    stopped: Callable[[], bool]
    away: bool = False
    retry_at: float = 0.0

    def artifact_names(self, run_id: str) -> set[str]:
        """Return the names of the files and folders that a run has. Raises as `artifact_errors` does."""
        with artifact_errors(self):
            return {file.path for file in self.client.list_artifacts(run_id)}

    def note_away(self, error: Exception, seconds: float = 0.0) -> None:
        """Note that the store failed for now, after some seconds; log it the first time."""
        self.retry_at = time.monotonic() + max(_RETRY_SECONDS, 2 * seconds)
        if not self.away:
            self.away = True
            logger.warning(
                f"the MLflow store {without_credentials(self.uri)} does not answer ({error_cause(error)}): what runs "
                f"goes on and is kept in {self.outbox}; what is to begin waits for up to "
                f"{RETRY_TIMEOUT_SECONDS / 60:.0f} min"
            )

    def note_answer(self) -> None:
        """Note that the store answered; log it if it was away."""
        if self.away:
            self.away = False
            logger.info(f"the MLflow store {without_credentials(self.uri)} answers again")


def open_store(config: TrackingConfig, stopped: Callable[[], bool] = lambda: False, *, reading: bool = False) -> Store:
    """Open the store; create it and, unless it is for `reading` alone, its experiment if they are missing.

    Raises MachineError if it cannot. Unless it is for reading, raises ConfigError if the folder was moved while another
    process records in it.
    """
    with store_errors(config):
        from mlflow import MlflowClient
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        for name, level in _LOG_LEVELS.items():
            logging.getLogger(name).setLevel(level)
        if config.uri is None:
            local.prepare_folder(config.folder, reading)
        else:
            # Raises at once if no server is there; any answer will do. With what MLflow knows of certificates.
            known = get_default_host_creds(config.uri)  # type: ignore[no-untyped-call]
            http_request(known, "/health", "GET", max_retries=0, timeout=_PROBE_SECONDS, raise_on_status=False)  # type: ignore[no-untyped-call]
        # The registry too: else that of a program which has set one.
        client = MlflowClient(config.store_uri, config.store_uri)
        experiment_id = _experiment_id(client, config, reading)
        return Store(client, config.store_uri, _name(config), experiment_id, outbox_folder(config), stopped)


def _name(config: TrackingConfig) -> str:
    """Return a store's name in the outbox: the local one's does not change when the folder is moved."""
    return without_credentials(config.uri).rstrip("/") if config.uri else "mlflow.db"


def outbox_folder(config: TrackingConfig) -> Path:
    """Return the folder of the queues of what a store did not take."""
    return config.folder / "outbox"


def _experiment_id(client: MlflowClient, config: TrackingConfig, reading: bool) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None and reading:
        return ""
    if experiment is None:
        # A server decides itself where artifacts go; the local store would put them below the current folder.
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
    if experiment.lifecycle_stage == "deleted" and not reading:
        raise ConfigError(
            f"tracking.experiment={config.experiment}: was deleted in MLflow; to restore it: "
            f"MLFLOW_TRACKING_URI={without_credentials(config.store_uri)} mlflow experiments restore "
            f"--experiment-id {experiment.experiment_id}; or choose another tracking.experiment"
        )
    return str(experiment.experiment_id)


@contextlib.contextmanager
def store_errors(config: TrackingConfig) -> Iterator[None]:
    """Turn a failure of the MLflow store in the body into a MachineError of one line, StoreAway if it is away."""
    local.settle_variables()
    with large_imports():
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, RequestException, ArtifactsAway) as error:
        away = is_away(error)
        safe = (pending_message(config) if away else "") or RECORDS_SAFE
        raise (StoreAway if away else MachineError)(
            f"the MLflow store {without_credentials(config.store_uri)} failed: {error_cause(error)}; {safe}"
        ) from None


@contextlib.contextmanager
def artifact_errors(store: Store) -> Iterator[None]:
    """Raise ArtifactsAway where the place of a server's files fails, MachineError without a library that reaches it.

    Files may lie in a bucket, whose library has errors of its own, and wraps an answer in one. Refusals, what MLflow
    raises of a server that is away, and errors of this machine's own files are raised as they are.
    """
    try:
        yield
    except ImportError as error:
        where = f"the MLflow store {without_credentials(store.uri)} has files in a place"
        raise MachineError(f"{where} that takes a library: {error}; install it; {RECORDS_SAFE}") from None
    except Exception as error:
        own = isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError)
        known = own or isinstance(error, KeyError | TypeError) or is_away(error)
        if store.uri.startswith("sqlite:") or known or is_refusal(error) or is_refusal(error.__context__):
            raise
        raise ArtifactsAway(f"{type(error).__name__}: {error}") from error


def error_cause(error: Exception) -> str:
    """Return one line without credentials: the words of the system or of the database, if they are in the error."""
    text = without_credentials(str(error))
    words = re.search(
        r"\[Errno -?\d+\] ([\w ]+)|(timed out|certificate verify failed[^(]*\w)|\(\w+\.\w+Error\) ([^\n]+)", text
    )
    return next(filter(None, words.groups())) if words else (text.splitlines() or [""])[0]


def is_away(error: Exception) -> bool:
    """Return True if a store failed only for now: locked by another process, or a server gone or out of order."""
    from mlflow.exceptions import MlflowException, RestException
    from requests.exceptions import RequestException

    text = str(error)
    of_server = isinstance(error, RestException | RequestException | ArtifactsAway) or (
        isinstance(error, MlflowException) and text.startswith("API request to")
    )
    return (of_server and not is_refusal(error)) or "database is locked" in text


def is_unreachable(error: Exception) -> bool:
    """Return True if nothing answered, so that the next operation would wait as long in vain."""
    return is_away(error) and _http_status(error) is None


def is_refusal(error: BaseException | None) -> bool:
    """Return True if a store would refuse the operation again: the run is gone, or it is invalid or too large."""
    status = _http_status(error)
    return status is not None and 400 <= status < 500 and status not in _LATER


def _http_status(error: BaseException | None) -> int | None:
    """Return the status that a server has answered, or that MLflow gives to an error of the local store."""
    from mlflow.exceptions import MlflowException, RestException

    answer = getattr(error, "response", None)
    # That of boto3 is a dict.
    of_boto3 = answer.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(answer, dict) else None
    status = getattr(answer, "status_code", of_boto3)
    if status is not None:
        return int(status)
    answered = re.search(r"failed with error code (\d{3})", str(error))
    if answered:
        return int(answered[1])
    if isinstance(error, RestException) or (isinstance(error, MlflowException) and error.error_code in _REFUSALS):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    return None


@contextlib.contextmanager
def suppress_away() -> Iterator[None]:
    """Leave the body without an error if the store is away; any other error is raised."""
    try:
        yield
    except Exception as error:
        if not is_away(error):
            raise


def with_retries(store: Store, action: Callable[[], Result]) -> Result:
    """Return the action's result as soon as the store answers. Raises as it does after RETRY_TIMEOUT_SECONDS."""
    deadline = time.monotonic() + RETRY_TIMEOUT_SECONDS
    while True:
        try:
            result = action()
        except Exception as error:
            if not is_away(error) or store.stopped() or time.monotonic() > deadline:
                raise
            store.note_away(error)
            time.sleep(1)
        else:
            store.note_answer()
            return result


def restoring(store: Store, run_id: str | None, action: Callable[[], Result]) -> Result:
    """Return an action's result; if a person has just deleted its run, or its experiment, that is restored first."""
    try:
        return action()
    except Exception as error:
        if "must be in the 'active' state" not in str(error):
            raise
    with _RESTORING:
        place = store.experiment_id if run_id is None else store.client.get_run(run_id).info.experiment_id
        if store.client.get_experiment(place).lifecycle_stage == "deleted":
            store.client.restore_experiment(place)
            logger.warning(f"{_DELETED.format('the experiment')}, with all of its runs")
        if run_id is not None and store.client.get_run(run_id).info.lifecycle_stage == "deleted":
            store.client.restore_run(run_id)
            logger.warning(_DELETED.format(f"run {run_id}"))
    return action()


def pending_message(config: TrackingConfig) -> str:
    """Return one line on what is still to be delivered to the store, or an empty one."""
    runs = outbox.pending_runs(outbox_folder(config), _name(config))
    if not runs:
        return ""
    return (
        f"the MLflow store did not take all records of {format_count(len(runs), 'run')}; they are kept "
        f"in {outbox_folder(config)}, and the next command that reaches it delivers them"
    )
