"""Train the same config under differences that only round, and under those that `reproduce` must find."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from digitcnn import runner, training
from digitcnn.config import RunConfig, load_config
from digitcnn.records import EPOCH_METRICS, Column
from digitcnn.values import EpochMetrics

PATH = Path(__file__).with_name("drift.csv")
# 200 updates an epoch, 1,200 in all: as many as six passes of the article's network make with batches of 250.
_CONFIG: dict[str, Any] = {
    "data": {"train_size": 10_000},
    "model": {"name": "cnn", "conv1_filters": 16, "conv2_filters": 32, "dense_units": 128},
    "training": {"epochs": 6, "batch_size": 50, "threads": 1},
}


@dataclass(frozen=True)
class Case:
    """A training that is compared with the reference: other values of the config, other variables, or other seeds."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    shift: int = 0


REFERENCE = Case("reference")
# They change the order of additions and nothing else.
ROUNDING = (
    Case("two threads", {"training.threads": 2}),
    Case("processor without AVX-512", {}, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
    Case("other kernels", {}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
    Case("other engine", {"training.engine": "keras"}),
)
# They are other trainings.
WRONG = (
    Case("learning rate 5 % higher", {"training.learning_rate": 0.00105}),
    Case("batches of 55 instead of 50", {"training.batch_size": 55}),
    Case("20 filters instead of 16", {"model.conv1_filters": 20}),
    Case("another seed", shift=1000),
)


def measure(seeds: int) -> pd.DataFrame:
    """Return a row per case, seed, epoch and metric: its value in the reference, and in the case.

    Each case has a process of its own, since threads and flags are settled as one begins.
    """
    found = {}
    for case in (REFERENCE, *ROUNDING, *WRONG):
        command = [sys.executable, "-c", "from experiments.drift.drift import train_case; train_case()"]
        arguments = json.dumps([dict(case.config), case.shift, seeds])
        variables = os.environ | dict(case.variables) | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        ended = subprocess.run(command, input=arguments, env=variables, capture_output=True, text=True, check=True)
        found[case.name] = json.loads(ended.stdout.splitlines()[-1])
    rows = [
        {"case": case.name, Column.SEED: seed, Column.EPOCH: epoch, "metric": name, "reference": value}
        | {"value": found[case.name][seed][epoch - 1][name]}
        for case in (*ROUNDING, *WRONG)
        for seed in range(seeds)
        for epoch, metrics in enumerate(found[REFERENCE.name][seed], start=1)
        for name, value in metrics.items()
    ]
    return pd.DataFrame(rows)


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
