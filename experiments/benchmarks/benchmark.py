"""Measurements of this project beside its peers: both sides alternate in one run, on warm workers."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from digitcnn.config import RunConfig
from digitcnn.errors import ConfigError
from digitcnn.files import write_atomically
from digitcnn.processor import has_bfloat16, instruction_sets
from digitcnn.runner import LocalPool, run_workers, threads_per_worker
from digitcnn.training import available_cores, package_versions
from experiments.benchmarks import study_timing
from experiments.benchmarks.measurement import (
    RESULTS,
    BenchmarkConfig,
    Measurement,
    file_name,
    machine_name,
    markdown,
    ratio,
    read_table,
    write_table,
)
from experiments.benchmarks.timing import Task, Timing, TimingJob, flops_per_image

logger = logging.getLogger(__name__)

README = Path(__file__).parents[2] / "README.md"
PAGE = README.parent / "docs" / "performance.md"
_BEGIN, _END = "<!-- measured: written by python -m experiments.benchmarks from_tables=true -->", "<!-- end -->"
_GRID_BATCH_SIZES = (32, 64, 125, 250, 1000)
_GRID_FILTERS = ((16, 32), (32, 64), (64, 128))
# The README's columns: a row, and how the line of it ends that is shown.
_OUTLINE = {
    "one run, float32": ("a", "against Keras's fit"),
    "one run, bfloat16": ("b", "against Keras's fit in float32"),
    "a sweep, bfloat16": ("c", "bfloat16, against Keras's fit in float32 on all cores"),
}
_MOVED = {"augmentation.shift": 0.08, "augmentation.rotation": 10.0}
_FLOAT32, _BFLOAT16 = "float32", "bfloat16"


def measure(config: BenchmarkConfig) -> list[Measurement]:
    """Measure the rows that the config names, in their order. Raise ConfigError if none of them can be measured."""
    cannot = {"b": not has_bfloat16(), "e": not _peers()}
    asked = {row for row in config.rows if not cannot.get(row)}
    if not asked:
        raise ConfigError(
            f"rows={','.join(config.rows)}: none of these rows can be measured here; row b needs a processor with "
            "bfloat16, row e PyTorch or JAX"
        )
    measured: list[Measurement] = []
    rows: dict[str, Callable[[BenchmarkConfig], list[Measurement]]] = {
        "abcf": _epochs,
        "d": _grid,
        "e": _frameworks,
        "g": lambda each: study_timing.whole_study(each, _precisions()),
        "h": study_timing.one_run,
        "i": study_timing.bookkeeping,
        "j": _augmentation,
    }
    for names, function in rows.items():
        if set(names) & asked:
            found = [each for each in function(config) if each.row in asked]
            for each in found:
                logger.info(each.markdown())
            measured += found
    return measured


def _rate(pool: LocalPool, config: RunConfig, task: Task, images: int) -> float:
    """Return the sum of the rates of all workers of a pool at work at the same time (images/s or GFLOP/s)."""
    rates: list[float] = []
    job = TimingJob(config, task, images)
    run_workers(pool, lambda w: rates.append(w.run(job, lambda _: "stop", pool.stop).summary["rate"]))
    return sum(rates)


def _pool(workers: int) -> contextlib.closing[LocalPool]:
    return contextlib.closing(LocalPool(Timing(), workers, threads_per_worker(workers)))


def _run(config: BenchmarkConfig, precision: str, **values: Any) -> RunConfig:
    """Return the run that is timed: the benchmark's data, model and training with other values."""
    base = RunConfig(data=config.data, model=config.model, training=config.training, tracking=config.tracking)
    return base.replace({"training.precision": precision} | values)


def _precisions() -> list[str]:
    return [_FLOAT32, _BFLOAT16] if has_bfloat16() else [_FLOAT32]


def _epochs(config: BenchmarkConfig) -> list[Measurement]:
    """Measure rows a, b, c and f: whole epochs, in one process on all cores and in one process a core."""
    cores, rates = available_cores(), dict[tuple[str, Task, str], list[float]]()
    with _pool(1) as ours, _pool(1) as fit, _pool(cores) as our_workers, _pool(cores) as fit_workers:
        for number in range(config.rounds):
            logger.info(f"rows a, b, c, f: round {number + 1} of {config.rounds}")
            for precision in _precisions():
                run = _run(config, precision)
                sides: list[tuple[str, LocalPool, Task]] = [("one", fit, "fit"), ("one", ours, "engine")]
                sides += [("one", ours, "product"), ("each", our_workers, "engine"), ("each", our_workers, "product")]
                sides += [("each", fit_workers, "fit")]
                for where, pool, task in sides:
                    rate = _rate(pool, run, task, config.images)
                    rates.setdefault((where, task, precision), []).append(rate)
    best = _precisions()[-1]
    fit32, workers = rates["one", "fit", _FLOAT32], f"images/s of {cores} one-core workers"
    # Keras is at its best with AVX-512.
    goal = "1.9 x" if "avx512f" in instruction_sets() else "2.5 x"
    found = [
        ratio(
            "a", "images/s on all cores, float32, against Keras's fit", rates["one", "engine", _FLOAT32], fit32, goal
        ),
        ratio("c", f"{workers}, float32, against Keras's fit on all cores", rates["each", "engine", _FLOAT32], fit32),
    ]
    if best == _BFLOAT16:
        one, each = rates["one", "engine", best], rates["each", "engine", best]
        mixed, mixed_workers = rates["one", "fit", best], rates["each", "fit", best]
        found += [
            ratio("b", "images/s on all cores, bfloat16, against Keras's fit in float32", one, fit32, "2.7 x"),
            ratio("b", "images/s on all cores, bfloat16, against Keras's fit with mixed_bfloat16", one, mixed, "1.3 x"),
            ratio("c", f"{workers}, bfloat16, against Keras's fit in float32 on all cores", each, fit32, "3.5 x"),
            ratio(
                "c", f"{workers}, bfloat16, against as many Keras fits in mixed_bfloat16", each, mixed_workers, "1.5 x"
            ),
        ]
    flops = flops_per_image(_run(config, _FLOAT32)) / 1e9
    for precision, goal in zip(_precisions(), ("60 %", "45 %"), strict=False):
        for where, name in (("one", "all cores"), ("each", f"{cores} one-core workers")):
            peak = rates[where, "product", precision]
            images = zip(rates[where, "engine", precision], peak, strict=True)
            shares = [100 * rate * flops / gflops for rate, gflops in images]
            found.append(Measurement("f", f"of the matrix-product peak in {precision}, {name}", "%", shares, goal))
    return found


