"""One MLflow run per training run: what is recorded, how it ends, and how it is found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from digitcnn.config import RunConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Artifact, Tag
from digitcnn.tracking import operations, plots, processes
from digitcnn.tracking.client import (
    Store,
    close_abandoned_runs,
    close_run,
    deliver,
    deliver_if_there,
    deliver_run,
    open_store,
    put,
    store_errors,
    with_retries,
)
from digitcnn.tracking.operations import Status
from digitcnn.tracking.queue import Operation
from digitcnn.values import EpochMetrics, Splits, TrainingResult

if TYPE_CHECKING:
    import keras
    from mlflow.entities import Metric

_ENDINGS: dict[str, Status] = {"completed": "FINISHED", "pruned": "KILLED", "stopped": "KILLED"}
_MOST_TAG_LENGTH = 5000
# MLflow's limits: of metrics in one call, and of a data set's digest.
_MOST_METRICS = 1000
_DIGEST_LENGTH = 36
# Of runs and of values in one answer of an MLflow server about metric histories.
_MOST_HISTORIES = 100
_MOST_VALUES = 25_000
# The file of a recorded model that holds its network and weights. Its digest is the run's tag of it.
MODEL_FILE = "data/model.keras"
# Packages that a saved model does not need to be loaded.
_NOT_OF_A_MODEL = ("digitcnn", "mlflow", "optuna", "hydra-core")
_COPIED_TAGS = (Tag.WEIGHTS_SHA256, Tag.DATA_SHA256, Tag.BACKEND, Tag.ENGINE)


def create_training_run(
    store: Store, config: RunConfig, name: str, tags: Mapping[str, str], parent: str | None = None
) -> str:
    """Creates a run with all parameters of the config and returns its id. It is RUNNING until it is closed.

    Waits for a store that is away, and delivers first what is kept for it: only the store can give a run its id.
    """
    all_tags = dict(tags) | ({Tag.PARENT: parent} if parent else {})
    return create_run(store, name, all_tags, config.parameters())


def create_run(store: Store, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    """Creates a run of whatever kind, as `create_run` does."""
    from mlflow.entities import Param

    tags = _source() | dict(tags)
    began = int(time.time() * 1000)

    def attempt() -> str:
        deliver(store)
        # If it was the answer that got lost, the run is there.
        found = store.client.search_runs([store.experiment_id], f"attributes.start_time = {began}") if tried else []
        same = [each.info.run_id for each in found if each.info.run_name == name]
        tried.append(began)
        run_id = same[0] if same else store.client.create_run(store.experiment_id, began, tags, name).info.run_id
        store.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in parameters.items()])
        return str(run_id)

    tried: list[int] = []
    return with_retries(store, attempt)


def _source() -> dict[str, str]:
    """The tags from which MLflow's UI shows a run's source, and who works on it."""
    name = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    return {Tag.HOST: processes.process_id()} | name


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the description of a run's environment as MLflow tags, one level deep with dotted names."""
    tags: dict[str, str] = {}
    for key, value in environment.items():
        if key == "packages":
            tags |= {f"{Tag.VERSION_PREFIX}{name}": text for name, text in value.items()}
        elif key == "git":
            tags |= {f"git.{name}": str(part).lower() for name, part in value.items()}
            if "commit" in value:
                # From which MLflow's UI shows a run's source.
                tags["mlflow.source.git.commit"] = value["commit"]
        else:
            tags[key] = json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
    return tags


def metric_histories(store: Store, run_ids: Sequence[str], metric: str) -> dict[str, dict[int, float]]:
    """A metric's value at each step, by run: many runs in one query, where MLflow's client asks once for each."""
    found: dict[str, dict[int, float]] = {run_id: {} for run_id in run_ids}
    for first in range(0, len(run_ids), _MOST_HISTORIES):
        some = run_ids[first : first + _MOST_HISTORIES]
        points = _histories(store, some, metric)
        if len(points) >= _MOST_VALUES:
            # The answer was cut off.
            points = [(each, p.step, p.value) for each in some for p in store.client.get_metric_history(each, metric)]
        for run_id, step, value in points:
            found[run_id][step] = value
    return found


