"""Ray clusters of several nodes on this machine, each with a loopback address of its own, and trainers for them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from digitcnn.config import DataConfig
from digitcnn.errors import TrainingDiverged
from digitcnn.training import load_splits
from digitcnn.values import EpochMetrics, Events, RunFinished, RunStarted

# Small, as a test's models are.
_STORE_BYTES = 80 * 2**20


class Nodes:
    """A cluster whose head does no work, and some nodes of two CPUs."""

    def __init__(self, nodes: int) -> None:
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False} | self._place(2),
        )
        self.nodes = [self.add(wait=False) for _ in range(nodes)]
        self.cluster.wait_for_nodes()

    def _place(self, number: int) -> dict[str, Any]:
        # 127.0.0.1 is not taken as it is: Ray replaces it by the machine's own address.
        return {"node_ip_address": f"127.0.0.{number}", "object_store_memory": _STORE_BYTES}

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cpus: int = 2, wait: bool = True) -> Any:
        """Start a node; return it."""
        return self.cluster.add_node(wait=wait, num_cpus=cpus, **self._place(3 + len(self.cluster.worker_nodes)))

    def kill(self, node: Any, but: Sequence[psutil.Process] = ()) -> None:
        """Kill a node as a power cut does: all its processes at once, or all but some."""
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        for process in [*raylet.children(recursive=True), raylet]:
            if process not in but:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def kill_head(self) -> None:
        """Kill the head, and what knows of the cluster's state with it."""
        self.kill(self.cluster.head_node)
        for processes in self.cluster.head_node.all_processes.values():
            for process in processes:
                process.process.kill()

    def actors(self) -> list[psutil.Process]:
        """Return the processes of all workers."""
        found = []
        for process in psutil.Process().children(recursive=True):
            # Some of Ray's own end at any time.
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name().startswith("ray::Actor"):
                    found.append(process)
        return found


@contextlib.contextmanager
def ray_cluster(nodes: int) -> Iterator[Nodes]:
    """Yield a cluster; end all its processes afterwards."""
    # The server that the tests' processes are forked from is not the cluster's.
    forkserver.ensure_running()
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    # What an owner sets for itself is not its cluster's; and nothing is sent anywhere.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ.keys() - environment.keys():
            patch.delenv(name)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        began = Nodes(nodes)
    try:
        yield began
    finally:
        began.cluster.shutdown()
        left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True)
class MarkingTrainer:
    """Trains jobs that are words, and leaves a file in a folder for each that begins.

    A job is a number of instant epochs, `hang`, `exit`, `memory`, `fail`, or `load` and the path of a data set.
    """

    folder: Path
    seconds: float = 0.0

    def prepare(self, threads: int) -> None:
        (self.folder / f"prepared-{os.getpid()}").write_text(str(threads))

    def run(self, job: str, on_progress: Callable[[int, float], None]) -> Events:
        (self.folder / f"begun-{time.time_ns()}").write_text(job)
        word, _, value = job.partition(" ")
        yield RunStarted({"pid": os.getpid()}, "data")
        if word == "hang":
            time.sleep(600)
        elif word == "exit":
            os._exit(1)
        elif word == "memory":
            raise MemoryError
        elif word == "fail":
            raise TrainingDiverged("the loss became nan")
        elif word == "load":
            splits = load_splits(DataConfig(path=value, validation_size=100))
            yield RunFinished("completed", 1, {}, splits.sha256, "instant", {}, {})
        epochs = int(word)
        for epoch in range(1, epochs + 1):
            time.sleep(self.seconds)
            decision = yield EpochMetrics(epoch, 1.0, 0.5, 1.0, 0.5, 1.0, 100.0)
            if decision != "continue":
                yield RunFinished("stopped", epoch, {}, "", "instant", {}, {})
        # Larger than what Ray sends without its object store.
        yield RunFinished("completed", epochs, {}, "", "instant", {}, {"weights": bytes(2_000_000)})
