"""A run without Keras that records all kinds of things, and the check that all of it is there, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.models import Model

from digitcnn import tracking, training
from digitcnn.config import RunConfig, load_config
from digitcnn.tracking import operations
from digitcnn.values import EpochMetrics

# A folder's name with all that an address of a file could stumble over.
STRANGE = "räcords of 50% a?b#c"


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.0 / number, 0.5, 0.5, 0.9 + number / 100, 1.0, 100.0)


def config_in(root: Path, **tracking: str) -> RunConfig:
    return load_config(RunConfig, {"training": {"threads": 1}, "tracking": {"root": str(root), **tracking}})


def saved_model(folder: Path) -> Path:
    """A model as it is saved, without Keras."""
    folder.mkdir()
    Model(run_id="").save(str(folder / "MLmodel"))
    (folder / "weights").write_bytes(bytes(1000))
    return folder


def record_a_run(config: RunConfig, at_epoch: Callable[[int], None], folder: Path, epochs: int = 5) -> str:
    """A run with epochs, tags, a file, data and a model; `at_epoch` is called before each epoch is recorded."""
    with tracking.start_run(config, {"study": "none"}, training.describe_environment(1)) as run:
        for number in range(1, epochs + 1):
            at_epoch(number)
            run.log_epoch(epoch(number))
        tracking.put_files(run.store, run.run_id, {"predictions.csv": "1,2,3\n"})
        dataset = {"name": "mnist", "digest": "abc", "source": "{}", "source_type": "local"}
        tracking.put(
            run.store, run.run_id, operations.data({"training": dataset, "validation": {**dataset, "digest": "x"}})
        )
        tracking.put(run.store, run.run_id, operations.model(saved_model(folder / f"model-{run.run_id}"), {"a": "1"}))
        tracking.put(run.store, run.run_id, tracking.tags({"weights_sha256": "abc"}))
        run.ending = "completed"
    return run.run_id


def files_at(config: RunConfig, place: str) -> set[str]:
    """By its address: MLflow's client remembers where the artifacts of a run were, which a move changes."""
    found = mlflow.artifacts.list_artifacts(artifact_uri=place, tracking_uri=config.tracking.store_uri)
    return {Path(item.path).name for item in found}


def assert_complete(config: RunConfig, run_id: str, epochs: int = 5) -> None:
    """All that `record_a_run` recorded is there, once."""
    client = MlflowClient(config.tracking.store_uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    for name, value in epoch(1).metrics().items():
        history = client.get_metric_history(run_id, name)
        assert [point.step for point in history] == list(range(1, epochs + 1)), name
        assert history[0].value == value
    assert run.data.params == {name: str(value) for name, value in config.parameters().items()}
    assert run.data.tags["weights_sha256"] == "abc"
    assert run.data.tags["threads"] == "1"
    assert files_at(config, run.info.artifact_uri) == {"config.yaml", "environment.json", "predictions.csv"}
    assert [(each.tags[0].value, each.dataset.digest) for each in run.inputs.dataset_inputs] == [
        ("training", "abc"),
        ("validation", "x"),
    ]
    (model,) = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY"
    assert [each.model_id for each in run.outputs.model_outputs] == [model.model_id]
    assert files_at(config, model.artifact_location) == {"MLmodel", "weights"}
