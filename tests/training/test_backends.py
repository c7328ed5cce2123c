"""One config on every framework that is installed: always TensorFlow, JAX and PyTorch where they are."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from digitcnn import runner, tracking, training
from digitcnn.config import Backend, DataConfig, RunConfig, TrackingConfig
from digitcnn.errors import ConfigError
from digitcnn.predict import models
from digitcnn.training import load_splits
from tests.conftest import Command, command_line

# Each backend trains once.
pytestmark = pytest.mark.xdist_group("backends")

INSTALLED = [
    pytest.param(
        backend,
        marks=pytest.mark.skipif(importlib.util.find_spec(backend) is None, reason=f"{backend} is not installed"),
    )
    for backend in training.BACKEND_PACKAGES
]


@dataclass(frozen=True)
class Trained:
    """A run of the command train on a backend, as it is recorded."""

    backend: Backend
    run: Any
    store: tracking.Store
    tracking: TrackingConfig
    stderr: str


@pytest.fixture(scope="module", params=INSTALLED)
def trained(request: pytest.FixtureRequest, small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Ten epochs of a small network, judged by the test set once, on each backend."""
    root = tmp_path_factory.mktemp(request.param) / "records"
    line = command_line(
        "train",
        *(f"backend={request.param}", f"data.path={small_npz}", "data.validation=test_once", f"tracking.root={root}"),
        *("model.conv1_filters=4", "model.conv2_filters=6", "model.dense_units=16"),
        *("training.epochs=10", "training.batch_size=20", "training.threads=1"),
    )
    # What is imported is named on standard error.
    line.insert(1, "-Ximporttime")
    ended = subprocess.run(line, capture_output=True, text=True, check=True)
    config = TrackingConfig(root=str(root))
    store = tracking.open_store(config)
    (run,) = store.client.search_runs([store.experiment_id])
    return Trained(request.param, run, store, config, ended.stderr)


def test_backend_of_a_run_is_recorded_with_its_versions(trained: Trained) -> None:
    tags, versions = trained.run.data.tags, training.package_versions(trained.backend)
    assert trained.run.data.params["backend"] == tags["backend"] == trained.backend
    assert tags["engine"] == ("fast" if trained.backend == "tensorflow" else "keras")
    frameworks = {package for packages in training.BACKEND_PACKAGES.values() for package in packages}
    own = set(training.BACKEND_PACKAGES[trained.backend])
    assert {name for name in frameworks if f"version.{name}" in tags} == own
    assert all(tags[f"version.{name}"] == versions[name] for name in own)
    model = tracking.logged_model(trained.store, trained.run.info.run_id)
    requirements = tracking.model_file(trained.store, model.model_id, "requirements.txt").read_text()
    assert {name for name in frameworks if f"{name}=={versions.get(name, '').partition('+')[0]}" in requirements} == own


def test_backend_imports_no_other_framework_nor_what_keras_has_wrappers_for(trained: Trained) -> None:
    assert "mlflow.keras" in trained.stderr
    foreign = {"tensorflow": ["jax", "torch._C"], "jax": ["tensorflow.python", "torch._C"]}
    names = [*foreign.get(trained.backend, ["tensorflow.python"]), "matplotlib.pyplot"]
    # PyTorch imports it itself.
    names += ["sklearn"] if trained.backend != "torch" else []
    assert [name for name in names if f" {name}" in trained.stderr] == []


def test_packages_that_keras_does_without_are_there_for_others() -> None:
    program = (
        "from digitcnn import training; training.import_keras(1); import sys; assert 'sklearn' not in sys.modules; "
    )
    program += "import matplotlib.pyplot, sklearn.base, keras; keras.layers.Dense(1)"
    subprocess.run([sys.executable, "-c", program], check=True, stderr=subprocess.PIPE)


def test_backend_model_predicts_the_same_on_tensorflow(trained: Trained) -> None:
    training.import_keras(1)
    model = models.load_recorded_model(trained.store, trained.tracking, trained.run.info.run_id)
    data = DataConfig(path=trained.run.data.params["data.path"], validation="test_once")
    images = load_splits(data).validation.images
    probabilities = model.predict(images, verbose=0)
    recorded = tracking.read_predictions(trained.store, trained.run.info.run_id)
    assert recorded["predicted"].tolist() == probabilities.argmax(axis=1).tolist()
    np.testing.assert_allclose(recorded["probability"], probabilities.max(axis=1), atol=1e-5)
    # It has learned something: there are ten classes.
    assert trained.run.data.metrics["test_accuracy"] > 0.5


def test_backend_trains_a_fresh_process_to_the_same_bits(trained: Trained, command: Command) -> None:
    ended = command(
        "reproduce", f"run={trained.run.info.run_id}", f"tracking.root={trained.tracking.root}", variables={}
    )
    assert ended.returncode == 0, ended.stderr
    assert f"IDENTICAL: run {trained.run.info.run_id} reproduced" in ended.stdout


@pytest.mark.parametrize("backend", INSTALLED[1:])
def test_backend_runs_a_study_and_its_confirmation(
    backend: Backend, command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    study = ["study.name=small", "study.trials=2", "workers.count=1", "study.pruner=none"]
    study += ["study.space.training.batch_size=[50,100]", "study.space.training.epochs=null"]
    study += [f"study.space.model.{layer}_filters=null" for layer in ("conv1", "conv2")]
    ended = command("sweep", *small_overrides, *study, f"backend={backend}", "training.epochs=1", variables={})
    assert ended.returncode == 0, ended.stderr
    again = command("sweep", *small_overrides, *study, "training.epochs=1")
    assert again.returncode == 2
    assert f"backend=tensorflow: study small was begun with {backend}; choose another study.name" in again.stderr
    root = f"tracking.root={tmp_path}/records"
    ended = command("confirm", "study=small", "confirm.top=1", "confirm.seeds=2", "workers.count=1", root, variables={})
    assert ended.returncode == 0, ended.stderr
    store = tracking.open_store(TrackingConfig(root=f"{tmp_path}/records"))
    found = tracking.study_runs(store, "small", "confirms")
    assert [run.data.tags["backend"] for run in found] == [backend] * 4


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_check_installed_names_a_missing_backend_in_one_line(
    backend: Backend, small_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How Python is told that there is no such module.
    monkeypatch.setitem(sys.modules, backend, None)
    with pytest.raises(ConfigError) as caught:
        runner.record_run(small_config.replace({"backend": backend}), tags={})
    assert str(caught.value) == (
        f"backend={backend}: needs {backend}, which is not installed; pip install 'digitcnn[{backend}]'"
    )
    assert not Path(small_config.tracking.root).exists()


def test_import_keras_refuses_other_threads_than_those_begun_with() -> None:
    training.import_keras(1)
    with pytest.raises(ConfigError, match="training.threads=2: this process has begun with 1 threads"):
        training.import_keras(2)


def test_import_keras_refuses_another_backend_than_the_one_begun_with() -> None:
    training.import_keras(1)
    with pytest.raises(ConfigError, match="backend=jax: this process has begun with tensorflow"):
        training.import_keras(1, "jax")


@pytest.mark.parametrize("backend", INSTALLED)
def test_backend_augments_without_the_notices_of_tensorflow(
    backend: Backend, command: Command, small_overrides: list[str]
) -> None:
    moved = ["augmentation.shift=0.1", "augmentation.rotation=10", "training.epochs=1"]
    ended = command("train", *small_overrides, *moved, f"backend={backend}", variables={})
    assert ended.returncode == 0, ended.stderr
    assert all(line.startswith("epoch ") for line in ended.stderr.splitlines()), ended.stderr
