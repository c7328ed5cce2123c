"""A pool of worker processes: each imports Keras once, then trains one run after another for its owner.

The owner sends a config and gets an event per epoch, which it answers with "continue", "prune" or "stop".
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, Literal, Protocol

from digitcnn import training
from digitcnn.config import LocalWorkers, RayWorkers, RunConfig
from digitcnn.errors import RECORDS_SAFE, ConfigError, MachineError, StoreAway, TrainingDiverged
from digitcnn.runner import signals
from digitcnn.values import Decision, EpochMetrics

logger = logging.getLogger(__name__)

# How long a worker may go on with its epoch after it was asked to stop; all of a command's ending is to take 10 s.
_GRACE_SECONDS = 3.0
# A worker that holds this much more memory (MB) than after its first run is replaced by a new process.
_MAX_GROWTH_MB = 500.0


@dataclass(frozen=True)
class Job:
    """One run for a worker: its config, its tags and the id of its MLflow run."""

    config: RunConfig
    tags: Mapping[str, str]
    run_id: str


@dataclass(frozen=True)
class Outcome:
    """The end of a run as its owner sees it: the number of epochs, and the final metrics by name."""

    ending: Literal["completed", "pruned", "stopped"]
    epochs: int
    summary: dict[str, float]


class Trainer(Protocol):
    """The work of a worker process: prepare once with its number of threads, then run one job after another."""

    def prepare(self, threads: int) -> None: ...

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome: ...


# The exit status of a worker that ran out of memory: it is replaced, as little of it can be relied on.
_OUT_OF_MEMORY = 77


class WorkerDied(Exception):
    """The worker process ended before its run did; `killed` if it was by SIGKILL, from outside."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__(f"its worker process ended ({_exit_reason(exit_code)})")
        self.killed = exit_code == -signal.SIGKILL


class RunFailed(Exception):
    """The run failed for its own reason: it would fail again."""


class RunDiverged(RunFailed):
    """The run's loss became NaN or infinite: its parameters are to blame, not the machine."""


_FAILURES: dict[str, type[Exception]] = {"failed": RunFailed, "diverged": RunDiverged, "machine": MachineError}


class Worker:
    """One warm process on its own cores. Not for use by two threads at once."""

    def __init__(self, trainer: Trainer, cores: tuple[int, ...], threads: int) -> None:
        self.trainer, self.cores, self.threads = trainer, cores, threads
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

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision], stop: threading.Event) -> Outcome:
        """Do a job, in a new process if the last one is gone.

        `stop` asks the job to end at its next epoch; the process is killed if that takes too long. Raises WorkerDied,
        RunFailed, or MachineError as the worker raised it.
        """
        if not self.process.is_alive() or self._has_grown():
            self.close()
            self._start()
        try:
            return self._converse(job, on_epoch, stop)
        except (RunFailed, MachineError):
            raise
        except BaseException:
            # The process is in the middle of its run, and would take the next job for an answer.
            self.process.kill()
            self.process.join()
            raise

    def _converse(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision], stop: threading.Event) -> Outcome:
        self._send(job)
        while True:
            kind, content = self._receive(stop)
            if kind == "epoch":
                decision = on_epoch(content)
                self._send("stop" if stop.is_set() else decision)
            elif kind == "finished":
                outcome: Outcome
                outcome, memory_mb = content
                self.memory_mb.append(memory_mb)
                return outcome
            else:
                raise _FAILURES[kind](content)

    def _send(self, message: Job | Decision) -> None:
        try:
            self.connection.send(message)
        except OSError as error:
            raise self._death() from error

    def _receive(self, stop: threading.Event) -> Any:
        deadline: float | None = None
        try:
            while not self.connection.poll(0.1):
                if stop.is_set():
                    deadline = deadline or time.monotonic() + _GRACE_SECONDS
                    if time.monotonic() > deadline:
                        self.process.kill()
            return self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._death() from error

    def _death(self) -> WorkerDied:
        self.process.join(_GRACE_SECONDS)
        return WorkerDied(self.process.exitcode)

    def _has_grown(self) -> bool:
        return bool(self.memory_mb) and self.memory_mb[-1] > self.memory_mb[0] + _MAX_GROWTH_MB

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


