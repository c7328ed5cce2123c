"""What a record of a run is in MLflow, and how it is written: doing that again changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from digitcnn.tracking.queue import Operation

if TYPE_CHECKING:
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]


def metrics(values: Mapping[str, float], step: int) -> Operation:
    """Metrics of a step, as of now, written in one transaction."""
    now = int(time.time() * 1000)
    return metrics_again([(name, float(value), now, step) for name, value in values.items()])


def metrics_again(values: Sequence[tuple[str, float, int, int]]) -> Operation:
    """Metrics that were recorded before: name, value, time (ms) and step of each."""
    return Operation("batch", {"metrics": [list(value) for value in values]})


def tags(values: Mapping[str, str]) -> Operation:
    """Tags, which take the place of earlier ones of the same names."""
    return Operation("batch", {"tags": dict(values)})


def files(folder: Path) -> Operation:
    """All files in a folder, as artifacts."""
    return Operation("files", {}, folder)


def data(inputs: Mapping[str, Mapping[str, str]]) -> Operation:
    """The data sets that a run used, described as MLflow's `Dataset`, by what they were used for."""
    return Operation("data", {context: dict(dataset) for context, dataset in inputs.items()})


def model(folder: Path, parameters: Mapping[str, str]) -> Operation:
    """A model that `mlflow.keras.save_model` has saved in a folder."""
    return Operation("model", {"parameters": dict(parameters)}, folder)


def without_models() -> Operation:
    """No model, not even one that the run had begun to write."""
    return Operation("without_models", {})


def ended(status: Status) -> Operation:
    """How a run ended, now."""
    return Operation("ended", {"status": status, "end_time": int(time.time() * 1000)})


def write(client: MlflowClient, run_id: str, record: Operation) -> None:
    """Writes one record to a run. Raises as MLflow does."""
    _KINDS[record.kind](client, run_id, record)


def _write_batch(client: MlflowClient, run_id: str, record: Operation) -> None:
    from mlflow.entities import Metric, RunTag

    # The same metric with the same time is one row in MLflow, however often it is written.
    found = [Metric(*metric) for metric in record.content.get("metrics", [])]
    client.log_batch(run_id, found, tags=[RunTag(*tag) for tag in record.content.get("tags", {}).items()])


def _write_files(client: MlflowClient, run_id: str, record: Operation) -> None:
    client.log_artifacts(run_id, str(record.files))


# The words of a database server and of SQLite for a row that another process has added.
_ALREADY_THERE = ("UNIQUE constraint failed", "duplicate key value")


def _write_data(client: MlflowClient, run_id: str, record: Operation) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag
    from mlflow.exceptions import MlflowException
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    inputs = [
        DatasetInput(Dataset(**dataset), [InputTag(MLFLOW_DATASET_CONTEXT, context)])
        for context, dataset in record.content.items()
    ]
    try:
        client.log_inputs(run_id, inputs)
    except MlflowException as error:
        if not any(words in str(error) for words in _ALREADY_THERE):
            raise
        # MLflow looks for a data set and then adds it: two runs that are the first with one both do. Now it is there.
        client.log_inputs(run_id, inputs)


def _write_model(client: MlflowClient, run_id: str, record: Operation) -> None:
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus
    from mlflow.models import Model

    assert record.files is not None
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
        uploaded = client.create_logged_model(experiment_id, "model", run_id, params=record.content["parameters"])
        # The saved model names itself, by an id that the store has only now given.
        saved = Model.load(str(record.files))
        saved.model_id = saved.model_uuid = uploaded.model_id
        saved.artifact_path = uploaded.artifact_location
        saved.save(str(record.files / "MLmodel"))
        client.log_model_artifacts(uploaded.model_id, str(record.files))
        client.finalize_logged_model(uploaded.model_id, LoggedModelStatus.READY)
    client.log_outputs(run_id, [LoggedModelOutput(uploaded.model_id, 0)])


def _discard_models(client: MlflowClient, run_id: str, record: Operation) -> None:
    experiment_id = client.get_run(run_id).info.experiment_id
    for each in client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(each.model_id)


def _end(client: MlflowClient, run_id: str, record: Operation) -> None:
    client.set_terminated(run_id, record.content["status"], record.content["end_time"])


_KINDS: dict[str, Callable[[MlflowClient, str, Operation], None]] = {
    "batch": _write_batch,
    "files": _write_files,
    "data": _write_data,
    "model": _write_model,
    "without_models": _discard_models,
    "ended": _end,
}
