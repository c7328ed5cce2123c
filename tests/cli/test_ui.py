"""MLflow's UI as `digitcnn ui` serves it: on this machine, to this machine, until it is told to end."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from digitcnn import study
from digitcnn.config import SweepConfig, TrackingConfig, load_config
from digitcnn.study import only_process
from digitcnn.tracking import open_store, relocate_artifacts
from tests.conftest import Command, command_line
from tests.support.browser import BROWSER
from tests.support.planted import plant
from tests.support.recorded import STRANGE, config_in, record_a_run
from tests.support.servers import free_port
from tests.support.sweeps import confirm, in_folder, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer

# One UI for all.
pytestmark = pytest.mark.xdist_group("ui")


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of the UI of records that were made for it; Ctrl-C ends it in good order."""
    root, elsewhere = tmp_path_factory.mktemp("records"), tmp_path_factory.mktemp("elsewhere")
    open_store(TrackingConfig(root=str(root)))
    port = free_port()
    server = subprocess.Popen(
        command_line("ui", f"port={port}", f"tracking.root={root}"),
        env=os.environ | plant(elsewhere),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert _said(server) == _line(port)
        yield port
    finally:
        # As a terminal does.
        os.killpg(server.pid, signal.SIGINT)
        output, errors = server.communicate(timeout=60)
    assert server.returncode == 128 + signal.SIGINT
    assert output == ""
    assert "Traceback" not in errors
    _assert_ended(port)


def _said(server: subprocess.Popen[str]) -> str:
    """The first line that the command says; by then it listens."""
    assert server.stdout is not None
    return server.stdout.readline()


def _line(port: int) -> str:
    """The line of a UI of all runs: their table, and no page for language models."""
    return f"http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning  (Ctrl-C ends it)\n"


def _assert_ended(port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        _ask(port, "GET", "/health")
    assert [
        each.info["pid"] for each in psutil.process_iter(["cmdline"]) if str(port) in (each.info["cmdline"] or ())
    ] == []


def _ask(port: int, method: str, path: str, body: str = "", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body or None, {"Content-Type": "application/json", **headers})
    return connection.getresponse()


EXPERIMENTS = "/ajax-api/2.0/mlflow/experiments/search?max_results=100"


@pytest.mark.parametrize("path", ["/", EXPERIMENTS, "/api/2.0/mlflow/experiments/search?max_results=100"])
def test_ui_answers_to_its_own_host_alone(ui: int, path: str) -> None:
    assert _ask(ui, "GET", path).status == 200
    assert _ask(ui, "GET", path, Host=f"localhost:{ui}").status == 200
    for host in ("evil.example", f"evil.example:{ui}", f"127.0.0.1.evil.example:{ui}", "10.0.0.1", f"10.0.0.1:{ui}"):
        answer = _ask(ui, "GET", path, Host=host)
        assert answer.status == 403, host
        assert b"Invalid Host header" in answer.read()


def test_ui_lets_another_sites_page_change_and_read_nothing(ui: int) -> None:
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


def test_ui_listens_on_loopback_alone(ui: int) -> None:
    listening = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN" and each.laddr.port == ui]
    assert {each.laddr.ip for each in listening} == {"127.0.0.1"}


def test_ui_shows_the_artifacts_of_records_that_were_moved(empty_records: Path, tmp_path: Path) -> None:
    made, moved = tmp_path / "made", tmp_path / STRANGE
    shutil.copytree(empty_records, made)
    relocate_artifacts(made)
    config = config_in(made)
    run_id = record_a_run(config)
    client = MlflowClient(config.tracking.store_uri)
    (model,) = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    made.rename(moved)
    port = free_port()
    server = subprocess.Popen(
        command_line("ui", f"port={port}", f"tracking.root={moved}"), stdout=subprocess.PIPE, text=True
    )
    try:
        assert _said(server) == _line(port)
        # As MLflow's own page asks for them.
        artifact = _ask(port, "GET", f"/get-artifact?path=predictions.csv&run_uuid={run_id}")
        assert (artifact.status, artifact.read()) == (200, b"1,2,3\n")
        files = f"/ajax-api/2.0/mlflow/logged-models/{model.model_id}/artifacts/files"
        weights = _ask(port, "GET", f"{files}?artifact_file_path=weights")
        assert (weights.status, weights.read()) == (200, bytes(1000))
        assert _ask(port, "GET", f"/get-artifact?path=nothing.csv&run_uuid={run_id}").status != 200
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_ui_leaves_the_places_of_a_process_at_work_and_ends_at_sigterm(root: Path, tmp_path: Path) -> None:
    """Given records that are at this place for the UI alone, as where a container has them under another name."""
    copy, port = shutil.copytree(root, tmp_path / "copy"), free_port()
    before = (copy / "mlflow.db").read_bytes()
    line = command_line("ui", f"port={port}", f"tracking.root={copy}")
    with only_process(copy, "small"):
        server = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        said = f"tracking.root={copy}: the store names the places of files in {root}, where process {os.getpid()}, "
        assert _said(server).startswith(said)
        assert _said(server) == _line(port)
        assert _ask(port, "GET", "/health").status == 200
        server.terminate()
        output, errors = server.communicate(timeout=60)
    assert (server.returncode, output, errors) == (128 + signal.SIGTERM, "", "")
    # No process is left.
    _assert_ended(port)
    assert (copy / "mlflow.db").read_bytes() == before


def test_ui_names_a_free_port_where_its_own_is_in_use(command: Command, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ended = command("ui", f"port={port}", f"tracking.root={tmp_path}/records")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: port {port} is in use: digitcnn ui port={port + 1}"[:-2])
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "records").exists()


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("tracking.root=nowhere", "tracking.root=/"),
        ("port=0", "port=0: must be greater than or equal to 1"),
        ("port=http", "port=http: must be a valid integer"),
        ("prot=5001", "prot: unknown key; did you mean port?"),
        ("tracking.uri=http://host:5000", "tracking.uri=http://host:5000: the server has a UI of its own"),
    ],
)
def test_ui_refuses_a_mistake_in_one_line(command: Command, override: str, line: str) -> None:
    ended = command("ui", override)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {line}")
    assert not Path("nowhere").exists()