def _histories(store: Store, run_ids: Sequence[str], metric: str) -> list[tuple[str, int, float]]:
    """The run, step and value of up to `_MOST_VALUES` points, from the store behind the client."""
    from mlflow.utils.rest_utils import http_request_safe

    behind = store.client._tracking_client.store
    if hasattr(behind, "get_metric_history_bulk"):
        points = [point.to_dict() for point in behind.get_metric_history_bulk(run_ids, metric, _MOST_VALUES)]
    else:
        wanted = {"run_id": list(run_ids), "metric_key": metric, "max_results": _MOST_VALUES}
        path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
        answer = http_request_safe(behind.get_host_creds(), path, "GET", params=wanted)  # type: ignore[no-untyped-call]
        points = answer.json()["metrics"]
    return [(point["run_id"], int(point["step"]), float(point["value"])) for point in points]


def copy_run(store: Store, source: str, target: str, status: Status) -> None:
    """Gives a run the metrics of another with the same parameters, says so in a tag, and closes it."""

    def read() -> tuple[list[Metric], dict[str, str]]:
        deliver_run(store, source)
        data = store.client.get_run(source).data
        return [each for name in data.metrics for each in store.client.get_metric_history(source, name)], data.tags

    metrics, tags = with_retries(store, read)
    for first in range(0, len(metrics), _MOST_METRICS):
        part = metrics[first : first + _MOST_METRICS]
        put(
            store,
            target,
            operations.metrics_again([(each.key, each.value, each.timestamp, each.step) for each in part]),
        )
    copied = {key: value for key, value in tags.items() if key in _COPIED_TAGS}
    put(store, target, operations.tags({Tag.SAME_AS_RUN: source} | copied))
    put(store, target, operations.ended(status))


def put_yaml(store: Store, run_id: str, name: str, tree: Mapping[str, Any]) -> None:
    """Records values as a YAML file, an artifact of a run."""
    put_text(store, run_id, name, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))


def put_text(store: Store, run_id: str, name: str, text: str) -> None:
    """Records a text file as an artifact of a run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / name).write_text(text, encoding="utf-8")
        put(store, run_id, operations.files(Path(folder)))


@dataclass
class Run:
    """A run that is being recorded. Without an `ending` it ends as KILLED: it got to no result."""

    store: Store
    run_id: str
    config: RunConfig
    environment: Mapping[str, Any]
    ending: Literal["completed", "pruned", "stopped"] = "stopped"
    epochs: int = 0

    def log_data(self, splits: Splits) -> None:
        """Records the data set as the run's input, and its digest as a tag."""
        from mlflow.data.numpy_dataset import from_numpy
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

        judging = "test" if self.config.data.validation != "holdout" else "validation"
        inputs = {
            context: from_numpy(
                examples.images,
                targets=examples.labels,
                source=LocalArtifactDatasetSource(splits.path),
                name=splits.name,
                digest=examples.sha256()[:_DIGEST_LENGTH],
            ).to_dict()
            for context, examples in (("training", splits.train), (judging, splits.validation))
        }
        self._put(operations.data(inputs))
        self._put(operations.tags({Tag.DATA_SHA256: splits.sha256}))

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Records the metrics of an epoch at step `epoch`, in one transaction."""
        self._put(operations.metrics(metrics.metrics(), metrics.epoch))
        self.epochs = metrics.epoch

    def log_result(self, result: TrainingResult, model: keras.Model) -> None:
        """Records the final metrics, the pictures, the weights digest and, of a completed training, the model."""
        self._put(operations.metrics(result.summary(), len(result.epochs)))
        self._put(operations.tags({Tag.WEIGHTS_SHA256: result.weights_sha256, Tag.ENGINE: result.engine}))
        judged = "" if self.config.data.validation == "holdout" else ", judged on the test set"
        name = f"{self.config.model.name}, batch size {self.config.training.batch_size}{judged}"
        pictures = {
            Artifact.CURVES_PICTURE: plots.learning_curves(result.epochs, name),
            Artifact.CONFUSION_PICTURE: plots.confusion_matrix(result.confusion, f"{name}, after the last epoch"),
        }
        with tempfile.TemporaryDirectory() as folder:
            for file, figure in pictures.items():
                figure.savefig(Path(folder) / file)
            self._put(operations.files(Path(folder)))
        if result.judged_once:
            self.log_file(Artifact.PREDICTIONS, _predictions_csv(result))
        if result.ending == "completed":
            self._log_model(model)
        self.ending = result.ending

    def log_file(self, name: str, text: str) -> None:
        """Records a text file as an artifact."""
        put_text(self.store, self.run_id, name, text)

    def _put(self, record: Operation) -> None:
        put(self.store, self.run_id, record)

    def _log_model(self, model: keras.Model) -> None:
        import mlflow
        from mlflow.models import Model, ModelSignature
        from mlflow.types import Schema, TensorSpec

        # A copy without the optimizer, whose moments would make every saved model three times as large.
        bare = type(model).from_config(model.get_config())
        bare.set_weights(model.get_weights())
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *bare.input_shape[1:]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *bare.output_shape[1:]))]),
        )
        # Without the pins MLflow spends 10 s a model on working them out.
        # Not which build of a version, as in 2.13.0+cpu: an index may have another one.
        packages = self.environment["packages"].items()
        pins = [f"{name}=={version.partition('+')[0]}" for name, version in packages if name not in _NOT_OF_A_MODEL]
        parameters = {name: str(value) for name, value in self.config.parameters().items()}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            mlflow.keras.save_model(
                bare, str(folder), mlflow_model=Model(run_id=self.run_id), signature=signature, pip_requirements=pins
            )
            # Of the file as it was stored: it holds the time, so that no second file of this model has the same digest.
            digest = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
            self._put(operations.model(folder, parameters))
        self._put(operations.tags({Tag.MODEL_SHA256: digest}))


def model_file(store: Store, model_id: str, name: str) -> Path:
    """Where a file of a recorded model is on this machine; a server's file is fetched first."""
    import mlflow

    location = store.client.get_logged_model(model_id).artifact_location
    return Path(mlflow.artifacts.download_artifacts(f"{location}/{name}", tracking_uri=store.uri))


