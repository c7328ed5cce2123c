"""Writing to MLflow runs: operations that may be repeated, delivered at once or from the outbox, in order."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from digitcnn.formatting import format_count
from digitcnn.tracking import outbox
from digitcnn.tracking.client import Store, error_cause, is_away, is_refusal
from digitcnn.tracking.outbox import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED"]


def put(store: Store, run_id: str, operation: Operation) -> None:
    """Write to a run; queue the operation if the store is away, or if earlier ones of the run are queued."""
    if not outbox.has_pending(store.outbox, run_id) and _reaches(store, lambda: write(store.client, run_id, operation)):
        return
    outbox.enqueue(store.outbox, store.name, run_id, operation)
    if time.monotonic() >= store.retry_at:
        _reaches(store, lambda: deliver_run(store, run_id))


def _reaches(store: Store, action: Callable[[], object]) -> bool:
    """Return True if the store took an action, False if it is away. Raises as it does otherwise."""
    began = time.monotonic()
    try:
        action()
    except Exception as error:
        if not is_away(error):
            raise
        store.note_away(error, time.monotonic() - began)
        return False
    store.note_answer()
    return True


def put_files(store: Store, run_id: str, contents: Mapping[str, str]) -> None:
    """Record texts as artifacts of a run, by their names."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in contents.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        put(store, run_id, files(Path(folder)))


def deliver_run(store: Store, run_id: str) -> int:
    """Deliver the queued operations of a run and return their number. Raises as the store does.

    Operations that the store refuses are moved out of the outbox, for a person to look at.
    """
    if not outbox.has_pending(store.outbox, run_id):
        return 0
    try:
        delivered = outbox.flush(store.outbox, run_id, lambda operation: write(store.client, run_id, operation))
    except Exception as error:
        if not is_refusal(error):
            raise
        folder = outbox.quarantine(store.outbox, run_id)
        logger.warning(
            f"the MLflow store refuses what was kept for run {run_id} ({error_cause(error)}): it stays in {folder}"
        )
        return 0
    store.note_answer()
    return delivered


def deliver(store: Store) -> None:
    """Deliver the queued operations of all runs, and log how many those were. Raises as the store does."""
    delivered: list[int] = []
    try:
        for run_id in outbox.pending_runs(store.outbox, store.name):
            delivered.append(deliver_run(store, run_id))
    finally:
        if sum(delivered):
            runs = format_count(sum(number > 0 for number in delivered), "run")
            logger.info(f"delivered {format_count(sum(delivered), 'record')} of {runs} that had been kept")


def metrics(values: Mapping[str, float], step: int) -> Operation:
    """Return the writing of a step's metrics, as of now, in one transaction."""
    now = int(time.time() * 1000)
    return recorded_metrics([(name, float(value), now, step) for name, value in values.items()])


def recorded_metrics(values: Sequence[tuple[str, float, int, int]]) -> Operation:
    """Return the writing of metrics that were recorded before: name, value, time (ms) and step of each."""
    return Operation("batch", {"metrics": [list(value) for value in values]})


def tags(values: Mapping[str, str]) -> Operation:
    """Return the writing of tags, which replace earlier ones of the same names."""
    return Operation("batch", {"tags": dict(values)})


def files(folder: Path) -> Operation:
    """Return the writing of all files in a folder as artifacts."""
    return Operation("files", {}, folder)


def data(inputs: Mapping[str, Mapping[str, str]]) -> Operation:
    """Return the writing of the data sets of a run, described as MLflow's `Dataset`, by their contexts."""
    return Operation("data", {context: dict(dataset) for context, dataset in inputs.items()})


def model(folder: Path, parameters: Mapping[str, str]) -> Operation:
    """Return the writing of a model that `mlflow.keras.save_model` has saved in a folder."""
    return Operation("model", {"parameters": dict(parameters)}, folder)


def without_models() -> Operation:
    """Return the removal of a run's models, also of one that was only begun."""
    return Operation("without_models", {})


def ended(status: Status) -> Operation:
    """Return the end of a run, now."""
    return Operation("ended", {"status": status, "end_time": int(time.time() * 1000)})


def write(client: MlflowClient, run_id: str, operation: Operation) -> None:
    """Write to a run; doing it again changes nothing. Raises as MLflow does."""
    _WRITERS[operation.kind](client, run_id, operation)


def _write_batch(client: MlflowClient, run_id: str, operation: Operation) -> None:
    from mlflow.entities import Metric, RunTag

    # The same metric with the same time is one row in MLflow, however often it is written.
    points = [Metric(*metric) for metric in operation.content.get("metrics", [])]
    client.log_batch(run_id, points, tags=[RunTag(*tag) for tag in operation.content.get("tags", {}).items()])


def _write_files(client: MlflowClient, run_id: str, operation: Operation) -> None:
    client.log_artifacts(run_id, str(operation.files))


# The words of a database server and of SQLite for a row that another process has added.
_ALREADY_THERE = ("UNIQUE constraint failed", "duplicate key value")


def _write_data(client: MlflowClient, run_id: str, operation: Operation) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        for context, dataset in operation.content.items()
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

    assert operation.files is not None
    # The run's own experiment: what was kept may be delivered by a command that works in another.
    experiment_id = client.get_run(run_id).info.experiment_id
    known = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    ready = [each for each in known if each.status == LoggedModelStatus.READY]
    if ready:
        uploaded = ready[0]
    else:
        # One whose upload was cut off.
        for each in known:
            client.delete_logged_model(each.model_id)
        uploaded = client.create_logged_model(experiment_id, "model", run_id, params=operation.content["parameters"])
        # The saved model names itself, by an id that the store has only now given.
        saved = Model.load(str(operation.files))
        saved.model_id = saved.model_uuid = uploaded.model_id
        saved.artifact_path = uploaded.artifact_location
        saved.save(str(operation.files / "MLmodel"))
        client.log_model_artifacts(uploaded.model_id, str(operation.files))
        client.finalize_logged_model(uploaded.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(uploaded.model_id, 0)])


def _delete_models(client: MlflowClient, run_id: str, operation: Operation) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    for each in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(each.model_id)


def _end(client: MlflowClient, run_id: str, operation: Operation) -> None:
    client.set_terminated(run_id, operation.content["status"], operation.content["end_time"])


_WRITERS: dict[str, Callable[[MlflowClient, str, Operation], None]] = {
    "batch": _write_batch,
    "files": _write_files,
    "data": _write_data,
    "model": _write_model,
    "without_models": _delete_models,
    "ended": _end,
}
