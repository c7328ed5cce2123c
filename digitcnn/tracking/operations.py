"""Writing to MLflow runs: operations that may be repeated, delivered at once or from the outbox, in order."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from digitcnn.config import TrackingConfig, without_credentials
from digitcnn.formatting import format_count
from digitcnn.tracking import outbox
from digitcnn.tracking.client import (
    ArtifactsAway,
    Result,
    Store,
    artifact_errors,
    error_cause,
    is_away,
    is_refusal,
    is_unreachable,
    open_store,
    outbox_folder,
    restoring,
    store_errors,
)
from digitcnn.tracking.outbox import Operation, Queued

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


def put(store: Store, run_id: str, operation: Operation) -> None:
    """Write to a run; queue the operation if the store is away, or if earlier ones of the run are queued.

    What the store refuses is set aside, for a person to look at, and logged.
    """
    if not outbox.has_pending(store.outbox, run_id):
        took, refused = _reaches(store, lambda: write(store, run_id, operation, restores=True))
        if took:
            if refused is not None:
                outbox.enqueue(store.outbox, store.name, run_id, operation, refused)
            return
    outbox.enqueue(store.outbox, store.name, run_id, operation)
    if time.monotonic() >= store.retry_at:
        _reaches(store, lambda: deliver(store, run_id))


def _reaches(store: Store, action: Callable[[], Result]) -> tuple[bool, Result | None]:
    """Return True and an action's result if the store took it, False if it is away. Raises as it does otherwise."""
    began = time.monotonic()
    try:
        result = action()
    except Exception as error:
        if not is_away(error):
            raise
        store.note_away(error, time.monotonic() - began)
        return False, None
    store.note_answer()
    return True, result


def put_files(store: Store, run_id: str, contents: Mapping[str, str | bytes]) -> None:
    """Record texts and other files as artifacts of a run, by their names."""
    files = {name: each.encode() if isinstance(each, str) else each for name, each in contents.items()}
    put(store, run_id, Operation("files", {}, files))


def deliver(store: Store, run_id: str | None = None) -> None:
    """Deliver the queued operations of a run, or of all and log how many those were. Raises as the store does.

    An error of one run does not hold up the others; what the store refuses is set aside. All may wait where the server
    answers and the place of its files does not: that is said, and hinders nothing else.
    """
    try:
        delivered = outbox.flush(
            store.outbox, store.name, lambda run, each: write(store, run, each), is_unreachable, run_id
        )
    except ArtifactsAway as error:
        if run_id is not None:
            raise
        place = f"the place of files of the MLflow store {without_credentials(store.uri)}"
        logger.warning(f"{place} does not answer ({error_cause(error)}): they are kept in {store.outbox}")
        return
    if delivered:
        store.note_answer()
    numbers = [number for number in delivered.values() if number]
    if numbers and run_id is None:
        runs = format_count(len(numbers), "run")
        logger.info(f"delivered {format_count(sum(numbers), 'record')} of {runs} that had been kept")


def queued_records(config: TrackingConfig) -> list[Queued]:
    """Return what waits for a store, and what was refused, in the queues of a records folder."""
    return outbox.listed(outbox_folder(config))


def retry_refused(config: TrackingConfig) -> None:
    """Offer to the store again what it refused, and deliver what waits. Raises MachineError as `open_store` does."""
    with store_errors(config):
        store = open_store(config)
        outbox.change(store.outbox, "", retry=True)
        deliver(store)


def discard_refused(config: TrackingConfig, wanted: str) -> int:
    """Throw away what a store refused: a record by its id, those of a run, or all (empty); return their number."""
    return outbox.change(outbox_folder(config), wanted, retry=False)


def metrics(values: Mapping[str, float], step: int) -> Operation:
    """Return the writing of a step's metrics, as of now, in one transaction."""
    now = int(time.time() * 1000)
    return Operation("batch", {"metrics": [(name, float(value), now, step) for name, value in values.items()]})


def tags(values: Mapping[str, str]) -> Operation:
    """Return the writing of tags, which replace earlier ones of the same names."""
    return Operation("batch", {"tags": dict(values)})


def model(contents: Mapping[str, bytes], parameters: Mapping[str, str]) -> Operation:
    """Return the writing of a model in MLflow's format, by the relative paths of its files."""
    return Operation("model", {"parameters": dict(parameters)}, dict(contents))


def ended(status: Status) -> Operation:
    """Return the end of a run, now."""
    return Operation("ended", {"status": status, "end_time": int(time.time() * 1000)})


