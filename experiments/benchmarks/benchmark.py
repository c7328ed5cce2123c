"""Measurements of this project beside its peers: both sides alternate in one run, on warm workers."""

from __future__ import annotations

import contextlib
import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from digitcnn.config import RunConfig
from digitcnn.files import write_atomically
from digitcnn.runner import LocalPool, run_workers, threads_per_worker
from digitcnn.training import available_cores, cpu_model, describe_environment, package_versions
from experiments.benchmarks import study_timing
from experiments.benchmarks.measurement import BenchmarkConfig, Measurement, ratio
from experiments.benchmarks.timing import Task, Timing, TimingJob, flops_per_image

logger = logging.getLogger(__name__)

_GRID_BATCH_SIZES = (32, 125, 250, 500, 1000)
_GRID_FILTERS = ((16, 32), (32, 64), (64, 128))
# Images of an epoch at each point of row f: long enough for 5 batches of 1,000.
_GRID_IMAGES = 5000


def measure(config: BenchmarkConfig) -> list[Measurement]:
    """Measure the rows that the config names, in their order."""
    measured: list[Measurement] = []
    rows: dict[str, Callable[[BenchmarkConfig], list[Measurement]]] = {
        "abc": _epochs,
        "d": study_timing.whole_run,
        "e": study_timing.whole_study,
        "f": _grid,
        "g": study_timing.cold_worker,
        "h": study_timing.bookkeeping,
    }
    for names, function in rows.items():
        if set(names) & set(config.rows):
            found = [each for each in function(config) if each.row[0] in config.rows]
            for each in found:
                logger.info(each.markdown())
            measured += found
    return measured


def _total_rate(pool: LocalPool, config: RunConfig, task: Task, images: int) -> float:
    """Return the sum of the rates of all workers of a pool at work at the same time (images/s or GFLOP/s)."""
    rates: list[float] = []
    job = TimingJob(config, task, images)
    run_workers(pool, lambda w: rates.append(w.run(job, lambda _: "stop", pool.stop).summary["rate"]))
    return sum(rates)


def _pool(workers: int) -> contextlib.closing[LocalPool]:
    return contextlib.closing(LocalPool(Timing(), workers, threads_per_worker(workers)))


def _run(config: BenchmarkConfig, **training: Any) -> RunConfig:
    """Return the run that is timed: the benchmark's data, model and training with other values."""
    base = RunConfig(data=config.data, model=config.model, training=config.training, tracking=config.tracking)
    return base.replace({f"training.{key}": value for key, value in training.items()})


def _epochs(config: BenchmarkConfig) -> list[Measurement]:
    cores = available_cores()
    compiled, keras_run = _run(config, engine="compiled"), _run(config, engine="keras")
    rates: dict[str, list[float]] = {key: [] for key in ("keras", "compiled", "workers", "peak", "worker_peak")}
    with _pool(1) as whole, _pool(1) as reference, _pool(cores) as single:
        for number in range(config.rounds):
            logger.info(f"rows a, b, c: round {number + 1} of {config.rounds}")
            rates["keras"].append(_total_rate(reference, keras_run, "keras", config.images))
            rates["peak"].append(_total_rate(whole, compiled, "sgemm", config.images))
            rates["compiled"].append(_total_rate(whole, compiled, "compiled", config.images))
            rates["worker_peak"].append(_total_rate(single, compiled, "sgemm", config.images))
            rates["workers"].append(_total_rate(single, compiled, "compiled", config.images))
    flops = flops_per_image(compiled) / 1e9
    fit = rates["keras"]

    def share(images: list[float], peak: list[float]) -> list[float]:
        return [100 * rate * flops / gflops for rate, gflops in zip(images, peak, strict=True)]

    return [
        ratio("a", "images/s of an epoch on all cores, compiled against Keras fit", rates["compiled"], fit, "2.5 x"),
        ratio(
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


def _grid(config: BenchmarkConfig) -> list[Measurement]:
    found = []
    for filters in _GRID_FILTERS:
        for batch_size in _GRID_BATCH_SIZES:
            values = {"batch_size": batch_size}
            base = _run(config, **values)
            networks = {"model.conv1_filters": filters[0], "model.conv2_filters": filters[1]}
            ours, theirs = [], []
            with _pool(1) as whole, _pool(1) as reference:
                for _ in range(config.rounds):
                    theirs.append(_total_rate(reference, base.replace(networks), "keras", _GRID_IMAGES))
                    compiled = base.replace(networks | {"training.engine": "compiled"})
                    ours.append(_total_rate(whole, compiled, "compiled", _GRID_IMAGES))
            what = f"images/s, filters {filters[0]}-{filters[1]}, batch size {batch_size}, against Keras fit"
            found.append(ratio("f", what, ours, theirs, "1 x"))
            logger.info(found[-1].markdown())
    return found


def write(measured: list[Measurement], config: BenchmarkConfig) -> Path:
    """Write benchmark.json and benchmark.md below the records folder; return the path of benchmark.md."""
    folder = config.tracking.folder / "reports" / "benchmark"
    described = describe_environment(available_cores())
    content = {"environment": described, "measurements": [asdict(each) for each in measured]}
    write_atomically(folder / "benchmark.json", json.dumps(content, indent=2), "what was measured is on the screen")
    path = folder / "benchmark.md"
    write_atomically(path, markdown(measured), "what was measured is on the screen")
    return path


def markdown(measured: list[Measurement]) -> str:
    """Return the table as Markdown, with the machine it was measured on."""
    versions = package_versions()
    machine = f"{cpu_model()}, {available_cores()} cores, Python {platform.python_version()}"
    lines = [
        "| row | what | ours against theirs (medians) | median (min to max) | goal |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [each.markdown() for each in measured]
    return "\n".join([*lines, "", f"{machine}, TensorFlow {versions['tensorflow']}, Keras {versions['keras']}.", ""])
