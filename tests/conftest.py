"""Fixtures of several tests: small real data, and the commands as a person runs them."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from digitcnn import study, tracking
from digitcnn.config import RunConfig, SweepConfig, TrackingConfig, load_config
from digitcnn.tracking import local as local_module
from tests.support.messages import logged_messages

REPOSITORY = Path(__file__).parent.parent
ONE_WORKER = {"name": "local", "count": 1}
Command = Callable[..., "subprocess.CompletedProcess[str]"]

# Where the tests were started with nohup, what they start would ignore a closed terminal too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 training and 100 test images of the real MNIST."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    with np.load(REPOSITORY / "digitcnn" / "datasets" / "mnist.npz") as mnist:
        np.savez(
            path,
            x_train=mnist["x_train"][:600],
            y_train=mnist["y_train"][:600],
            x_test=mnist["x_test"][:100],
            y_test=mnist["y_test"][:100],
        )
    return path


@pytest.fixture
def small_overrides(small_npz: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a command small, with its records in the test's own folder."""
    return [
        f"data.path={small_npz}",
        "data.validation_size=100",
        "training.epochs=2",
        "training.batch_size=50",
        "model.conv1_filters=4",
        "model.conv2_filters=6",
        "model.dense_units=16",
        f"tracking.root={tmp_path}/records",
    ]


def small_run(npz: Path, root: Path) -> RunConfig:
    """Return the config of a run of under a second."""
    return load_config(
        RunConfig,
        {
            "data": {"path": str(npz), "validation_size": 100},
            "model": {"name": "cnn", "conv1_filters": 4, "conv2_filters": 6, "dense_units": 16},
            "training": {"epochs": 2, "batch_size": 50, "threads": 1},
            "tracking": {"root": str(root)},
        },
    )


@pytest.fixture
def small_config(small_npz: Path, tmp_path: Path) -> RunConfig:
    """A run of under a second."""
    return small_run(small_npz, tmp_path / "records")


@pytest.fixture(scope="session")
def champion(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrackingConfig, str]:
    """Records whose champion is a small network that has seen 600 images ten times, and the id of its run."""
    from digitcnn import runner, tracking

    config = load_config(
        RunConfig,
        {
            "data": {"path": str(small_npz), "validation": "test_once"},
            "model": {"name": "cnn", "conv1_filters": 4, "conv2_filters": 6, "dense_units": 16},
            "training": {"epochs": 10, "batch_size": 20, "threads": 1},
            "tracking": {"root": str(tmp_path_factory.mktemp("champion"))},
        },
    )
    run_id = runner.record_run(config, tags={}).run_id
    tracking.register_champion(tracking.open_store(config.tracking), run_id, {}, "a small network")
    return config.tracking, run_id


@pytest.fixture
def sweep_config(small_config: RunConfig, root: Path) -> SweepConfig:
    """A study around the small run, which begins in empty records."""
    study = {
        "name": "small",
        "objective": "validation_accuracy",
        "trials": 6,
        "pruner": "none",
        "space": {
            "training": {"batch_size": [20, 50, 100], "epochs": {"low": 1, "high": 3}},
            "model": {"conv1_filters": {"low": 2, "high": 8}},
        },
    }
    return load_config(SweepConfig, {**small_config.model_dump(), "study": study})


@pytest.fixture(scope="session")
def empty_records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A records folder without a run, made once: MLflow takes seconds to create its tables."""
    folder = tmp_path_factory.mktemp("empty") / "records"
    tracking.open_store(TrackingConfig(root=str(folder)))
    return folder


@pytest.fixture
def root(empty_records: Path, tmp_path: Path) -> Path:
    """An empty records folder of the test's own."""
    folder = shutil.copytree(empty_records, tmp_path / "records")
    local_module.relocate_artifacts(folder)
    return folder


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """The messages that the library logs from here on."""
    with logged_messages() as texts:
        yield texts


