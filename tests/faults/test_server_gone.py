"""A server that goes away: what it missed is kept and delivered, once, and a command ends in one line."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository
from optuna.trial import TrialState

from digitcnn import study, tracking
from digitcnn.config import ConfirmConfig, RunConfig, SweepConfig, TrackingConfig, load_config
from digitcnn.errors import MachineError
from digitcnn.tracking import client as client_module
from digitcnn.tracking import outbox
from tests.conftest import ONE_WORKER, Command, command_line, with_study
from tests.support import processes
from tests.support.overrides import SMALL
from tests.support.recorded import assert_complete, config_in, record_a_run
from tests.support.servers import MLflowServer, Proxy, free_port, guarded, self_signed
from tests.support.sweeps import During, in_folder, work
from tests.support.trainers import InstantTrainer

# One server for all.
pytestmark = pytest.mark.xdist_group("server")


@contextlib.contextmanager
def started(folder: Path, empty_records: Path) -> Iterator[MLflowServer]:
    """Run a server with empty records in a folder while the body lasts."""
    shutil.copy(empty_records / "mlflow.db", folder)
    server = MLflowServer(folder, free_port())
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def server(empty_records: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    with started(tmp_path_factory.mktemp("server"), empty_records) as server:
        yield server


@pytest.fixture
def proxy(server: MLflowServer) -> Iterator[Proxy]:
    opened = Proxy(server.port)
    yield opened
    opened.down()


@pytest.fixture
def own_server(empty_records: Path, tmp_path: Path) -> Iterator[MLflowServer]:
    """A server that the test may kill."""
    folder = tmp_path / "server"
    folder.mkdir()
    with started(folder, empty_records) as server:
        yield server


def served(tmp_path: Path, proxy: Proxy) -> RunConfig:
    return config_in(tmp_path / "records", uri=proxy.uri, experiment="served")


def test_open_store_refuses_a_server_that_is_down_in_one_line(tmp_path: Path) -> None:
    config = TrackingConfig(root=str(tmp_path / "records"), uri=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(MachineError) as caught:
        tracking.open_store(config)
    assert str(caught.value) == (
        f"the MLflow store {config.uri} failed: Connection refused; what had been recorded is safe"
    )
    assert not (tmp_path / "records").exists()


def test_queue_delivers_what_was_logged_while_the_server_was_gone(tmp_path: Path, proxy: Proxy) -> None:
    config = served(tmp_path, proxy)

    def gone_for_two_epochs(number: int) -> None:
        if number == 2:
            proxy.down()
        if number == 4:
            proxy.up()

    run_id = record_a_run(config, gone_for_two_epochs)
    assert_complete(config, run_id)
    assert tracking.pending_message(config.tracking) == ""
    assert not list((tmp_path / "records" / "outbox").glob("*.db"))


def test_queue_keeps_what_a_server_gone_for_good_did_not_take(
    tmp_path: Path, proxy: Proxy, messages: list[str]
) -> None:
    config = served(tmp_path, proxy)
    run_id = record_a_run(config, lambda number: proxy.down() if number == 2 else None)
    folder = tmp_path / "records" / "outbox"
    assert tracking.pending_message(config.tracking) == (
        f"the MLflow store did not take all records of 1 run; they are kept in {folder}, "
        "and the next command that reaches it delivers them"
    )
    # A command that does not reach it either changes nothing.
    with pytest.raises(MachineError, match="Connection refused"):
        tracking.open_store(config.tracking)
    proxy.up()
    opened = tracking.open_store(config.tracking)
    # Cut off after the model and before its run knows of it, delivery begins again: nothing is there twice.
    log_outputs = MlflowClient.log_outputs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", lambda *arguments: (proxy.down(), log_outputs(*arguments)))
        with pytest.raises(MlflowException):
            tracking.deliver(opened)
    proxy.up()
    tracking.deliver(opened)
    # What the store had taken before is not delivered again.
    assert re.fullmatch(r"delivered \d records of 1 run that had been kept", messages[-1])
    assert tracking.pending_message(config.tracking) == ""
    assert_complete(config, run_id)


def test_queue_sets_aside_what_a_server_refuses(tmp_path: Path, proxy: Proxy, messages: list[str]) -> None:
    config = served(tmp_path, proxy)
    run_id = record_a_run(config, lambda number: proxy.down() if number == 2 else None)
    outbox.enqueue(tmp_path / "records" / "outbox", config.tracking.store_uri, "0" * 32, tracking.tags({"a": "b"}))
    proxy.up()
    tracking.deliver(tracking.open_store(config.tracking))
    assert_complete(config, run_id)
    said = f"the MLflow store refuses batch of run {'0' * 32} (RestException: RESOURCE_DOES_NOT_EXIST"
    assert any(text.startswith(said) for text in messages)
    (refused,) = outbox.listed(tmp_path / "records" / "outbox")
    assert (refused.run_id, refused.kind) == ("0" * 32, "batch")
    # What was set aside is no reason to fail.
    assert tracking.pending_message(config.tracking) == ""


def test_record_that_a_proxy_refuses_holds_up_nothing(
    tmp_path: Path, server: MLflowServer, messages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a proxy before the server that takes no files of a model."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "something")
    with guarded(server.port, base64.b64encode(b"somebody:something").decode()) as guard:
        config = config_in(tmp_path / "records", uri=guard.uri, experiment="served")
        guard.too_large = "weights"
        run_id = record_a_run(config)
        assert [text for text in messages if text.startswith(f"the MLflow store refuses model of run {run_id}")]
        (refused,) = tracking.queued_records(config.tracking)
        assert (refused.run_id, refused.kind) == (run_id, "model")
        assert "413" in str(refused.refused)
        assert tracking.pending_message(config.tracking) == ""
        assert MlflowClient(guard.uri).get_run(run_id).info.status == "FINISHED"
        guard.too_large = ""
        assert_complete(config, record_a_run(config))
        tracking.retry_refused(config.tracking)
        assert tracking.queued_records(config.tracking) == []
        assert_complete(config, run_id)


class _Answer(Exception):
    """An error of boto3, which is not installed here: it holds the answer of S3."""

    def __init__(self, status: int) -> None:
        super().__init__(f"An error occurred ({status})")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def test_bucket_that_does_not_answer_is_a_server_that_is_away(
    tmp_path: Path, server: MLflowServer, monkeypatch: pytest.MonkeyPatch, messages: list[str]
) -> None:
    """Given an experiment whose files go straight to S3."""
    MlflowClient(server.uri).create_experiment("in-a-bucket", "s3://bucket/files")
    config = config_in(tmp_path / "records", uri=server.uri, experiment="in-a-bucket")
    # When the library that takes them there is missing, nothing is left open
    with pytest.raises(MachineError, match="has files in a place that takes a library: No module named 'boto3'; "):
        record_a_run(config)
    opened = tracking.open_store(config.tracking)
    (run,) = opened.client.search_runs([opened.experiment_id])
    assert run.info.status == "FAILED"
    # And when it fails for a while
    status, uploaded = [200], set[str]()

    def upload(_: Any, folder: str, artifact_path: str | None = None) -> None:
        try:
            if status[0] != 200:
                raise _Answer(status[0])
        except _Answer as error:
            raise RuntimeError(f"Failed to upload: {error}") from error
        uploaded.update(path.name for path in Path(folder).rglob("*"))

    monkeypatch.setattr(S3ArtifactRepository, "log_artifacts", upload)
    run_id = record_a_run(config, lambda number: status.__setitem__(0, 503))
    away = f"the MLflow store {server.uri} does not answer (RuntimeError: Failed to upload: An error"
    assert len([text for text in messages if text.startswith(away)]) == 1
    assert "they are kept in" in tracking.pending_message(config.tracking)
    # The server itself answers: commands go on, and the next run begins at once.
    tracking.open_recorded(config.tracking, "study.name=some")
    assert [text for text in messages if text.startswith(f"the place of files of the MLflow store {server.uri} does")]
    another = record_a_run(config)
    assert opened.client.get_run(another).info.status == "RUNNING"
    with pytest.raises(MachineError, match=r"takes a library: No module named 'boto"):
        opened.artifact_names(run_id)
    status[0] = 200
    tracking.deliver(opened)
    assert tracking.queued_records(config.tracking) == []
    assert opened.client.get_run(run_id).info.status == "FINISHED"
    assert {"config.yaml", "environment.json", "predictions.csv", "MLmodel"} <= uploaded
    # And when it refuses
    refused = record_a_run(config, lambda number: status.__setitem__(0, 403))
    assert {(each.run_id, each.kind) for each in tracking.queued_records(config.tracking)} == {
        (refused, "files"),
        (refused, "model"),
    }
    assert tracking.pending_message(config.tracking) == ""


def test_server_of_a_private_authority_is_used_as_mlflows_variables_say(
    tmp_path: Path, server: MLflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given a server behind HTTPS, with a certificate that no authority has signed, which asks for one as well."""
    certificate = self_signed(tmp_path / "certificate.pem")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "something")
    with guarded(server.port, base64.b64encode(b"somebody:something").decode(), certificate) as guard:
        config = config_in(tmp_path / "records", uri=guard.uri, experiment="served")
        with pytest.raises(MachineError, match="failed: certificate verify failed: self-signed certificate; "):
            tracking.open_store(config.tracking)
        monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
        monkeypatch.setenv("MLFLOW_TRACKING_CLIENT_CERT_PATH", str(certificate))
        assert_complete(config, record_a_run(config))
        monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
        monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
        tracking.open_store(config.tracking)
        assert guard.refused == []


