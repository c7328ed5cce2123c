"""The records on this machine: folders that were moved or copied, and processes that are gone."""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from digitcnn import tracking
from digitcnn.config import TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.study import only_process
from digitcnn.tracking import local as local_module
from digitcnn.tracking import outbox
from tests.support.recorded import STRANGE, assert_complete, config_in, record_a_run


def test_records_folder_that_mlflow_would_decode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tracking.root=.*%20x: must have no % with two hexadecimal digits"):
        config_in(tmp_path / "records%20x")


def places(path: Path) -> set[str]:
    """Every place that an MLflow database holds."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {
            str(row[0])
            for table, column in local_module._PLACES
            for row in connection.execute(f"SELECT {column} FROM {table}")
            if row[0] and "Default" not in str(row) and str(row[0]).startswith("file:")
        }


def test_relocate_opens_a_copied_folder_and_leaves_the_original_untouched(
    root: Path, tmp_path: Path, messages: list[str]
) -> None:
    other = TrackingConfig(root=str(root), experiment="other-name")
    tracking.open_store(other)
    config = config_in(root)
    run_id = record_a_run(config)
    opened = tracking.open_store(config.tracking)
    tracking.register_champion(opened, run_id, {}, "card")
    outbox.enqueue(root / "outbox", "mlflow.db", run_id, tracking.tags({"kept": "before the move"}))
    original = (root / "mlflow.db").read_bytes()
    assert len(places(root / "mlflow.db")) >= 4

    copy = shutil.copytree(root, tmp_path / STRANGE / "records")
    there = tracking.open_store(TrackingConfig(root=str(copy)))
    assert messages == [f"the records were in {root}: the store now names their places in {copy}"]
    assert all(place.startswith(copy.as_uri() + "/") for place in places(copy / "mlflow.db"))
    assert (root / "mlflow.db").read_bytes() == original
    # The copy stands for itself: the original can go.
    shutil.rmtree(root)
    assert tracking.champion_run(there) == run_id
    assert tracking.read_text(there, run_id, "predictions.csv") == "1,2,3\n"
    assert_complete(config_in(copy), run_id)
    tracking.deliver(there)
    assert there.client.get_run(run_id).data.tags["kept"] == "before the move"
    assert messages.pop() == "delivered 1 record of 1 run that had been kept"
    assert tracking.open_store(TrackingConfig(root=str(copy)))
    assert len(messages) == 1
    # A new run goes to the new place, and a link to a folder is no move.
    again = record_a_run(config_in(copy))
    assert_complete(config_in(copy), again)
    (tmp_path / "link").symlink_to(copy)
    tracking.open_store(TrackingConfig(root=str(tmp_path / "link")))
    assert len(messages) == 1


def test_relocate_that_is_killed_before_its_end_changes_nothing(root: Path, tmp_path: Path) -> None:
    moved = shutil.move(root, tmp_path / "moved")
    path = Path(moved) / "mlflow.db"
    before = places(path)
    program = f"""
import os, sqlite3
from pathlib import Path
from digitcnn.tracking.local import relocate_artifacts

connect = sqlite3.connect
def killed_at_the_end(*arguments, **options):
    connection = connect(*arguments, **options)
    connection.set_trace_callback(lambda statement: os.kill(os.getpid(), 9) if statement == "COMMIT" else None)
    return connection
sqlite3.connect = killed_at_the_end
relocate_artifacts(Path({str(moved)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -9
    assert places(path) == before
    assert local_module.relocate_artifacts(Path(moved)) == str(root)
    assert all(place.startswith(Path(moved).as_uri()) for place in places(path))


def test_relocate_leaves_the_places_while_another_process_is_at_work(
    root: Path, tmp_path: Path, messages: list[str]
) -> None:
    """Given one folder under two names, as a container and its host see it, and a sweep at work in one of them."""
    copy, before = shutil.copytree(root, tmp_path / "copy"), places(root / "mlflow.db")
    config = TrackingConfig(root=str(copy))
    program = f"""
import sys
from pathlib import Path
from digitcnn.study import only_process

with only_process(Path({str(copy)!r}), "small"):
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        line = (
            f"^tracking.root={copy}: the store names the places of files in {root}, where process {owner.pid}, "
            "since [-0-9 :]+, is at work; they stay so until it has ended$"
        )
        for command in (lambda: local_module.relocate_artifacts(copy), lambda: tracking.open_store(config)):
            with pytest.raises(ConfigError, match=line):
                command()
        tracking.open_recorded(config, "run=1")
        assert re.fullmatch(line, messages.pop())
        assert messages == []
        assert places(copy / "mlflow.db") == before
        owner.communicate()
    # The owner itself may have been started where the folder has another name.
    with only_process(copy, "small"):
        tracking.open_store(config)
    assert messages == [f"the records were in {root}: the store now names their places in {copy}"]
    assert all(place.startswith(copy.as_uri() + "/") for place in places(copy / "mlflow.db"))


def test_prepare_folder_refuses_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError) as caught:
        tracking.open_store(TrackingConfig(root=str(tmp_path / "file" / "below")))
    assert str(caught.value) == f"the records folder {tmp_path}/file/below cannot be used: Not a directory"


def test_process_is_gone_only_for_one_of_this_machine_that_ended() -> None:
    own = local_module.process_id()
    # A number that no process has, and one that was given again.
    gone = re.sub(r"process \d+", f"process {2**22 + 1}", own)
    earlier = re.sub(r"of \d{4}-", "of 2001-", own)
    elsewhere = gone.replace(own.partition(",")[0], "elsewhere-12345678")
    found = [local_module.process_is_gone(each) for each in (own, gone, earlier, elsewhere, "", "nonsense")]
    assert found == [False, True, True, False, False, False]


def test_process_is_at_work_in_whatever_time_zone_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Given a process that recorded its start in one zone, as this version does and as an earlier one did."""
    began = psutil.Process().create_time()
    try:
        monkeypatch.setenv("TZ", "Pacific/Auckland")
        time.tzset()
        own = local_module.process_id.__wrapped__()
        earlier = re.sub("of .*", time.strftime("of %Y-%m-%d %H:%M:%S", time.localtime(began)), own)
        another = re.sub("of .*", time.strftime("of %Y-%m-%d %H:%M:%S", time.localtime(began - 2 * 86_400)), own)
        monkeypatch.setenv("TZ", "America/Los_Angeles")
        time.tzset()
        # Then
        assert [local_module.process_is_gone(each) for each in (own, earlier, another)] == [False, False, True]
    finally:
        monkeypatch.undo()
        time.tzset()
