"""Train the article's configuration with one change each, and compare what the validation images say of them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from digitcnn import runner
from digitcnn.config import RunConfig
from digitcnn.evaluation import compare
from digitcnn.formatting import format_interval, format_points
from digitcnn.processor import cpu_model
from digitcnn.records import EPOCH_METRICS, Column, Metric
from digitcnn.report import markdown_table
from digitcnn.values import Decision, EpochMetrics, Event

PATH = Path(__file__).with_name("parts.csv")
BASELINE = "the article's"
_PRECISION, _PROCESSOR = "training.precision", "processor"
_COLUMNS = ["part", "changes", Column.SEED, Column.EPOCH, *EPOCH_METRICS, Metric.CPU_SECONDS, _PRECISION, _PROCESSOR]
# Of MNIST's 60,000, those that are trained on.
_IMAGES = 50_000
# How long a worker may say nothing (s), for a machine with other work.
_PATIENCE = 3600.0
_COSINE, _CYCLE = {"training.schedule": "cosine"}, {"training.schedule": "one_cycle"}
_HIGH_CYCLE = _CYCLE | {"training.learning_rate": 0.003}
_LIGHT = {"augmentation.shift": 0.08, "augmentation.rotation": 10.0, "augmentation.zoom": 0.1}
_AVERAGE, _DROPOUT = {"training.weight_average": 0.99}, {"model.dropout": 0.5}
_NORMALIZED = {"model.batch_normalization": True}
# By what differs from the article's settings.
PARTS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "light augmentation": _LIGHT,
    "cosine": _COSINE,
    "batch normalization": _NORMALIZED,
    "dropout 0.5": _DROPOUT,
    "weight average 0.99": _AVERAGE,
    "light augmentation, cosine": _LIGHT | _COSINE,
    "one cycle": _CYCLE,
    "padding": {"model.padding": "same"},
    "dropout 0.25": {"model.dropout": 0.25},
    "a third block": {"model.conv3_filters": 128, "model.conv3_pooling": 1},
    "no dense layer": {"model.dense_units": 0},
    "adamw": {"training.optimizer": "adamw"},
    "sgd with momentum, rate 0.05": {"training.optimizer": "sgd", "training.learning_rate": 0.05},
    "weight average 0.999": {"training.weight_average": 0.999},
    "one cycle, rate 0.003": _HIGH_CYCLE,
    "batches of 125": {"training.batch_size": 125},
    "filters 48-96": {"model.conv1_filters": 48, "model.conv2_filters": 96},
    "light augmentation, cosine, weight average 0.99": _LIGHT | _COSINE | _AVERAGE,
    "light augmentation, cosine, dropout 0.5": _LIGHT | _COSINE | _DROPOUT,
    "light augmentation, cosine, batch normalization": _LIGHT | _COSINE | _NORMALIZED,
    "light augmentation, cosine, 15 epochs": _LIGHT | _COSINE | {"training.epochs": 15},
    "cosine, batch normalization, dropout 0.5": _COSINE | _NORMALIZED | _DROPOUT,
    "light augmentation, one cycle, rate 0.003": _LIGHT | _HIGH_CYCLE,
    "light augmentation, one cycle, rate 0.003, 14 epochs": _LIGHT | _HIGH_CYCLE | {"training.epochs": 14},
}


def said(part: str) -> str:
    """Return what differs from the article's settings, as words of a command."""
    return " ".join(f"{key}={value}" for key, value in PARTS[part].items())


def measure(parts: Sequence[str], seeds: Sequence[int]) -> None:
    """Train parts with seeds, two at a time with a thread each; append what parts.csv lacks, a run when it is over."""
    rows = pd.read_csv(PATH) if PATH.exists() else pd.DataFrame(columns=_COLUMNS)
    known = {*zip(rows["part"], rows[Column.SEED], strict=True)}
    append_runs(PATH, [job for seed in seeds for part in parts if (job := (part, seed)) not in known], _rows)


def append_runs(
    path: Path, jobs: Sequence[Any], rows_of: Callable[[runner.Worker, Any, threading.Event], pd.DataFrame]
) -> None:
    """Give jobs to two workers with a thread each, and append the rows of each to a table when it is over."""
    waiting, lock = iter(jobs), threading.Lock()

    def train(worker: runner.Worker) -> None:
        while worker.wait_ready() and (job := next(waiting, None)) is not None:
            rows = rows_of(worker, job, pool.stop)
            if pool.stop.is_set():
                # Another worker has failed, which ends this run after any of its epochs.
                return
            with lock:
                rows.to_csv(path, mode="a", header=not path.exists(), index=False, lineterminator="\n")

    with contextlib.closing(runner.LocalPool(runner.KerasTrainer(), 2, 1, _PATIENCE)) as pool:
        runner.run_workers(pool, train)