def write(store: Store, run_id: str, operation: Operation, restores: bool = False) -> str | None:
    """Write to a run; doing it again changes nothing. Return the reason of a refusal, or None.

    A run that a person has deleted refuses, unless it `restores`. Raises as MLflow does if the store is away or out of
    order, and as `artifact_errors` does.
    """

    uploads = operation.kind in ("files", "model")

    def action() -> None:
        with artifact_errors(store) if uploads else contextlib.nullcontext():
            _write(store.client, run_id, operation)

    try:
        restoring(store, run_id, action) if restores else action()
    except Exception as error:
        refused = is_refusal(error) or (uploads and is_refusal(error.__context__))
        # The others: what was queued is not what a writer expects, however often it is tried.
        if not refused and not isinstance(error, KeyError | TypeError):
            raise
        reason = f"{type(error).__name__}: {error_cause(error)}"
        logger.warning(
            f"the MLflow store refuses {operation.kind} of run {run_id} ({reason}): it is set aside; digitcnn records"
        )
        return reason
    return None


@contextlib.contextmanager
def _folder_of(contents: Mapping[str, bytes]) -> Iterator[Path]:
    """Yield a folder with these files while the body lasts."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, content in contents.items():
            path = Path(temporary) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield Path(temporary)


def _write(client: MlflowClient, run_id: str, operation: Operation) -> None:
    from mlflow.entities import Metric, RunTag

    content = operation.content
    match operation.kind:
        case "batch":
            # The same metric with the same time is one row in MLflow, however often it is written.
            points = [Metric(*metric) for metric in content.get("metrics", [])]
            client.log_batch(run_id, points, tags=[RunTag(*tag) for tag in content.get("tags", {}).items()])
        case "files":
            with _folder_of(operation.files) as folder:
                client.log_artifacts(run_id, str(folder))
        case "data":
            _write_data(client, run_id, content)
        case "model":
            _write_model(client, run_id, operation)
        case "without_models":
            # Also one that was only begun.
            for each in models_of(client, run_id):
                client.delete_logged_model(each.model_id)
        case "ended":
            client.set_terminated(run_id, content["status"], content["end_time"])
        case unknown:
            raise KeyError(unknown)


def models_of(client: MlflowClient, run_id: str) -> list[Any]:
    """Return the logged models of a run."""
    # In its own experiment: what was kept may be delivered by a command that works in another.
    experiment_id = client.get_run(run_id).info.experiment_id
    return list(client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"))


def delete_runs(store: Store, run_ids: Sequence[str], model_ids: Sequence[str]) -> None:
    """Delete runs and models from the store, as `mlflow gc` does; on a server, move them to its trash.

    Versions of a registered model that are those of the runs go as well.
    """
    behind = store.client._tracking_client.store
    for run_id in run_ids:
        for version in store.client.search_model_versions(f"run_id = '{run_id}'"):
            store.client.delete_model_version(version.name, version.version)
    for model_id in model_ids:
        store.client.delete_logged_model(model_id)
        if hasattr(behind, "_hard_delete_logged_model"):
            behind._hard_delete_logged_model(model_id)
    for run_id in run_ids:
        store.client.delete_run(run_id)
        if hasattr(behind, "_hard_delete_run"):
            behind._hard_delete_run(run_id)


# The words of a database server and of SQLite for a row that another process has added.
_ALREADY_THERE = ("UNIQUE constraint failed", "duplicate key value")


def _write_data(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        for context, dataset in content.items()
    ]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if not any(words in str(error) for words in _ALREADY_THERE):
            raise
        # MLflow looks for a data set and then adds it: two runs that are the first with one both do. Now it is there.
        client.log_inputs(run_id, inputs)


def _write_model(client: MlflowClient, run_id: str, operation: Operation) -> None:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    known = models_of(client, run_id)
    ready = [each for each in known if each.status == LoggedModelStatus.READY]
    if ready:
        uploaded = ready[0]
    else:
        # One whose upload was cut off.
        for each in known:
            client.delete_logged_model(each.model_id)
        experiment_id = client.get_run(run_id).info.experiment_id
        uploaded = client.create_logged_model(experiment_id, "model", run_id, params=operation.content["parameters"])
        with _folder_of(operation.files) as folder:
            # The saved model names itself, by an id that the store has only now given.
            saved = Model.load(str(folder))
            saved.run_id = run_id
            saved.model_id = saved.model_uuid = uploaded.model_id
            saved.artifact_path = uploaded.artifact_location
            saved.save(str(folder / "MLmodel"))
            client.log_model_artifacts(uploaded.model_id, str(folder))
        client.finalize_logged_model(uploaded.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(uploaded.model_id, 0)])
