"""A server that asks for a password: what is recorded, there and here, and what is said never holds it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from digitcnn import evaluation, report
from digitcnn.config import ReportConfig, SweepConfig, load_config
from tests.conftest import command_line, with_study
from tests.support.overrides import STUDY
from tests.support.passwords import BASIC, PASSWORD, USER, assert_in_no_file, assert_in_no_text
from tests.support.servers import Guard, MLflowServer, free_port, guarded
from tests.support.sweeps import Quiet, confirm_config, in_folder, work
from tests.support.trainers import ConfirmingTrainer, InstantTrainer


@pytest.fixture
def guard(empty_records: Path, tmp_path: Path) -> Iterator[Guard]:
    """A real MLflow server, with its records in tmp_path/server, behind a password."""
    folder = tmp_path / "server"
    folder.mkdir()
    shutil.copy(empty_records / "mlflow.db", folder)
    server = MLflowServer(folder, free_port())
    try:
        server.start()
        with guarded(server.port, BASIC) as guard:
            yield guard
    finally:
        server.kill()


def _run(folder: Path, password: str, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run a command in folder/elsewhere, as a person does who has exported user and password."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    return subprocess.run(
        command_line(name, *overrides),
        cwd=elsewhere,
        env=os.environ | {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": password, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def _statuses(guard: Guard) -> Counter[str]:
    """Return the number of runs by status in the server's experiment `guarded`, asked behind the guard."""
    client = MlflowClient(f"http://127.0.0.1:{guard.to}")
    experiment = client.get_experiment_by_name("guarded")
    return (
        Counter(run.info.status for run in client.search_runs([experiment.experiment_id])) if experiment else Counter()
    )


def _assert_nowhere(folder: Path, guard: Guard, said: str) -> None:
    """Assert that the server has records, that they came with the password, and that it stands nowhere."""
    assert (folder / "server" / "server.log").read_text()
    assert list((folder / "server" / "served").rglob("champion.yaml"))
    assert list((folder / "records").rglob("report.html"))
    # A probe needs no answer but that something answers.
    assert set(guard.refused) <= {"/health"}
    assert any(path.endswith("/runs/create") for path in guard.passed)
    assert_in_no_text(said)
    assert_in_no_file(folder)


def test_study_records_and_says_nothing_of_a_password(
    guard: Guard,
    sweep_config: SweepConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    messages: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A sweep, its confirmation and its report, with worker processes and without Keras."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    config = with_study(sweep_config, trials=2, workers=1)
    config = in_folder(config, tmp_path / "records", uri=guard.uri, experiment="guarded")
    assert work(config, InstantTrainer()).finished == 2
    plan = evaluation.plan_confirmation(confirm_config(config))
    result = evaluation.run_confirmation(plan, Quiet(), ConfirmingTrainer())
    report.write_report(
        load_config(ReportConfig, {"study": {"name": "small"}, "tracking": config.tracking.model_dump()})
    )
    # The study, two trials, and two configs with two seeds.
    assert _statuses(guard) == {"FINISHED": 7}
    said = "\n".join([*capfd.readouterr(), *messages, result.champion_path.read_text()])
    _assert_nowhere(tmp_path, guard, said)


@pytest.mark.soak
def test_commands_record_and_say_nothing_of_a_password(guard: Guard, tmp_path: Path) -> None:
    """With real Keras: the study is swept, confirmed and reported, and its champion is reproduced."""
    where = ["tracking=server", f"tracking.uri={guard.uri}", "tracking.experiment=guarded"]
    where.append(f"tracking.root={tmp_path}/records")
    said = []
    for name, *overrides in (
        ("sweep", *STUDY, "study.trials=2", "study.space.training.epochs=null"),
        ("confirm", "study=moved", "confirm.top=1", "confirm.seeds=2", "workers.count=1"),
        ("report", "study=moved"),
        ("reproduce", "run=champion"),
    ):
        ended = _run(tmp_path, PASSWORD, name, *overrides, *where)
        assert ended.returncode == 0, ended.stderr
        said += [ended.stdout, ended.stderr]
    assert "IDENTICAL: run" in said[-2]
    # The study, two trials, two configs with two seeds, and the reproduction.
    assert _statuses(guard) == {"FINISHED": 8}
    _assert_nowhere(tmp_path, guard, "".join(said))


def test_wrong_password_ends_a_sweep_in_one_line_and_nothing_is_recorded(guard: Guard, tmp_path: Path) -> None:
    where = ["tracking=server", f"tracking.uri={guard.uri}", "tracking.experiment=guarded"]
    ended = _run(tmp_path, f"{PASSWORD}!", "sweep", *STUDY, *where, f"tracking.root={tmp_path}/records")
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: the MLflow store {guard.uri} failed: ")
    assert "You are not authenticated." in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert_in_no_text(ended.stderr)
    assert guard.refused
    assert guard.passed == []
    assert _statuses(guard) == {}
    # The sweep had the folder to itself until it ended; no study was created in it.
    assert [path.name for path in (tmp_path / "records").rglob("*") if path.is_file()] == ["moved.lock"]
