"""An MLflow run from its creation to its end, and what a training records in it."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from digitcnn.config import DataConfig, RunConfig
from digitcnn.errors import MachineError
from digitcnn.records import EPOCH_METRICS, ON_TEST, Artifact, EnvironmentKey, Tag
from digitcnn.records import Metric as Recorded
from digitcnn.tracking import operations
from digitcnn.tracking.client import Store, restoring, with_retries
from digitcnn.tracking.local import process_id, process_is_gone
from digitcnn.tracking.operations import Status, deliver, put, put_files
from digitcnn.tracking.outbox import Operation
from digitcnn.tracking.results import MODEL_FILE
from digitcnn.values import Ending, EpochMetrics, RunFinished, RunStarted, Splits

if TYPE_CHECKING:
    from mlflow.entities import Metric

logger = logging.getLogger(__name__)

_ENDINGS: dict[Ending, Status] = {"completed": "FINISHED", "pruned": "KILLED", "stopped": "KILLED"}
# MLflow's limits: of a tag's value, of metrics in one call, and of a data set's digest.
_MAX_TAG_LENGTH = 5000
_MAX_METRICS = 1000
# Shorter trainings have no time to see them change.
_SYSTEM_SECONDS = 30.0
_DIGEST_LENGTH = 36
_DIGITS = 3
_COPIED_TAGS = (
    *(Tag.WEIGHTS_SHA256, Tag.DATA_SHA256, Tag.BACKEND, Tag.ENGINE, Tag.SOURCE_COMMIT, Tag.FAILURE, Tag.DIVERGED),
)


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
    return with_retries(store, lambda: restoring(store, None, attempt))


def create_training_run(
    store: Store, config: RunConfig, name: str, tags: Mapping[str, str], parent: str | None = None
) -> str:
    """Create a run with all parameters of the config, below a study's run if that is given; see `create_run`."""
    return create_run(store, name, dict(tags) | ({Tag.PARENT: parent} if parent else {}), config.parameters())


def close_run(store: Store, run_id: str, status: Status, failure: str | None = None) -> None:
    """Close a run, with the reason if it failed; only one that FINISHED keeps its model."""
    if failure is not None:
        note = f"{'failed' if status == 'FAILED' else 'ended early'}: {failure}"
        tags = {Tag.FAILURE: failure[:_MAX_TAG_LENGTH], Tag.NOTE: note[:_MAX_TAG_LENGTH]}
        put(store, run_id, operations.tags(tags))
    if status != "FINISHED":
        put(store, run_id, Operation("without_models", {}))
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
            deliver(store, run_id)
            if store.client.get_run(run_id).info.status == "RUNNING":
                close_abandoned_run(store, run_id)
                logger.warning(f"run {run_id} was still open, and its process is gone: it is closed")


def environment_tags(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return the description of a run's environment as MLflow tags, one level deep with dotted names."""
    packages, git = environment.get(EnvironmentKey.PACKAGES, {}), environment.get(EnvironmentKey.GIT, {})
    tags = {
        key: json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value)
        for key, value in environment.items()
        if key not in (EnvironmentKey.PACKAGES, EnvironmentKey.GIT)
    }
    tags |= {f"{Tag.VERSION_PREFIX}{name}": version for name, version in packages.items()}
    tags |= {f"{Tag.GIT_PREFIX}{name}": str(value).lower() for name, value in git.items()}
    return tags | ({Tag.SOURCE_COMMIT: git[EnvironmentKey.COMMIT]} if EnvironmentKey.COMMIT in git else {})


def copy_run(store: Store, source: str, target: str, status: Status) -> None:
    """Copy the metrics of a run with the same parameters to another, name the source in a tag, and close it."""

    def read() -> tuple[list[Metric], dict[str, str]]:
        deliver(store, source)
        data = store.client.get_run(source).data
        # A confirmation is of the run that was trained.
        names = [name for name in data.metrics if not name.startswith(Recorded.CONFIRMED_PREFIX)]
        return [each for name in names for each in store.client.get_metric_history(source, name)], data.tags

    points, tags = with_retries(store, read)
    values = [(each.key, each.value, each.timestamp, each.step) for each in points]
    for first in range(0, len(values), _MAX_METRICS):
        put(store, target, Operation("batch", {"metrics": values[first : first + _MAX_METRICS]}))
    copied = {key: value for key, value in tags.items() if key in _COPIED_TAGS}
    note = f"not trained: the result is that of run {source}, which has the same parameters"
    put(store, target, operations.tags({Tag.SAME_AS_RUN: source, Tag.NOTE: note} | copied))
    put(store, target, operations.ended(status))


