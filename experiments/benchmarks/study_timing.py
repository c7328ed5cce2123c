"""Time whole commands and studies: the benchmark's rows g, h and i."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from digitcnn import runner, tracking, training
from digitcnn.config import SweepConfig, load_config
from digitcnn.errors import MachineError
from digitcnn.records import Metric
from digitcnn.runner import Job
from digitcnn.training import describe_environment
from digitcnn.values import EpochMetrics, Events, RunFinished, RunStarted
from experiments.benchmarks.measurement import BenchmarkConfig, Measurement

logger = logging.getLogger(__name__)

_STUDY_TRIALS, _STUDY_EPOCHS, _STUDY_VALIDATION = 8, 2, 10_000


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _seconds(module: str, *arguments: str) -> float:
    """Run a module to its end and return the seconds it took. Raises MachineError if it fails."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, "-m", module, *arguments]
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise MachineError(f"{module} {' '.join(arguments)} failed: {ended.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began


def whole_study(config: BenchmarkConfig, precisions: Sequence[str]) -> list[Measurement]:
    """Measure row g: the seconds of a study in these precisions against those of the idiomatic script in float32."""
    theirs: list[float] = []
    ours: dict[str, list[float]] = {precision: [] for precision in precisions}
    for number in range(config.rounds):
        logger.info(f"row g: round {number + 1} of {config.rounds}")
        with _folder() as folder:
            theirs.append(
                _seconds(
                    "experiments.benchmarks.idiomatic",
                    *map(str, (_STUDY_TRIALS, _STUDY_EPOCHS, config.images, _STUDY_VALIDATION, folder)),
                )
            )
        for precision, seconds in ours.items():
            with _folder() as folder:
                seconds.append(
                    _seconds(
                        "digitcnn",
                        "sweep",
                        f"tracking.root={folder}",
                        f"study.trials={_STUDY_TRIALS}",
                        f"training.epochs={_STUDY_EPOCHS}",
                        f"training.precision={precision}",
                        f"data.train_size={config.images}",
                        "study.space.training.epochs=null",
                        "study.pruner=none",
                    )
                )
    found = []
    for precision, seconds in ours.items():
        # Seconds: the ratio is theirs to ours.
        values = [their / our for our, their in zip(seconds, theirs, strict=True)]
        what = f"seconds of a study of {_STUDY_TRIALS} trials x {_STUDY_EPOCHS} epochs on {config.images:,} images, "
        what += f"{precision}, against the idiomatic script"
        found.append(Measurement("g", what, "x", values, "5 x", seconds, theirs))
    return found


def one_run(config: BenchmarkConfig) -> list[Measurement]:
    """Measure row h: what a run of 10 epochs takes beside them (%), a worker's peak memory (GB) and its start (s)."""
    shares, memory, first = [], [], []
    for number in range(min(config.rounds, 3)):
        logger.info(f"row h: round {number + 1}")
        with _folder() as folder:
            seconds = _seconds("digitcnn", "train", f"tracking.root={folder}")
            store, (run,) = _recorded(config, folder)
            epochs = store.client.get_metric_history(run.info.run_id, Metric.EPOCH_SECONDS)
            shares.append(100 * (1 - sum(epoch.value for epoch in epochs) / seconds))
        with _folder() as folder:
            shown = FirstEpoch()
            plan = runner.plan_sweep(_small_study(config, folder, trials=training.available_cores()))
            began = time.perf_counter()
            runner.run_sweep(plan, shown)
            first.append(shown.first - began)
            runs = [run.data.metrics for run in _recorded(config, folder)[1]]
            memory.append(max(run.get(Metric.PEAK_MEMORY_MB, 0.0) for run in runs) / 1024)
    return [
        Measurement("h", "of a whole recorded run of 10 epochs is not epochs", "%", shares, "10 %"),
        Measurement("h", "peak memory of a one-core worker", "GB", memory, "0.8 GB"),
        Measurement("h", "from a cold start of a sweep to its first step", "s", first, "12 s"),
    ]


def _recorded(config: BenchmarkConfig, folder: Path) -> tuple[tracking.Store, list[Any]]:
    """Return the records below a folder and their runs."""
    store = tracking.open_store(config.tracking.model_copy(update={"root": str(folder)}))
    return store, list(store.client.search_runs([store.experiment_id]))


class FirstEpoch:
    """A display that notes when the first epoch began."""

    first = 0.0

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        self.first = self.first or time.perf_counter() - metrics.epoch_seconds

    def trial_ended(
        self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
    ) -> None: ...


def _small_study(config: BenchmarkConfig, folder: Path, trials: int) -> SweepConfig:
    tree = config.model_dump(include={"data", "model", "training"})
    tree["tracking"] = {"root": str(folder)}
    tree["training"]["epochs"] = 1
    # The seed changes nothing that is measured here, and makes every trial another one.
    space = {"training": {"seed": {"low": 0, "high": 2**31}}}
    values = {"name": "benchmark", "objective": Metric.VALIDATION_ACCURACY, "sampler": "random", "pruner": "none"}
    return load_config(SweepConfig, {**tree, "study": {**values, "space": space, "trials": trials}})


class Instant:
    """A trainer that returns at once, after one epoch: what is left is the bookkeeping."""

    def prepare(self, threads: int) -> None:
        pass

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        yield RunStarted(describe_environment(1), runner.check_run(job.config).sha256)
        yield EpochMetrics(1, 0.1, 0.9, 0.1, 0.9, 1.0, 1.0)
        summary = {Metric.VALIDATION_ACCURACY: 0.9, Metric.CPU_SECONDS: 0.0}
        yield RunFinished("completed", 1, summary, "", "", {}, {})


def bookkeeping(config: BenchmarkConfig) -> list[Measurement]:
    """Measure row i: the milliseconds of a trial's bookkeeping, by recorded trials."""
    found = []
    with _folder() as folder:
        for recorded in sorted(config.trials):
            logger.info(f"row i: up to {recorded} trials")
            _instant(_small_study(config, folder, recorded))
            seconds = []
            for number in range(config.rounds):
                ends = _instant(_small_study(config, folder, recorded + 20 * (number + 1)))
                seconds.append(1000 * float(np.median(np.diff(ends))))
            found.append(Measurement("i", f"bookkeeping of a trial after {recorded:,} recorded ones", "ms", seconds))
    return found


def _instant(study: SweepConfig) -> list[float]:
    """Bring a study to its total with trials that take no time; return when each ended (s)."""
    ends: list[float] = []

    class Ends(FirstEpoch):
        def trial_ended(
            self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
        ) -> None:
            ends.append(time.perf_counter())

    runner.run_sweep(runner.plan_sweep(study), Ends(), Instant())
    return ends
