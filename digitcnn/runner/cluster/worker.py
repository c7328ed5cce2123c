"""A worker on the cluster as its owner sees it: an actor, and the next one when that is gone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import ray
from ray import exceptions

from digitcnn.errors import RECORDS_SAFE, MachineError
from digitcnn.runner.pool import Wait, WorkerDied
from digitcnn.runner.workers import FAILURES, MAX_GROWTH_MB, converse
from digitcnn.values import Decision, Event, RunFinished

if TYPE_CHECKING:
    from digitcnn.runner.cluster.pool import RayPool

# How often the owner looks for a reason not to wait for a worker any longer.
_POLL_SECONDS = 0.5
# Actors that fail so often while they start are not to blame: their node is.
_MAX_FAILED_STARTS = 3


class RayWorker:
    """One actor on some node of the cluster, and the next one when it is gone; see Worker."""

    def __init__(self, index: int, pool: RayPool) -> None:
        self.index, self.pool = index, pool
        self.actor: Any = None
        self.ready = False
        self.node = "its node"
        self.memory_mb: list[float] = []
        self.failed_starts = 0
        self.pending: Any = None

    def wait_ready(self) -> bool:
        """Wait for an actor that is placed and has imported Keras; False when the work is over before there is one."""
        while not self.is_ready(_POLL_SECONDS):
            if self.pool.over():
                self.end()
                return False
        return True

    def is_ready(self, timeout: float = 0.0) -> bool:
        """Return True if the actor can take a job, asking Ray for one if there is none. Raises MachineError."""
        self.pool.check()
        if self.ready:
            return True
        try:
            if self.actor is None:
                with self._connected():
                    self.actor = self.pool.new_actor()
                self._send(None)
            message = self._message(timeout)
        except exceptions.RayError as error:
            self.end()
            self.pool.check()
            self._failed_start(_death(error, self.node))
            return False
        if message is None:
            return False
        kind, content = message
        if kind != "ready":
            self.end()
            self._failed_start(WorkerDied(content))
            return False
        self.node, self.ready, self.failed_starts = content, True, 0
        return True

    def _failed_start(self, death: WorkerDied) -> None:
        # A node that dies is no reason to doubt the others.
        self.failed_starts += not death.killed
        if self.failed_starts == _MAX_FAILED_STARTS:
            raise MachineError(f"a worker cannot start on the cluster: {death}; {RECORDS_SAFE}")

    def run(self, job: Any, on_event: Callable[[Event], Decision], stop: threading.Event) -> RunFinished:
        """Do a job; see Worker."""
        if not self.wait_ready():
            raise WorkerDied("the cluster had no place for its worker", killed=True)
        try:
            kind, content = converse(lambda message: self._exchange(message, stop), job, on_event, stop)
            if kind == "memory":
                raise WorkerDied(f"its worker process on {self.node} ended (out of memory)")
        except BaseException:
            # The actor is in the middle of its run, and would take the next job for an answer.
            self.end()
            raise
        if kind in FAILURES:
            raise FAILURES[kind](f"{content} (on {self.node})" if kind == "machine" else content)
        finished: RunFinished
        finished, memory_mb = content
        self.memory_mb.append(memory_mb)
        if memory_mb > self.memory_mb[0] + MAX_GROWTH_MB:
            self.end()
        return finished

    def _exchange(self, sent: Any, stop: threading.Event) -> Any:
        """Send something to the actor; return its next message. Raises WorkerDied, or MachineError for the cluster."""
        wait = Wait(f"worker {self.index} on {self.node}", self.pool.patience, stop)
        try:
            self._send(sent)
            while (message := self._message(_POLL_SECONDS)) is None:
                ended = wait.given_up()
                if ended or (stop.is_set() and self.pool.killed.is_set()):
                    raise WorkerDied(ended or "it was killed")
        except exceptions.RayError as error:
            self.pool.check()
            raise _death(error, self.node) from None
        wait.answered()
        return message

    def _message(self, timeout: float) -> Any:
        """Return the actor's next message, or None if there is none within so many seconds.

        Raises RayError for the actor, MachineError for the cluster.
        """
        self.pool.check()
        with self._connected():
            done, _ = ray.wait([self.pending], timeout=timeout)
            message = ray.get(self.pending) if done else None
        if done and message is None:
            self._send(None)
        return message

    def _send(self, sent: Any) -> None:
        with self._connected():
            self.pending = self.actor.exchange.remote(sent)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Raise MachineError if what connects this process is gone: this machine's node, or the server for clients."""
        try:
            yield
        except OSError as error:
            self.pool.lose(str(error))
            self.pool.check()

    def end(self) -> None:
        """End the actor, without waiting for a run in it."""
        if self.actor is not None:
            with contextlib.suppress(exceptions.RayError):
                ray.kill(self.actor)
        self.actor = self.pending = None
        self.ready = False
        self.memory_mb = []


def _death(error: exceptions.RayError, node: str) -> WorkerDied:
    """Return the death of a worker as its owner tells of it, in one line; Ray's own words are a paragraph."""
    text = str(error)
    if isinstance(error, exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in text or "low on memory" in text:
        return WorkerDied(f"its worker on {node} was killed by Ray, which found too little memory left there", True)
    if "node has died" in text or "node was terminated" in text:
        return WorkerDied(f"{node} is gone", True)
    if isinstance(error, exceptions.RayActorError) and error.actor_init_failed:
        return WorkerDied(" ".join(text.split())[-300:])
    # Ray does not say how a process ended.
    return WorkerDied(f"its worker process on {node} ended or is out of reach", True)
