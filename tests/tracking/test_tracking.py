"""The records of one run: real MLflow on SQLite, real models."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image

from digitcnn import runner, tracking, training
from digitcnn.config import RunConfig, TrackingConfig
from digitcnn.errors import MachineError, TrainingDiverged
from digitcnn.tracking import local as local_module
from digitcnn.tracking import operations
from digitcnn.values import Decision, EpochMetrics


def _client(config: RunConfig) -> MlflowClient:
    return MlflowClient(config.tracking.store_uri)


def _only_run(config: RunConfig) -> mlflow.entities.Run:
    client = _client(config)
    experiment = client.get_experiment_by_name("digitcnn")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return run


def test_a_run_is_recorded_with_all_that_reproduction_needs(small_config: RunConfig) -> None:
    finished = runner.record_run(small_config, tags={"study": "none"})
    client, run_id = _client(small_config), finished.run_id
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in small_config.parameters().items()}
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "epoch_seconds"):
        history = client.get_metric_history(run_id, name)
        expected = [epoch.metrics()[name] for epoch in finished.result.epochs]
        assert [metric.value for metric in history][:2] == expected
        assert [metric.step for metric in history][:2] == [1, 2]
    summary = finished.result.summary()
    assert {name: run.data.metrics[name] for name in summary} == pytest.approx(summary)
    tags = run.data.tags
    assert tags["weights_sha256"] == finished.result.weights_sha256
    for tag in ("data_sha256", "python", "cpu", "threads", "backend", "flags", "command", "git.commit", "git.dirty"):
        assert tags[tag], tag
    assert tags["version.tensorflow"] == training.package_versions()["tensorflow"]
    assert [data.tags[0].value for data in run.inputs.dataset_inputs] == ["training", "validation"]
    assert {item.path for item in client.list_artifacts(run_id)} == {
        *("config.yaml", "environment.json", "learning_curves.png", "confusion_matrix.png")
    }


def test_the_recorded_config_and_environment_can_be_read_back(small_config: RunConfig, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    from digitcnn.config import load_config

    run_id = runner.record_run(small_config, tags={}).run_id
    client = _client(small_config)
    client.download_artifacts(run_id, "", str(tmp_path))
    read = load_config(RunConfig, OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml")))  # type: ignore[arg-type]
    assert read.parameters() == small_config.parameters()
    assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1
    for name in ("learning_curves.png", "confusion_matrix.png"):
        with Image.open(tmp_path / name) as picture:
            colours = np.unique(np.asarray(picture.convert("L")))
            assert picture.size[0] > 600
            assert len(colours) > 50


def test_the_model_is_loadable_and_small_and_predicts_what_was_measured(small_config: RunConfig) -> None:
    finished = runner.record_run(small_config, tags={})
    mlflow.set_tracking_uri(small_config.tracking.store_uri)
    splits = runner.check_run(small_config)
    model = mlflow.keras.load_model(f"runs:/{finished.run_id}/model")
    accuracy = (model.predict(splits.validation.images, verbose=0).argmax(1) == splits.validation.labels).mean()
    assert accuracy == finished.result.epochs[-1].validation_accuracy
    pyfunc = mlflow.pyfunc.load_model(f"runs:/{finished.run_id}/model")
    assert pyfunc.predict(splits.validation.images[:3]).shape == (3, 10)
    (logged,) = _client(small_config).search_logged_models([_only_run(small_config).info.experiment_id])
    folder = Path(logged.artifact_location.removeprefix("file://"))
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"keras=={training.package_versions()['keras']}" in requirements
    recorded = _only_run(small_config).data.tags["model_sha256"]
    assert hashlib.sha256((folder / "data" / "model.keras").read_bytes()).hexdigest() == recorded
    # The optimizer's moments, which would make a model three times as large, are not in it.
    assert getattr(model, "optimizer", None) is None
    assert (folder / "data" / "model.keras").stat().st_size < 100_000


def test_a_pruned_run_is_killed_and_has_no_model(small_config: RunConfig) -> None:
    def prune(_: EpochMetrics) -> Decision:
        return "prune"

    runner.record_run(small_config, tags={}, on_epoch=prune)
    run = _only_run(small_config)
    assert run.info.status == "KILLED"
    assert "cpu_seconds" in run.data.metrics
    assert _client(small_config).search_logged_models([run.info.experiment_id]) == []


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("out of luck"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_a_run_that_breaks_off_says_how(small_config: RunConfig, error: BaseException, status: str) -> None:
    def break_off(_: EpochMetrics) -> Decision:
        raise error

    with pytest.raises(type(error)):
        runner.record_run(small_config, tags={}, on_epoch=break_off)
    run = _only_run(small_config)
    assert run.info.status == status
    assert run.data.tags.get("failure") == ("RuntimeError: out of luck" if status == "FAILED" else None)
    # What had been recorded is there.
    assert run.data.metrics["validation_accuracy"] > 0


def test_a_diverged_run_failed(small_config: RunConfig) -> None:
    with pytest.raises(TrainingDiverged):
        runner.record_run(small_config.replace({"training.learning_rate": 1e6, "training.epochs": 5}), tags={})
    assert _only_run(small_config).info.status == "FAILED"


def test_a_store_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="the records folder .* cannot be used: Not a directory"):
        tracking.open_store(TrackingConfig(root=str(tmp_path / "file" / "below")))
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "mlflow.db").write_text("this is no database, " * 100)
    with pytest.raises(MachineError, match="file is not a database") as caught:
        tracking.open_store(TrackingConfig(root=str(tmp_path / "torn")))
    assert "\n" not in str(caught.value)


def test_of_runs_that_are_the_first_with_their_data_at_one_moment_each_has_it(
    empty_records: Path, tmp_path: Path
) -> None:
    # Given several runs of one experiment, at the same point
    root = shutil.copytree(empty_records, tmp_path / "records")
    local_module.relocate_artifacts(root)
    config = TrackingConfig(root=str(root))
    store = tracking.open_store(config)
    together = threading.Barrier(4)

    def first(run_id: str, name: str) -> None:
        client = MlflowClient(config.store_uri)
        data = {"name": name, "digest": "1", "source_type": "local", "source": "{}"}
        client.get_run(run_id)
        together.wait()
        operations.write(client, run_id, operations.data({"training": data}))

    for attempt in range(10):
        ids = [tracking.create_training_run(store, RunConfig(tracking=config), f"run {i}", {}) for i in range(4)]
        # When
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(first, ids, [f"data {attempt}"] * 4))
        # Then
        for run_id in ids:
            (found,) = store.client.get_run(run_id).inputs.dataset_inputs
            assert found.dataset.name == f"data {attempt}"
