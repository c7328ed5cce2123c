"""Security: credentials stay out of messages, and records and manifests of others are data."""

from __future__ import annotations

import http.client
import http.server
import itertools
import json
import logging
import os
import signal
import sys
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from digitcnn import cli, evaluation, report, runner, signals, training
from digitcnn.config import (
    Backend,
    Config,
    ConfirmConfig,
    DiffConfig,
    ReportConfig,
    ReproduceConfig,
    StudyReference,
    SweepConfig,
    load_config,
    without_credentials,
)
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import RunManifest, write_manifest
from digitcnn.evaluation.reproduction.manifest import read_manifest
from digitcnn.report.record import with_known_flags
from digitcnn.study import only_process
from tests.conftest import with_study
from tests.support.passwords import BASIC, PASSWORD, TYPED, USER, assert_in_no_file, assert_in_no_text
from tests.support.sweeps import Quiet, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer

# An address, and all that is shown of it.
SHOWN = [
    ("postgresql+psycopg://ann:secret@db/x", "postgresql+psycopg://***@db/x"),
    ("postgresql+psycopg://ann@db:5432/x", "postgresql+psycopg://***@db:5432/x"),
    ("postgresql+psycopg:///x?user=ann&password=secret", "postgresql+psycopg:///x?***"),
    ("postgresql+psycopg://ann:sec%40%3A%2Fret@db/x?host=/run", "postgresql+psycopg://***@db/x?***"),
    ("postgresql+psycopg://ann:se@c:r/et@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se/cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se?cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se#cret@db/x", "postgresql+psycopg://***"),
    ("postgresql+psycopg://ann:se?a=b&token=cret@db/x", "postgresql+psycopg://***"),
    ("http://u:secret@h:5000", "http://***@h:5000"),
    ("https://h/mlflow?token=secret", "https://h/mlflow?***"),
    ("http://h,http://u:secret@h2", "http://***"),
    ("http://127.0.0.1:5000/mlflow", "http://127.0.0.1:5000/mlflow"),
    ("sqlite:////records of a@b/optuna.db", "sqlite:////records of a@b/optuna.db"),
    ("file:///records/a@b", "file:///records/a@b"),
]


@pytest.mark.parametrize(("address", "shown"), SHOWN)
def test_without_credentials_hides_user_password_and_query(address: str, shown: str) -> None:
    assert without_credentials(address) == shown
    around = "'tracking.uri={}' failed (\"{}\"), see {} for more"
    assert without_credentials(around.format(address, address, address)) == around.format(shown, shown, shown)
    assert without_credentials(shown) == shown


def _manifest(**changes: Any) -> dict[str, Any]:
    """The content of a manifest's file of one epoch."""
    metrics = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
    config = {"data": {"path": "mnist"}, "training": {"epochs": 1}}
    digest = {"weights_sha256": "a" * 64, "data_sha256": "b" * 64, "engine": "keras"}
    content = {"format": 1, "run_id": "c" * 32, "config": config, "epochs": [dict.fromkeys(metrics, 0.5)], "final": {}}
    return {**content, **digest, "environment": {"threads": 1, "flags": {}, "packages": {}, "git": {}}, **changes}


