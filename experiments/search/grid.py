"""The grid: every configuration of a space with every seed, trained once for the most epochs, and kept as a table."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

from digitcnn import runner, study, training
from digitcnn.config import Backend, SweepConfig, parse_duration
from digitcnn.records import Column, Metric
from digitcnn.values import Decision, EpochMetrics, Event, Events, RunFinished

PATH = Path(__file__).with_name("grid.csv")
EPOCHS = "training.epochs"
# Validation after each epoch, and the CPU seconds of all epochs so far.
MEASURED = (Metric.VALIDATION_ACCURACY, Metric.VALIDATION_LOSS, Metric.CPU_SECONDS)


class SearchConfig(SweepConfig):
    """The study that is replayed and how often, the number of seeds of its grid, and if that is trained."""

    grid: bool = False
    repetitions: Annotated[int, Field(ge=1, le=10_000)] = 100
    seeds: Annotated[int, Field(ge=1, le=100)] = 3


@dataclass(frozen=True)
class Curves:
    """A trainer that yields the epochs of a run, and makes neither pictures nor a model of it."""

    backend: Backend

    def prepare(self, threads: int) -> None:
        """Import Keras."""
        training.import_keras(threads, self.backend)

    def run(self, job: runner.Job, on_progress: Callable[[int, float], None]) -> Events:
        """Yield the metrics of each epoch."""
        config, splits = job.config, runner.check_run(job.config)
        model = training.build_model(config.model, *splits.image_shape, splits.classes, config.training.seed)
        result = yield from training.train(model, splits, config, on_progress)
        yield RunFinished(result.ending, len(result.epochs), {}, result.weights_sha256, result.engine, {}, {})


def read_grid(path: Path = PATH) -> pd.DataFrame:
    """Return the recorded runs, a row per epoch: the searched values, seed, epoch and what was measured.

    Without runs of which a process that was killed left a part.
    """
    table = pd.read_csv(path)
    runs = table.groupby([*(name for name in table.columns if "." in name), Column.SEED])
    whole: pd.DataFrame = table[runs[Column.EPOCH].transform("size") == table[Column.EPOCH].max()]
    return whole


def record_grid(config: SearchConfig, path: Path = PATH) -> str:
    """Train the runs that the table lacks, and add each as soon as it has ended; return how many there are.

    All of a seed come before the next one's, in a random order, so that a part of the table is of use. None begins
    after `study.timeout`.
    """
    space = study.parse_space(config.study.space, config.baseline)
    most = space.pop(EPOCHS).extremes[-1]
    columns = [*space, Column.SEED]
    if not path.exists():
        path.write_text(",".join([*columns, Column.EPOCH, *MEASURED]) + "\n")
    runs = list(_runs(space, config.seeds))
    recorded = set(read_grid(path)[columns].itertuples(index=False, name=None))
    left = iter([run for run in runs if run not in recorded])
    lock, counted, deadline = threading.Lock(), itertools.count(len(recorded) + 1), float("inf")
    if config.study.timeout is not None:
        deadline = time.monotonic() + parse_duration(config.study.timeout)
    baseline = config.baseline.replace({EPOCHS: most})
    workers, threads, _ = runner.plan_workers(config.workers, len(runs), len(runs), "run", baseline.training.threads)

    def work(worker: runner.Worker) -> None:
        while not pool.stop.is_set() and time.monotonic() < deadline:
            with lock:
                run = next(left, None)
            if run is None:
                return
            epochs: list[EpochMetrics] = []

            def keep(event: Event, epochs: list[EpochMetrics] = epochs) -> Decision:
                epochs += [event] if isinstance(event, EpochMetrics) else []
                return "continue"

            values = dict(zip([*space, "training.seed"], run, strict=True))
            if worker.run(runner.Job(baseline.replace(values)), keep, pool.stop).ending == "completed":
                rows = [[*run, each.epoch, *(getattr(each, name) for name in MEASURED)] for each in epochs]
                text = pd.DataFrame(rows).to_csv(header=False, index=False, float_format="%.6g", lineterminator="\n")
                with lock, path.open("a") as file:
                    file.write(text)
                    print(f"{next(counted)} of {len(runs)}: {text.splitlines()[-1]}", flush=True)

    with (
        contextlib.closing(
            runner.make_pool(config.workers, Curves(config.backend), baseline, workers, threads)
        ) as pool,
        runner.stopped_by_signals(pool, path.with_suffix(".stop")),
    ):
        runner.run_workers(pool, work)
    return f"{next(counted) - 1} of {len(runs)} runs are in {path.name}"


def _runs(space: study.Space, seeds: int) -> Iterator[tuple[Any, ...]]:
    """Yield the values and the seed of each run: the seeds one after another, each in a random order."""
    points = list(itertools.product(*(parameter.values for parameter in space.values())))
    for seed in range(1, seeds + 1):
        for point in random.Random(seed).sample(points, len(points)):
            yield (*point, seed)