class Pool:
    """Some workers, each with its share of the cores, handed out one at a time."""

    def __init__(self, trainer: Trainer, workers: int, threads: int) -> None:
        shares = core_shares(workers)
        self.stop = threading.Event()
        self.workers = [Worker(trainer, share, threads) for share in shares]
        self._idle: queue.Queue[int] = queue.Queue()
        for index in range(workers):
            self._idle.put(index)

    @contextlib.contextmanager
    def worker(self) -> Iterator[tuple[int, Worker]]:
        """Wait for an idle worker and hold it while the body runs; yield its number from 0 and the worker."""
        index = self._idle.get()
        try:
            yield index, self.workers[index]
        finally:
            self._idle.put(index)

    @contextlib.contextmanager
    def stopped_by_signals(self) -> Iterator[list[signal.Signals]]:
        """Let a signal inside the body end the workers in order, a second one kill them; yield the list of signals.

        After a signal nobody waits for a store that is away: the process ends as the signal does, with one line.
        """

        def stop() -> None:
            self.stop.set()
            logger.info("stopping: what has run is being recorded")

        def kill() -> None:
            for worker in self.workers:
                worker.process.kill()

        with signals.capture_signals(stop, kill) as received:
            try:
                yield received
            except StoreAway as error:
                if not received:
                    raise
                logger.warning(f"interrupted: {error}")
                signals.end_process(received[0])

    def close(self) -> None:
        """End all worker processes."""
        for worker in self.workers:
            worker.close()


def core_shares(workers: int) -> list[tuple[int, ...]]:
    """Return the cores of each worker: all of them dealt out evenly, or one each, shared, if workers are more."""
    cores = training.usable_cores()
    if workers > len(cores):
        return [(cores[index % len(cores)],) for index in range(workers)]
    return [tuple(cores[index::workers]) for index in range(workers)]


def local_workers(config: LocalWorkers | RayWorkers) -> LocalWorkers:
    """Return the settings of workers on this machine. Raises ConfigError for those of other machines."""
    if isinstance(config, RayWorkers):
        raise ConfigError("workers=ray: there are no workers on other machines yet; use workers=local")
    return config


def worker_count(wanted: int | None, jobs: int) -> int:
    """Return the number of workers for some jobs: as many as wanted, else one per core, but no more than jobs."""
    return min(wanted or len(core_shares(1)[0]), max(jobs, 1))


def threads_per_worker(workers: int) -> int:
    """Return the number of threads that each of some workers has, on cores of its own where there are enough."""
    return len(core_shares(workers)[-1])


def _serve(owner: connection.Connection, trainer: Trainer, cores: tuple[int, ...], threads: int) -> None:
    """Serve jobs from the owner until it is gone: the whole life of a worker process."""
    # Ctrl-C reaches every process of a terminal, SIGTERM often all of a job; the owner decides what they mean.
    for number in signals.ENDING:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_owner, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    trainer.prepare(threads)

    def ask(metrics: EpochMetrics) -> Decision:
        owner.send(("epoch", metrics))
        decision: Decision = owner.recv()
        return decision

    while True:
        try:
            job = owner.recv()
        except EOFError:
            return
        try:
            outcome = trainer.run(job, ask)
            owner.send(("finished", (outcome, training.resident_memory_mb())))
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)
        except MachineError as error:
            owner.send(("machine", str(error)))
        except OSError as error:
            owner.send(("machine", f"{error}; {RECORDS_SAFE}"))
        except TrainingDiverged as error:
            owner.send(("diverged", str(error)))
        except ConfigError as error:
            owner.send(("failed", str(error)))
        except Exception as error:
            # TensorFlow's own error for it, by its name: this module does not import TensorFlow.
            if type(error).__name__ == "ResourceExhaustedError":
                os._exit(_OUT_OF_MEMORY)
            owner.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))


def _end_with_owner() -> None:
    """End this process when its owner is gone, also in the middle of an epoch."""
    owner = multiprocessing.parent_process()
    if owner is not None:
        connection.wait([owner.sentinel])
        os._exit(1)