def put_yaml(store: Store, run_id: str, name: str, tree: Mapping[str, Any]) -> None:
    """Record values as a YAML file, the first of a run. Closes the run and raises MachineError if it can have none."""
    try:
        put_files(store, run_id, {name: yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)})
    except MachineError as error:
        close_run(store, run_id, "FAILED", str(error))
        raise


class Run:
    """A run that is being recorded, by the process that owns it, from the events of its worker."""

    def __init__(self, store: Store, run_id: str, config: RunConfig) -> None:
        self.store, self.run_id, self.config = store, run_id, config
        self.seconds = self.cpu_seconds = 0.0
        put_yaml(store, run_id, Artifact.CONFIG, config.model_dump(exclude={"tracking"}))

    def log_start(self, started: RunStarted, splits: Splits) -> None:
        """Record the environment of the run's process, and its data as the run's input."""
        tags = environment_tags(started.environment) | {Tag.DATA_SHA256: started.data_sha256}
        self._put(operations.tags(tags))
        environment = json.dumps(started.environment, indent=2, sort_keys=True)
        put_files(self.store, self.run_id, {Artifact.ENVIRONMENT: environment})
        self._put(Operation("data", _inputs(self.config.data, splits)))

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Record the metrics of an epoch at step `epoch`, in one transaction."""
        values = metrics.metrics()
        seconds, cpu_seconds = metrics.training_seconds - self.seconds, metrics.cpu_seconds - self.cpu_seconds
        self.seconds, self.cpu_seconds = metrics.training_seconds, metrics.cpu_seconds
        if self.seconds > _SYSTEM_SECONDS and seconds > 0:
            # 100 is one core.
            values |= {Recorded.SYSTEM_CPU: 100 * cpu_seconds / seconds, Recorded.SYSTEM_MEMORY: metrics.memory_mb}
        # MLflow's charts begin with what is recorded first: what most studies look for.
        ordered = {name: values[name] for name in reversed(EPOCH_METRICS) if name in values} | values
        self._put(operations.metrics(self._named(ordered), metrics.epoch))

    def log_finish(self, finished: RunFinished, close: bool = True) -> None:
        """Record the final metrics, the files, the digests and the model, and close the run.

        Unless told otherwise, for one that was completed: more is to be recorded in it.
        """
        self._put(operations.metrics(self._named(finished.summary), finished.epochs))
        tags = {Tag.WEIGHTS_SHA256: finished.weights_sha256, Tag.ENGINE: finished.engine}
        if finished.files:
            self._put(Operation("files", {}, finished.files))
        if finished.model:
            parameters = {name: str(value) for name, value in self.config.parameters().items()}
            self._put(operations.model(finished.model, parameters))
            # Keras writes the time into the file, so the same model saved again has another digest.
            tags[Tag.MODEL_SHA256] = hashlib.sha256(finished.model.get(MODEL_FILE, b"")).hexdigest()
        if finished.ending == "pruned":
            # Unlike one that was stopped or cut off it has a result, which must be told apart from those.
            tags[Tag.PRUNED_AFTER] = str(finished.epochs)
            # MLflow has one status, and one red cross, for a pruned run and for others.
            tags[Tag.NOTE] = f"pruned after epoch {finished.epochs} of {self.config.training.epochs}"
        self._put(operations.tags(tags))
        if close or finished.ending != "completed":
            close_run(self.store, self.run_id, _ENDINGS[finished.ending])

    def _named(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return metrics by what they were measured on: as the article did, the test set may judge every epoch.

        Seconds are those of a machine that does other things too: more digits are none of the run's.
        """
        names = ON_TEST if self.config.data.validation == "test" else {}
        return {
            names.get(name, name): round(value, _DIGITS) if name.endswith("_seconds") else value
            for name, value in metrics.items()
        }

    def _put(self, operation: Operation) -> None:
        put(self.store, self.run_id, operation)


@functools.lru_cache(maxsize=1)
def _inputs(config: DataConfig, splits: Splits) -> dict[str, dict[str, str]]:
    """Return the examples of a run as MLflow describes data sets, by what they were used for."""
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

    judging = "test" if config.validation != "holdout" else "validation"
    return {
        context: from_numpy(
            examples.images,
            targets=examples.labels,
            source=LocalArtifactDatasetSource(splits.path),
            name=splits.name,
            digest=examples.sha256()[:_DIGEST_LENGTH],
        ).to_dict()
        for context, examples in (("training", splits.train), (judging, splits.validation))
    }
