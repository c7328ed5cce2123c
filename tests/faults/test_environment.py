"""A user's environment: variables and files that libraries obey change no result, or are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from digitcnn import runner, tracking, training
from digitcnn.config import Backend, RunConfig, TrackingConfig
from digitcnn.drawing import plain_style
from digitcnn.processor import instruction_sets
from digitcnn.records import Tag
from digitcnn.tracking.local import settle_variables as settle_mlflow
from digitcnn.training.variables import flags_in_effect, settle_variables
from tests.conftest import Command
from tests.support.planted import VARIABLES, plant


def _trained(root: Path) -> list[Run]:
    """Return the runs of a records folder that were trained."""
    store = tracking.open_store(TrackingConfig(root=str(root)))
    found = store.client.search_runs([store.experiment_id])
    return [run for run in found if Tag.WEIGHTS_SHA256 in run.data.tags]


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, str]:
    """All that a user's environment can hold, and a matplotlibrc in the folder of the commands."""
    variables = plant(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "matplotlibrc").write_text((tmp_path / "home" / "matplotlibrc").read_text())
    return variables


def test_planted_environment_changes_no_result(
    planted: dict[str, str], command: Command, small_overrides: list[str], small_config: RunConfig, tmp_path: Path
) -> None:
    """Train and sweep with Keras's own fit, beside a run without all that."""
    # Given
    assert len(VARIABLES) > 40
    reference = runner.record_run(small_config, tags={})
    root, overrides = tmp_path / "planted", [*small_overrides, "training.threads=1"]
    small = ["study.trials=1", "workers.count=1", "training.engine=keras", f"tracking.root={tmp_path}/study"]
    # When
    ended = command("train", *overrides, f"tracking.root={root}", variables=planted)
    swept = command("sweep", *overrides, *small, variables=planted)
    # Then
    assert (ended.returncode, ended.stderr) == (0, "")
    (run,) = _trained(root)
    assert run.data.tags[Tag.WEIGHTS_SHA256] == reference.result.weights_sha256
    assert {name: run.data.tags[name] for name in (Tag.FLAGS, Tag.BACKEND, Tag.THREADS)} == {
        Tag.FLAGS: json.dumps({"TF_ENABLE_ONEDNN_OPTS": "1"} if "avx2" in instruction_sets() else {}),
        Tag.BACKEND: "tensorflow",
        Tag.THREADS: "1",
    }
    assert run.data.tags["git.commit"] == training.git_state()["commit"]
    assert "pl4nted" not in json.dumps(run.data.tags)
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    for name in ("learning_curves.png", "confusion_matrix.png"):
        picture = Image.open(client.download_artifacts(run.info.run_id, name, str(tmp_path)))
        assert (picture.format, picture.width > 700) == ("PNG", True)
    assert (swept.returncode, swept.stderr) == (0, "")
    (trial,) = _trained(tmp_path / "study")
    # 500 images in batches of 50, twice.
    assert (trial.data.metrics["updates"], trial.data.metrics["samples_seen"]) == (20, 1000)
    assert trial.data.metrics["train_loss"] == pytest.approx(reference.epochs[-1].train_loss, abs=1e-5)
    # Nothing was written into the home folder of Keras.
    assert "channels_first" in (tmp_path / "home" / ".keras" / "keras.json").read_text()


@pytest.mark.soak
def test_planted_environment_changes_no_verdict(
    planted: dict[str, str], command: Command, small_overrides: list[str], tmp_path: Path
) -> None:
    """Reproduce and confirm with all that what was trained without it."""
    here = f"tracking.root={tmp_path}/records"
    overrides = [*small_overrides, "study.trials=2", "workers.count=1", "study.space.training.epochs=null"]
    assert command("sweep", *overrides).returncode == 0
    again = command("reproduce", "run=best", here, variables=planted)
    confirmed = command("confirm", "confirm.seeds=2", "workers.count=1", here, variables=planted)
    assert (again.returncode, again.stderr) == (0, "")
    assert "\nIDENTICAL: run " in again.stdout
    assert (confirmed.returncode, confirmed.stderr) == (0, "")


