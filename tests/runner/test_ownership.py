"""One process owns a study: another one is refused, whatever folder or command it comes from."""

from __future__ import annotations

import os
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from digitcnn import report, runner, study
from digitcnn.cli.commands.stop import main as stop
from digitcnn.config import ReportConfig, RunConfig, StudyReference, SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.runner.pool import GRACE_SECONDS
from tests.conftest import Command, with_study
from tests.support.processes import start, wait_for
from tests.support.sweeps import (
    Failing,
    assert_whole,
    confirm,
    work,
)
from tests.support.trainers import InstantTrainer, SavingTrainer


def test_lock_refuses_a_second_process_in_one_line(copied: SweepConfig, command: Command) -> None:
    refused = []
    with study.only_process(copied.tracking.folder, "small"):
        for again in (lambda: work(copied, InstantTrainer()), lambda: confirm(copied)):
            with pytest.raises(ConfigError) as caught:
                again()
            refused.append(str(caught.value))
        ended = command("confirm", "study=small", f"tracking.root={copied.tracking.root}")
    refused.append(ended.stderr.removeprefix("error: ").strip())
    assert ended.returncode == 2
    for line in refused:
        assert line.startswith(f"study.name=small: process {os.getpid()}, since 20")
        assert "workers.count" in line
    # The file that is left says nothing, and is no obstacle.
    assert work(copied, InstantTrainer()).finished == 3


def test_lock_covers_folders_that_share_one_study_file(copied: SweepConfig, tmp_path: Path) -> None:
    linked = load_config(SweepConfig, copied.model_dump() | {"tracking": {"root": str(tmp_path / "linked")}})
    linked.tracking.folder.mkdir()
    (linked.tracking.folder / "optuna.db").symlink_to(copied.tracking.folder / "optuna.db")
    for held, refused in ((linked, copied), (copied, linked)):
        with (
            study.only_process(held.tracking.folder, "small"),
            pytest.raises(ConfigError, match=f"process {os.getpid()}, since .* is at work on this study"),
        ):
            work(refused, InstantTrainer())


@pytest.mark.usefixtures("spawned_workers")
def test_lock_is_the_owners_and_not_its_workers(copied: SweepConfig) -> None:
    held: list[str] = []

    def look() -> None:
        with pytest.raises(ConfigError, match=f"process {os.getpid()}, since .* is at work on this study"):
            work(copied, InstantTrainer())
        for each in psutil.Process().children(recursive=True):
            held.extend(file.path for file in each.open_files() if file.path.endswith(".lock"))
        assert any(file.path.endswith("small.lock") for file in psutil.Process().open_files())

    assert work(with_study(copied, trials=4), InstantTrainer(), Failing(3, look)).finished == 4
    assert held == []
    assert_whole(copied.tracking.folder, 4)


@dataclass(frozen=True)
class _Slow(SavingTrainer):
    """Takes longer for the epoch in which it is asked to stop than a signal leaves it."""

    asked: Path = Path()

    def before_epoch(self, job: RunConfig, epoch: int) -> None:
        if epoch == 2:
            while not self.asked.exists():
                time.sleep(0.05)
            time.sleep(GRACE_SECONDS + 0.5)
        super().before_epoch(job, epoch)


def test_stop_ends_a_sweep_with_its_present_epoch_and_status_tells_of_both(
    sweep_config: SweepConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Given
    tree = {**sweep_config.model_dump(), "training": {"epochs": 3, "batch_size": 50, "threads": 1}}
    space = {"training": {"batch_size": [20, 50]}}
    config = with_study(load_config(SweepConfig, tree), workers=1, trials=2, checkpoints="keep", space=space)
    place = ReportConfig(study=StudyReference(name="small"), tracking=config.tracking)
    lines, saved = tmp_path / "lines", config.tracking.folder / "checkpoints" / "sweep" / "small"
    asked = study.stop_file(config.tracking.folder, "small")
    process = start(config, _Slow(folder=tmp_path, asked=asked), lines)
    wait_for(lines, "trial 0 epoch 1\n", process)
    # When
    at_work = report.study_status(place)
    assert stop(place) == 0
    process.join(60)
    # Then
    assert process.exitcode == 128 + signal.SIGTERM, lines.read_text()
    assert at_work[0].startswith(f"study small: 0 of 2 trials are finished; process {process.pid}, since 20")
    assert at_work[1:3] == ["  0: baseline: epoch 1 of 3", "no trial has completed"]
    said = capsys.readouterr().out
    assert said.startswith(f"process {process.pid}, since 20")
    assert said.endswith("ended; the same command goes on where it was\n")
    assert [path.stem.rpartition("-")[2] for path in saved.glob("*.npz")] == ["2"]
    # And nothing is at work, nothing to stop, and no epoch is trained twice
    (line, _) = report.study_status(place)
    assert "; nothing is at work on it; the same command goes on with the other 2: " in line
    with pytest.raises(ConfigError, match="study.name=small: nothing is at work on it"):
        stop(place)
    work(config, SavingTrainer(folder=tmp_path))
    trained = (tmp_path / "trained").read_text().splitlines()
    assert sorted(trained) == [f"{size} {epoch}" for size in (20, 50) for epoch in (1, 2, 3)]
    (line, best) = report.study_status(place)
    assert line.startswith(
        "study small: 2 of 2 trials are finished; nothing is at work on it; the same command adds none"
    )
    assert best.startswith("best: trial ")


def test_storage_names_an_unreadable_study_in_one_line(copied: SweepConfig) -> None:
    with closing(sqlite3.connect(copied.tracking.folder / "optuna.db")) as database, database:
        database.execute("alter table trial_values rename column value to lost")
    with pytest.raises(MachineError, match=r"^the study's store .* failed: .*no such column[^\n]*$"):
        runner.plan_sweep(copied)