def test_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "champion.yaml"
    path.write_text(yaml.safe_dump(_manifest()))
    written = read_manifest(path)
    write_manifest(written, tmp_path / "again.yaml", "two\nlines")
    assert read_manifest(tmp_path / "again.yaml") == written
    assert written.config.training.epochs == 1


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in itertools.pairwise("abcdefghijkl")
)
# What a colleague's file may hold, and what the one line says.
NOT_A_MANIFEST = [
    ("", "it holds no mapping of keys to values"),
    ("- 1", "it holds no mapping of keys to values"),
    ("format: 2", "its format is not 1"),
    ("a: !!python/object/apply:os.system ['touch {marker}']", "it holds an alias or a tag"),
    ("a: !!python/name:os.system", "it holds an alias or a tag"),
    ("format: !!int 1", "it holds an alias or a tag"),
    (BOMB, "it holds an alias or a tag"),
    ("a: &a [*a]", "it holds an alias or a tag"),
    ("a: " + "[" * 100_000, "it is nested more than 10 deep"),
    ("a: " + "{a: " * 5_000 + "}" * 5_000, "it is nested more than 10 deep"),
    ("a: '" + "x" * 5_000_000 + "'", "it has more than 4,194,304 bytes"),
    ("a: \x00", "control characters are not allowed"),
    ("\xff", "is not a run's manifest, or is corrupt or truncated"),
    ("a: [1", "is not a run's manifest, or is corrupt or truncated"),
    ("a: 1\n---\nb: 2", "is not a run's manifest, or is corrupt or truncated"),
    ("a: 2001-99-99", "is not a run's manifest, or is corrupt or truncated"),
    ("a: " + "9" * 5_000, "is not a run's manifest, or is corrupt or truncated"),
    (_manifest(_target_="os.system"), "_target_: unknown key"),
    (_manifest(config={"_target_": "os.system"}), "config._target_: unknown key"),
    (_manifest(config={"training": {"epochs": "${oc.env:HOME}"}}), "config.training.epochs=${oc.env:HOME}: must be"),
    (_manifest(config={"data": {"path": "a\x1b[2Jb"}}), "must hold no control characters"),
    (_manifest(run_id="../../x"), "run_id=../../x: "),
    (_manifest(run_id="c" * 32 + "\n"), "run_id="),
    (_manifest(engine="os.system"), "engine=os.system: must be 'fast', 'keras' or 'compiled'"),
    (_manifest(epochs=[]), "of each of the config's epochs"),
    (_manifest(epochs=[{"train_loss": 0.5}]), "of each of the config's epochs"),
    (_manifest(epochs=[{"seconds": 0.5}]), "must be 'train_loss'"),
    (_manifest(epochs=[dict.fromkeys(("train_loss",), float("nan"))]), "must be a finite number"),
    (_manifest(final={"test_loss": 0.5, "test_accuracy": 0.5}), "if data.validation is test_once"),
    (_manifest(environment={"cpu": "x\x1b[2J"}), "must hold no control characters"),
    (_manifest(environment={"flags": "x"}), "must hold mappings as packages, flags and git only"),
    (_manifest(environment={"flags": {"a": ["x"]}}), "must hold words and numbers"),
]


@pytest.mark.parametrize(("content", "line"), NOT_A_MANIFEST, ids=range(len(NOT_A_MANIFEST)))
def test_manifest_refuses_any_other_file_in_one_line(content: Any, line: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "champion.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_bytes(text.replace("{marker}", str(marker)).encode("latin-1"))
    tracemalloc.start()
    with pytest.raises(ConfigError) as refused:
        read_manifest(path)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)
    assert most < 50 * 2**20
    assert not marker.exists()


def test_records_are_not_written_through_a_link(tmp_path: Path) -> None:
    """Whoever may write into the records folder must not get a file elsewhere emptied or overwritten."""
    victim, link = tmp_path / "victim", tmp_path / "locks" / "small.lock"
    victim.write_text("precious")
    link.parent.mkdir()
    link.symlink_to(victim)
    with pytest.raises(MachineError, match="symbolic links"), only_process(tmp_path, "small"):
        pass
    champion = tmp_path / "champion.yaml"
    champion.symlink_to(victim)
    write_manifest(
        load_config(RunManifest, {key: value for key, value in _manifest().items() if key != "format"}),
        champion,
        "mine",
    )
    assert victim.read_text() == "precious"
    assert champion.read_text().startswith("# mine")
    assert not champion.is_symlink()


def test_manifest_is_read_from_a_regular_file_only(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="it is not a regular file"):
            read_manifest(path)


