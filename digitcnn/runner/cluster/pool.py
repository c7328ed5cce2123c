"""A pool of workers on a Ray cluster: as many as there is room for, more when nodes join."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any

import ray
from ray import exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from digitcnn import training
from digitcnn.config import RayWorkers, RunConfig, parse_duration
from digitcnn.errors import RECORDS_SAFE, ConfigError, MachineError
from digitcnn.runner.cluster.actor import Actor, node_facts
from digitcnn.runner.cluster.connection import CONNECT_SECONDS, answers, connect
from digitcnn.runner.cluster.worker import RayWorker
from digitcnn.runner.pool import Patience, Trainer, Worker

logger = logging.getLogger(__name__)

# How long the head of the cluster may be gone.
_HEAD_SECONDS = 20.0
# How often nodes and free CPUs are counted, and how long nobody is told that there are none.
_COUNT_SECONDS, _NO_WORKER_SECONDS = 5.0, 30.0


class RayPool:
    """Workers on a Ray cluster, up to `jobs` of them, for runs with the data and the backend of one; see Pool.

    Raises ConfigError or MachineError, with one line, if the cluster cannot be used.
    """

    def __init__(self, trainer: Trainer, config: RayWorkers, run: RunConfig, threads: int, jobs: int) -> None:
        self.stop, self.finished, self.killed, self.closed = (threading.Event() for _ in range(4))
        self.config, self.trainer, self.threads, self.jobs = config, trainer, threads, jobs
        self.patience = Patience(parse_duration(config.patience))
        self.workers: list[RayWorker] = []
        # Nodes by their ids; the refused ones with their CPUs.
        self.judged: set[str] = set()
        self.refused: dict[str, float] = {}
        self.packages = list(training.package_versions(run.backend))
        self.head = connect(config.address)
        self.lost = ""
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            self._judge_nodes(refuse=True)
            # In the object store it is sent once to a node, however many workers are there.
            self.data = ray.put((run.data.path, training.read_arrays(run.data)))
        except BaseException:
            self.close()
            raise
        self._actors = ray.remote(num_cpus=config.cpus, max_restarts=0, max_task_retries=0)(Actor)

    def arrivals(self) -> Iterator[Worker]:
        """Yield each worker when it is ready; further ones as nodes join, until no work is left."""
        began, counted, waiting = time.monotonic(), -_COUNT_SECONDS, list[RayWorker]()
        while not self.over():
            self.check()
            if time.monotonic() > counted + _COUNT_SECONDS:
                self._judge_nodes()
                waiting += self._new_workers()
                counted = time.monotonic()
            for worker in [worker for worker in waiting if worker.is_ready()]:
                waiting.remove(worker)
                yield worker
            if began and time.monotonic() > began + _NO_WORKER_SECONDS:
                began = 0.0
                if len(waiting) == len(self.workers):
                    logger.warning(f"waiting for the cluster: no node has {self.config.cpus} CPUs free for a worker")
            self.finished.wait(0.2)

    def over(self) -> bool:
        """Return True when no further worker is to be waited for."""
        return self.stop.is_set() or self.finished.is_set()

    def lose(self, why: str) -> None:
        """Take the cluster for gone from now on."""
        self.lost = self.lost or why

    def check(self) -> None:
        """Raise MachineError if the cluster is gone."""
        if self.lost:
            raise MachineError(
                f"workers.address={self.config.address}: the Ray cluster is gone ({self.lost}); {RECORDS_SAFE}, and "
                "the same command goes on when the cluster is there again"
            )

    def _ask(self, function: Callable[[], Any]) -> Any:
        """Return what a function of Ray's says of the cluster. Raises MachineError if that is gone meanwhile."""
        said: Future[Any] = Future()

        def ask() -> None:
            try:
                said.set_result(function())
            except Exception as error:
                said.set_exception(error)

        # It waits for a head that is gone, and nothing ends it.
        threading.Thread(target=ask, daemon=True).start()
        while not wait([said], timeout=0.5).done:
            self.check()
        return said.result()

    def new_actor(self) -> Any:
        """Return an actor that Ray places on some node, now or when one has room."""
        # Spread: on a node that is not full the workers have its memory bandwidth and caches for themselves.
        options: dict[str, Any] = {"scheduling_strategy": "SPREAD"}
        if self.refused:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(self.refused)})"}
        return self._actors.options(**options).remote(self.trainer, self.threads, self.data)

    def _new_workers(self) -> list[RayWorker]:
        """Return workers for what is free in the cluster, or all `count`: Ray places them when there is room."""
        if self.config.count is not None:
            wanted = self.config.count
        elif any(worker.actor is None or not worker.ready for worker in self.workers):
            # What is free is theirs.
            return []
        else:
            free = self._ask(ray.available_resources).get("CPU", 0.0) - sum(self.refused.values())
            wanted = min(len(self.workers) + int(free // self.config.cpus), self.config.max or self.jobs)
        new = [RayWorker(index, self) for index in range(len(self.workers), min(wanted, self.jobs))]
        self.workers += new
        return new

    def _judge_nodes(self, refuse: bool = False) -> None:
        """Compare the nodes that have joined with this machine; leave out, or refuse, those with other versions."""
        alive = {node["NodeID"]: node for node in self._ask(ray.nodes) if node["Alive"]}
        self.refused = {key: cpus for key, cpus in self.refused.items() if key in alive}
        found = {key: node for key, node in alive.items() if key not in self.judged}
        if not found:
            return
        describe = node_facts()
        own, task = describe(self.packages), ray.remote(num_cpus=0, max_retries=0)(describe)
        asked = {
            key: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(key, soft=False)).remote(self.packages)
            for key in found
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=CONNECT_SECONDS if refuse else _COUNT_SECONDS)
        open_to_all = False
        for key, node in found.items():
            try:
                facts = ray.get(asked[key], timeout=0)
            except exceptions.RayError:
                # It died at once, or is slow: asked again at the next count.
                continue
            self.judged.add(key)
            cpus = node["Resources"].get("CPU", 0.0)
            open_to_all |= facts.pop("authentication") != "token"
            differing = next((name for name in facts if facts[name] != own[name]), None)
            if differing is None or cpus < self.config.cpus:
                continue
            name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            text = f"{name} has {differing} {facts[differing] or 'not at all'}, this machine {own[differing]}"
            if refuse:
                raise ConfigError(f"workers.address={self.config.address}: {text}; install the same there")
            self.refused[key] = cpus
            logger.warning(f"{text}; it gets no workers")
        if refuse and open_to_all:
            logger.warning(
                "the Ray cluster asks for no token: whoever reaches it can run programs on its nodes; "
                "RAY_AUTH_MODE=token protects it, see docs/clusters.md"
            )

    def _watch(self) -> None:
        """Notice that the head of the cluster is gone: calls to Ray would wait for it."""
        seen = time.monotonic()
        while not self.closed.wait(2.0):
            if answers(self.head):
                seen = time.monotonic()
            elif time.monotonic() > seen + _HEAD_SECONDS:
                self.lose(f"its head, {self.head}, does not answer")
                return

    def kill(self) -> None:
        """End all actors at once: their threads see it, as Ray cannot be called in a signal's handler."""
        self.stop.set()
        self.killed.set()

    def close(self) -> None:
        """End all actors and leave the cluster, which goes on without them."""
        self.finished.set()
        self.closed.set()
        for worker in self.workers if not self.lost else ():
            worker.end()
        ray.shutdown()
