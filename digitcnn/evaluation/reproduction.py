"""Trains a recorded run again and judges whether it is the same: identical, equivalent or different."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from digitcnn import runner, tracking, training
from digitcnn.config import ReproduceConfig, TrackingConfig, expand_user
from digitcnn.errors import ConfigError
from digitcnn.evaluation import references
from digitcnn.evaluation.manifest import RunManifest, manifest_of, read_manifest
from digitcnn.records import Tag
from digitcnn.training import samples_per_epoch
from digitcnn.values import EpochMetrics, Splits

Verdict = Literal["IDENTICAL", "EQUIVALENT", "DIFFERENT"]
# Of the difference of two counts: about one comparison in 370 exceeds it by chance.
_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class ComparedMetric:
    """One metric, recorded and repeated. `tolerance` is by how much a run on another machine may differ."""

    epoch: int
    metric: str
    recorded: float
    repeated: float
    tolerance: float


@dataclass(frozen=True)
class Reproduction:
    """What came of repeating a run: the verdict, its reasons, and every metric side by side."""

    verdict: Verdict
    reasons: tuple[str, ...]
    code: str
    metrics: tuple[ComparedMetric, ...]
    run_id: str
    weights_sha256: str


def find_manifest(config: ReproduceConfig) -> RunManifest:
    """The run that a config names, as it was recorded or frozen. Raises ConfigError if there is none."""
    if references.is_manifest_file(config.run):
        return read_manifest(expand_user(config.run))
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, f"run={config.run}")
        return manifest_of(store, references.find_run(store, config.run, config.study, config.tracking))


def reproduce(frozen: RunManifest, store: TrackingConfig, threads: int | None, on_epoch: Any) -> Reproduction:
    """Trains the run again in this process, with its own threads unless others are asked for, and compares.

    For a process that has not imported Keras: threads and flags are settled before that.
    """
    os.environ.update(training.repeatable_flags(frozen.environment.get("flags", {})))
    config = frozen.config.model_copy(update={"tracking": store})
    if threads is not None:
        config = config.replace({"training.threads": threads})
    splits = runner.check_run(config)
    if splits.sha256 != frozen.data_sha256:
        raise ConfigError(f"data.path={config.data.path}: holds other data than the run was trained on (SHA-256)")
    finished = runner.record_run(config, tags={Tag.REPRODUCES: frozen.run_id}, on_epoch=on_epoch)
    result = finished.result
    final = result.summary() if result.judged_once else {}
    metrics = _side_by_side(frozen, result.epochs, final, splits)
    now = training.describe_environment(training.thread_count(config.training), config.backend)
    now |= {Tag.ENGINE: result.engine}
    differences = _differences({**frozen.environment, Tag.ENGINE: frozen.engine}, now)
    verdict, reasons = judge(frozen.weights_sha256, result.weights_sha256, differences, metrics)
    code = _code(frozen.environment.get("git", {}), training.git_state())
    return Reproduction(verdict, reasons, code, metrics, finished.run_id, result.weights_sha256)


def judge(
    recorded: str, repeated: str, differences: Mapping[str, str], metrics: tuple[ComparedMetric, ...]
) -> tuple[Verdict, tuple[str, ...]]:
    """The verdict on two weights digests and their metrics, with the reasons.

    IDENTICAL: equal weights and equal metrics. EQUIVALENT: something named in the environment differs, and every metric
    is within its tolerance. DIFFERENT: anything else.
    """
    unequal = [each for each in metrics if each.recorded != each.repeated]
    if recorded == repeated and not unequal:
        return "IDENTICAL", ()
    outside = [each for each in metrics if not abs(each.recorded - each.repeated) <= each.tolerance]
    if outside:
        worst = outside[0]
        text = f"{worst.metric} of epoch {worst.epoch}: {worst.recorded:.6g} recorded, {worst.repeated:.6g} repeated"
        return "DIFFERENT", (f"{text}, tolerance {worst.tolerance:.2g}", *_named(differences))
    if not differences:
        what = "the metrics, of equal weights," if recorded == repeated else "the weights"
        return "DIFFERENT", (f"{what} differ in the same environment",)
    return "EQUIVALENT", _named(differences)


def _named(differences: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {text}" for name, text in differences.items())


def _side_by_side(
    frozen: RunManifest, epochs: tuple[EpochMetrics, ...], final: Mapping[str, float], splits: Splits
) -> tuple[ComparedMetric, ...]:
    counts = {
        "train": samples_per_epoch(frozen.config.training, len(splits.train)),
        "validation": len(splits.validation),
        "test": len(splits.validation),
    }
    pairs = [
        (number, recorded, epoch.metrics())
        for number, (recorded, epoch) in enumerate(zip(frozen.epochs, epochs, strict=True), start=1)
    ]
    pairs.append((len(epochs), frozen.final, dict(final)))
    found = []
    for number, recorded, repeated in pairs:
        for name, value in recorded.items():
            images = counts[name.partition("_")[0]]
            # Of the smaller one: a recorded value that was made larger must not widen its own tolerance.
            smaller = min(value, repeated[name])
            bound = tolerance(name, smaller, recorded[name.replace("loss", "accuracy")], images)
            found.append(ComparedMetric(number, name, value, repeated[name], bound))
    return tuple(found)


def tolerance(name: str, value: float, accuracy: float, images: int) -> float:
    """By how much a metric of two trainings may differ that rounding has led apart.

    They err on images as two independent draws would: the number of errors has a binomial standard error, and that of
    the difference of two such numbers is the square root of 2 times as large. A mean loss comes from the same few
    images, so it is given the errors' relative spread. Three standard errors.
    """
    errors = min(max(images * (1 - accuracy), 1.0), max(images - 1.0, 0.5))
    if name.endswith("accuracy"):
        return _STANDARD_ERRORS * math.sqrt(2 * errors * (images - errors) / images) / images
    return _STANDARD_ERRORS * value * math.sqrt(2 / errors)


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs of two environments, by name; not the code, the command line, or what cannot change a number."""
    names = (Tag.PYTHON, "packages", Tag.PLATFORM, Tag.CPU, Tag.THREADS, Tag.BACKEND, Tag.FLAGS, Tag.ENGINE)
    before = tracking.environment_tags({name: recorded.get(name, {}) for name in names})
    after = tracking.environment_tags({name: now[name] for name in names})
    ours = f"{Tag.VERSION_PREFIX}digitcnn"
    return {
        name: f"{before.get(name, 'none')} recorded, {after.get(name, 'none')} now"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) and name != ours
    }


def _code(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """One line on how today's code compares with the run's; empty if it is the same commit, unchanged."""

    def text(state: Mapping[str, Any]) -> str:
        changed = " with uncommitted changes" if state.get("dirty") else ""
        return f"commit {str(state.get('commit', 'unknown'))[:10]}{changed}"

    if recorded == now and not now.get("dirty"):
        return ""
    return f"code: {text(recorded)} recorded, {text(now)} now"
