"""Measure how a study on a Ray cluster grows: events and trials a second, and what a trial costs its owner.

    python -m experiments.benchmarks.cluster      about eight minutes; prints a table

Needs `digitcnn[ray]`. One node on this machine holds all actors, whose trainer takes no time: what is measured is Ray's
messages and the owner's bookkeeping, not training.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from digitcnn import runner, training
from digitcnn.config import RayWorkers, RunConfig, SweepConfig, load_config
from digitcnn.errors import MachineError
from digitcnn.processor import cpu_model
from digitcnn.records import Metric
from digitcnn.runner import Job, make_pool
from digitcnn.values import EpochMetrics, Events, RunFinished, RunStarted
from experiments.benchmarks.study_timing import FirstEpoch

_ADDRESS = "127.0.0.2:6399"
_ACTORS = (1, 2, 4, 8, 16)
_EVENTS, _TRIALS = 4000, 120
# An event at the beginning of a run, one after each of the article's 10 epochs, and the end.
_EPOCHS = 10
# A saved model is the article's network, 844 thousand weights.
_MODEL = {"MLmodel": b"flavors: {}\nrun_id: ''\n", "data/model.keras": bytes(3_400_000)}
_TRIAL_SECONDS = 60


@dataclass(frozen=True)
class InstantTrainer:
    """Yields a run's events at once, when so many processes are prepared as are measured."""

    folder: Path
    processes: int

    def prepare(self, threads: int) -> None:
        """Count this process."""
        (self.folder / str(os.getpid())).touch()

    def run(self, job: Job | int, on_progress: Callable[[int, float], None]) -> Events:
        """Yield the events of a run; a job that is a number has so many epochs and no data."""
        while len(list(self.folder.iterdir())) < self.processes:
            time.sleep(0.1)
        if isinstance(job, int):
            yield RunStarted({}, "")
        else:
            yield RunStarted(training.describe_environment(1), runner.check_run(job.config).sha256)
        epochs = job if isinstance(job, int) else job.config.training.epochs
        for epoch in range(1, epochs + 1):
            yield EpochMetrics(epoch, 0.1, 0.9, 0.1, 0.9, 1.0, 1.0)
        summary = {Metric.VALIDATION_ACCURACY: 0.9, Metric.CPU_SECONDS: 0.0}
        yield RunFinished("completed", epochs, summary, "", "", {}, {} if isinstance(job, int) else _MODEL)


@contextlib.contextmanager
def _cluster(cpus: int) -> Iterator[RayWorkers]:
    """Yield the workers' config of a cluster of one node with so many CPUs."""
    host, port = _ADDRESS.split(":")
    options = ["--head", "--block", f"--node-ip-address={host}", f"--port={port}", f"--num-cpus={cpus}"]
    options += ["--include-dashboard=false", "--disable-usage-stats"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as node:
        try:
            time.sleep(15)
            yield RayWorkers(address=_ADDRESS, count=cpus)
        finally:
            # Ends what it has started too.
            node.terminate()
            node.wait(60)


def events_a_second(workers: RayWorkers) -> float:
    """Return the events a second that this process gets from all actors and answers, in runs of many epochs."""
    actors, times = int(workers.count or 0), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        trainer = InstantTrainer(Path(folder), actors)
        with contextlib.closing(make_pool(workers, trainer, RunConfig(), actors, 1)) as pool:
            ready = threading.Barrier(actors)

            def loop(worker: runner.Worker) -> None:
                worker.wait_ready()
                ready.wait()
                worker.run(_EVENTS // actors, note, pool.stop)

            def note(event: Any) -> Any:
                times.append(time.perf_counter())
                return "continue"

            runner.run_workers(pool, loop)
    return len(times) / (times[-1] - times[0])


class _Ends(FirstEpoch):
    """A display that notes when each trial ended, and the CPU time of this process by then (s)."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def trial_ended(self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str) -> None:
        self.ends.append((time.perf_counter(), time.process_time()))


def trials(workers: RayWorkers) -> tuple[float, float]:
    """Return the trials a second of a study, and the CPU seconds that a trial costs this process."""
    actors = int(workers.count or 0)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryDirectory() as marks:
        # The seed changes nothing that is measured here, and makes every trial another one.
        study = {"name": "growth", "objective": Metric.VALIDATION_ACCURACY, "sampler": "random", "pruner": "none"}
        config = load_config(
            SweepConfig,
            {
                "training": {"epochs": _EPOCHS},
                "tracking": {"root": folder},
                "workers": workers.model_dump(),
                "study": study | {"trials": _TRIALS, "space": {"training": {"seed": {"low": 0, "high": 2**31}}}},
            },
        )
        shown = _Ends()
        runner.run_sweep(runner.plan_sweep(config), shown, InstantTrainer(Path(marks), actors))
    # The first trials wait for all actors.
    (began, cpu_began), (ended, cpu_ended) = shown.ends[actors], shown.ends[-1]
    counted = len(shown.ends) - 1 - actors
    return counted / (ended - began), (cpu_ended - cpu_began) / counted


def main() -> None:
    """Print the table: a row for each number of actors."""
    logging.getLogger("digitcnn").setLevel(logging.ERROR)
    print(f"{cpu_model()}, {training.available_cores()} cores for the owner, Ray and all actors")
    print("actors  events/s  trials/s  owner's CPU ms a trial  workers fed at 60 s a trial")
    for actors in _ACTORS:
        with _cluster(actors) as workers:
            try:
                events = events_a_second(workers)
                rate, cost = trials(workers)
            except MachineError as error:
                sys.exit(f"error: {error}")
        fed = _TRIAL_SECONDS / cost
        print(f"{actors:>6}{events:>10,.0f}{rate:>10.1f}{1000 * cost:>24,.0f}{fed:>29,.0f}", flush=True)


if __name__ == "__main__":
    main()
