"""The processes on the nodes: an actor for each worker, and the description of a node.

An actor does a worker's jobs in a thread of its own; its one method, `exchange`, hands its owner that thread's next
message and brings it the owner's answer.
"""

import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from digitcnn import training
from digitcnn.runner.pool import Trainer
from digitcnn.runner.workers import serve_jobs

# How long an exchange waits for a message before it says that there is none.
_EXCHANGE_SECONDS = 5.0


class Actor:
    """The far side of a worker: a process that Ray starts on a node."""

    def __init__(self, trainer: Trainer, threads: int, data: tuple[str, Mapping[str, Any]]) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        training.provide_arrays(*data)
        threading.Thread(target=_end_with_node, daemon=True).start()
        # One thread for all: Keras keeps some of its state for each thread, and Ray may change its own.
        threading.Thread(target=self._work, args=(trainer, threads), daemon=True).start()

    def _work(self, trainer: Trainer, threads: int) -> None:
        try:
            trainer.prepare(threads)
        except Exception as error:
            self.send(("broken", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
            return
        self.send(("ready", f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"))
        try:
            serve_jobs(self, trainer)
        except MemoryError:
            self.send(("memory", None))

    def send(self, message: Any) -> None:
        """Keep a message for the owner."""
        self.outbox.put(message)

    def recv(self) -> Any:
        """Return the next of what the owner sent."""
        return self.inbox.get()

    def exchange(self, sent: Any = None) -> Any:
        """Hand on what the owner sent; return the next message for it, or None if there is none for some seconds."""
        if sent is not None:
            self.inbox.put(sent)
        try:
            return self.outbox.get(timeout=_EXCHANGE_SECONDS)
        except queue.Empty:
            return None


def _end_with_node() -> None:
    """End this process when the process of its node that started it is gone: nobody would get its result."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def node_facts() -> Callable[[list[str]], dict[str, str]]:
    """Return a function of package names: what a node must have as the owner has it, by its name.

    Ray carries a function inside a function to the nodes as a value, so that it runs where digitcnn is not installed.
    """

    def describe(packages: list[str]) -> dict[str, str]:
        import hashlib
        import importlib.util
        import os
        import platform
        from importlib import metadata
        from pathlib import Path

        facts = {"Python": ".".join(platform.python_version_tuple()[:2])}
        for name in packages:
            try:
                facts[name] = metadata.version(name)
            except metadata.PackageNotFoundError:
                facts[name] = ""
        found = importlib.util.find_spec("digitcnn")
        files = [] if found is None else sorted(Path(str(found.origin)).parent.rglob("*.py"))
        facts["digitcnn's files"] = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
        facts["authentication"] = os.environ.get("RAY_AUTH_MODE", "").lower()
        return facts

    return describe