def test_repeatable_flags_do_nothing_but_change_numbers() -> None:
    harmless = {
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "OMP_PROC_BIND": "true",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    hostile = {
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/tmp/evil",
        "XLA_FLAGS": "--xla_dump_to=/tmp/x",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "OMP_DYNAMIC": "/tmp",
        "KERAS_HOME": "/tmp/evil",
        "KERAS_BACKEND": "torch",
        "OMP_TOOL_LIBRARIES": "/tmp/evil.so",
        "LD_PRELOAD": "/tmp/evil.so",
        "PATH": "/tmp",
        "MKL_CBWR": "AVX2\n",
    }
    assert training.repeatable_flags(harmless | hostile) == harmless


# Variables of other programs, or of places and accounts, that begin as the frameworks' own do.
OTHERS = (
    *("TF_VAR_db_password", "TF_TOKEN_app_terraform_io", "TF_HTTP_PASSWORD", "TF_CLI_CONFIG_FILE", "KERAS_HOME"),
    *("KERAS_TOKEN", "JAX_PLATFORMS_TOKEN", "XLA_SECRET", "OMP_KEY", "KMP_CREDENTIALS", "MKL_LICENSE", "TORCH_TOKEN"),
    *("OPENBLAS_PASSWORD", "ONEDNN_TOKEN", "ATEN_SECRET"),
)


@pytest.mark.parametrize("backend", get_args(Backend))
def test_environment_holds_flags_by_name_and_no_other_variable(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {
        "tensorflow": {"TF_ENABLE_ONEDNN_OPTS": "0"},
        "jax": {"MKL_CBWR": "AVX2"},
        "torch": {"ATEN_CPU_CAPABILITY": "avx2"},
    }
    for name, value in {**flags["jax"], **flags["torch"], **flags["tensorflow"], "OMP_DYNAMIC": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in OTHERS:
        monkeypatch.setenv(name, "pl4nted")
    monkeypatch.setenv("OMP_SCHEDULE", "http://u:pl4nted@h")
    masked = {"OMP_DYNAMIC": "true", "OMP_SCHEDULE": "http://***@h", **flags["jax"]}
    assert training.describe_environment(1, backend)["flags"] == masked | flags[backend]


def test_no_other_variable_of_a_worker_is_recorded_or_published(sweep_config: SweepConfig, tmp_path: Path) -> None:
    # Given workers whose environment holds secrets, and one flag that shows it is their environment that is recorded.
    planted = (*((name, "pl4nted") for name in OTHERS), ("OMP_SCHEDULE", "guided,7"))
    config = with_study(sweep_config, workers=1, trials=2, pruner="none")
    # When
    result = work(config, InstantTrainer(variables=planted))
    tree = {"study": {"name": "small"}, "tracking": config.tracking.model_dump(), "confirm": {"top": 1, "seeds": 2}}
    confirm = load_config(ConfirmConfig, tree)
    confirmed = evaluation.run_confirmation(
        evaluation.plan_confirmation(confirm), Quiet(), ConfirmingTrainer(variables=planted)
    )
    reference = StudyReference(name="small")
    report.write_report(ReportConfig(study=reference, tracking=config.tracking))
    runs = confirmed.runs["run_id"].tolist()[:2]
    compared = report.compare_runs(DiffConfig(runs=runs, study=reference, tracking=config.tracking))
    # Then
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path for path, content in files.items() if b"pl4nted" in content] == []
    assert "pl4nted" not in compared.differing.to_string()
    assert b"guided,7" in confirmed.champion_path.read_bytes()
    assert len([path for path in files if path.name == "environment.json" and b"guided,7" in files[path]]) == 6
    assert result.finished == 2


def test_variables_that_an_earlier_version_recorded_are_not_published(tmp_path: Path) -> None:
    flags = {"TF_VAR_db_password": "pl4nted", "KMP_INIT_AT_FORK": "FALSE", "TF_ENABLE_ONEDNN_OPTS": "0"}
    content = _manifest(environment={"threads": 1, "flags": flags, "packages": {}, "git": {}})
    (tmp_path / "earlier.yaml").write_text(yaml.safe_dump(content))
    manifest = read_manifest(tmp_path / "earlier.yaml")
    write_manifest(manifest, tmp_path / "champion.yaml", "")
    assert manifest.environment["flags"] == {"TF_ENABLE_ONEDNN_OPTS": "0"}
    assert "pl4nted" not in (tmp_path / "champion.yaml").read_text()
    tags = {"backend": "tensorflow", "flags": json.dumps(flags), "cpu": "x"}
    shown = {"backend": "tensorflow", "flags": '{"TF_ENABLE_ONEDNN_OPTS": "0"}', "cpu": "x"}
    assert with_known_flags(tags) == shown
    assert with_known_flags({"flags": "pl4nted"}) == {}


PLANS: dict[str, tuple[type[Config], Callable[[Any], object]]] = {
    "sweep": (SweepConfig, runner.plan_sweep),
    "confirm": (ConfirmConfig, evaluation.plan_confirmation),
    "reproduce": (ReproduceConfig, evaluation.find_manifest),
}


def _command(name: str, typed: list[str]) -> int:
    """Runs a command in this process until it has checked everything and found what it needs; its exit status."""
    kind, plan = PLANS[name]

    def task(config: Any) -> int:
        plan(config)
        return 0

    handlers = {number: signal.getsignal(number) for number in signals.ENDING}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["digitcnn"])
            patch.setenv("HYDRA_FULL_ERROR", "0")
            # Hydra closes every handler there is; TensorFlow's, if another test imported it, closes pytest's streams.
            patch.setattr(logging, "_handlerList", [])
            with pytest.raises(SystemExit) as ended:
                cli.run_command(name, kind, task, arguments=typed)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


ADDRESS = f"http://{USER}:{TYPED}@127.0.0.1:1"


@pytest.mark.parametrize(
    ("name", "overrides", "status"),
    [
        ("sweep", ["study.sampler=best"], 2),
        ("sweep", ["tracking.ur={address}"], 2),
        ("sweep", ["{address}"], 2),
        ("sweep", ["{address}=1"], 2),
        ("sweep", ["--{address}"], 2),
        ("sweep", ["model={address}"], 2),
        ("sweep", ["training.epochs={address}"], 2),
        ("sweep", ["study.space.training.epochs={address}"], 2),
        ("sweep", ["study.storage={address}"], 2),
        ("sweep", ["tracking.uri='{address}'"], 2),
        ("sweep", ["tracking.uri={raw}"], 2),
        ("sweep", ["tracking.uri=dbname=x password={raw}"], 2),
        ("sweep", ["tracking.uri=http://u:{typed}@127.0.0.1:1"], 2),
        ("sweep", ["tracking.uri=http://127.0.0.1:1/?token={typed}"], 2),
        ("sweep", ["--cfg", "job"], 0),
        ("sweep", ["--help"], 0),
        ("sweep", ["--cfg", "all"], 0),
        ("sweep", ["-m", "training.epochs=1,2"], 1),
        ("sweep", ["hydra.run.dir={records}", "hydra.output_subdir=.hydra", "tracking.uri={address}"], 2),
        ("confirm", ["study=nowhere"], 2),
        ("reproduce", ["run=best", "study=nowhere"], 2),
    ],
)
def test_command_keeps_a_password_out_of_its_messages(
    name: str,
    overrides: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parts = {"address": ADDRESS, "raw": ADDRESS.replace(TYPED, PASSWORD), "typed": TYPED, "records": str(tmp_path)}
    typed = [override.format(**parts) for override in overrides]
    if not any("{" in override for override in overrides):
        typed.insert(0, f"tracking.uri={ADDRESS}")
    monkeypatch.chdir(tmp_path)
    assert _command(name, [f"tracking.root={tmp_path}/records", *typed]) == status
    output, errors = capfd.readouterr()
    # Of a multirun each job has its line, and the count.
    assert errors.count("\n") == (0, 3, 1)[status], errors
    assert_in_no_text(output + errors)
    assert_in_no_file(tmp_path)


def test_open_store_takes_user_and_password_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that refuses everybody is told who asks; the refusal names the server alone."""
    asked: list[str] = []

    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.headers.get("Authorization", ""))
            self.send_error(401)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        typed = [f"tracking.root={tmp_path}/records", f"tracking.uri=http://127.0.0.1:{server.server_port}"]
        status = _command("reproduce", ["run=champion", *typed])
        server.shutdown()
    output, errors = capfd.readouterr()
    assert status == 1
    assert errors.count("\n") == 1
    assert f"http://127.0.0.1:{server.server_port}" in errors
    assert_in_no_text(output + errors)
    assert f"Basic {BASIC}" in asked
