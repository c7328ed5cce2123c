"""`digitcnn records`: what waits and what was refused, offered again or discarded."""

from __future__ import annotations

from pathlib import Path

import pytest

from digitcnn import tracking
from digitcnn.cli.commands.records import main as records
from digitcnn.config import RecordsConfig
from digitcnn.errors import ConfigError
from digitcnn.tracking import outbox
from tests.conftest import Command
from tests.support.recorded import config_in


def test_records_lists_retries_and_discards(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_in(root).tracking
    store = tracking.open_store(config)
    run_id = tracking.create_run(store, "run", {}, {})
    # Given a tag that waits, one that was refused and will be taken, and one of a run that is gone.
    outbox.enqueue(store.outbox, store.name, run_id, tracking.tags({"first": "1"}), refused="413 too large")
    outbox.enqueue(store.outbox, store.name, run_id, tracking.tags({"second": "2"}))
    outbox.enqueue(store.outbox, store.name, "0" * 32, tracking.tags({"gone": "3"}), refused="no such run")

    def said(*action: str) -> list[str]:
        records(RecordsConfig(action=list(action), tracking=config))
        return capsys.readouterr().out.splitlines()

    lines = said()
    assert [line.partition("mlflow.db  ")[2] for line in lines] == [
        "refused: 413 too large",
        "waits",
        "refused: no such run",
    ]
    (left,) = said("retry")
    assert f"run {'0' * 32}" in left
    assert left.endswith("not found")
    tags = store.client.get_run(run_id).data.tags
    assert (tags["first"], tags["second"]) == ("1", "2")
    with pytest.raises(ConfigError, match="discard nothing: no record with that id, or of that run, was refused"):
        said("discard", "nothing")
    assert said("discard", left.split()[0]) == ["discarded: 1 record"]
    assert said() == ["nothing waits, and nothing was refused"]


def test_records_command_takes_words(root: Path, command: Command) -> None:
    ended = command("records", "discard", f"tracking.root={root}")
    assert (ended.returncode, ended.stderr) == (
        2,
        "error: action=discard: must be retry, or discard with an id or all\n",
    )
    ended = command("records", f"tracking.root={root}")
    assert (ended.returncode, ended.stdout) == (0, "nothing waits, and nothing was refused\n")
