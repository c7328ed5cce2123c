"""The records of one run: real MLflow on SQLite, real models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server
from numpy.typing import NDArray
from PIL import Image

from digitcnn import runner, tracking, training
from digitcnn.config import RunConfig, load_config
from digitcnn.errors import TrainingDiverged
from digitcnn.records import Artifact, Tag
from digitcnn.runner import FinishedRun
from digitcnn.tracking import MODEL_FILE
from digitcnn.values import Decision, EpochMetrics
from tests.conftest import small_run
from tests.support.recorded import config_in, record_a_run


def _client(config: RunConfig) -> MlflowClient:
    return MlflowClient(config.tracking.store_uri)


def _only_run(config: RunConfig) -> mlflow.entities.Run:
    store = tracking.open_store(config.tracking)
    (run,) = store.client.search_runs([store.experiment_id])
    return run


@pytest.fixture(scope="module")
def trained(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, FinishedRun]:
    """A recorded run and its config."""
    config = small_run(small_npz, tmp_path_factory.mktemp("trained") / "records")
    return config, runner.record_run(config, tags={Tag.STUDY: "none"})


def test_recorder_keeps_all_that_reproduction_needs(trained: tuple[RunConfig, FinishedRun]) -> None:
    config, finished = trained
    result, run = finished.result, _only_run(config)
    assert run.info.status == "FINISHED"
    assert run.data.params == {name: str(value) for name, value in config.parameters().items()}
    for name in ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "epoch_seconds"):
        history = _client(config).get_metric_history(run.info.run_id, name)
        # Seconds are recorded to a millisecond.
        expected = [(epoch.epoch, pytest.approx(epoch.metrics()[name], abs=5e-4)) for epoch in finished.epochs]
        assert [(metric.step, metric.value) for metric in history][:2] == expected
    recorded = {name: run.data.metrics[name] for name in result.summary}
    assert recorded == pytest.approx(result.summary, abs=5e-4)
    tags = run.data.tags
    assert (tags[Tag.STUDY], tags[Tag.WEIGHTS_SHA256], tags[Tag.THREADS]) == ("none", result.weights_sha256, "1")
    for tag in ("data_sha256", "python", "cpu", "backend", "flags", "command", "git.commit", "git.dirty"):
        assert tags[tag], tag
    assert tags["version.tensorflow"] == training.package_versions()["tensorflow"]
    assert [data.tags[0].value for data in run.inputs.dataset_inputs] == ["training", "validation"]


def test_recorder_files_can_be_read_back(trained: tuple[RunConfig, FinishedRun], tmp_path: Path) -> None:
    config, _ = trained
    _client(config).download_artifacts(_only_run(config).info.run_id, "", str(tmp_path))
    pictures = {Artifact.CURVES_PICTURE, Artifact.CONFUSION_PICTURE}
    # In a checkout with uncommitted changes those are recorded as well.
    files = {path.name for path in tmp_path.iterdir()} - {Artifact.CHANGES}
    assert files == {Artifact.CONFIG, Artifact.ENVIRONMENT, Artifact.EPOCHS} | pictures
    read = load_config(RunConfig, yaml.safe_load((tmp_path / Artifact.CONFIG).read_text()))
    assert read.parameters() == config.parameters()
    assert json.loads((tmp_path / Artifact.ENVIRONMENT).read_text())["threads"] == 1
    for name in pictures:
        with Image.open(tmp_path / name) as picture:
            colours = np.unique(np.asarray(picture.convert("L")))
            assert picture.size[0] > 600
            assert len(colours) > 50


def test_recorder_model_is_small_and_predicts_what_was_measured(trained: tuple[RunConfig, FinishedRun]) -> None:
    config, finished = trained
    mlflow.set_tracking_uri(config.tracking.store_uri)
    run = _only_run(config)
    splits = runner.check_run(config)
    model = mlflow.keras.load_model(f"runs:/{run.info.run_id}/model")
    images = splits.validation.images
    accuracy = (model.predict(images, verbose=0).argmax(1) == splits.validation.labels).mean()
    assert accuracy == finished.epochs[-1].validation_accuracy
    pyfunc = mlflow.pyfunc.load_model(f"runs:/{run.info.run_id}/model")
    assert pyfunc.predict(splits.validation.images[:3]).shape == (3, 10)
    for wrong in (images[:3] / 255, images[:3, ..., None], images[0], images[:3].reshape(3, -1)):
        with pytest.raises(MlflowException, match=r"of input .* does not match expected"):
            pyfunc.predict(wrong)

    def served(instances: object) -> NDArray[np.float32]:
        """Return the answer of MLflow's server to a request."""
        content = json.dumps({"instances": instances})
        answer = scoring_server.invocations(content, "application/json", pyfunc, pyfunc.metadata.get_input_schema())
        return np.array(json.loads(answer.response)["predictions"])

    np.testing.assert_allclose(served(images[:3].tolist()), model.predict(images[:3], verbose=0), atol=1e-6)
    for wrong, reason in (
        (images[:3, ..., None], r"Shape of input \(3, 28, 28, 1\) does not match expected shape \(-1, 28, 28\)"),
        (images[0], r"Shape of input \(28, 28\) does not match expected shape \(-1, 28, 28\)"),
        (images[:1].astype(int) + 1, "256 out of bounds for uint8"),
        (images[:1].astype(int) - 1, "-1 out of bounds for uint8"),
    ):
        with pytest.raises(MlflowException, match=reason) as refused:
            served(wrong.tolist())
        assert refused.value.get_http_status_code() == 400
    (logged,) = _client(config).search_logged_models([run.info.experiment_id])
    folder = Path(logged.artifact_location.removeprefix("file://"))
    requirements = (folder / "requirements.txt").read_text().split()
    assert f"keras=={training.package_versions()['keras']}" in requirements
    stored = (folder / MODEL_FILE).read_bytes()
    assert hashlib.sha256(stored).hexdigest() == run.data.tags[Tag.MODEL_SHA256]
    # The optimizer's moments, which would make a model three times as large, are not in it.
    assert getattr(model, "optimizer", None) is None
    assert len(stored) < 100_000


