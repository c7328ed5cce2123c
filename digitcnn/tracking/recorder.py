"""An MLflow run from its creation to its end, and what a training records in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml

from digitcnn.config import RunConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Artifact, Column, EnvironmentKey, Tag
from digitcnn.tracking import operations, plots
from digitcnn.tracking.client import Store, open_store, store_errors, suppress_away, with_retries
from digitcnn.tracking.local import process_id, process_is_gone
from digitcnn.tracking.operations import Status, deliver, deliver_run, put, put_files
from digitcnn.tracking.outbox import Operation
from digitcnn.values import EpochMetrics, Splits, TrainingResult

if TYPE_CHECKING:
    import keras
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

_ENDINGS: dict[str, Status] = {"completed": "FINISHED", "pruned": "KILLED", "stopped": "KILLED"}
_MAX_TAG_LENGTH = 5000
# MLflow's limits: of metrics in one call, and of a data set's digest.
_MAX_METRICS = 1000
_DIGEST_LENGTH = 36
# The file of a recorded model that holds its network and weights.
MODEL_FILE = "data/model.keras"
# The packages that loading a saved model takes: Keras, NumPy and the backend.
_MODEL_PACKAGES = ("keras", "numpy", "tensorflow", "jax", "jaxlib", "torch")
_COPIED_TAGS = (Tag.WEIGHTS_SHA256, Tag.DATA_SHA256, Tag.BACKEND, Tag.ENGINE, Tag.SOURCE_COMMIT)


def create_run(store: Store, name: str, tags: Mapping[str, str], parameters: Mapping[str, Any]) -> str:
    """Create a run with parameters and return its id. It is RUNNING until it is closed.

    Waits for a store that is away, and delivers first what is queued for it: only the store can give a run its id.
    """
    from mlflow.entities import Param

    source = {Tag.SOURCE_NAME: Path(sys.argv[0]).name, Tag.SOURCE_TYPE: "LOCAL"}
    tags = {Tag.HOST: process_id()} | source | dict(tags)
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


def create_training_run(
    store: Store, config: RunConfig, name: str, tags: Mapping[str, str], parent: str | None = None
) -> str:
    """Create a run with all parameters of the config, below a study's run if that is given; see `create_run`."""
    return create_run(store, name, dict(tags) | ({Tag.PARENT: parent} if parent else {}), config.parameters())


def close_run(store: Store, run_id: str, status: Status, failure: str | None = None) -> None:
    """Close a run, with the reason if it failed; only one that FINISHED keeps its model."""
    if failure is not None:
        put(store, run_id, operations.tags({Tag.FAILURE: failure}))
    if status != "FINISHED":
        put(store, run_id, operations.without_models())
    put(store, run_id, operations.ended(status))


def close_abandoned_run(store: Store, run_id: str) -> None:
    """Close a run whose process has ended without doing so."""
    close_run(store, run_id, "KILLED", "its process ended")


def close_abandoned_runs(store: Store) -> None:
    """Close the runs of no study whose processes on this machine are gone, as after a full disk or a SIGKILL.

    Delivers what is queued first: the end of a run may be among it. Those of a study are closed by its sweep or
    confirmation. Raises as the store does.
    """
    deliver(store)
    for run in store.client.search_runs([store.experiment_id], "attributes.status = 'RUNNING'", max_results=1000):
        tags, run_id = run.data.tags, run.info.run_id
        if Tag.STUDY not in tags and process_is_gone(tags.get(Tag.HOST, "")):
            # It may have ended since the search. Now that it is gone nobody writes to its run any more.
            deliver_run(store, run_id)
            if store.client.get_run(run_id).info.status == "RUNNING":
                close_abandoned_run(store, run_id)
                logger.warning(f"run {run_id} was still open, and its process is gone: it is closed")


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the description of a run's environment as MLflow tags, one level deep with dotted names."""
    packages, git = environment.get(EnvironmentKey.PACKAGES, {}), environment.get(EnvironmentKey.GIT, {})
    others = {
        key: value for key, value in environment.items() if key not in (EnvironmentKey.PACKAGES, EnvironmentKey.GIT)
    }
    tags = {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
        for key, value in others.items()
    }
    tags |= {f"{Tag.VERSION_PREFIX}{name}": version for name, version in packages.items()}
    tags |= {f"{Tag.GIT_PREFIX}{name}": str(value).lower() for name, value in git.items()}
    return tags | ({Tag.SOURCE_COMMIT: git[EnvironmentKey.COMMIT]} if EnvironmentKey.COMMIT in git else {})


