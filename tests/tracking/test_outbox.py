"""The durable queue: in order, whole, once, with writers and deliverers at the same time."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from digitcnn.tracking import outbox
from digitcnn.tracking.outbox import Operation


def test_queue_delivers_in_order_and_then_forgets(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.txt").write_text("of the second record")
    outbox.enqueue(tmp_path / "outbox", "here", "run", Operation("tags", {"n": 1}))
    outbox.enqueue(tmp_path / "outbox", "here", "run", Operation("files", {}, files))
    shutil.rmtree(files)
    outbox.enqueue(tmp_path / "outbox", "here", "run", Operation("tags", {"n": 3}))
    assert outbox.pending_runs(tmp_path / "outbox", "here") == ["run"]
    assert outbox.pending_runs(tmp_path / "outbox", "elsewhere") == []
    seen: list[Any] = []

    def write(operation: Operation) -> None:
        seen.append(operation.content or (operation.files and (operation.files / "a.txt").read_text()))

    assert outbox.flush(tmp_path / "outbox", "run", write) == 3
    assert seen == [{"n": 1}, "of the second record", {"n": 3}]
    assert list((tmp_path / "outbox").iterdir()) == []


def test_queue_survives_a_truncated_line_and_an_interrupted_delivery(tmp_path: Path) -> None:
    for number in (1, 2):
        outbox.enqueue(tmp_path, "here", "run", Operation("tags", {"n": number}))
    with (tmp_path / "run" / "journal.jsonl").open("a") as journal:
        journal.write('{"kind": "tags", "content": {"n"')
    seen: list[Any] = []

    def write(operation: Operation) -> None:
        seen.append(operation.content["n"])
        if len(seen) == 2:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        outbox.flush(tmp_path, "run", write)
    outbox.enqueue(tmp_path, "here", "run", Operation("tags", {"n": 3}))
    assert outbox.flush(tmp_path, "run", write) == 3
    assert seen == [1, 2, 1, 2, 3]


def test_queue_loses_nothing_between_writers_and_deliverers(tmp_path: Path) -> None:
    seen: list[int] = []
    over = threading.Event()

    def deliver() -> None:
        while not over.is_set() or outbox.has_pending(tmp_path, "run"):
            for run_id in outbox.pending_runs(tmp_path, "here"):
                outbox.flush(tmp_path, run_id, lambda operation: seen.append(operation.content["n"]))

    deliverers = [threading.Thread(target=deliver) for _ in range(2)]
    for thread in deliverers:
        thread.start()
    try:
        for number in range(200):
            outbox.enqueue(tmp_path, "here", "run", Operation("tags", {"n": number}))
    finally:
        over.set()
        for thread in deliverers:
            thread.join(timeout=60)
    assert seen == list(range(200))
