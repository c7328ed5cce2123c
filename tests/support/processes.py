"""Commands and sweeps in processes of their own, which can be made to kill themselves at a named point."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import mlflow
import mlflow.store.db.utils
import optuna
import psutil

from digitcnn import evaluation, runner, tracking
from digitcnn.config import ConfirmConfig, SweepConfig, load_config
from digitcnn.errors import ConfigError, MachineError
from digitcnn.runner import Trainer, study_run, sweep
from digitcnn.runner.trial import seeds
from digitcnn.signals import ENDING, end_in_order
from digitcnn.values import EpochMetrics
from tests.support.messages import hear_messages

# Python's own, made from one process that has imported everything: they begin in 0.1 s instead of 5, and 8 with Keras.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.imported"])
# Workers of such a process are forked from it before it has opened anything, which saves their imports too.
_FORK = multiprocessing.get_context("fork")


class Printed:
    """A display that appends a line per event to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def line(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(text + "\n")

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None:
        self.line(f"began with {finished} of {total}")

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None:
        self.line(f"trial {trial} began")

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        self.line(f"trial {trial} epoch {metrics.epoch}")

    def trial_ended(self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str) -> None:
        self.line(f"trial {trial} {ending}")


@dataclass(frozen=True)
class Point:
    """A point at which a process sends itself a signal: the first call of a function, before or after its work."""

    owner: Any
    name: str
    after: bool = True
    when: Callable[..., bool] = lambda *_, **__: True
    number: signal.Signals = signal.SIGKILL

    def arm(self) -> None:
        """Wrap the function, in this process only."""
        original, done = getattr(self.owner, self.name), threading.Event()

        @functools.wraps(original)
        def signalling(*arguments: Any, **named: Any) -> Any:
            here = not done.is_set() and self.when(*arguments, **named)
            if here:
                done.set()
            if here and not self.after:
                os.kill(os.getpid(), self.number)
            result = original(*arguments, **named)
            if here and self.after:
                os.kill(os.getpid(), self.number)
            return result

        setattr(self.owner, self.name, signalling)


def _completes(*arguments: Any, **named: Any) -> bool:
    return optuna.trial.TrialState.COMPLETE in (*arguments, *named.values())


def _repeats(*_: Any, **named: Any) -> bool:
    return "repeats" in (named.get("user_attrs") or {})


STORAGE = optuna.storages.RDBStorage
# Of the process that owns the study, in the order in which a study meets them.
KILLED = {
    "MLflow's tables are created": Point(mlflow.store.db.utils, "_upgrade_db", after=False),
    "Optuna's tables are created": Point(optuna.storages._rdb.storage._VersionManager, "__init__", after=False),
    "the study is created": Point(STORAGE, "create_new_study"),
    "the study is said to be ours": Point(optuna.Study, "set_user_attr"),
    "the study's run is created": Point(study_run, "create_study_run"),
    "a trial is asked for": Point(optuna.Study, "ask"),
    "a trial's parameters are drawn": Point(optuna.Trial, "_suggest"),
    "a trial's run is created": Point(tracking, "create_training_run"),
    "a retry is about to be queued": Point(optuna.Study, "enqueue_trial", after=False, when=_repeats),
    "a retry has been queued": Point(optuna.Study, "enqueue_trial", when=_repeats),
    "an epoch is reported": Point(sweep.study, "report_epoch"),
    "an epoch is recorded": Point(tracking.Run, "log_epoch"),
    "the model's files are written": Point(mlflow.MlflowClient, "log_model_artifacts"),
    "a result is told": Point(STORAGE, "set_trial_state_values", after=False, when=_completes),
    "a result has been told": Point(STORAGE, "set_trial_state_values", when=_completes),
    "the run has ended": Point(seeds, "record_training"),
}
# The same when no trial is left to do.
KILLED_AT_THE_END = {
    "the leaderboard is recorded": Point(study_run, "record_leaderboard", after=False),
    "the study's run is closed": Point(tracking, "close_run", after=False, when=lambda *a, **_: a[2] == "FINISHED"),
}
SIGNALLED = {
    "SIGTERM while the workers start": Point(tracking, "open_store", number=signal.SIGTERM),
    "SIGINT when a trial is asked for": Point(optuna.Study, "ask", number=signal.SIGINT),
    "SIGHUP while the leaderboard is recorded": Point(
        study_run, "record_leaderboard", after=False, number=signal.SIGHUP
    ),
}


def run_forked(line: list[str], folder: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS...` in a folder, in a process forked from one that has imported everything."""
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place, name) for name in ("output", "errors")]
        process = FORKS.Process(target=_become, args=(line, folder, os.environ | {"COLUMNS": "160"}, said))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(line, timeout)
        return subprocess.CompletedProcess(line, process.exitcode, *(path.read_text() for path in said))


def _become(line: list[str], folder: Path, variables: dict[str, str], said: list[Path]) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    for number, path in enumerate(said, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    multiprocessing.get_context = lambda _: _FORK  # type: ignore[assignment]
    _, _, module, *arguments = line
    sys.argv = ["", *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def run(config: dict[str, Any], trainer: Trainer, lines: Path, point: str | None, spawn: bool) -> None:
    """Run a sweep or a confirmation as its command does; what it would print goes to a file."""
    # The process that all are forked from may have been started as a worker is, with these blocked.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
    end_in_order()
    os.setsid()
    if not spawn:
        multiprocessing.get_context = lambda _: _FORK  # type: ignore[assignment]
    if point is not None:
        (KILLED | KILLED_AT_THE_END | SIGNALLED)[point].arm()
    interrupted, printed = None, Printed(lines)
    hear_messages(printed.line)
    try:
        if "confirm" in config:
            evaluation.run_confirmation(
                evaluation.plan_confirmation(load_config(ConfirmConfig, config)), printed, trainer
            )
        else:
            interrupted = runner.run_sweep(
                runner.plan_sweep(load_config(SweepConfig, config)), printed, trainer
            ).interrupted
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except (ConfigError, MachineError) as error:
        with lines.open("a") as file:
            file.write(f"error: {error}\n")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    sys.exit(0 if interrupted is None else 128 + interrupted)


def start(
    config: SweepConfig | ConfirmConfig, trainer: Trainer, lines: Path, point: str | None = None, spawn: bool = False
) -> BaseProcess:
    """Start a sweep or a confirmation in a process and a session of its own."""
    process = FORKS.Process(target=run, args=(config.model_dump(), trainer, lines, point, spawn))
    process.start()
    return process


def wait_for(lines: Path, text: str, process: BaseProcess, seconds: float = 120) -> str:
    """Wait until a sweep has printed something; return all that it has printed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        said = lines.read_text() if lines.exists() else ""
        if text in said:
            return said
        assert process.is_alive(), f"ended with {process.exitcode} before it said {text!r}: {said}"
        time.sleep(0.02)
    raise AssertionError(f"nothing of {text!r} in {seconds} s")


def workers_of(process: BaseProcess) -> list[psutil.Process]:
    """Return the other processes of its session that are alive, whether it is or not."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(each.pid) == process.pid != each.pid and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found