def copy_run(store: Store, source: str, target: str, status: Status) -> None:
    """Copy the metrics of a run with the same parameters to another, name the source in a tag, and close it."""

    def read() -> tuple[list[Metric], dict[str, str]]:
        deliver_run(store, source)
        data = store.client.get_run(source).data
        return [each for name in data.metrics for each in store.client.get_metric_history(source, name)], data.tags

    points, tags = with_retries(store, read)
    values = [(each.key, each.value, each.timestamp, each.step) for each in points]
    for first in range(0, len(values), _MAX_METRICS):
        put(store, target, operations.recorded_metrics(values[first : first + _MAX_METRICS]))
    copied = {key: value for key, value in tags.items() if key in _COPIED_TAGS}
    put(store, target, operations.tags({Tag.SAME_AS_RUN: source} | copied))
    put(store, target, operations.ended(status))


def put_yaml(store: Store, run_id: str, name: str, tree: Mapping[str, Any]) -> None:
    """Record values as a YAML file, an artifact of a run."""
    put_files(store, run_id, {name: yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)})


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
        """Record the data set as the run's input, and its digest as a tag."""
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
        """Record the metrics of an epoch at step `epoch`, in one transaction."""
        self._put(operations.metrics(metrics.metrics(), metrics.epoch))
        self.epochs = metrics.epoch

    def log_result(self, result: TrainingResult, model: keras.Model) -> None:
        """Record the final metrics, the pictures, the weights digest and, of a completed training, the model."""
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
        if result.final_test_only:
            put_files(self.store, self.run_id, {Artifact.PREDICTIONS: _predictions_csv(result)})
        if result.ending == "completed":
            self._log_model(model)
        self.ending = result.ending

    def _put(self, operation: Operation) -> None:
        put(self.store, self.run_id, operation)

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
        # Without pins MLflow spends 10 s on working them out. A local version such as 2.13.0+cpu is pinned as 2.13.0:
        # another index may not have that build.
        packages = self.environment[EnvironmentKey.PACKAGES].items()
        pins = [f"{name}=={version.partition('+')[0]}" for name, version in packages if name in _MODEL_PACKAGES]
        parameters = {name: str(value) for name, value in self.config.parameters().items()}
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "model"
            mlflow.keras.save_model(
                bare, str(folder), mlflow_model=Model(run_id=self.run_id), signature=signature, pip_requirements=pins
            )
            # Keras writes the time into the file, so the same model saved again has another digest.
            digest = hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest()
            self._put(operations.model(folder, parameters))
        self._put(operations.tags({Tag.MODEL_SHA256: digest}))


def _predictions_csv(result: TrainingResult) -> str:
    columns = zip(result.labels, result.final.predictions, result.final.probabilities, strict=True)
    lines = [f"{index},{label},{predicted},{p:.6f}" for index, (label, predicted, p) in enumerate(columns)]
    heading = ",".join((Column.IMAGE, Column.LABEL, Column.PREDICTED, Column.PROBABILITY))
    return "\n".join([heading, *lines, ""])


@contextlib.contextmanager
def start_run(
    config: RunConfig, tags: Mapping[str, str], environment: Mapping[str, Any], run_id: str | None = None
) -> Iterator[Run]:
    """Record the body as one MLflow run: a new one, or one that was created for it.

    `environment` is the content of environment.json (training.describe_environment). The run ends as FINISHED if the
    body ends and logged a completed result, as KILLED if it was pruned, stopped or interrupted, as FAILED if it raised.
    What the store does not take for now is queued. Raises MachineError if the store fails for good.
    """
    store = open_store(config.tracking, patient=run_id is not None)
    with store_errors(config.tracking):
        created = run_id is None
        if run_id is None:
            with_retries(store, lambda: close_abandoned_runs(store))
            run_id = create_training_run(store, config, f"{config.model.name}-{time.strftime('%m%d-%H%M%S')}", tags)
        status: Status = "FAILED"
        failure: str | None = None
        try:
            current = Run(store, run_id, config, environment)
            put(store, run_id, operations.tags(environment_tags(environment)))
            put_files(store, run_id, {Artifact.ENVIRONMENT: json.dumps(environment, indent=2, sort_keys=True)})
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
            failure = f"{type(error).__name__}: {error}"[:_MAX_TAG_LENGTH]
            if isinstance(error, TrainingDiverged):
                put(store, run_id, operations.tags({Tag.DIVERGED: "true"}))
            raise
        finally:
            close_run(store, run_id, status, failure)
        if created:
            # The end of a command, which cannot wait.
            with suppress_away():
                deliver(store)
