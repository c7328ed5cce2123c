"""Workers: each process imports Keras once, then trains one config after another for its owner, and writes nothing.

A worker gets a config and yields the events of its run. The owner answers each with "continue", "prune" or "stop".
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection
from typing import Any, Protocol

from digitcnn import output, signals, training
from digitcnn.config import LocalWorkers, RunConfig, WorkersConfig, parse_duration
from digitcnn.errors import RECORDS_SAFE, ConfigError, MachineError, TrainingDiverged
from digitcnn.formatting import format_count
from digitcnn.runner.pool import (
    Patience,
    Pool,
    RunDiverged,
    RunFailed,
    Trainer,
    Wait,
    Worker,
    WorkerDied,
    answer_events,
    core_shares,
)
from digitcnn.values import Decision, Event, RunFinished

logger = logging.getLogger(__name__)

# How long a process that has ended may take to say how.
_EXIT_SECONDS = 3.0
# How often a worker within an epoch says that it is alive.
_SIGN_SECONDS = 5.0
# A worker that holds this much more memory (MB) than after its first run is replaced by a new process.
MAX_GROWTH_MB = 500.0
# The exit status of a worker that ran out of memory: it is replaced, as little of it can be relied on.
_OUT_OF_MEMORY = 77

FAILURES: dict[str, type[Exception]] = {"failed": RunFailed, "diverged": RunDiverged, "machine": MachineError}


def converse(
    exchange: Callable[[Any], Any], job: Any, on_event: Callable[[Event], Decision], stop: threading.Event
) -> tuple[str, Any]:
    """Have a job done by a worker, answer its events and return its last message: `finished`, or a kind of FAILURES.

    `exchange` sends a message to the worker, or nothing if it is None, and returns its next one.
    """
    kind, content = exchange(job)
    while kind in ("event", "alive"):
        decision = on_event(content) if kind == "event" else None
        kind, content = exchange("stop" if decision and stop.is_set() else decision)
    return kind, content


class LocalWorker:
    """One warm process on its own cores; see Worker."""

    def __init__(
        self, index: int, trainer: Trainer, cores: tuple[int, ...], threads: int, patience: Patience, neighbours: int
    ) -> None:
        self.index, self.trainer, self.cores, self.threads = index, trainer, cores, threads
        self.patience, self.neighbours = patience, neighbours
        self.memory_mb: list[float] = []
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, self.trainer, self.cores, self.threads), name="digitcnn-worker", daemon=True
        )
        # What ends the owner is blocked in the child from its first instant on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signals.ENDING)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self.memory_mb = []

    def wait_ready(self) -> bool:
        """Start a new process if the last one is gone or has grown."""
        grown = self.memory_mb and self.memory_mb[-1] > self.memory_mb[0] + MAX_GROWTH_MB
        if grown or not self.process.is_alive():
            self.close()
            self._start()
        return True

    def run(self, job: Any, on_event: Callable[[Event], Decision], stop: threading.Event) -> RunFinished:
        """Do a job; see Worker."""
        self.wait_ready()
        self.oom_kills = training.oom_kills()
        try:
            kind, content = converse(lambda message: self._exchange(message, stop), job, on_event, stop)
        except BaseException:
            # The process is in the middle of its run, and would take the next job for an answer.
            self.process.kill()
            self.process.join()
            raise
        if kind in FAILURES:
            raise FAILURES[kind](content)
        finished: RunFinished = content[0]
        self.memory_mb.append(content[1])
        return finished

    def _exchange(self, message: Any, stop: threading.Event) -> Any:
        """Send something to the worker, if there is anything; return its next message. Raises WorkerDied."""
        wait, ended = Wait(f"worker {self.index}", self.patience, stop), ""
        try:
            if message is not None:
                self.connection.send(message)
            while not self.connection.poll(0.1):
                ended = ended or wait.given_up()
                if ended:
                    self.process.kill()
            wait.answered()
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(ended) if ended else self._death() from error

    def _death(self) -> WorkerDied:
        self.process.join(_EXIT_SECONDS)
        code = self.process.exitcode
        if code == -signal.SIGKILL and training.oom_kills() > self.oom_kills:
            memory = max(self.memory_mb, default=0.0)
            each = f" of {memory:,.0f} MB" if memory else ""
            fewer = f"workers.count={self.neighbours - 1}" if self.neighbours > 1 else "a smaller training.batch_size"
            return WorkerDied(
                f"killed, probably out of memory: {format_count(self.neighbours, 'worker')}{each} on "
                f"{training.usable_memory_mb():,.0f} MB; try {fewer}"
            )
        return WorkerDied(f"its worker process ended ({_exit_reason(code)})", code == -signal.SIGKILL)

    def close(self) -> None:
        """End the process, without waiting for a run in it."""
        self.connection.close()
        # The system may have refused to start one.
        if self.process.pid is not None:
            self.process.kill()
            self.process.join()


def _exit_reason(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return signal.Signals(-code).name
    return "out of memory" if code == _OUT_OF_MEMORY else f"exit status {code}"


class LocalPool:
    """Some worker processes on this machine, each with its share of the cores; see Pool."""

    def __init__(self, trainer: Trainer, workers: int, threads: int, patience: float = 120.0) -> None:
        training.check_limits(workers, threads)
        self.stop, self.finished = threading.Event(), threading.Event()
        self.patience = Patience(patience)
        self.workers = [
            LocalWorker(index, trainer, share, threads, self.patience, workers)
            for index, share in enumerate(core_shares(workers))
        ]

    def arrivals(self) -> Iterator[Worker]:
        """Yield the workers: all are here from the start."""
        yield from self.workers

    def kill(self) -> None:
        """End all worker processes at once."""
        for worker in self.workers:
            worker.process.kill()

    def close(self) -> None:
        """End all worker processes."""
        for worker in self.workers:
            worker.close()


def make_pool(config: WorkersConfig, trainer: Trainer, run: RunConfig, workers: int, threads: int) -> Pool:
    """Return a pool of so many workers, for runs with the data and the backend of one. Raises as RayPool does."""
    if isinstance(config, LocalWorkers):
        return LocalPool(trainer, workers, threads, parse_duration(config.patience))
    # Ray takes a second to import, and need not be installed.
    from digitcnn.runner.cluster import RayPool

    return RayPool(trainer, config, run, threads, workers)


def _serve(owner: connection.Connection, trainer: Trainer, cores: tuple[int, ...], threads: int) -> None:
    """Serve jobs from the owner until it is gone: the whole life of a worker process."""
    # Ctrl-C reaches every process of a terminal, SIGTERM often all of a job; the owner decides what they mean.
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)
    output.survive_readers()
    threading.Thread(target=_end_with_owner, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    try:
        try:
            trainer.prepare(threads)
        except Exception as error:
            # The first job's end; whatever is wrong, another process would fare no better.
            owner.recv()
            owner.send(("machine", f"a worker cannot begin: {str(error) or type(error).__name__}"))
            return
        serve_jobs(owner, trainer)
    except MemoryError:
        os._exit(_OUT_OF_MEMORY)
    except (EOFError, ConnectionError):
        return  # The owner is gone, and the thread above has not noticed yet.


class Owner(Protocol):
    """The owner as a worker sees it: the end of a pipe, or the queues of an actor."""

    def send(self, message: Any, /) -> None: ...

    def recv(self) -> Any: ...


def serve_jobs(owner: Owner, trainer: Trainer) -> None:
    """Do the owner's jobs with a prepared trainer, endlessly. Raises a job's MemoryError, and what a lost pipe does."""
    said = time.monotonic()

    def say_alive(epoch: int, fraction: float) -> None:
        nonlocal said
        if time.monotonic() - said > _SIGN_SECONDS:
            owner.send(("alive", (epoch, fraction)))
            said = time.monotonic()

    def ask(event: Event) -> Decision:
        owner.send(("event", event))
        decision: Decision = owner.recv()
        return decision

    while True:
        job = owner.recv()
        try:
            finished = answer_events(trainer.run(job, say_alive), ask)
            owner.send(("finished", (finished, training.resident_memory_mb())))
        except MemoryError:
            raise
        except MachineError as error:
            owner.send(("machine", str(error)))
        except OSError as error:
            owner.send(("machine", f"{error}; {RECORDS_SAFE}"))
        except (ConfigError, TrainingDiverged) as error:
            owner.send(("diverged" if isinstance(error, TrainingDiverged) else "failed", str(error)))
        except Exception as error:
            # TensorFlow's own error for it, by its name: this module does not import TensorFlow.
            if type(error).__name__ == "ResourceExhaustedError":
                raise MemoryError from error
            owner.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def _end_with_owner() -> None:
    """End this process when its owner is gone, also in the middle of an epoch."""
    owner = multiprocessing.parent_process()
    if owner is not None:
        connection.wait([owner.sentinel])
        os._exit(1)