def _grid(config: BenchmarkConfig) -> list[Measurement]:
    """Measure row d: batch sizes and filters, on all cores."""
    found = []
    for filters in _GRID_FILTERS:
        for batch_size in _GRID_BATCH_SIZES:
            values = {"training.batch_size": batch_size}
            values |= {"model.conv1_filters": filters[0], "model.conv2_filters": filters[1]}
            rates: dict[str, list[float]] = {}
            with _pool(1) as ours, _pool(1) as fit:
                for _ in range(config.rounds):
                    theirs = _rate(fit, _run(config, _FLOAT32, **values), "fit", config.grid_images)
                    rates.setdefault("fit", []).append(theirs)
                    for precision in _precisions():
                        rate = _rate(ours, _run(config, precision, **values), "engine", config.grid_images)
                        rates.setdefault(precision, []).append(rate)
            for precision, goal in zip(_precisions(), ("1.5 x", "2 x"), strict=False):
                what = f"images/s, filters {filters[0]}-{filters[1]}, batch {batch_size}, {precision}"
                found.append(
                    ratio("d", f"{what}, against Keras's fit in float32", rates[precision], rates["fit"], goal)
                )
                logger.info(found[-1].markdown())
    return found


def _peers() -> list[Task]:
    """Return the tasks of the other frameworks that are installed."""
    tasks: dict[str, list[Task]] = {"torch": ["torch", "torch.compile"], "jax": ["jax"]}
    return [task for package, its in tasks.items() if importlib.util.find_spec(package) for task in its]


def _frameworks(config: BenchmarkConfig) -> list[Measurement]:
    """Measure row e: the other frameworks that are installed, on all cores."""
    found = []
    for precision in _precisions():
        run = _run(config, precision)
        for peer in _peers():
            with _pool(1) as ours, _pool(1) as other:
                rates = [
                    (_rate(ours, run, "engine", config.images), _rate(other, run, peer, config.images))
                    for _ in range(config.rounds)
                ]
            ours_rates, peers_rates = zip(*rates, strict=True)
            found.append(
                ratio("e", f"images/s on all cores, {precision}, against {peer}", ours_rates, peers_rates, "1 x")
            )
            logger.info(found[-1].markdown())
    return found


def _augmentation(config: BenchmarkConfig) -> list[Measurement]:
    """Measure row j: an epoch of images that are moved and turned beside one of images as they are."""
    found = []
    for precision in _precisions():
        runs = _run(config, precision, **_MOVED), _run(config, precision)
        with _pool(1) as moved, _pool(1) as still:
            rates = [
                (_rate(moved, runs[0], "engine", config.images), _rate(still, runs[1], "engine", config.images))
                for _ in range(config.rounds)
            ]
        ours, theirs = zip(*rates, strict=True)
        what = f"images/s on all cores, {precision}, with shift and rotation, against without"
        # An epoch is to take 1.15 times as long at most.
        found.append(ratio("j", what, ours, theirs, "0.87 x"))
    return found


def write(measured: Sequence[Measurement], config: BenchmarkConfig) -> Path:
    """Write this machine's table below the records folder, and return its path."""
    machine, versions = machine_name(available_cores()), package_versions()
    path = config.tracking.folder / "reports" / "benchmark" / file_name(machine)
    names = ("tensorflow", "keras", "numpy")
    text = ", ".join([f"Python {platform.python_version()}", *(f"{name} {versions[name]}" for name in names)])
    write_table(path, machine, text, measured)
    return path


def write_pages(page: Path = PAGE, readme: Path = README, results: Path = RESULTS) -> None:
    """Write the tables of all machines into the page on performance, and a line of each into the README."""
    before, _, rest = page.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    parts, lines = [], []
    for path in sorted(results.glob("*.csv")):
        machine, versions, measured = read_table(path)
        parts.append(f"### {machine}\n\n{versions}.\n\n{markdown(measured)}\n")
        cells = [
            next((each.outline() for each in measured if each.row == row and each.what.endswith(what)), "-")
            for row, what in _OUTLINE.values()
        ]
        # The README's lines are as short as all others: without the instructions that the last one includes.
        short = re.sub(r" with (?:.*, )?(.*), ", r", \1, ", machine.replace("(R)", ""))
        lines.append(f"| {' | '.join([short, *cells])} |\n")
    text = "\n".join([before + _BEGIN, "", *parts, _END + after])
    write_atomically(page, text, "the page is as it was")
    head = f"| {' | '.join(['processor', *_OUTLINE])} |\n"
    outline = head + "|" + " --- |" * (1 + len(_OUTLINE)) + "\n" + "".join(lines)
    text = re.sub(r"^\| processor \|.*\n(?:\|.*\n)*", lambda _: outline, readme.read_text(), flags=re.MULTILINE)
    write_atomically(readme, text, "the README is as it was")
