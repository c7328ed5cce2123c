"""The interface of pools and workers, the ends of their runs, and the number of workers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from digitcnn import signals, training
from digitcnn.config import LocalWorkers, RunConfig, WorkersConfig
from digitcnn.errors import ConfigError, StoreAway
from digitcnn.formatting import format_count, format_duration
from digitcnn.values import Decision, Event, Events, RunFinished

logger = logging.getLogger(__name__)

# A silent worker is ended after this many times the longest silence so far, if that is more than the patience.
_PATIENCE_FACTOR = 10
# How long a worker may go on with its epoch after it was asked to stop; all of a command's ending is to take 10 s.
GRACE_SECONDS = 3.0
# How often is looked whether `digitcnn stop` asks for the end.
_LOOK_SECONDS = 0.5
MAX_WORKERS = 1024


@dataclass(frozen=True)
class Job:
    """A run to train: its config, if it is to yield checkpoints, and the content of one that it is to go on from."""

    config: RunConfig
    saves: bool = False
    checkpoint: bytes | None = None


class Trainer(Protocol):
    """The work of a worker: prepare once with its number of threads, then run one job after another.

    It is a Job, but for measurements. `on_progress` gets the epoch and the fraction of it that is done.
    """

    def prepare(self, threads: int) -> None: ...

    def run(self, job: Any, on_progress: Callable[[int, float], None]) -> Events: ...


class Worker(Protocol):
    """One worker as its owner sees it. Not for use by two threads at once."""

    index: int

    def wait_ready(self) -> bool:
        """Wait until the worker can take a job, in a new process if the last one is gone; False if it never will."""
        ...

    def run(self, job: Any, on_event: Callable[[Event], Decision], stop: threading.Event) -> RunFinished:
        """Do a job: give each event but the last to `on_event`, and return the last.

        `stop` asks the job to end at its next event; the process is ended if that takes too long. Raises WorkerDied,
        RunFailed, MachineError, or as `on_event` does.
        """
        ...


class Pool(Protocol):
    """The workers of a command. `stop` ends their jobs; once `finished` is set no further worker is waited for."""

    stop: threading.Event
    finished: threading.Event
    patience: Patience

    def arrivals(self) -> Iterator[Worker]:
        """Yield each worker once, as soon as there is a place for it."""
        ...

    def kill(self) -> None:
        """End all worker processes at once."""
        ...

    def close(self) -> None:
        """End all worker processes, and what belongs to them."""
        ...


class WorkerDied(Exception):
    """The worker ended before its run did; `killed` if that was from outside."""

    def __init__(self, reason: str, killed: bool = False) -> None:
        super().__init__(reason)
        self.killed = killed


class RunFailed(Exception):
    """The run raised an error."""


class RunDiverged(RunFailed):
    """The run's loss became NaN or infinite: its parameters are to blame, not the machine."""


@dataclass
class Patience:
    """The time that the workers of a pool may say nothing: `seconds`, or ten times the longest silence so far.

    Once they are to stop it is `grace`, if that is less.
    """

    seconds: float
    longest: float = 0.0
    grace: float = GRACE_SECONDS

    @property
    def limit(self) -> float:
        """Return the seconds after which a silent worker is ended."""
        return max(self.seconds, _PATIENCE_FACTOR * self.longest)


class Wait:
    """One wait of an owner for the next message of a worker, whose name is for warnings."""

    def __init__(self, worker: str, patience: Patience, stop: threading.Event) -> None:
        self.worker, self.patience, self.stop = worker, patience, stop
        self.began, self.stopped, self.warned = time.monotonic(), 0.0, False

    def given_up(self) -> str:
        """Return why the worker is to be ended, or an empty text as long as it is to be waited for."""
        now, limit = time.monotonic(), self.patience.limit
        silence = now - self.began
        if self.stop.is_set():
            self.stopped = self.stopped or now
            if now > self.stopped + self.patience.grace:
                return "its worker did not stop"
        if silence > limit:
            return f"its worker said nothing for {format_duration(silence)} (workers.patience) and was ended"
        if silence > limit / 2 and not self.warned:
            self.warned = True
            logger.warning(
                f"{self.worker} has said nothing for {format_duration(silence)}: it is ended, and its run repeated, "
                f"after {format_duration(limit)}"
            )
        return ""

    def answered(self) -> None:
        """Note how long the wait was."""
        self.patience.longest = max(self.patience.longest, time.monotonic() - self.began)