@pytest.fixture
def confirmed(finished_study: SweepConfig, tmp_path: Path) -> SweepConfig:
    """A study of three trials that was confirmed."""
    config = in_folder(finished_study, tmp_path / "records")
    config = load_config(
        SweepConfig, {**config.model_dump(), "training": {"epochs": 3, "batch_size": 50, "threads": 1}}
    )
    work(config, InstantTrainer())
    confirm(config, ConfirmingTrainer())
    return config


class _Table(HTMLParser):
    """MLflow's table of runs: the text of its cells by column, in the order of its rows."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.row, self.column = -1, ""
        self.cells: defaultdict[tuple[int, str], str] = defaultdict(str)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.row = int(found.get("row-index") or self.row)
        self.column = found.get("col-id") or self.column

    def handle_data(self, data: str) -> None:
        if self.row >= 0:
            self.cells[self.row, self.column] += data

    def values(self, column: str) -> list[str]:
        texts = [text.strip() for (_, name), text in sorted(self.cells.items()) if name == column]
        # A run's name follows the colour of its dot.
        return [re.sub(r"^#[0-9a-f]{6}", "", text.partition("\n")[0]) for text in texts]


def _browse(address: str, profile: Path) -> _Table:
    """The table of an address that was printed, in a browser that has never been there."""
    assert BROWSER is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    flags += [f"--user-data-dir={profile}", "--window-size=2000,1000", "--virtual-time-budget=30000", "--dump-dom"]
    ended = subprocess.run([BROWSER, *flags, address], capture_output=True, text=True, timeout=240, check=True)
    return _Table(ended.stdout)


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
def test_ui_of_a_study_shows_its_trials_sorted_and_its_confirmations_grouped(
    confirmed: SweepConfig, tmp_path: Path
) -> None:
    root = confirmed.tracking.folder
    opened, port = study.existing_study(root, "small"), free_port()
    assert opened is not None
    ranked = study.best_first(opened, study.ended_trials(opened))
    best = next(each.number for each in ranked if not each.record.baseline)
    server = subprocess.Popen(
        command_line("ui", "study=small", f"port={port}", f"tracking.root={root}"), stdout=subprocess.PIPE, text=True
    )
    try:
        trials, confirmations = (_said(server).split()[0] for _ in range(2))
        table = _browse(trials, tmp_path / "trials")
        assert table.values("attributes.`Run Name`")[-3:] == [
            f"{each.number}: {'baseline' if each.record.baseline else 'batch {}'.format(*each.parameters.values())}"
            for each in ranked
        ]
        shown = [float(text) for text in table.values("metrics.`validation_accuracy`")[-3:]]
        assert shown == [pytest.approx(each.values[0], abs=1e-6) for each in ranked if each.values]
        assert table.values("params.`training.batch_size`")[-3:] == [
            str(each.parameters["training.batch_size"]) for each in ranked
        ]
        names = _browse(confirmations, tmp_path / "confirmations").values("attributes.`Run Name`")
        groups = {names[first].removeprefix("Group: "): set(names[first + 1 : first + 3]) for first in (0, 3)}
        # Behind a group's name stands the number of its runs.
        assert groups == {f"{name}2": {f"{name}, seed 1", f"{name}, seed 2"} for name in ("baseline", f"trial {best}")}
    finally:
        server.terminate()
        server.communicate(timeout=60)


def test_ui_says_that_its_store_is_no_database(command: Command, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "mlflow.db").write_text("no database" * 100)
    ended = command("ui", f"port={free_port()}", f"tracking.root={tmp_path}/records")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert f"{tmp_path}/records/mlflow.db cannot be used: " in ended.stderr
    assert ended.stderr.count("\n") == 1
