"""Nobody gets in: credentials stay out of every record and message, overrides and records are data."""

from __future__ import annotations

import base64
import contextlib
import http.client
import http.server
import io
import itertools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest
import yaml
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitcnn import evaluation, runner, training
from digitcnn.cli import arguments, command
from digitcnn.config import (
    Config,
    ConfirmConfig,
    ReproduceConfig,
    SweepConfig,
    TrackingConfig,
    known_keys,
    load_config,
    without_credentials,
)
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation import RunManifest, write_manifest
from digitcnn.evaluation.manifest import read_manifest
from digitcnn.runner import signals
from digitcnn.study.storage import lock
from digitcnn.tracking import open_store
from tests.conftest import REPOSITORY
from tests.support.servers import free_port

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
def test_an_address_is_shown_without_its_credentials(address: str, shown: str) -> None:
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
    (_manifest(engine="os.system"), "engine=os.system: must be 'keras' or 'compiled'"),
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


def test_a_link_in_the_records_is_not_written_through(tmp_path: Path) -> None:
    """Whoever may write into the records folder must not get a file elsewhere emptied or overwritten."""
    victim, link = tmp_path / "victim", tmp_path / "locks" / "small.lock"
    victim.write_text("precious")
    link.parent.mkdir()
    link.symlink_to(victim)
    with pytest.raises(MachineError, match="symbolic links"), lock(tmp_path, "small"):
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


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", tmp_path, Path("/dev/zero")):
        with pytest.raises(ConfigError, match="it is no file"):
            read_manifest(path)


def test_a_repetition_sets_only_flags_that_do_nothing_but_change_numbers() -> None:
    harmless = {
        "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false --xla_cpu_max_isa=AVX2",
        "TF_ENABLE_ONEDNN_OPTS": "0",
        "OMP_PROC_BIND": "true",
    }
    hostile = {
        "TF_PLUGGABLE_DEVICE_LIBRARY_PATH": "/tmp/evil",
        "TF_XLA_FLAGS": "--tf_xla_auto_jit=2",
        "TF_DETERMINISTIC_OPS": "/tmp",
        "KERAS_HOME": "/tmp/evil",
        "KERAS_BACKEND": "torch",
        "OMP_TOOL_LIBRARIES": "/tmp/evil.so",
        "LD_PRELOAD": "/tmp/evil.so",
        "PATH": "/tmp",
        "MKL_CBWR": "AVX2\n",
    }
    assert training.repeatable_flags(harmless | hostile) == harmless
    for flags in (
        "--xla_dump_to=/tmp/x",
        "/tmp/flags",
        "--xla_cpu_max_isa=AVX2 --xla_dump_to=x",
        "--xla_cpu_unknown=1",
    ):
        assert training.repeatable_flags({"XLA_FLAGS": flags}) == {}


HOSTILE = [
    *(
        "${oc.env:HOME}",
        "${oc.decode:'1'}",
        "${hydra:runtime.cwd}",
        "${now:%Y}",
        "$\\{oc.env:HOME\\}",
        "\\${oc.env:HOME}",
    ),
    *("'${oc.env:HOME}'", "${training.epochs}", "${..epochs}", "${${a}}", "${", "$\\{", "???", "{_target_: os.system}"),
    *("../../etc/passwd", "/etc/passwd", "~nobody/x", "-m", "--config-dir=/", "a\nb", "\x1b[2J", "\udcff", "\x00"),
    *(
        "postgresql://u:p@h/d",
        "postgresql+psycopg://u:p@@h/d",
        "http://u:p@h",
        "file:///etc",
        "databricks",
        "sqlite://",
    ),
    *(
        "range(1,99999999999)",
        "choice(1,2)",
        "glob(*)",
        "interval(0,1)",
        "shuffle(range(1,9))",
        "sort(3,1)",
        "float(x)",
    ),
    *("range(1,2,0)", "range(0.1,nan,0.1)", "str([1])", "int(9e999)", "json_str({})", "bool(7)", "choice(range(1,9))"),
    *("[" * 90 + "]" * 90, "{a:" * 90 + "1" + "}" * 90, "9" * 5000, "a" * 7990, "a" * 300, "-1", "1e400", "0x10"),
    *(
        "nan",
        "-inf",
        "null",
        "true",
        "[]",
        "{}",
        "[1,2]",
        "1,2",
        "{low: 1, high: 2}",
        "{a: {b: 1}}",
        "''",
        '"',
        "'",
        "\\",
    ),
    *(
        "{low: 1, high: 5, step: 0}",
        "{choices: [[1]]}",
        "{1: 2}",
        "{null: 1}",
        "{[]: 1}",
        "[null]",
        "{true: 1}",
        "é漢🙂",
    ),
]
KEYS = [
    *known_keys(SweepConfig),
    *(
        "data",
        "model",
        "training",
        "study",
        "tracking",
        "experiment",
        "study.space.training.epochs",
        "study.space.model",
    ),
    *("hydra", "hydra.run.dir", "hydra/launcher", "hydra/job_logging", "hydra.searchpath", "hydra.mode", "defaults"),
    *(
        "model@hydra",
        "model@_global_",
        "data@hydra.run:x",
        "_target_",
        "training._target_",
        "training.epochs.0",
        "",
        ".",
    ),
    *("..", "/", "model/cnn", "study.space", "study.space.training", "study.space.model.conv1_filters.low", "a$b", "é"),
    *("study.objective.0", "study.space.__class__", "model.name", "training..epochs", "_package_", "preview"),
]
FLAGS = [
    *(
        "-m",
        "--multirun",
        "--help",
        "-h",
        "--cfg",
        "--cfg=job",
        "-c",
        "job",
        "all",
        "--cfg=hydra",
        "--resolve",
        "--info",
    ),
    *("--config-dir=/tmp", "--config-path", "--config-name=x", "-cd", "--package=x", "--experimental-rerun=x.pickle"),
    *("--shell-completion", "--version", "--hydra-help", "--multi", "-", "--", "", "=", "=x", "~", "+", "++a", "~a=b"),
]
values = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=12),
    st.text(alphabet="${}[]()'\"\\,:=@/. a1-", max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
overrides = st.builds(
    "{}{}={}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~", "+++", " "]),
    st.one_of(st.sampled_from(KEYS), st.text(max_size=8)),
    values,
    st.one_of(st.just(""), values),
)
typed = st.one_of(overrides, overrides, overrides, st.sampled_from(FLAGS), st.text(max_size=20))


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(typed)
def test_whatever_is_typed_is_taken_or_refused_as_data(argument: str) -> None:
    with contextlib.suppress(ConfigError, HydraException):
        line = arguments.parse([argument], ())
        assert not any("${" in override or override.lstrip("+~").startswith("hydra") for override in line.overrides)
        assert line.flags in ([], [argument])


