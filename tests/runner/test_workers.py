"""The number of a pool's workers, and what decides it."""

from __future__ import annotations

import _thread
import contextlib
import importlib.util
import re
import threading

import pytest

from digitcnn import training
from digitcnn.config import LocalWorkers, RayWorkers, RunConfig, WorkersConfig
from digitcnn.errors import ConfigError
from digitcnn.runner import Job, LocalPool, Worker, plan_workers, run_workers, threads_per_worker, worker_count
from tests.support.trainers import InstantTrainer


@pytest.mark.parametrize(
    ("wanted", "jobs", "count"),
    [
        (3, 5, (3, "as workers.count says")),
        (3, 3, (3, "as workers.count says")),
        (3, 2, (2, "2 runs are left")),
        (3, 1, (1, "1 run is left")),
        (3, 0, (1, "0 runs are left")),
        (1, 0, (1, "as workers.count says")),
    ],
)
def test_worker_count_says_what_decided_it(wanted: int, jobs: int, count: tuple[int, str]) -> None:
    assert worker_count(wanted, jobs, "run") == count


def test_worker_count_is_what_the_machine_has_room_for() -> None:
    workers, limit = worker_count(None, 10_000)
    assert 1 <= workers <= training.available_cores()
    assert re.fullmatch(r"\d+ cores?|[\d,]+ MB free memory, 1,100 MB a worker", limit)


@pytest.mark.parametrize(
    ("config", "planned"),
    [
        (LocalWorkers(count=2), (2, threads_per_worker(2), "as workers.count says")),
        (RayWorkers(count=3, cpus=2), (3, 2, "3 workers of 2 threads: on a Ray cluster")),
        (RayWorkers(count=9), (5, 1, "5 workers of 1 thread: on a Ray cluster")),
        (RayWorkers(max=4), (4, 1, "up to 4 workers of 1 thread: as many as the Ray cluster has CPUs free")),
        (RayWorkers(), (5, 1, "up to 5 workers of 1 thread: as many as the Ray cluster has CPUs free")),
    ],
)
def test_plan_workers_says_how_many_and_why(config: WorkersConfig, planned: tuple[int, int, str]) -> None:
    workers, threads, text = plan_workers(config, 5, 5)
    assert (workers, threads) == planned[:2]
    assert text.endswith(planned[2])


def test_plan_workers_gives_the_last_job_the_threads_of_all() -> None:
    workers, threads, text = plan_workers(LocalWorkers(count=2), 20, 1)
    assert (workers, threads) == (1, threads_per_worker(2))
    assert text.endswith("1 trial is left")


def test_run_workers_ends_at_once_when_it_is_interrupted(small_config: RunConfig) -> None:
    """Given a run of minutes, and Ctrl-C where no signal is handled."""
    job = Job(small_config.replace({"training.epochs": 10_000}))

    def loop(worker: Worker) -> None:
        worker.run(job, lambda event: "continue", pool.stop)

    with contextlib.closing(LocalPool(InstantTrainer(0.01), 1, 1)) as pool:
        threading.Timer(1.0, _thread.interrupt_main).start()
        with pytest.raises(KeyboardInterrupt):
            run_workers(pool, loop)
        assert pool.stop.is_set()


def test_plan_workers_asks_for_ray_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ray" else installed(name))
    with pytest.raises(ConfigError, match=r"^workers=ray: needs Ray, .*; pip install 'digitcnn\[ray\]'$"):
        plan_workers(RayWorkers(), 5, 5)
    assert plan_workers(LocalWorkers(count=1), 5, 5)[0] == 1


def test_threads_of_all_workers_are_no_more_than_the_cores() -> None:
    cores = training.available_cores()
    assert threads_per_worker(1) == cores
    assert threads_per_worker(cores) == 1
    assert threads_per_worker(cores + 1) == 1