def answer_events(events: Events, on_event: Callable[[Event], Decision]) -> RunFinished:
    """Give each event of a run but the last to a function, and the run its decision; return the last."""
    event = next(events)
    while not isinstance(event, RunFinished):
        event = events.send(on_event(event))
    return event


def run_workers(pool: Pool, loop: Callable[[Worker], None]) -> None:
    """Run a function with each worker of a pool, in a thread of its own, until all have returned.

    The first that returns ends the arrival of further ones: no work is left. One that raises ends the work of all.
    """

    def run(worker: Worker) -> None:
        try:
            loop(worker)
        except BaseException:
            # SystemExit too, with which a library may answer an output that is gone: the others wait for this run.
            pool.stop.set()
            raise
        finally:
            pool.finished.set()

    with ThreadPoolExecutor(MAX_WORKERS) as threads:
        try:
            for future in [threads.submit(run, worker) for worker in pool.arrivals()]:
                future.result()
        except BaseException:
            # An error of this thread, such as Ctrl-C, stops the workers, for which the executor waits.
            pool.stop.set()
            raise


@contextlib.contextmanager
def stopped_by_signals(pool: Pool, asked: Path) -> Iterator[list[signal.Signals]]:
    """Let a signal inside the body end the workers in order, a second one kill them; yield the list of signals.

    The file `asked` is taken for a SIGTERM that leaves the workers the time to end their present epochs. After a signal
    nobody waits for a store that is away: the process ends as the signal does, with one line.
    """

    def stop() -> None:
        pool.stop.set()
        logger.info("stopping: what has run is being recorded")

    def watch() -> None:
        while not over.wait(_LOOK_SECONDS):
            if asked.exists() and not received:
                pool.patience.grace = math.inf
                received.append(signal.SIGTERM)
                stop()

    over = threading.Event()
    with signals.capture_signals(stop, pool.kill) as received:
        threading.Thread(target=watch, daemon=True).start()
        try:
            yield received
        except StoreAway as error:
            if not received:
                raise
            logger.warning(f"interrupted: {error}")
            signals.end_process(received[0])
        finally:
            over.set()


def core_shares(workers: int) -> list[tuple[int, ...]]:
    """Return the cores of each worker: all of them dealt out evenly, or one each, shared, if workers are more."""
    cores = training.usable_cores()
    if workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    return [tuple(cores[index::workers]) for index in range(workers)]


def worker_count(wanted: int | None, jobs: int, job: str = "trial") -> tuple[int, str]:
    """Return the number of workers for some jobs, and what decided it: what is wanted, the machine, or the jobs."""
    workers, limit = (wanted, "as workers.count says") if wanted else training.room_for_trainings()
    if workers <= max(jobs, 1):
        return workers, limit
    return max(jobs, 1), f"{format_count(jobs, job)} {'is' if jobs == 1 else 'are'} left"


def threads_per_worker(workers: int) -> int:
    """Return the number of threads that each of some workers has, on cores of its own where there are enough."""
    return len(core_shares(workers)[-1])


def plan_workers(
    config: WorkersConfig, jobs: int, left: int, job: str = "trial", threads: int | None = None
) -> tuple[int, int, str]:
    """Return the number of workers for those of some jobs that are left, their threads, and in words what decides both.

    The threads are those for all jobs: the last ones go on at their checkpoints, and have the bits that they would have
    had among the others. Of a cluster it is the most workers that may come. Raises ConfigError if Ray is needed and not
    installed.
    """
    if isinstance(config, LocalWorkers):
        workers, limit = worker_count(config.count, left, job)
        threads = threads or threads_per_worker(worker_count(config.count, jobs)[0])
        return workers, threads, f"{format_count(workers, 'worker')} of {format_count(threads, 'thread')}: {limit}"
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("workers=ray: needs Ray, which is not installed; pip install 'digitcnn[ray]'")
    workers = min(config.count or config.max or MAX_WORKERS, max(left, 1))
    number = format_count(workers, "worker") if config.count else f"up to {format_count(workers, 'worker')}"
    limit = "on a Ray cluster" if config.count else "as many as the Ray cluster has CPUs free"
    threads = threads or config.cpus
    return workers, threads, f"{number} of {format_count(threads, 'thread')}: {limit}"
