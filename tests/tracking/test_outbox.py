"""The durable queue: in order, whole, once, with writers and deliverers at the same time."""

from __future__ import annotations

import multiprocessing
import signal
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from digitcnn.config import TrackingConfig
from digitcnn.tracking import client as client_module
from digitcnn.tracking import outbox
from digitcnn.tracking.outbox import Operation


def _tags(number: int) -> Operation:
    return Operation("tags", {"n": number})


def _never(_: Exception) -> bool:
    return False


def _delivered(folder: Path, store: str = "here") -> list[Any]:
    """Deliver everything; return the contents of what was delivered, in its order."""
    seen: list[Any] = []

    def write(run_id: str, operation: Operation) -> None:
        seen.append(operation.content.get("n") or operation.files)

    outbox.flush(folder, store, write, _never)
    return seen


def test_queue_delivers_in_order_and_then_forgets(tmp_path: Path) -> None:
    outbox.enqueue(tmp_path, "here", "run", _tags(1))
    outbox.enqueue(tmp_path, "here", "run", Operation("files", {}, {"a/b.txt": b"of the second record"}))
    outbox.enqueue(tmp_path, "here", "run", _tags(3))
    assert outbox.pending_runs(tmp_path, "here") == ["run"]
    assert outbox.pending_runs(tmp_path, "elsewhere") == []
    assert outbox.has_pending(tmp_path, "run")
    assert _delivered(tmp_path, "elsewhere") == []
    assert _delivered(tmp_path) == [1, {"a/b.txt": b"of the second record"}, 3]
    assert not outbox.has_pending(tmp_path, "run")
    assert not list(tmp_path.glob("*.db"))


def test_queue_is_that_of_a_server_with_or_without_a_slash_at_its_end(tmp_path: Path) -> None:
    for number, uri in enumerate(("http://mlflow:5000/", "http://mlflow:5000", "http://mlflow:50001"), start=1):
        outbox.enqueue(tmp_path, uri, f"run {number}", _tags(number))
    config = TrackingConfig(root=str(tmp_path), uri="http://mlflow:5000/")
    name = client_module._name(config)
    assert name == client_module._name(config.model_copy(update={"uri": "http://mlflow:5000"}))
    assert outbox.pending_runs(tmp_path, name) == ["run 1", "run 2"]
    assert _delivered(tmp_path, name) == [1, 2]


def test_queue_goes_on_where_a_delivery_was_interrupted(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        outbox.enqueue(tmp_path, "here", "run", _tags(number))
    seen: list[int] = []

    def write(run_id: str, operation: Operation) -> None:
        seen.append(operation.content["n"])
        if seen == [1, 2]:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        outbox.flush(tmp_path, "here", write, lambda error: True)
    assert outbox.flush(tmp_path, "here", write, _never) == {"run": 2}
    assert seen == [1, 2, 2, 3]


def test_queue_of_one_run_that_fails_does_not_hold_up_others(tmp_path: Path) -> None:
    for run_id, number in (("bad", 1), ("good", 2), ("bad", 3), ("refused", 4), ("good", 5)):
        outbox.enqueue(tmp_path, "here", run_id, _tags(number))
    seen: list[int] = []

    def write(run_id: str, operation: Operation) -> str | None:
        if run_id == "bad":
            raise TimeoutError
        seen.append(operation.content["n"])
        return "413 too large" if run_id == "refused" else None

    with pytest.raises(TimeoutError):
        outbox.flush(tmp_path, "here", write, _never)
    assert seen == [2, 4, 5]
    assert outbox.pending_runs(tmp_path, "here") == ["bad"]
    kept = outbox.listed(tmp_path)
    assert [(each.run_id, each.kind, each.refused) for each in kept] == [
        ("bad", "tags", None),
        ("bad", "tags", None),
        ("refused", "tags", "413 too large"),
    ]
    # Asked again, and then given up.
    assert outbox.change(tmp_path, kept[2].id, retry=True) == 1
    assert outbox.pending_runs(tmp_path, "here") == ["bad", "refused"]
    assert outbox.flush(tmp_path, "here", lambda run_id, operation: "no", _never) == {"bad": 0, "refused": 0}
    assert outbox.change(tmp_path, "bad", retry=False) == 2
    assert outbox.change(tmp_path, "", retry=False) == 1
    assert outbox.listed(tmp_path) == []
    assert not list(tmp_path.glob("*.db"))


def test_queue_loses_nothing_between_writers_and_deliverers(tmp_path: Path) -> None:
    seen: list[int] = []
    over = threading.Event()

    def deliver() -> None:
        while not over.is_set() or outbox.has_pending(tmp_path, "run"):
            outbox.flush(tmp_path, "here", lambda run_id, operation: seen.append(operation.content["n"]), _never)

    deliverer = threading.Thread(target=deliver)
    deliverer.start()
    try:
        for number in range(200):
            outbox.enqueue(tmp_path, "here", "run", _tags(number))
    finally:
        over.set()
        deliverer.join(timeout=60)
    assert seen == list(range(200))


def _enqueue_and_die(folder: Path, said: Any) -> None:
    outbox.enqueue(folder, "here", "run", _tags(7))
    said.set()
    signal.pause()


def test_queue_of_a_process_at_work_is_delivered_when_it_is_gone(tmp_path: Path) -> None:
    """Given another owner in the same folder, which has a queue of its own."""
    context = multiprocessing.get_context("spawn")
    said = context.Event()
    other = context.Process(target=_enqueue_and_die, args=(tmp_path, said))
    other.start()
    assert said.wait(60)
    outbox.enqueue(tmp_path, "here", "run", _tags(1))
    assert _delivered(tmp_path) == [1]
    assert outbox.pending_runs(tmp_path, "here") == ["run"]
    other.kill()
    other.join()
    assert _delivered(tmp_path) == [7]


def test_queue_sets_aside_what_cannot_be_read(tmp_path: Path, messages: list[str]) -> None:
    outbox.enqueue(tmp_path, "here", "run", _tags(1))
    (path,) = tmp_path.glob("*.db")
    with sqlite3.connect(path) as database:
        database.execute("UPDATE operations SET content = '{'")
    database.close()
    outbox.enqueue(tmp_path, "here", "run", _tags(2))
    (tmp_path / "torn.db").write_bytes(b"SQLite format 3\0" + b"x" * 5000)
    assert _delivered(tmp_path) == [2]
    assert [each.refused for each in outbox.listed(tmp_path)] == ["cannot be read"]
    assert (tmp_path / "torn.corrupt").exists()
    assert len([text for text in messages if "is corrupt or truncated" in text]) == 1
