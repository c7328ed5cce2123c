"""A database that another process holds: what runs goes on, or ends in one line, and loses nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from digitcnn import tracking
from digitcnn.config import SweepConfig
from digitcnn.errors import MachineError
from digitcnn.tracking import outbox
from tests.conftest import with_study
from tests.support.recorded import assert_complete, config_in, record_a_run
from tests.support.sweeps import During, assert_stores_agree, in_folder, open_records, work
from tests.support.trainers import InstantTrainer


@contextlib.contextmanager
def locked(path: Path, seconds: float = 600) -> Iterator[Callable[[], None]]:
    """Another process holds the database for some seconds, or until it is told to let go; gives what tells it."""
    program = f"""
import select, sqlite3, sys
connection = sqlite3.connect({str(path)!r}, isolation_level=None)
connection.execute("PRAGMA busy_timeout = 60000")
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
select.select([sys.stdin], [], [], {seconds})
connection.execute("ROLLBACK")
"""
    line = [sys.executable, "-c", program]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process.stdin.close
        process.wait()


def test_run_goes_on_while_the_database_is_locked_for_longer_than_mlflow_waits(
    root: Path, tmp_path: Path, messages: list[str]
) -> None:
    config = config_in(root)
    with contextlib.ExitStack() as held:

        def lock(number: int) -> None:
            if number == 2:
                let_go.append(held.enter_context(locked(root / "mlflow.db")))
            if number == 4:
                # MLflow waited for 20 seconds in vain: two epochs are kept.
                assert outbox.pending_runs(root / "outbox", "mlflow.db")
                let_go[0]()

        let_go: list[Callable[[], None]] = []
        run_id = record_a_run(config, lock)
    assert "does not answer (database is locked): what runs goes on and is kept" in messages[0]
    tracking.deliver(tracking.open_store(config.tracking))
    assert_complete(config, run_id)


@pytest.mark.soak
@pytest.mark.parametrize(("seconds", "names"), [(15, ("mlflow.db", "optuna.db")), (120, ("mlflow.db",))])
def test_sweep_goes_on_after_a_database_was_locked(
    root: Path, sweep_config: SweepConfig, seconds: int, names: tuple[str, ...], messages: list[str]
) -> None:
    config = with_study(in_folder(sweep_config, root), workers=2)
    with contextlib.ExitStack() as held:

        def lock() -> None:
            for name in names:
                held.enter_context(locked(root / name, seconds))

        shown = During(1, lock)
        result = work(config, InstantTrainer(0.5), shown)
    assert (result.finished, result.total) == (6, 6)
    assert_stores_agree(root, models=False)
    assert tracking.pending_message(config.tracking) == ""
    # 20 seconds are MLflow's patience.
    said = [note for note in messages if "does not answer (database is locked)" in note]
    assert len(said) == (1 if seconds > 20 else 0)


@pytest.mark.soak
def test_sweep_whose_study_is_locked_for_two_minutes_stops_in_one_line_and_loses_no_result(
    root: Path, sweep_config: SweepConfig
) -> None:
    config = with_study(in_folder(sweep_config, root), workers=2)
    with contextlib.ExitStack() as held:
        shown = During(1, lambda: held.enter_context(locked(root / "optuna.db", 125)))
        with pytest.raises(MachineError, match="optuna.db failed: .*database is locked") as caught:
            work(config, InstantTrainer(0.5), shown)
    assert "\n" not in str(caught.value)
    _, _, runs = open_records(root)
    finished = {run.info.run_id for run in runs if run.info.status == "FINISHED" and "trial" in run.data.tags}
    result = work(config, InstantTrainer(0.1))
    assert (result.finished, result.total) == (6, 6)
    opened, _, runs = open_records(root)
    complete = {trial.user_attrs["run_id"] for trial in opened.trials if trial.state == TrialState.COMPLETE}
    assert finished <= complete
    assert len(complete) == 6
    assert not [run for run in runs if run.info.status == "RUNNING"]