def _predictions_csv(result: TrainingResult) -> str:
    columns = zip(result.labels, result.final.predictions, result.final.probabilities, strict=True)
    lines = [f"{index},{label},{predicted},{p:.6f}" for index, (label, predicted, p) in enumerate(columns)]
    return "\n".join(["image,label,predicted,probability", *lines, ""])


@contextlib.contextmanager
def _recording(store: Store, config: RunConfig, run_id: str, environment: Mapping[str, Any]) -> Iterator[Run]:
    status: Status = "FAILED"
    failure: str | None = None
    try:
        current = Run(store, run_id, config, environment)
        put(store, run_id, operations.tags(environment_tags(environment)))
        current.log_file(Artifact.ENVIRONMENT, json.dumps(environment, indent=2, sort_keys=True))
        put_yaml(store, run_id, Artifact.CONFIG, config.model_dump(exclude={"tracking"}))
        yield current
        status = _ENDINGS[current.ending]
        if current.ending == "pruned":
            # Unlike one that was stopped or cut off it has a result, which must be told apart from those.
            put(store, run_id, operations.tags({Tag.PRUNED_AFTER: str(current.epochs)}))
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"[:_MOST_TAG_LENGTH]
        if isinstance(error, TrainingDiverged):
            put(store, run_id, operations.tags({Tag.DIVERGED: "true"}))
        raise
    finally:
        close_run(store, run_id, status, failure)


@contextlib.contextmanager
def start_run(
    config: RunConfig,
    tags: Mapping[str, str],
    environment: Mapping[str, Any],
    run_id: str | None = None,
) -> Iterator[Run]:
    """Record what happens inside as one MLflow run: a new one, or one that was created for it.

    `environment` is what environment.json holds (training.describe_environment). Config and environment are recorded
    first. The run ends as what happened: FINISHED when the body ends and a completed result was logged, KILLED when it
    was pruned, stopped or interrupted, FAILED when it raised. What the store does not take for now is kept in the
    outbox. Raises MachineError if the store fails for good.
    """
    with store_errors(config.tracking):
        created = run_id is None
        store = open_store(config.tracking, patient=not created)
        if run_id is None:
            with_retries(store, lambda: close_abandoned_runs(store))
            run_id = create_training_run(store, config, f"{config.model.name}-{time.strftime('%m%d-%H%M%S')}", tags)
        with _recording(store, config, run_id, environment) as current:
            yield current
        if created:
            deliver_if_there(store)
