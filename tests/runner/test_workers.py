"""The number of a pool's workers, and what decides it."""

from __future__ import annotations

import re

import pytest

from digitcnn import training
from digitcnn.runner import threads_per_worker, worker_count


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


def test_threads_of_all_workers_are_no_more_than_the_cores() -> None:
    cores = training.available_cores()
    assert threads_per_worker(1) == cores
    assert threads_per_worker(cores) == 1
    assert threads_per_worker(cores + 1) == 1
