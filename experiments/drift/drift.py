"""Train the same config under differences that only round, and under those that `reproduce` must find."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from digitcnn import runner, training
from digitcnn.config import RunConfig, load_config
from digitcnn.records import EPOCH_METRICS, Column, Metric
from digitcnn.values import EpochMetrics

# The seeds that each precision is trained with.
SEEDS = {"float32": 25, "bfloat16": 5}
PATH = Path(__file__).with_name("drift.csv")
# 200 updates an epoch, 1,200 in all: as many as six passes of the article's network make with batches of 250.
_CONFIG: dict[str, Any] = {
    "data": {"train_size": 10_000},
    "model": {"name": "cnn", "conv1_filters": 16, "conv2_filters": 32, "dense_units": 128},
    "training": {"epochs": 6, "batch_size": 50, "threads": 1},
}


@dataclass(frozen=True, eq=False)
class Case:
    """A training that is compared with the reference: other values, variables, seeds, or versions of packages."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    shift: int = 0
    precisions: tuple[str, ...] = tuple(SEEDS)
    packages: tuple[str, ...] = ()


REFERENCE = Case("reference")
# They change the order of additions and nothing else.
ROUNDING = (
    Case("two threads", {"training.threads": 2}),
    Case("processor without AVX-512", {}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}, precisions=("float32",)),
    Case("processor without bfloat16", {}, {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, precisions=("bfloat16",)),
    Case("other kernels", {}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    Case("other engine", {"training.engine": "keras"}),
    Case("older versions", precisions=("float32",), packages=("tensorflow==2.20.0", "keras==3.12.0")),
)
# They are other trainings.
WRONG = (
    Case("learning rate 5 % higher", {"training.learning_rate": 0.00105}),
    Case("batches of 55 instead of 50", {"training.batch_size": 55}),
    Case("20 filters instead of 16", {"model.conv1_filters": 20}),
    Case("another seed", shift=1000),
)


def measure() -> pd.DataFrame:
    """Return a row per precision, case, seed, epoch and metric: its value in the reference, and in the case.

    Each case has a process of its own, since threads and flags are settled as one begins.
    """
    cases = [(precision, case) for case in (REFERENCE, *ROUNDING, *WRONG) for precision in case.precisions]
    with ThreadPoolExecutor(training.available_cores()) as processes:
        found = dict(zip(cases, processes.map(lambda each: _train(*each), cases), strict=True))
    rows = [
        {"precision": precision, "case": case.name, Column.SEED: seed, Column.EPOCH: epoch, "metric": name}
        | {"reference": value, "value": found[precision, case][seed][epoch - 1][name]}
        for precision, case in cases
        if case is not REFERENCE
        for seed in range(SEEDS[precision])
        for epoch, metrics in enumerate(found[precision, REFERENCE][seed], start=1)
        for name, value in metrics.items()
    ]
    return pd.DataFrame(rows)


def largest_drift(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Return by metric of training the largest drift of the cases that only round, by epoch, and in those before it.

    That of a loss is relative, that of an accuracy is in standard errors of the difference of two independent counts.
    """
    rounding = rows[rows["case"].isin([case.name for case in ROUNDING])]
    keys = ["precision", "case", Column.SEED, Column.EPOCH]
    wide = rounding.pivot_table(index=keys, columns="metric", values=["reference", "value"])
    before, after = wide["reference"], wide["value"]
    images = _CONFIG["data"]["train_size"]
    errors = images * (1 - before[Metric.TRAIN_ACCURACY])
    spread = (2 * errors * (images - errors) / images) ** 0.5
    ratio = after[Metric.TRAIN_LOSS] / before[Metric.TRAIN_LOSS]
    drift = {
        Metric.TRAIN_LOSS: ratio.combine(1 / ratio, max) - 1,
        Metric.TRAIN_ACCURACY: images * (after[Metric.TRAIN_ACCURACY] - before[Metric.TRAIN_ACCURACY]).abs() / spread,
    }
    return {name: each.groupby(Column.EPOCH).max().cummax().tolist() for name, each in drift.items()}


def _train(precision: str, case: Case) -> list[list[dict[str, float]]]:
    """Return the metrics of a case by seed and epoch, trained in a process of its own."""
    command = [sys.executable, "-c", "from experiments.drift.drift import train_case; train_case()"]
    arguments = json.dumps([{"training.precision": precision, **case.config}, case.shift, SEEDS[precision]])
    with tempfile.TemporaryDirectory() as folder:
        if case.packages:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, *case.packages]
            subprocess.run(pip, check=True)
        variables = os.environ | dict(case.variables) | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": folder}
        ended = subprocess.run(command, input=arguments, env=variables, capture_output=True, text=True, check=True)
    found: list[list[dict[str, float]]] = json.loads(ended.stdout.splitlines()[-1])
    return found


def train_case() -> None:
    """Train the case that standard input describes with each seed, and print its metrics as JSON."""
    values, shift, seeds = json.loads(sys.stdin.read())
    config = load_config(RunConfig, _CONFIG).replace(values)
    training.import_keras(training.thread_count(config.training), config.backend)
    splits = runner.check_run(config)
    found = []
    for seed in range(seeds):
        job = config.replace({"training.seed": seed + shift})
        model = training.build_model(job.model, *splits.image_shape, splits.classes, job.training.seed)
        epochs = []
        events = training.train(model, splits, job)
        with contextlib.suppress(StopIteration):
            event = next(events)
            while isinstance(event, EpochMetrics):
                metrics = event.metrics()
                epochs.append({name: metrics[name] for name in EPOCH_METRICS})
                event = events.send("continue")
        found.append(epochs)
    print(json.dumps(found))
