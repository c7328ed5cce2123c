"""One process owns a study: another one is refused, whatever folder or command it comes from."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from digitcnn import runner, study
from digitcnn.config import SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.study import storage
from tests.conftest import Command, with_study
from tests.support.sweeps import (
    Failing,
    assert_whole,
    confirm,
    work,
)
from tests.support.trainers import InstantTrainer


@pytest.mark.usefixtures("quick_workers")
def test_lock_refuses_a_second_process_in_one_line(copied: SweepConfig, command: Command) -> None:
    refused = []
    with storage.lock(copied.tracking.folder, "small"):
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


def test_storage_names_an_unreadable_study_in_one_line(copied: SweepConfig) -> None:
    with closing(sqlite3.connect(copied.tracking.folder / "optuna.db")) as database, database:
        database.execute("alter table trial_values rename column value to lost")
    with pytest.raises(MachineError, match=r"^the study's store .* failed: .*no such column[^\n]*$"):
        runner.plan_sweep(copied)
