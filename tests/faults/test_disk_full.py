"""A disk that is full, or can only be read: one line, and all that was recorded before is intact."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient

from digitcnn import report, tracking
from digitcnn.config import ReportConfig, RunConfig, StudyReference, SweepConfig, load_config
from digitcnn.errors import MachineError
from digitcnn.files import sqlite_url
from digitcnn.tracking import operations, outbox
from digitcnn.tracking.local import process_id
from tests.conftest import Command, with_study
from tests.support.overrides import SMALL, STUDY
from tests.support.processes import FORKS
from tests.support.recorded import assert_complete, config_in, record_a_run
from tests.support.servers import free_port
from tests.support.sweeps import During, assert_stores_agree, in_folder, open_records, work
from tests.support.trainers import BrokenTrainer, InstantTrainer


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    if not mounted:
        pytest.skip("a file system can be mounted only by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Writes until the disk is full and returns the file to delete."""
    filler = folder / "filler"
    with filler.open("ab", buffering=0) as file:
        for size in (2**16, 2**9, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


@pytest.fixture
def read_only(disk: Path, root: Path, tmp_path: Path) -> Iterator[RunConfig]:
    """Records with one run, in a folder that can only be read: permissions do not bind root."""
    record_a_run(config_in(shutil.copytree(root, disk / "records")))
    folder = tmp_path / "read-only"
    folder.mkdir()
    subprocess.run(["mount", "--bind", str(disk), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
    yield config_in(folder / "records")
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_full_disk_ends_a_run_in_one_line_and_leaves_earlier_runs_intact(
    disk: Path, root: Path, tmp_path: Path
) -> None:
    config = config_in(shutil.copytree(root, disk / "records"))
    before = record_a_run(config)

    def full(number: int) -> None:
        if number == 3:
            fill(disk)

    with pytest.raises(MachineError, match="database or disk is full.*what had been recorded is safe") as caught:
        record_a_run(config, full)
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    with contextlib.closing(sqlite3.connect(disk / "records" / "mlflow.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_complete(config, before)
    assert_complete(config, record_a_run(config))


def test_abandoned_run_is_closed_by_the_next_command(
    disk: Path, root: Path, tmp_path: Path, messages: list[str]
) -> None:
    """Given a process that could not say that its run ended, and others that are at work or of another machine."""
    config = config_in(shutil.copytree(root, disk / "records"))
    process = FORKS.Process(target=_record_until_full, args=(config.model_dump(), disk))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    (disk / "filler").unlink()
    store = tracking.open_store(config.tracking)
    tracking.close_abandoned_runs(store)
    assert [line.rpartition(", ")[2] for line in messages] == ["and its process is gone: it is closed"]
    elsewhere = tracking.create_training_run(store, config, "elsewhere", {"host": "elsewhere, process 1 of 2026-01-01"})
    of_a_study = tracking.create_training_run(store, config, "trial", {"study": "a", "host": "b, process 1 of c"})
    own = tracking.create_training_run(store, config, "at work", {})
    # A number that no process has.
    gone = {"host": re.sub(r"process \d+", f"process {2**22 + 1}", process_id())}
    kept = tracking.create_training_run(store, config, "its end is kept", gone)
    outbox.enqueue(store.outbox, store.name, kept, operations.ended("FINISHED"))
    tracking.close_abandoned_runs(store)
    client = store.client
    states = {each.info.run_id: each.info.status for each in client.search_runs([store.experiment_id])}
    (left,) = set(states) - {own, elsewhere, of_a_study, kept}
    assert states[left] == "KILLED"
    assert [states[each] for each in (own, elsewhere, of_a_study)] == ["RUNNING"] * 3
    assert states[kept] == "FINISHED"
    assert "failure" not in client.get_run(kept).data.tags
    assert client.get_run(left).data.tags["failure"] == "its process ended"


def _record_until_full(values: dict[str, Any], disk: Path) -> None:
    try:
        record_a_run(load_config(RunConfig, values), lambda number: fill(disk) and None, tags={})
    except MachineError:
        sys.exit(1)


def test_full_disk_leaves_no_half_of_a_model(disk: Path, root: Path, tmp_path: Path) -> None:
    """The artifacts are on another disk than the database."""
    shutil.rmtree(root / "artifacts", ignore_errors=True)
    (root / "artifacts").symlink_to(disk)
    config = config_in(root)
    run_ids: list[str] = []

    def full(number: int) -> None:
        if number == 5:
            run_ids.extend(run.info.run_id for run in MlflowClient(config.tracking.store_uri).search_runs(["1"]))
            fill(disk)

    with pytest.raises(OSError, match="No space left on device"):
        record_a_run(config, full)
    client = MlflowClient(config.tracking.store_uri)
    run = client.get_run(run_ids[0])
    assert run.info.status == "FAILED"
    assert "No space left on device" in run.data.tags["failure"]
    assert [point.step for point in client.get_metric_history(run_ids[0], "train_loss")] == [1, 2, 3, 4, 5]
    assert client.search_logged_models([run.info.experiment_id]) == []


def test_full_disk_stops_a_sweep_in_one_line_and_it_resumes(disk: Path, root: Path, sweep_config: SweepConfig) -> None:
    shutil.copytree(root, disk / "records")
    config = with_study(in_folder(sweep_config, disk / "records"), workers=2)
    with pytest.raises(MachineError, match="full|No space left on device") as caught:
        work(config, InstantTrainer(0.1), During(2, lambda: fill(disk)))
    assert "\n" not in str(caught.value)
    (disk / "filler").unlink()
    opened, _, _ = open_records(disk / "records")
    finished = {trial.number: trial.values for trial in opened.trials if trial.values}
    assert finished
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    opened, _, runs = open_records(disk / "records")
    assert {number: opened.trials[number].values for number in finished} == finished
    assert not [run for run in runs if run.info.status == "RUNNING"]
    assert_stores_agree(disk / "records", models=False)


def test_full_disk_leaves_leaderboard_and_report_whole(disk: Path, root: Path, sweep_config: SweepConfig) -> None:
    # Given a sweep that finds no space for its leaderboard
    (root / "reports").symlink_to(disk)
    fill(disk)
    swept = with_study(sweep_config, workers=1, trials=2)
    with pytest.raises(MachineError, match=r"leaderboard.csv cannot be written: No space left on device"):
        work(swept, InstantTrainer())
    (disk / "filler").unlink()
    # Then the next one has nothing to train.
    assert work(swept, BrokenTrainer()).finished == 2
    assert (disk / "small" / "leaderboard.csv").read_text().count("\n") == 3
    # Given a report that finds no space for the next one
    config = ReportConfig(study=StudyReference(name="small"), tracking=sweep_config.tracking)
    report.write_report(config)
    before = {path.name: path.read_bytes() for path in (disk / "small").iterdir()}
    assert before["report.html"].endswith(b"</html>")
    fill(disk)
    with pytest.raises(MachineError) as caught:
        report.write_report(config)
    # Then the old one is as it was.
    page = root / "reports" / "small" / "report.html"
    assert str(caught.value) == f"{page} cannot be written: No space left on device; the study is recorded"
    assert {path.name: path.read_bytes() for path in (disk / "small").iterdir()} == before


def test_read_only_folder_is_named_and_can_be_read(
    read_only: RunConfig, sweep_config: SweepConfig, tmp_path: Path
) -> None:
    folder = read_only.tracking.folder
    with pytest.raises(MachineError, match="attempt to write a readonly database"):
        record_a_run(read_only)
    for config in (config_in(folder / "new").tracking, config_in(folder.parent / "other").tracking):
        with pytest.raises(MachineError, match="the records folder .* cannot be used: Read-only file system"):
            tracking.open_store(config)
    with pytest.raises(MachineError, match="the records folder .* cannot be used: Read-only file system"):
        work(in_folder(sweep_config, folder), InstantTrainer())
    opened = tracking.open_store(read_only.tracking)
    (run,) = opened.client.search_runs([opened.experiment_id])
    assert tracking.read_text(opened, run.info.run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(read_only, run.info.run_id)


@pytest.mark.soak
def test_commands_name_a_full_disk_damage_and_a_missing_server_in_one_line(
    disk: Path, root: Path, command: Command
) -> None:
    down = f"tracking.uri=http://127.0.0.1:{free_port()}"
    fill(disk)
    optuna.create_study(study_name="moved", storage=sqlite_url(root / "optuna.db"))
    torn = shutil.copytree(root, root.with_name("torn"))
    (torn / "mlflow.db").write_text("not a database")
    (torn / "optuna.db").write_text("not a database")
    for name, more in (("train", SMALL), ("sweep", STUDY), ("confirm", ["study=moved"]), ("reproduce", [])):
        for overrides, cause in (
            ([f"tracking.root={torn}"], "is corrupt or truncated, or not a database"),
            ([f"tracking.root={disk}/new"], "No space left on device|disk is full|nothing is recorded|no such study"),
            ([f"tracking.root={root}", down], "Connection refused|no such study|not made by digitcnn"),
        ):
            ended = command(name, *more, *overrides, timeout=900)
            assert ended.returncode in (1, 2), (name, overrides, ended)
            assert len(ended.stderr.splitlines()) == 1, ended.stderr
            assert re.search(cause, ended.stderr), ended.stderr
