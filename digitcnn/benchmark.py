"""Measurements of this project beside its peers: both sides alternate in one run, on warm workers."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from digitcnn import environment, sweep, tracking
from digitcnn.config import Count, RunConfig, SweepConfig, load
from digitcnn.errors import MachineError
from digitcnn.space import Space
from digitcnn.timing import Timing, flops_per_image
from digitcnn.training import Decision, EpochMetrics
from digitcnn.workers import Job, Outcome, Pool

Row = Literal["a", "b", "c", "d", "e", "f", "g", "h"]
_GRID_BATCH_SIZES = (32, 125, 250, 500, 1000)
_GRID_FILTERS = ((16, 32), (32, 64), (64, 128))
# Images of an epoch at each point of row f: long enough for 5 batches of 1,000.
_GRID_IMAGES = 5000
_STUDY_TRIALS, _STUDY_EPOCHS = 8, 2


class BenchmarkConfig(RunConfig):
    """Which rows are measured, how often, and on how much."""

    rows: list[Row]
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    images: Count = 20_000
    trials: list[Count]


@dataclass(frozen=True)
class Measurement:
    """One line of the table: a value per round, or a ratio of two sides that alternated."""

    row: str
    what: str
    unit: str
    values: list[float]
    goal: str = ""
    ours: list[float] | None = None
    theirs: list[float] | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def markdown(self) -> str:
        """A line of the Markdown table."""
        sides = ""
        if self.ours and self.theirs:
            sides = f"{_short(statistics.median(self.ours))} against {_short(statistics.median(self.theirs))}"
        spread = f"{_short(min(self.values))} to {_short(max(self.values))}, n = {len(self.values)}"
        return (
            f"| {self.row} | {self.what} | {sides} | **{_short(self.median)} {self.unit}** ({spread}) | {self.goal} |"
        )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def measure(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    """Measures the rows that the config names, in their order."""
    measured: list[Measurement] = []
    rows: dict[str, Callable[[BenchmarkConfig, Callable[[str], None]], list[Measurement]]] = {
        "abc": _epochs,
        "d": _whole_run,
        "e": _whole_study,
        "f": _grid,
        "g": _cold_worker,
        "h": _bookkeeping,
    }
    for names, function in rows.items():
        if set(names) & set(config.rows):
            found = [each for each in function(config, say) if each.row[0] in config.rows]
            for each in found:
                say(each.markdown())
            measured += found
    return measured


def _all(pool: Pool, config: RunConfig, task: str, images: int) -> float:
    """The rates of all workers of a pool at the same time, added up."""
    job = Job(config, {"task": task, "images": str(images)}, "")
    with ThreadPoolExecutor(len(pool.workers)) as threads:
        outcomes = threads.map(lambda w: w.run(job, lambda _: "stop", threading.Event()), pool.workers)
        return float(sum(outcome.summary["rate"] for outcome in outcomes))


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[Pool]:
    pool = Pool(Timing(), workers, None)
    try:
        yield pool
    finally:
        pool.close()


def _run(config: BenchmarkConfig, **training: Any) -> RunConfig:
    """The run that is timed: the benchmark's data, model and training with other values."""
    base = RunConfig(data=config.data, model=config.model, training=config.training, tracking=config.tracking)
    return base.replace({f"training.{key}": value for key, value in training.items()})