def test_recorder_ends_a_pruned_run_as_killed_and_without_a_model(small_config: RunConfig) -> None:
    def prune(_: EpochMetrics) -> Decision:
        return "prune"

    runner.record_run(small_config, tags={}, on_epoch=prune)
    run = _only_run(small_config)
    assert (run.info.status, run.data.tags[Tag.PRUNED_AFTER]) == ("KILLED", "1")
    assert "cpu_seconds" in run.data.metrics
    assert _client(small_config).search_logged_models([run.info.experiment_id]) == []


@pytest.mark.parametrize(
    ("error", "status", "failure"),
    [(RuntimeError("out of luck"), "FAILED", "RuntimeError: out of luck"), (KeyboardInterrupt(), "KILLED", None)],
)
def test_recorder_ends_a_run_that_breaks_off_with_its_cause(
    small_config: RunConfig, error: BaseException, status: str, failure: str | None
) -> None:
    def break_off(_: EpochMetrics) -> Decision:
        raise error

    with pytest.raises(type(error)):
        runner.record_run(small_config, tags={}, on_epoch=break_off)
    run = _only_run(small_config)
    assert (run.info.status, run.data.tags.get(Tag.FAILURE)) == (status, failure)
    # What had been recorded is there.
    assert run.data.metrics["validation_accuracy"] > 0


def test_recorder_ends_a_diverged_run_as_failed(small_config: RunConfig) -> None:
    with pytest.raises(TrainingDiverged):
        runner.record_run(small_config.replace({"training.learning_rate": 1e6, "training.epochs": 5}), tags={})
    run = _only_run(small_config)
    assert (run.info.status, run.data.tags[Tag.DIVERGED]) == ("FAILED", "true")


def test_run_judged_by_the_test_set_records_no_validation(root: Path) -> None:
    """Given the article's protocol, whose every epoch is judged by the test set."""
    config = config_in(root).replace({"data.validation": "test"})
    run_id = record_a_run(config, epochs=2)
    metrics = MlflowClient(config.tracking.store_uri).get_run(run_id).data.metrics
    assert {"test_accuracy", "test_loss"} < set(metrics)
    assert not {name for name in metrics if "validation" in name}


def test_recorder_shows_processor_and_memory_of_long_trainings(root: Path) -> None:
    config = config_in(root)
    store = tracking.open_store(config.tracking)
    run_id = tracking.create_training_run(store, config, "long", {})
    run = tracking.Run(store, run_id, config)
    for epoch, seconds in enumerate((20.0, 40.0, 60.0), start=1):
        metrics = EpochMetrics(epoch, 1.0, 0.5, 1.0, 0.5, 20.0, 9.0, seconds, 1.5 * seconds + epoch, memory_mb=700.0)
        run.log_epoch(metrics)
    tracking.deliver(store)
    for name, value in (("cpu_utilization_percentage", 155), ("memory_usage_megabytes", 700)):
        history = store.client.get_metric_history(run_id, f"system/{name}")
        assert [(each.step, each.value) for each in history] == [(2, value), (3, value)]
