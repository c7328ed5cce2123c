"""A run without Keras that records one of everything, and the check that all of it is there, once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import mlflow
from mlflow import MlflowClient

from digitcnn import runner
from digitcnn.config import RunConfig, load_config
from digitcnn.records import Artifact
from digitcnn.runner import Job
from digitcnn.values import EpochMetrics, Events, RunFinished
from tests.support.trainers import MODEL, InstantTrainer, started

# A folder's name with every character that has a meaning in an address, or in a text that is filled in.
STRANGE = "räcords of 50% a?b#c {d} {0} e}"


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.0 / number, 0.5, 0.5, 0.9 + number / 100, 1.0, 100.0)


def config_in(root: Path, **tracking: str) -> RunConfig:
    return load_config(RunConfig, {"training": {"threads": 1}, "tracking": {"root": str(root), **tracking}})


@dataclass(frozen=True)
class OneOfEverything(InstantTrainer):
    """Yields one of everything that is recorded; calls `at_epoch` before each epoch."""

    at_epoch: Callable[[int], None] = lambda number: None

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        yield started(job.config)
        for number in range(1, job.config.training.epochs + 1):
            self.at_epoch(number)
            yield epoch(number)
        files = {"predictions.csv": b"1,2,3\n"}
        yield RunFinished("completed", job.config.training.epochs, {"updates": 9.0}, "abc", "instant", files, MODEL)


def record_a_run(
    config: RunConfig,
    at_epoch: Callable[[int], None] = lambda number: None,
    epochs: int = 5,
    tags: Mapping[str, str] = MappingProxyType({"study": "none"}),
) -> str:
    """Record a run with epochs, tags, a file, data and a model; return its id."""
    config = config.replace({"training.epochs": epochs})
    return runner.record_run(config, tags=tags, trainer=OneOfEverything(at_epoch=at_epoch)).run_id


def files_at(config: RunConfig, place: str) -> set[str]:
    """Return the names of the files at an address: MLflow's client remembers a run's, which a move changes."""
    found = mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=config.tracking.store_uri)
    return {Path(item.path).name for item in found}


def assert_complete(config: RunConfig, run_id: str, epochs: int = 5) -> None:
    """Assert that all that `record_a_run` recorded is there, once."""
    client = MlflowClient(config.tracking.store_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name, value in epoch(1).metrics().items():
        history = client.get_metric_history(run_id, name)
        assert [point.step for point in history] == list(range(1, epochs + 1)), name
        assert history[0].value == value
    recorded = config.replace({"training.epochs": epochs}).parameters()
    assert run.data.params == {name: str(value) for name, value in recorded.items()}
    assert run.data.tags["weights_sha256"] == "abc"
    assert run.data.tags["threads"] == "1"
    # In a checkout with uncommitted changes those are recorded as well.
    files = files_at(config, run.info.artifact_uri) - {Artifact.CHANGES}
    assert files == {"config.yaml", "environment.json", "predictions.csv"}
    assert [each.tags[0].value for each in run.inputs.dataset_inputs] == ["training", "validation"]
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY"
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert files_at(config, model.artifact_location) == {"MLmodel", "weights"}