def _epochs(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    cores = environment.available_cores()
    compiled, keras_run = _run(config, engine="compiled"), _run(config, engine="keras")
    rates: dict[str, list[float]] = {key: [] for key in ("keras", "compiled", "workers", "peak", "worker_peak")}
    with _pool(1) as whole, _pool(1) as reference, _pool(cores) as single:
        for number in range(config.rounds):
            say(f"rows a, b, c: round {number + 1} of {config.rounds}")
            rates["keras"].append(_all(reference, keras_run, "keras", config.images))
            rates["peak"].append(_all(whole, compiled, "sgemm", config.images))
            rates["compiled"].append(_all(whole, compiled, "compiled", config.images))
            rates["worker_peak"].append(_all(single, compiled, "sgemm", config.images))
            rates["workers"].append(_all(single, compiled, "compiled", config.images))
    flops = flops_per_image(compiled) / 1e9
    fit = rates["keras"]

    def share(images: list[float], peak: list[float]) -> list[float]:
        return [100 * rate * flops / gflops for rate, gflops in zip(images, peak, strict=True)]

    return [
        _ratio("a", "images/s of an epoch on all cores, compiled against Keras fit", rates["compiled"], fit, "2.5 x"),
        _ratio(
            "b",
            f"images/s of {cores} one-core workers together against Keras fit on all cores",
            rates["workers"],
            fit,
            "3 x",
        ),
        Measurement("c", "of the matrix-product peak: (a)", "%", share(rates["compiled"], rates["peak"]), "60 %"),
        Measurement("c", "of the matrix-product peak: (b)", "%", share(rates["workers"], rates["worker_peak"]), "60 %"),
        Measurement("c", "of the matrix-product peak: Keras fit", "%", share(fit, rates["peak"])),
    ]


def _ratio(row: str, what: str, ours: list[float], theirs: list[float], goal: str) -> Measurement:
    values = [our / their for our, their in zip(ours, theirs, strict=True)]
    return Measurement(row, what, "x", values, goal, ours, theirs)


def _grid(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    found = []
    for filters in _GRID_FILTERS:
        for batch_size in _GRID_BATCH_SIZES:
            values = {"batch_size": batch_size}
            base = _run(config, **values)
            networks = {"model.conv1_filters": filters[0], "model.conv2_filters": filters[1]}
            ours, theirs = [], []
            with _pool(1) as whole, _pool(1) as reference:
                for _ in range(config.rounds):
                    theirs.append(_all(reference, base.replace(networks), "keras", _GRID_IMAGES))
                    compiled = base.replace(networks | {"training.engine": "compiled"})
                    ours.append(_all(whole, compiled, "compiled", _GRID_IMAGES))
            what = f"images/s, filters {filters[0]}-{filters[1]}, batch size {batch_size}, against Keras fit"
            found.append(_ratio("f", what, ours, theirs, "1 x"))
            say(found[-1].markdown())
    return found


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _command(name: str, *arguments: str) -> float:
    """Runs a file of experiments/ to its end and returns the seconds it took."""
    script = Path(sys.argv[0]).absolute().parent / f"{name}.py"
    began = time.perf_counter()
    ended = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, env=_clean_environment(), check=False
    )
    if ended.returncode:
        raise MachineError(f"{name} {' '.join(arguments)} failed: {ended.stderr.strip().splitlines()[-1:]}")
    return time.perf_counter() - began


def _clean_environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def _whole_run(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    shares = []
    for number in range(min(config.rounds, 3)):
        say(f"row d: round {number + 1}")
        with _folder() as folder:
            seconds = _command("train", f"tracking.root={folder}")
            store = tracking.open_store(config.tracking.model_copy(update={"root": str(folder)}))
            (run,) = store.client.search_runs([store.experiment_id])
            epochs = store.client.get_metric_history(run.info.run_id, "epoch_seconds")
            shares.append(100 * (1 - sum(epoch.value for epoch in epochs) / seconds))
    return [Measurement("d", "of a whole recorded run of 10 epochs is not epochs", "%", shares, "at most 10 %")]


def _whole_study(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    ours, theirs = [], []
    for number in range(config.rounds):
        say(f"row e: round {number + 1} of {config.rounds}")
        with _folder() as folder:
            theirs.append(
                _command("idiomatic", str(_STUDY_TRIALS), str(_STUDY_EPOCHS), str(config.images), "10000", str(folder))
            )
        with _folder() as folder:
            ours.append(
                _command(
                    "sweep",
                    f"tracking.root={folder}",
                    f"study.trials={_STUDY_TRIALS}",
                    f"training.epochs={_STUDY_EPOCHS}",
                    f"data.train_size={config.images}",
                    "study.space.training.epochs=null",
                    "study.pruner=none",
                )
            )
    # Seconds: the ratio is theirs to ours.
    values = [their / our for our, their in zip(ours, theirs, strict=True)]
    what = f"seconds of a study of {_STUDY_TRIALS} trials x {_STUDY_EPOCHS} epochs on {config.images:,} images, "
    return [Measurement("e", what + "against the idiomatic script", "x", values, "5 x", ours, theirs)]


def _cold_worker(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    say("row g")
    memory, first = [], []
    for _ in range(min(config.rounds, 3)):
        with _folder() as folder:
            shown = _FirstEpoch()
            plan = sweep.plan(_small_study(config, folder, trials=environment.available_cores(), epochs=1))
            began = time.perf_counter()
            sweep.run(plan, shown)
            first.append(shown.first - began)
            store = tracking.open_store(plan.config.tracking)
            found = store.client.search_runs([store.experiment_id])
            peaks = [run.data.metrics["peak_memory_mb"] for run in found if "peak_memory_mb" in run.data.metrics]
            memory.append(max(peaks) / 1024)
    return [
        Measurement("g", "peak memory of a one-core worker", "GB", memory, "at most 1.2 GB"),
        Measurement("g", "from a cold start of a sweep to the end of its first epoch", "s", first),
    ]


class _FirstEpoch:
    """A display that notes when the first epoch ended."""

    first = 0.0

    def began(self, name: str, total: int, finished: int, workers: int, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None: ...

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        self.first = self.first or time.perf_counter()

    def trial_ended(
        self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
    ) -> None: ...

    def note(self, text: str) -> None: ...


def _small_study(config: BenchmarkConfig, folder: Path, trials: int, epochs: int) -> SweepConfig:
    tree = config.model_dump(exclude={"rows", "rounds", "images", "trials"})
    tree["tracking"] = {"root": str(folder)}
    tree["training"]["epochs"] = epochs
    # The seed changes nothing that is measured here, and makes every trial another one.
    space = {"training": {"seed": {"low": 0, "high": 2**31}}}
    study = {
        "name": "benchmark",
        "objective": "validation_accuracy",
        "pruner": "none",
        "trials": trials,
        "space": space,
    }
    return load(SweepConfig, {**tree, "study": {**study, "sampler": "random"}})


class Instant:
    """A trainer that returns at once, after recording one epoch: what is left is the bookkeeping."""

    def prepare(self, threads: int) -> None:
        pass

    def run(self, job: Job, on_epoch: Callable[[EpochMetrics], Decision]) -> Outcome:
        with tracking.run(job.config, job.tags, job.run_id) as run:
            metrics = EpochMetrics(1, 0.1, 0.9, 0.1, 0.9, 1.0, 1.0)
            run.log_epoch(metrics)
            on_epoch(metrics)
            run.ending = "completed"
        return Outcome("completed", 1, {"validation_accuracy": 0.9, "cpu_seconds": 0.0})


def _bookkeeping(config: BenchmarkConfig, say: Callable[[str], None]) -> list[Measurement]:
    found = []
    with _folder() as folder:
        for recorded in sorted(config.trials):
            say(f"row h: up to {recorded} trials")
            _instant(config, folder, recorded)
            seconds = []
            for number in range(config.rounds):
                measured: list[float] = []
                _instant(config, folder, recorded + 20 * (number + 1), measured)
                seconds.append(1000 * statistics.median(measured))
            found.append(Measurement("h", f"bookkeeping of a trial after {recorded:,} recorded ones", "ms", seconds))
    return found


def _instant(config: BenchmarkConfig, folder: Path, trials: int, seconds: list[float] | None = None) -> Space:
    """Brings the study to its total with trials that take no time; adds the seconds between their ends."""

    class Ends(_FirstEpoch):
        last: float | None = None

        def trial_ended(
            self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str
        ) -> None:
            now = time.perf_counter()
            if seconds is not None and self.last is not None:
                seconds.append(now - self.last)
            self.last = now

    plan = sweep.plan(_small_study(config, folder, trials, epochs=1))
    sweep.run(plan, Ends(), Instant())
    return plan.space


def write(measured: list[Measurement], config: BenchmarkConfig) -> Path:
    """Writes benchmark.json and benchmark.md below the records folder and returns the latter's path."""
    folder = config.tracking.folder / "reports" / "benchmark"
    folder.mkdir(parents=True, exist_ok=True)
    described = environment.describe(environment.available_cores())
    content = {"environment": described, "measurements": [asdict(each) for each in measured]}
    (folder / "benchmark.json").write_text(json.dumps(content, indent=2))
    path = folder / "benchmark.md"
    path.write_text(markdown(measured))
    return path


def markdown(measured: list[Measurement]) -> str:
    """The table, with the machine it was measured on."""
    versions = environment.package_versions()
    machine = f"{environment.cpu_model()}, {environment.available_cores()} cores, Python {platform.python_version()}"
    lines = [
        "| row | what | ours against theirs (medians) | median (min to max) | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [each.markdown() for each in measured]
    return "\n".join([*lines, "", f"{machine}, TensorFlow {versions['tensorflow']}, Keras {versions['keras']}.", ""])