def test_create_run_waits_for_the_server(tmp_path: Path, proxy: Proxy, messages: list[str]) -> None:
    config = served(tmp_path, proxy)
    opened = tracking.open_store(config.tracking)
    proxy.down()
    threading.Timer(2.0, proxy.up).start()
    run_id = tracking.create_training_run(opened, config, "late", {})
    assert opened.client.get_run(run_id).info.run_name == "late"
    assert len(messages) == 2
    assert "does not answer (Connection refused)" in messages[0]
    assert messages[1].endswith("answers again")


def test_create_run_is_not_repeated_when_only_its_answer_was_lost(tmp_path: Path, proxy: Proxy) -> None:
    config = served(tmp_path, proxy)
    opened = tracking.open_store(config.tracking)
    create = opened.client.create_run
    with pytest.MonkeyPatch.context() as patch:

        def created_and_cut_off(*arguments: Any) -> Any:
            run = create(*arguments)
            proxy.down()
            threading.Timer(1.0, proxy.up).start()
            return run

        patch.setattr(opened.client, "create_run", created_and_cut_off)
        run_id = tracking.create_training_run(opened, config, "unanswered", {})
    (run,) = opened.client.search_runs([opened.experiment_id], "attributes.run_name = 'unanswered'")
    assert run.info.run_id == run_id
    assert run.data.params == {name: str(value) for name, value in config.parameters().items()}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_sweep_while_the_server_is_gone(
    sweep_config: SweepConfig, tmp_path: Path, proxy: Proxy, number: signal.Signals
) -> None:
    config = in_folder(with_study(sweep_config, workers=1), tmp_path / "records", uri=proxy.uri)
    _end_while_the_server_is_gone(config, tmp_path / "lines", proxy, number)


