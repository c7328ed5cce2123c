"""Find a recorded run, train it again, and judge the two: identical, equivalent or different."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from digitcnn import runner, study, tracking, training
from digitcnn.config import ReproduceConfig, StudyReference, TrackingConfig, expand_user
from digitcnn.errors import ConfigError
from digitcnn.evaluation.manifest import RunManifest, manifest_of, read_manifest
from digitcnn.records import EnvironmentKey, Tag
from digitcnn.values import Decision, EpochMetrics, Splits

Verdict = Literal["IDENTICAL", "EQUIVALENT", "DIFFERENT"]
# Of the difference of two counts: about one comparison in 370 exceeds it by chance.
_STANDARD_ERRORS = 3.0
_MIN_ID = 6
_REFERENCES = ("champion", "best with study=NAME", "a run id", f"at least its first {_MIN_ID} characters")


@dataclass(frozen=True)
class ComparedMetric:
    """One metric, recorded and repeated. A run on another machine may differ by `tolerance`."""

    epoch: int
    metric: str
    recorded: float
    repeated: float
    tolerance: float


@dataclass(frozen=True)
class Reproduction:
    """A repeated run: the verdict, its reasons, a line on other code, and every metric side by side."""

    verdict: Verdict
    reasons: tuple[str, ...]
    code: str
    metrics: tuple[ComparedMetric, ...]
    run_id: str
    weights_sha256: str


def is_manifest_file(reference: str) -> bool:
    """Return True if a run is given by the file of its manifest."""
    return reference.endswith((".yaml", ".yml"))


def find_manifest(config: ReproduceConfig) -> RunManifest:
    """Return the manifest of the run that a config names, from its file or from the records.

    Raise ConfigError if there is none.
    """
    if is_manifest_file(config.run):
        return read_manifest(expand_user(config.run))
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, f"run={config.run}")
        return manifest_of(store, find_run(store, config.run, config.study, config.tracking))


def find_run(
    store: tracking.Store, reference: str, of: StudyReference, config: TrackingConfig, key: str = "run"
) -> str:
    """Return the id of the run that `champion`, `best` (of a study) or the beginning of a run id refers to.

    Raise ConfigError, which names the config's `key`, if there is no such run or more than one.
    """
    if reference == "champion":
        return tracking.champion_run(store)
    if reference == "best":
        return _best_run(of, config)
    if not re.fullmatch(rf"[0-9a-f]{{{_MIN_ID},32}}", reference):
        # Only `run` may be a file; `compare` puts recorded runs side by side.
        allowed = [*_REFERENCES, "a manifest's FILE.yaml"] if key == "run" else _REFERENCES
        raise ConfigError(f"{key}={reference}: must be {', '.join(allowed[:-1])}, or {allowed[-1]}")
    found = tracking.search_runs(store, f"attributes.run_id LIKE '{reference}%'")
    if not found:
        raise ConfigError(f"{key}={reference}: no such run is recorded")
    if len(found) > 1:
        raise ConfigError(f"{key}={reference}: several runs begin with that; give more of the id")
    return str(found[0].info.run_id)


def _best_run(of: StudyReference, config: TrackingConfig) -> str:
    opened = study.recorded_study(of, config.folder)
    with study.storage_errors(config.folder):
        best = study.best_trial(opened)
    if best is None:
        raise ConfigError(f"study.name={of.name}: no trial of it has completed yet")
    return str(best.record.run_id)


def reproduce(
    manifest: RunManifest,
    store: TrackingConfig,
    threads: int | None,
    on_epoch: Callable[[EpochMetrics], Decision],
) -> Reproduction:
    """Train a run again in this process, with its own threads unless others are given, and compare.

    For a process that has not imported Keras: threads and flags are settled before that. Raise ConfigError if the data
    are others than the run's.
    """
    os.environ.update(training.repeatable_flags(manifest.environment.get(EnvironmentKey.FLAGS, {})))
    config = manifest.config.model_copy(update={"tracking": store})
    if threads is not None:
        config = config.replace({"training.threads": threads})
    splits = runner.check_run(config)
    if splits.sha256 != manifest.data_sha256:
        raise ConfigError(f"data.path={config.data.path}: holds other data than the run was trained on (SHA-256)")
    finished = runner.record_run(config, tags={Tag.REPRODUCES: manifest.run_id}, on_epoch=on_epoch)
    result = finished.result
    final = result.summary if splits.final_test_only else {}
    metrics = _side_by_side(manifest, finished.epochs, final, splits)
    now = training.describe_environment(training.thread_count(config.training), config.backend)
    now |= {Tag.ENGINE: result.engine}
    differences = _differences({**manifest.environment, Tag.ENGINE: manifest.engine}, now)
    verdict, reasons = judge(manifest.weights_sha256, result.weights_sha256, differences, metrics)
    code = _code(manifest.environment.get(EnvironmentKey.GIT, {}), training.git_state())
    return Reproduction(verdict, reasons, code, metrics, finished.run_id, result.weights_sha256)


def judge(
    recorded: str, repeated: str, differences: Mapping[str, str], metrics: tuple[ComparedMetric, ...]
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on two weights digests and their metrics, with its reasons.

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
    manifest: RunManifest, epochs: tuple[EpochMetrics, ...], final: Mapping[str, float], splits: Splits
) -> tuple[ComparedMetric, ...]:
    counts = {
        "train": training.samples_per_epoch(manifest.config.training, len(splits.train)),
        "validation": len(splits.validation),
        "test": len(splits.validation),
    }
    pairs = [
        (number, recorded, epoch.metrics())
        for number, (recorded, epoch) in enumerate(zip(manifest.epochs, epochs, strict=True), start=1)
    ]
    pairs.append((len(epochs), manifest.final, dict(final)))
    compared = []
    for number, recorded, repeated in pairs:
        for name, value in recorded.items():
            images = counts[name.partition("_")[0]]
            # Of the smaller one: a recorded value that was made larger must not widen its own tolerance.
            smaller = min(value, repeated[name])
            bound = tolerance(name, smaller, recorded[name.replace("loss", "accuracy")], images)
            compared.append(ComparedMetric(number, name, value, repeated[name], bound))
    return tuple(compared)


def tolerance(name: str, value: float, accuracy: float, images: int) -> float:
    """Return the difference up to which rounding alone may lead a metric of two trainings apart.

    They err on images as two independent draws would: the number of errors has a binomial standard error, and that of
    the difference of two such numbers is the square root of 2 times as large. A mean loss comes from the same few
    images, so it is given the errors' relative spread. The tolerance is three standard errors.
    """
    errors = min(max(images * (1 - accuracy), 1.0), max(images - 1.0, 0.5))
    if name.endswith("accuracy"):
        return _STANDARD_ERRORS * math.sqrt(2 * errors * (images - errors) / images) / images
    return _STANDARD_ERRORS * value * math.sqrt(2 / errors)


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return the differences of two environments by name, but of code, command line and what cannot change a number."""
    names = (
        Tag.PYTHON,
        EnvironmentKey.PACKAGES,
        Tag.PLATFORM,
        Tag.CPU,
        Tag.THREADS,
        Tag.BACKEND,
        EnvironmentKey.FLAGS,
        Tag.ENGINE,
    )
    before = tracking.environment_tags({name: recorded.get(name, {}) for name in names})
    after = tracking.environment_tags({name: now[name] for name in names})
    ours = f"{Tag.VERSION_PREFIX}digitcnn"
    return {
        name: f"{before.get(name, 'none')} recorded, {after.get(name, 'none')} now"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name) and name != ours
    }


def _code(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return a line that compares today's code with the run's; empty if it is the same commit, unchanged."""

    def text(state: Mapping[str, Any]) -> str:
        changed = " with uncommitted changes" if state.get(EnvironmentKey.DIRTY) else ""
        return f"commit {str(state.get(EnvironmentKey.COMMIT, 'unknown'))[:10]}{changed}"

    if recorded == now and not now.get(EnvironmentKey.DIRTY):
        return ""
    return f"code: {text(recorded)} recorded, {text(now)} now"