@pytest.mark.parametrize("backend", get_args(Backend))
def test_variables_of_libraries_are_recorded_or_removed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given
    flags = {"OMP_DYNAMIC": "true", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Haswell"}
    own = {"tensorflow": {"TF_ENABLE_ONEDNN_OPTS": "0"}, "jax": {}, "torch": {"ATEN_CPU_CAPABILITY": "default"}}
    others = {"TF_CPP_MIN_LOG_LEVEL": "1", "HDF5_USE_FILE_LOCKING": "FALSE", "TERM": "dumb"}
    variables = VARIABLES | flags | others | {name: value for each in own.values() for name, value in each.items()}
    monkeypatch.setattr(os, "environ", dict(variables))
    # When
    settle_variables(backend, 3)
    # Then
    assert training.describe_environment(3, backend)["flags"] == flags | own[backend] | (
        {"OMP_WAIT_POLICY": "passive"} if backend == "torch" else {}
    )
    libraries = ("TF_", "KERAS_", "XLA_", "JAX_", "ONEDNN_", "DNNL_", "HDF5_", "TENSORFLOW_", "AUTOGRAPH_", "ATEN_")
    libraries += ("PYTORCH_", "TORCH", "PJRT_")
    left = {name for name in os.environ if name.startswith(libraries)} - {*flags, *own[backend], *others}
    threads = {"TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "PJRT_NPROC"}
    own_device = {"jax": {"JAX_PLATFORMS": "cpu"}, "torch": {"KERAS_TORCH_DEVICE": "cpu"}}.get(backend, {})
    assert left == {"KERAS_BACKEND", "KERAS_HOME", *threads, *own_device}
    assert own_device.items() <= os.environ.items()
    assert {os.environ[name] for name in (*threads, "OMP_NUM_THREADS")} == {"3"}
    assert os.environ["KERAS_BACKEND"] == backend
    # Of which no keras.json can be read.
    assert os.environ["KERAS_HOME"] == os.devnull
    assert others.items() <= os.environ.items()


@pytest.mark.parametrize(
    ("backend", "instructions", "imported", "said", "flags"),
    [
        ("tensorflow", ["avx2"], False, None, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
        ("tensorflow", ["avx2", "avx512f"], False, "0", {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        ("tensorflow", ["asimd"], False, None, {}),
        # It has read the variable.
        ("tensorflow", ["avx2"], True, None, {}),
        ("jax", ["avx2"], False, None, {}),
    ],
)
def test_tensorflow_computes_with_onednn_where_the_processor_has_avx2(
    backend: Backend,
    instructions: list[str],
    imported: bool,
    said: str | None,
    flags: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "environ", {} if said is None else {"TF_ENABLE_ONEDNN_OPTS": said})
    monkeypatch.setattr("digitcnn.training.variables.instruction_sets", lambda: instructions)
    if imported:
        monkeypatch.setitem(sys.modules, "tensorflow", sys)
    else:
        monkeypatch.delitem(sys.modules, "tensorflow", raising=False)
    settle_variables(backend, 1)
    assert flags_in_effect(backend) == flags


def test_variables_of_mlflow_are_removed_but_for_those_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    server = {
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": "p",
        "MLFLOW_TRACKING_TOKEN": "t",
        "MLFLOW_TRACKING_INSECURE_TLS": "true",
        "MLFLOW_S3_ENDPOINT_URL": "https://h",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "7",
    }
    monkeypatch.setattr(os, "environ", VARIABLES | server)
    settle_mlflow()
    assert server.items() <= os.environ.items()
    left = {name: value for name, value in os.environ.items() if "MLFLOW_" in name and name not in server}
    assert {name for name in left if left[name] == VARIABLES.get(name)} == set()
    assert left["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_pictures_are_drawn_in_matplotlibs_own_style() -> None:
    import matplotlib

    with matplotlib.rc_context({"savefig.format": "pdf", "font.size": 40, "text.usetex": True}):
        with plain_style():
            assert (matplotlib.rcParams["savefig.format"], matplotlib.rcParams["font.size"]) == ("png", 10)
        assert matplotlib.rcParams["font.size"] == 40


def test_commit_is_that_of_our_code_within_a_git_hook_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git tells its hooks which repository and index they are of."""
    expected = training.git_state()
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert training.git_state.__wrapped__() == expected


def test_uncommitted_changes_give_the_code_back(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path / "code"), "-c", "user.name=a", "-c", "user.email=a", *arguments], check=True
        )

    # Given a file that was changed since it was committed, and one that git does not know
    code, kept = tmp_path / "code" / "a.py", tmp_path / "kept.diff"
    code.parent.mkdir()
    code.write_text("one\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        git(*arguments)
    code.write_text("one\nzwei ü\n")
    (code.parent / "new.py").touch()
    # When
    kept.write_text(training.uncommitted_changes(code.parent))
    git("checkout", "-q", "a.py")
    git("apply", str(kept))
    # Then
    assert code.read_text() == "one\nzwei ü\n"
    assert "# Not in it, as untracked: new.py.\n" in kept.read_text()
    # And of what is too large nothing but its size
    code.write_text("x" * 300_000)
    kept.write_text(training.uncommitted_changes.__wrapped__(code.parent))
    assert kept.stat().st_size < 1000
    assert "characters of changes of commit" in kept.read_text()


def test_user_whom_the_system_does_not_know_has_a_home_that_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given no HOME, as in a container: MLflow's import would fail."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    settle_mlflow()
    assert os.environ["HOME"] == os.devnull
