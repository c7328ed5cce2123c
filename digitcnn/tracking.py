"""One MLflow run per training run: what is recorded, how it ends, and how it is found again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from omegaconf import OmegaConf

from digitcnn import environment, plots
from digitcnn.addresses import without_credentials
from digitcnn.config import RunConfig, SweepConfig, TrackingConfig, flatten
from digitcnn.data import Splits
from digitcnn.errors import MachineError
from digitcnn.training import EpochMetrics, TrainingResult

if TYPE_CHECKING:
    import keras
    from mlflow import MlflowClient

Status = Literal["FINISHED", "FAILED", "KILLED"]
_ENDINGS: dict[str, Status] = {"completed": "FINISHED", "pruned": "KILLED", "stopped": "KILLED"}
_MOST_TAG_LENGTH = 5000
# MLflow's limits: of metrics in one call, and of a data set's digest.
_MOST_METRICS = 1000
_DIGEST_LENGTH = 36
# The artifact with the predicted class of every test image, of runs that are judged once.
PREDICTIONS = "test_predictions.csv"
# The file of a recorded model that holds its network and weights. Its digest is the run's tag `model_sha256`.
MODEL_FILE = "data/model.keras"
_COPIED_TAGS = ("weights_sha256", "data_sha256", "backend", "engine")


@dataclass(frozen=True)
class Store:
    """An MLflow store that is open, and the experiment in it that records go to."""

    client: MlflowClient
    uri: str
    experiment_id: str


def open_store(config: TrackingConfig) -> Store:
    """Opens the store, and creates it and its experiment if they are missing. Raises MachineError if it cannot."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if config.uri is None:
            config.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"the records folder {config.folder} cannot be used: {error.strerror or error}") from None
    with store_errors(config):
        mlflow.set_tracking_uri(config.store_uri)
        client = MlflowClient(config.store_uri)
        experiment = client.get_experiment_by_name(config.experiment)
        if experiment is not None:
            return Store(client, config.store_uri, experiment.experiment_id)
        # A server decides itself where artifacts go; the embedded store would put them below the current folder.
        location = None if config.uri else (config.folder / "artifacts" / config.experiment).as_uri()
        # Without its kind the UI shows the experiment as one of language models.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return Store(client, config.store_uri, client.create_experiment(config.experiment, location, tags))


@contextlib.contextmanager
def store_errors(config: TrackingConfig) -> Iterator[None]:
    """Turns a failure of the MLflow store inside the body into a MachineError of one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        place = without_credentials(config.store_uri)
        cause = without_credentials(str(error)).splitlines()[0]
        raise MachineError(f"the MLflow store {place} failed: {cause}; what had been recorded is safe") from None


def create_run(store: Store, config: RunConfig, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
    """Creates a run with all parameters of the config and returns its id. It is RUNNING until it is closed."""
    from mlflow.entities import Param
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

    all_tags = _source() | dict(tags) | ({MLFLOW_PARENT_RUN_ID: parent} if parent else {})
    run_id: str = store.client.create_run(store.experiment_id, tags=all_tags, run_name=name).info.run_id
    parameters = [Param(key, str(value)) for key, value in config.parameters().items()]
    store.client.log_batch(run_id, params=parameters)
    return run_id


def _source() -> dict[str, str]:
    """The tags from which MLflow's UI shows a run's source."""
    commit = environment.git_state().get("commit")
    name = {"mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    return name | ({"mlflow.source.git.commit": commit} if commit else {})


def create_study_run(store: Store, config: SweepConfig) -> str:
    """Creates the parent run of a study, with the study's config as parameters, and returns its id."""
    from mlflow.entities import Param

    tags = _source() | _study_tags(config)
    run_id: str = store.client.create_run(store.experiment_id, tags=tags, run_name=config.study.name).info.run_id
    values = flatten({"study": config.study.model_dump(exclude={"storage"})})
    store.client.log_batch(run_id, params=[Param(key, str(value)) for key, value in values.items()])
    baseline = config.model_dump(exclude={"tracking": True, "preview": True, "study": {"storage"}})
    store.client.log_text(run_id, OmegaConf.to_yaml(baseline), "config.yaml")
    return run_id


