"""A run without Keras that records one of everything, and the check that all of it is there, once."""

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

# A folder's name with every character that has a meaning in an address, or in a text that is filled in.
STRANGE = "räcords of 50% a?b#c {d} {0} e}"


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(number, 1.0 / number, 0.5, 0.5, 0.9 + number / 100, 1.0, 100.0)


def config_in(root: Path, **tracking: str) -> RunConfig:
    return load_config(RunConfig, {"training": {"threads": 1}, "tracking": {"root": str(root), **tracking}})


def saved_model(folder: Path) -> Path:
    """Save a model without Keras in a folder and return the folder."""
    folder.mkdir()
    Model(run_id="").save(str(folder / "MLmodel"))
    (folder / "weights").write_bytes(bytes(1000))
    return folder


def record_a_run(config: RunConfig, at_epoch: Callable[[int], None], folder: Path, epochs: int = 5) -> str:
    """Record a run with epochs, tags, a file, data and a model; call `at_epoch` before each epoch. Return its id."""
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