@settings(max_examples=2000, derandomize=True, database=None, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cs"]), max_size=20))
def test_a_file_name_arrives_as_it_was_typed(tail: str) -> None:
    name = "x" + tail
    line = arguments.parse([f"run={name}"], ("run",))
    tree: dict[str, Any] = {"run": arguments.parsed(line.overrides[0]).value()}
    line.restore(tree)
    assert tree == {"run": name}


PLANS: dict[str, tuple[type[Config], Callable[[Any], object], dict[str, Any]]] = {
    "sweep": (SweepConfig, runner.plan_sweep, {}),
    "confirm": (ConfirmConfig, evaluation.plan_confirmation, {"study_by_name": True}),
    "reproduce": (ReproduceConfig, evaluation.find_manifest, {"study_by_name": True, "texts": ("run",)}),
}


def _command(name: str, typed: list[str]) -> int:
    """Runs a command in this process until it has checked everything and found what it needs; its exit status."""
    kind, plan, named = PLANS[name]

    def task(config: Any) -> int:
        plan(config)
        return 0

    handlers = {number: signal.getsignal(number) for number in signals.ENDING}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [f"experiments/{name}.py", *typed])
            patch.setenv("HYDRA_FULL_ERROR", "0")
            # Hydra closes every handler there is; TensorFlow's, if another test imported it, closes pytest's streams.
            patch.setattr(logging, "_handlerList", [])
            with pytest.raises(SystemExit) as ended:
                command.main(name, kind, task, **named)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def _refuse_or_plan(typed: list[str], tmp_path: Path) -> None:
    """Runs a sweep as far as its plan, and checks how it ended."""
    empty = tmp_path / "empty"
    empty.mkdir(exist_ok=True)
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.chdir(empty), contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        status = _command("sweep", [f"tracking.root={tmp_path}/records", *typed])
    text = errors.getvalue()
    if status == 0:
        assert text == ""
    else:
        assert status == 2, text
        assert text.startswith("error: ")
        assert text.endswith("\n")
        assert text[:-1].isprintable()
    assert "Traceback" not in output.getvalue()
    assert list(empty.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


several = st.lists(typed, min_size=1, max_size=3)
_whole = settings(
    derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@settings(_whole, max_examples=60)
@given(several)
def test_a_command_ends_with_0_or_2_and_leaves_nothing(tmp_path: Path, typed: list[str]) -> None:
    _refuse_or_plan(typed, tmp_path)


@pytest.mark.soak
@settings(_whole, max_examples=2000)
@given(several)
def test_2000_generated_commands_end_with_0_or_2_and_leave_nothing(tmp_path: Path, typed: list[str]) -> None:
    _refuse_or_plan(typed, tmp_path)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the UI as the Makefile starts it, of records that were made for it; Ctrl-C ends it in good order."""
    root = tmp_path_factory.mktemp("records")
    printed = (root / "printed").open("w+")
    open_store(TrackingConfig(root=str(root)))
    port = free_port()
    server = subprocess.Popen(
        ["make", "--old-file=.venv/complete", "ui", f"PORT={port}", f"tracking.root={root}"],
        cwd=REPOSITORY,
        env=os.environ | {"MLFLOW_SERVER_ALLOWED_HOSTS": "*", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE": "true"},
        stdout=printed,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        for _ in range(480):
            try:
                _ask(port, "GET", "/health")
                break
            except OSError:
                assert server.poll() is None
                time.sleep(0.25)
        yield port
    finally:
        # As a terminal does.
        os.killpg(server.pid, signal.SIGINT)
        server.wait(timeout=60)
    printed.seek(0)
    text = printed.read()
    assert "Application shutdown complete" in text
    assert "Traceback" not in text
    assert "Warning" not in text
    with pytest.raises(ConnectionRefusedError):
        _ask(port, "GET", "/health")


def _ask(port: int, method: str, path: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body or None, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


EXPERIMENTS = "/ajax-api/2.0/mlflow/experiments/search?max_results=100"


@pytest.mark.parametrize("path", ["/", EXPERIMENTS, "/api/2.0/mlflow/experiments/search?max_results=100"])
def test_the_ui_answers_to_its_own_host_alone(ui: int, path: str) -> None:
    assert _ask(ui, "GET", path).status == 200
    assert _ask(ui, "GET", path, Host=f"localhost:{ui}").status == 200
    for host in ("evil.example", f"evil.example:{ui}", f"127.0.0.1.evil.example:{ui}", "10.0.0.1", f"10.0.0.1:{ui}"):
        answer = _ask(ui, "GET", path, Host=host)
        assert answer.status == 403, host
        assert b"Invalid Host header" in answer.read()


def test_another_sites_page_can_change_and_read_nothing_in_the_ui(ui: int) -> None:
    create = "/ajax-api/2.0/mlflow/experiments/create"
    for number, origin in enumerate(("https://evil.example", "http://127.0.0.1.evil.example", "null")):
        refused = _ask(ui, "POST", create, f'{{"name": "forged {number}"}}', Origin=origin)
        assert refused.status == 403, origin
        for method in ("GET", "OPTIONS"):
            answer = _ask(ui, method, EXPERIMENTS, Origin=origin, **{"Access-Control-Request-Method": "POST"})
            assert answer.getheader("Access-Control-Allow-Origin") is None, origin
    assert _ask(ui, "POST", create, '{"name": "mine"}', Origin=f"http://127.0.0.1:{ui}").status == 200
    experiments = _ask(ui, "GET", EXPERIMENTS).read()
    assert b'"mine"' in experiments
    assert b"forged" not in experiments


def test_the_ui_listens_on_loopback_alone(ui: int) -> None:
    listening = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == ui]
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}


# A password whose halves are found apart as well, as it is typed in an address and as it is.
HALVES = (b"pl4nted", b"w0rd")
PASSWORD = "pl4nted@:/?#&= 'w0rd"
TYPED = quote(PASSWORD, safe="")
ADDRESS = f"http://planter:{TYPED}@127.0.0.1:1"


def _nothing_in(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert [path for path in files for half in HALVES if half in path.read_bytes() or half.decode() in path.name] == []


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
        ("sweep", ["-m", "training.epochs=1,2"], 2),
        ("confirm", ["study=nowhere"], 2),
        ("reproduce", ["run=best", "study=nowhere"], 2),
    ],
)
def test_a_password_is_in_no_message(
    name: str,
    overrides: list[str],
    status: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    parts = {"address": ADDRESS, "raw": ADDRESS.replace(TYPED, PASSWORD), "typed": TYPED}
    typed = [override.format(**parts) for override in overrides]
    if not any("{" in override for override in overrides):
        typed.insert(0, f"tracking.uri={ADDRESS}")
    monkeypatch.chdir(tmp_path)
    assert _command(name, [f"tracking.root={tmp_path}/records", *typed]) == status
    output, errors = capfd.readouterr()
    assert errors.count("\n") == (1 if status else 0), errors
    assert not any(half.decode() in output + errors for half in HALVES), output + errors
    _nothing_in(tmp_path)


def test_user_and_password_of_the_server_come_from_the_environment(
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
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "planter")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
        typed = [f"tracking.root={tmp_path}/records", f"tracking.uri=http://127.0.0.1:{server.server_port}"]
        status = _command("reproduce", ["run=champion", *typed])
        server.shutdown()
    output, errors = capfd.readouterr()
    assert status == 1
    assert errors.count("\n") == 1
    assert f"http://127.0.0.1:{server.server_port}" in errors
    assert not any(half.decode() in output + errors for half in HALVES)
    assert f"Basic {base64.b64encode(f'planter:{PASSWORD}'.encode()).decode()}" in asked