def running_trials(store: Store, study: str, host: str | None = None) -> list[str]:
    """The ids of a study's child runs that are RUNNING; of one host's alone, if it is given."""
    filters = f"attributes.status = 'RUNNING' and tags.study = '{study}'"
    filters += f" and tags.host = '{host}'" if host else ""
    found = store.client.search_runs([store.experiment_id], filters, max_results=1000)
    return [run.info.run_id for run in found if "trial" in run.data.tags]


def reopen_study_run(store: Store, run_id: str, config: SweepConfig) -> None:
    """Sets a study's run to RUNNING again, with what it is resumed with as tags: parameters cannot change."""
    from mlflow.entities import RunTag

    store.client.update_run(run_id, status="RUNNING")
    store.client.log_batch(run_id, tags=[RunTag(*tag) for tag in _study_tags(config).items()])


def _study_tags(config: SweepConfig) -> dict[str, str]:
    description = environment.describe(config.training.threads or environment.available_cores())
    tags = {"study": config.study.name, "study.trials": str(config.study.trials)}
    return tags | environment.flatten_tags(description)


def log_study(store: Store, run_id: str, leaderboard: str, metrics: Mapping[str, float]) -> None:
    """Records a study's leaderboard (CSV) and the values of its best trial on its parent run."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    store.client.log_batch(run_id, metrics=[Metric(name, value, now, 0) for name, value in metrics.items()])
    store.client.log_text(run_id, leaderboard, "leaderboard.csv")


def copy_run(store: Store, source: str, target: str, status: Status) -> None:
    """Gives a run the metrics of another with the same parameters, says so in a tag, and closes it."""
    from mlflow.entities import RunTag

    metrics = []
    for name in store.client.get_run(source).data.metrics:
        metrics += store.client.get_metric_history(source, name)
    tags = [RunTag("same_as_run", source)]
    tags += [RunTag(key, value) for key, value in store.client.get_run(source).data.tags.items() if key in _COPIED_TAGS]
    for first in range(0, len(metrics), _MOST_METRICS):
        store.client.log_batch(target, metrics=metrics[first : first + _MOST_METRICS])
    store.client.log_batch(target, tags=tags)
    store.client.set_terminated(target, status)


def close_run(store: Store, run_id: str, status: Status, failure: str | None = None) -> None:
    """Closes a run whose own process cannot, with the reason; a model it may have begun to write is not kept."""
    if failure is not None:
        store.client.set_tag(run_id, "failure", failure)
    if status != "FINISHED":
        for model in store.client.search_logged_models([store.experiment_id], f"source_run_id = '{run_id}'"):
            store.client.delete_logged_model(model.model_id)
    store.client.set_terminated(run_id, status)


@dataclass
class Run:
    """A run that is being recorded. Without an `ending` it ends as KILLED: it got to no result."""

    store: Store
    run_id: str
    config: RunConfig
    ending: Literal["completed", "pruned", "stopped"] = "stopped"

    def log_data(self, splits: Splits) -> None:
        """Records the data set as the run's input, and its digest as a tag."""
        import mlflow
        from mlflow.data.numpy_dataset import from_numpy
        from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

        judging = "test" if self.config.data.validation != "holdout" else "validation"
        for context, examples in (("training", splits.train), (judging, splits.validation)):
            dataset = from_numpy(
                examples.images,
                targets=examples.labels,
                source=LocalArtifactDatasetSource(splits.path),
                name=splits.name,
                digest=examples.sha256()[:_DIGEST_LENGTH],
            )
            mlflow.log_input(dataset, context=context)
        self.store.client.set_tag(self.run_id, "data_sha256", splits.sha256)

    def log_epoch(self, metrics: EpochMetrics) -> None:
        """Records the metrics of an epoch at step `epoch`, in one transaction."""
        self._log_metrics(metrics.metrics(), metrics.epoch)

    def log_result(self, result: TrainingResult, model: keras.Model) -> None:
        """Records the final metrics, the pictures, the weights digest and, of a completed training, the model."""
        self._log_metrics(result.summary(), len(result.epochs))
        self.store.client.set_tag(self.run_id, "weights_sha256", result.weights_sha256)
        self.store.client.set_tag(self.run_id, "engine", result.engine)
        judged = "" if self.config.data.validation == "holdout" else ", judged on the test set"
        name = f"{self.config.model.name}, batch size {self.config.training.batch_size}{judged}"
        pictures = {
            "learning_curves.png": plots.learning_curves(result.epochs, name),
            "confusion_matrix.png": plots.confusion_matrix(result.confusion, f"{name}, after the last epoch"),
        }
        with tempfile.TemporaryDirectory() as folder:
            for file, figure in pictures.items():
                figure.savefig(Path(folder) / file)
            self.store.client.log_artifacts(self.run_id, folder)
        if result.judged_once:
            self.log_file(PREDICTIONS, _predictions_csv(result))
        if result.ending == "completed":
            self._log_model(model)
        self.ending = result.ending

    def log_file(self, name: str, text: str) -> None:
        """Records a text file as an artifact."""
        self.store.client.log_text(self.run_id, text, name)

    def _log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entities = [Metric(name, float(value), now, step) for name, value in metrics.items()]
        self.store.client.log_batch(self.run_id, metrics=entities)

    def _log_model(self, model: keras.Model) -> None:
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        # A copy without the optimizer, whose moments would make every saved model three times as large.
        bare = type(model).from_config(model.get_config())
        bare.set_weights(model.get_weights())
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *bare.input_shape[1:]))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *bare.output_shape[1:]))]),
        )
        versions = environment.package_versions()
        # Without the pins MLflow spends 10 s a model on working them out.
        pins = [f"{package}=={versions[package]}" for package in ("tensorflow", "keras", "numpy")]
        logged = mlflow.keras.log_model(bare, name="model", signature=signature, pip_requirements=pins)
        # Of the file as it was stored: it holds the time, so that no second file of this model has the same digest.
        content = model_file(self.store, logged.model_id, MODEL_FILE).read_bytes()
        self.store.client.set_tag(self.run_id, "model_sha256", hashlib.sha256(content).hexdigest())


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
def _recording(store: Store, config: RunConfig, tags: Mapping[str, str], run_id: str | None) -> Iterator[Run]:
    import mlflow
    from mlflow.entities import RunTag

    if run_id is None:
        run_id = create_run(store, config, f"{config.model.name}-{time.strftime('%m%d-%H%M%S')}", tags)
    status: Status = "FAILED"
    try:
        mlflow.start_run(run_id=run_id)
        current = Run(store, run_id, config)
        threads = config.training.threads or environment.available_cores()
        description = environment.describe(threads)
        store.client.log_batch(run_id, tags=[RunTag(*tag) for tag in environment.flatten_tags(description).items()])
        current.log_file("environment.json", json.dumps(description, indent=2, sort_keys=True))
        current.log_file("config.yaml", OmegaConf.to_yaml(config.model_dump(exclude={"tracking"})))
        yield current
        status = _ENDINGS[current.ending]
    except (KeyboardInterrupt, SystemExit):
        status = "KILLED"
        raise
    except Exception as error:
        store.client.set_tag(run_id, "failure", f"{type(error).__name__}: {error}"[:_MOST_TAG_LENGTH])
        raise
    finally:
        mlflow.end_run(status)


@contextlib.contextmanager
def run(config: RunConfig, tags: Mapping[str, str], run_id: str | None = None) -> Iterator[Run]:
    """Records what happens inside as one MLflow run: a new one, or one that was created for it.

    Config and environment are recorded first. The run ends as what happened: FINISHED when the body ends and a
    completed result was logged, KILLED when it was pruned, stopped or interrupted, FAILED when it raised. Raises
    MachineError if the store fails.
    """
    store = open_store(config.tracking)
    with store_errors(config.tracking), _recording(store, config, tags, run_id) as current:
        yield current