def with_study(config: SweepConfig, workers: int | None = None, **values: object) -> SweepConfig:
    """The config with other values in its study, and this many workers if a number is given."""
    tree = config.model_dump()
    tree["workers"]["count"] = workers or tree["workers"]["count"]
    return load_config(SweepConfig, {**tree, "study": {**tree["study"], **values}})


def with_workers(config: SweepConfig, **values: object) -> SweepConfig:
    """The config with other values of its workers."""
    tree = config.model_dump()
    return load_config(SweepConfig, {**tree, "workers": {**tree["workers"], **values}})


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Runs `digitcnn NAME OVERRIDES...` in an empty folder and returns how it ended.

    Forked from a process with everything imported; with variables of its own, as libraries read them, from the start.
    """
    from tests.support.processes import run_forked

    def run(
        name: str, *overrides: str, timeout: float = 300, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        folder, line = tmp_path / "elsewhere", command_line(name, *overrides)
        folder.mkdir(exist_ok=True)
        if variables is None:
            return run_forked(line, folder, timeout)
        environment = os.environ | {"COLUMNS": "160"} | dict(variables)
        ended = subprocess.run(
            line, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        # A busy machine takes more than the 20 s after which a command says that it is starting.
        ended.stderr = re.sub(r"^starting .*\n", "", ended.stderr, flags=re.MULTILINE)
        return ended

    return run


def command_line(name: str, *overrides: str) -> list[str]:
    """The command with its overrides as a list of arguments."""
    modules = {"publish": ["experiments.article"], "benchmark": ["experiments.benchmarks"]}
    return [sys.executable, "-m", *modules.get(name, ["digitcnn", name]), *overrides]


_GET_CONTEXT = multiprocessing.get_context


@pytest.fixture(scope="session", autouse=True)
def quick_workers() -> Iterator[None]:
    """Workers that are forked from a process with everything imported: they begin in 0.1 s instead of 8."""
    from tests.support.processes import FORKS

    def get_context(method: str | None = None) -> multiprocessing.context.BaseContext:
        return FORKS if method == "spawn" else _GET_CONTEXT(method)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(multiprocessing, "get_context", get_context)
        yield


@pytest.fixture
def spawned_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that begin as those of a command do: each in a Python of its own."""
    monkeypatch.setattr(multiprocessing, "get_context", _GET_CONTEXT)


@pytest.fixture(scope="session")
def finished_study(small_npz: Path, tmp_path_factory: pytest.TempPathFactory) -> SweepConfig:
    """A study of 3 trials that is finished, for copies."""
    from tests.support import sweeps, trainers

    tree = {
        "data": {"path": str(small_npz), "validation_size": 100},
        "model": {"name": "cnn", "conv1_filters": 4, "conv2_filters": 6, "dense_units": 16},
        "training": {"epochs": 40, "batch_size": 50, "threads": 1},
        "tracking": {"root": str(tmp_path_factory.mktemp("finished") / "records")},
        "study": {
            "name": "small",
            "objective": "validation_accuracy",
            "trials": 3,
            "pruner": "none",
            "space": {"training": {"batch_size": [20, 50, 100, 150, 200]}},
        },
        "workers": ONE_WORKER,
    }
    config = load_config(SweepConfig, tree)
    sweeps.work(config, trainers.InstantTrainer())
    return config


@pytest.fixture
def copied(finished_study: SweepConfig, tmp_path: Path) -> SweepConfig:
    """The finished study in a folder of its own."""
    root = tmp_path / "copy"
    shutil.copytree(finished_study.tracking.folder, root)
    return load_config(SweepConfig, finished_study.model_dump() | {"tracking": {"root": str(root)}})


@pytest.fixture
def opened(copied: SweepConfig) -> study.OpenStudy:
    """Return the copied study."""
    found = study.existing_study(copied.tracking.folder, "small")
    assert found is not None
    return found


@pytest.fixture
def store(copied: SweepConfig) -> tracking.Store:
    """Return the MLflow store of the copied study."""
    return tracking.open_store(copied.tracking)