def test_signal_ends_a_confirmation_while_the_server_is_gone(
    sweep_config: SweepConfig, tmp_path: Path, proxy: Proxy
) -> None:
    config = in_folder(with_study(sweep_config, workers=1, trials=2), tmp_path / "records", uri=proxy.uri)
    work(config, InstantTrainer())
    confirm = {"study": {"name": config.study.name}, "confirm": {"top": 1, "seeds": 2}, "workers": ONE_WORKER}
    confirmed = load_config(ConfirmConfig, confirm | {"tracking": config.tracking.model_dump()})
    _end_while_the_server_is_gone(confirmed, tmp_path / "lines", proxy, signal.SIGINT)


def _end_while_the_server_is_gone(
    config: SweepConfig | ConfirmConfig, lines: Path, proxy: Proxy, number: signal.Signals
) -> None:
    process = processes.start(config, InstantTrainer(0.3), lines)
    processes.wait_for(lines, "epoch 1", process)
    proxy.down()
    processes.wait_for(lines, "does not answer", process)
    # What runs goes on to its end, and the next run waits for the server.
    processes.wait_for(lines, " complete", process)
    time.sleep(1)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 128 + number, lines.read_text()
    said = [text for text in lines.read_text().splitlines() if text.startswith("interrupted: ")]
    assert len(said) == 1
    assert f"they are kept in {config.tracking.folder}/outbox" in said[0]