def _rows(worker: runner.Worker, job: tuple[str, int], stop: threading.Event) -> pd.DataFrame:
    """Return a row per epoch of a part's training by a worker."""
    part, seed = job
    config = RunConfig().replace({_PRECISION: "auto", "training.threads": 1, "training.seed": seed} | PARTS[part])
    shared = {"part": part, "changes": said(part)}
    shared |= {Column.SEED: str(seed), _PRECISION: config.training.precision, _PROCESSOR: cpu_model()}
    rows = pd.DataFrame(
        shared
        | {Column.EPOCH: each.epoch, Metric.CPU_SECONDS: round(each.cpu_seconds, 1)}
        | {name: round(each.metrics()[name], 6) for name in EPOCH_METRICS}
        for each in train_epochs(worker, config, stop)
    )
    return rows.reindex(columns=_COLUMNS)


def train_epochs(worker: runner.Worker, config: RunConfig, stop: threading.Event) -> list[EpochMetrics]:
    """Train a config by a worker; return what its epochs measured, up to the one in which `stop` was set."""
    epochs: list[EpochMetrics] = []

    def note(event: Event) -> Decision:
        epochs.extend([event] if isinstance(event, EpochMetrics) else [])
        return "continue"

    worker.run(runner.Job(config), note, stop)
    return epochs


def table() -> str:
    """Return what parts.csv holds as a Markdown table, the best part first, with the differences to the article's.

    The images/s, validation included, are those of the processor and precision that have most runs, which it names.
    A part with a run that the article's of the same seed differs from in either has a star.
    """
    rows = pd.read_csv(PATH)
    last = rows.sort_values(Column.EPOCH).groupby(["part", Column.SEED], as_index=False).last()
    by_part = {part: last[last["part"] == part] for part in PARTS if part in set(last["part"])}
    accuracies = {
        part: dict(zip(runs[Column.SEED], runs[Metric.VALIDATION_ACCURACY], strict=True))
        for part, runs in by_part.items()
    }
    found = compare(accuracies, resolution=1 / RunConfig().data.validation_size) if BASELINE in accuracies else {}
    precision, processor = last.value_counts([_PRECISION, _PROCESSOR]).index[0]
    timed = last[(last[_PRECISION] == precision) & (last[_PROCESSOR] == processor)]
    rates = (_IMAGES * timed[Column.EPOCH] / timed[Metric.CPU_SECONDS]).groupby(timed["part"]).median()
    origin = last.set_index(["part", Column.SEED])[[_PRECISION, _PROCESSOR]].agg(" on ".join, axis=1)
    lines, mixed = [], False
    for part in sorted(by_part, key=lambda part: -found[part].difference if part in found else 0):
        percent = 100 * by_part[part][Metric.VALIDATION_ACCURACY]
        words = ""
        if part in found:
            interval = format_interval(found[part].low, found[part].high, signed=True)
            of_part, of_baseline = origin[part].align(origin[BASELINE], join="inner")
            alike = of_part.equals(of_baseline)
            words = f"{format_points(found[part].difference)} ({interval}){'' if alike else ' *'}"
            mixed |= not alike
        rate = f"{rates[part]:,.0f}" if part in rates else ""
        lines.append([part, str(len(percent)), f"{percent.mean():.2f}", f"{percent.std():.2f}", words, rate])
    speed = f"images/s of a core ({precision}, {_named(processor)})"
    origins = last.value_counts([_PRECISION, _PROCESSOR]).reset_index().itertuples(index=False, name=None)
    runs = " and ".join(f"{count} in {each} on {_named(where)}" for each, where, count in origins)
    head = ["part", "seeds", "mean (%)", "sd", "difference (points, simultaneous 95 %)", speed]
    star = " A star: some pairs are of both." if mixed else ""
    return f"Runs: {runs}.{star}\n\n{markdown_table(head, lines)}"


def _named(processor: str) -> str:
    return processor.replace("(R)", "").replace(" Processor", "")