def assert_served_sweep_is_complete(config: SweepConfig) -> None:
    """Each trial's run has its epochs once, and ended as its trial did."""
    opened = study.existing_study(config.tracking.folder, "small")
    assert opened is not None
    client = MlflowClient(config.tracking.store_uri)
    assert len(opened.get_trials(states=(TrialState.COMPLETE,))) == 6
    for trial in opened.get_trials(states=(TrialState.COMPLETE,)):
        run = client.get_run(trial.user_attrs["run_id"])
        assert run.info.status == "FINISHED"
        history = client.get_metric_history(run.info.run_id, "train_loss")
        assert [point.step for point in history] == list(range(1, trial.user_attrs["epochs_run"] + 1))
        assert run.data.metrics["validation_accuracy"] == pytest.approx(trial.values[0])
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], max_results=1000)
    assert not [run.info.run_id for run in found if run.info.status == "RUNNING"]
    assert tracking.pending_message(config.tracking) == ""


@pytest.mark.soak
def test_sweep_outlives_a_server_that_is_killed_and_started_again(
    own_server: MLflowServer, tmp_path: Path, sweep_config: SweepConfig, messages: list[str]
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)

    def kill() -> None:
        own_server.kill()
        threading.Timer(10.0, own_server.start).start()

    shown = During(1, kill)
    result = work(config, InstantTrainer(0.5), shown)
    assert (result.finished, result.total) == (6, 6)
    assert len([note for note in messages if "does not answer" in note]) == 1
    assert_served_sweep_is_complete(config)


@pytest.mark.soak
def test_sweep_whose_server_was_gone_for_good_is_completed_by_the_next(
    own_server: MLflowServer,
    tmp_path: Path,
    sweep_config: SweepConfig,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
) -> None:
    config = with_study(in_folder(sweep_config, tmp_path / "r", uri=own_server.uri, experiment="served"), workers=2)
    monkeypatch.setattr(client_module, "RETRY_TIMEOUT_SECONDS", 3.0)
    with pytest.raises(MachineError, match="Connection refused; .* they are kept in .*/outbox"):
        work(config, InstantTrainer(0.5), During(1, own_server.kill))
    assert "they are kept in" in tracking.pending_message(config.tracking)
    own_server.start()
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    assert [note for note in messages if note.startswith("delivered ")]
    assert_served_sweep_is_complete(config)


@pytest.mark.soak
def test_train_whose_server_is_gone_for_good_says_where_its_records_are(
    tmp_path: Path, proxy: Proxy, command: Command
) -> None:
    where = [f"tracking.root={tmp_path}/records", f"tracking.uri={proxy.uri}"]
    where += ["tracking=server", "tracking.experiment=served"]
    process = subprocess.Popen(
        command_line("train", *SMALL, *where), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    for text in process.stdout:
        if "epoch 1/2" in text:
            proxy.down()
            break
    output, error = process.communicate(timeout=900)
    assert process.returncode == 1
    assert "validation accuracy" in output
    assert error == (
        "error: the MLflow store did not take all records of 1 run; they are kept in "
        f"{tmp_path}/records/outbox, and the next command that reaches it delivers them\n"
    )
    proxy.up()
    ended = command("train", *SMALL, *where, timeout=900)
    assert ended.returncode == 0, ended.stderr
    assert "records of 1 run that had been kept" in ended.stdout
    client = MlflowClient(proxy.uri)
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.model_sha256 LIKE '%'")
    assert [run.info.status for run in runs] == ["FINISHED", "FINISHED"]
    for run in runs:
        (model,) = client.search_logged_models([experiment.experiment_id], f"source_run_id = '{run.info.run_id}'")
        assert str(model.status) == "READY"
