"""Find a recorded run, train it again, and judge the two: identical, equivalent or different."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from digitcnn import runner, study, tracking, training
from digitcnn.config import ReproduceConfig, RunConfig, StudyReference, TrackingConfig, expand_user
from digitcnn.errors import ConfigError
from digitcnn.evaluation.reproduction.manifest import RunManifest, config_of_run, manifest_of, read_manifest
from digitcnn.records import IN_VALIDATION, Artifact, EnvironmentKey, Metric, Tag
from digitcnn.values import Decision, EpochMetrics, Splits

Verdict = Literal["IDENTICAL", "EQUIVALENT", "DIFFERENT"]
# Of the difference of two counts: about one comparison in 370 exceeds it by chance.
_STANDARD_ERRORS = 3.0
# The drift of two metrics of training after so many updates: the largest that other threads, kernels, processors and
# engines made of the same config and seed, in either precision, in experiments/drift/drift.csv. That of a loss is
# relative, that of an accuracy is in standard errors of the difference of two independent counts. Fewer updates drift
# less; after more of them two trainings are as good as independent.
UPDATES = (200, 400, 600, 800, 1000, 1200)
DRIFT = {
    Metric.TRAIN_LOSS: (0.0054, 0.0194, 0.0194, 0.0271, 0.0361, 0.0432),
    Metric.TRAIN_ACCURACY: (0.32, 0.41, 0.64, 0.95, 0.95, 0.95),
}
# A tolerance is so many times the measured drift, and that of an accuracy at least so many images.
_SAFETY, _IMAGES = 1.5, 5
_CODE = "code"
_REFERENCES = ("champion", "best with study=NAME", *tracking.RUN_IDS)


@dataclass(frozen=True)
class ComparedMetric:
    """One metric, recorded and repeated. A run on another machine may differ by `tolerance`."""

    epoch: int
    metric: str
    recorded: float
    repeated: float
    tolerance: float

    @property
    def is_unequal(self) -> bool:
        """True if the two differ at all."""
        return self.recorded != self.repeated

    @property
    def is_outside(self) -> bool:
        """True if they differ by more than the tolerance, as NaN does."""
        return not abs(self.recorded - self.repeated) <= self.tolerance

    def words(self) -> str:
        """Return the two values in words."""
        return f"{self.metric} of epoch {self.epoch}: {self.recorded:.6g} recorded, {self.repeated:.6g} repeated"


@dataclass(frozen=True)
class Reproduction:
    """A repeated run: the verdict, its reasons, every metric side by side, and the epochs that were trained.

    They are fewer than the run's where one could not be equivalent any more.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: tuple[ComparedMetric, ...]
    epochs: int
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
        return _best_run(store, of, config)
    # Only `run` may be a file; `runs` puts recorded ones side by side.
    allowed = (*_REFERENCES, "a manifest's FILE.yaml") if key == "run" else _REFERENCES
    return tracking.find_run_id(store, reference, key, allowed)


def find_config(reference: str, records: TrackingConfig) -> tuple[str, RunConfig]:
    """Return a run by the beginning of its id, and its config; for one that took over a result, the trained run.

    Raise ConfigError if there is none, or more than one, or if it is not of a training.
    """
    with tracking.store_errors(records):
        store = tracking.open_recorded(records, f"run={reference}")
        run = tracking.trained_run(store, tracking.find_run_id(store, reference, "run"))
        run_id, tags = str(run.info.run_id), run.data.tags
        if Tag.STUDY_KEY in tags:
            raise ConfigError(f"run={reference}: is that of study {tags[Tag.STUDY]} itself; name the run of a trial")
        if Artifact.CONFIG not in store.artifact_names(run_id):
            reason = tags.get(Tag.FAILURE, "it was not trained by digitcnn")
            raise ConfigError(f"run={reference}: has no {Artifact.CONFIG} ({reason})")
        return run_id, config_of_run(store, run_id, records)


def _best_run(store: tracking.Store, of: StudyReference, config: TrackingConfig) -> str:
    opened = study.recorded_study(of, config.folder)
    with study.storage_errors(config.folder):
        ranked = study.best_first(opened, study.ended_trials(opened))
    if not ranked:
        raise ConfigError(f"study.name={of.name}: no trial of it has completed yet")
    there = (each for each in ranked if tracking.is_kept(store, str(each.record.run_id)))
    best, kept = ranked[0], next(there, None)
    if kept is best:
        return str(best.record.run_id)
    others = "and so were those of all others" if kept is None else f"the next best is trial {kept.number}: "
    others += "" if kept is None else f"run={kept.record.run_id}"
    raise ConfigError(f"run=best: the run of trial {best.number} was deleted from MLflow for good; {others}")


def reproduce(
    manifest: RunManifest, store: TrackingConfig, threads: int | None, on_epoch: Callable[[EpochMetrics], Decision]
) -> Reproduction:
    """Train a run again in this process, with its own threads unless others are given, and compare.

    Stops at the first epoch that cannot be equivalent any more. For a process that has not imported Keras: threads and
    flags are settled before that. Raise ConfigError if the data are others than the run's.
    """
    os.environ.update(training.repeatable_flags(manifest.environment.get(EnvironmentKey.FLAGS, {})))
    config = manifest.config.model_copy(update={"tracking": store})
    if threads is not None:
        config = config.replace({"training.threads": threads})
    splits = runner.check_run(config)
    if splits.sha256 != manifest.data_sha256:
        raise ConfigError(f"data.path={config.data.path}: holds other data than the run was trained on (SHA-256)")
    now = training.describe_environment(training.thread_count(config.training), config.backend)
    differences = environment_differences(manifest.environment, now)
    recorded = manifest.environment.get(EnvironmentKey.GIT, {})
    if _CODE in differences and recorded.get(EnvironmentKey.DIRTY):
        back = f"git checkout {recorded.get(EnvironmentKey.COMMIT)} and git apply {Artifact.CHANGES}"
        differences[_CODE] += f"; {back}, a file of run {manifest.run_id} in MLflow, give the recorded code back"

    def go_on(metrics: EpochMetrics) -> Decision:
        decision = on_epoch(metrics)
        compared = _side_by_side(manifest, metrics.epoch, metrics.metrics(), splits)
        bad = [each for each in compared if each.is_outside or (not differences and each.is_unequal)]
        return "stop" if bad else decision

    finished = runner.record_run(config, tags={Tag.REPRODUCES: manifest.run_id}, on_epoch=go_on)
    result = finished.result
    metrics = [
        each for epoch in finished.epochs for each in _side_by_side(manifest, epoch.epoch, epoch.metrics(), splits)
    ]
    if splits.final_test_only and result.ending == "completed":
        metrics += _side_by_side(manifest, None, result.summary, splits)
    if result.engine != manifest.engine:
        differences[Tag.ENGINE] = f"{manifest.engine} recorded, {result.engine} now"
    verdict, reasons = judge(manifest.weights_sha256, result.weights_sha256, differences, metrics)
    if verdict == "IDENTICAL" and _CODE in differences:
        reasons = _named({_CODE: differences[_CODE]})
    trained = len(finished.epochs)
    return Reproduction(verdict, reasons, tuple(metrics), trained, finished.run_id, result.weights_sha256)


def judge(
    recorded: str, repeated: str, differences: Mapping[str, str], metrics: Sequence[ComparedMetric]
) -> tuple[Verdict, tuple[str, ...]]:
    """Return the verdict on two weights digests and their metrics, with its reasons.

    IDENTICAL: equal weights and equal metrics. EQUIVALENT: something named in the environment differs, and every metric
    is within its tolerance. DIFFERENT: anything else.
    """
    unequal = [each for each in metrics if each.is_unequal]
    if recorded == repeated and not unequal:
        return "IDENTICAL", ()
    outside = [each for each in metrics if each.is_outside]
    if outside:
        return "DIFFERENT", (f"{outside[0].words()}, tolerance {outside[0].tolerance:.2g}", *_named(differences))
    if not differences:
        what = unequal[0].words() if unequal else "the weights differ"
        return "DIFFERENT", (f"{what}, in the same environment",)
    return "EQUIVALENT", _named(differences)


def _named(differences: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"{name}: {text}" for name, text in differences.items())


def _side_by_side(
    manifest: RunManifest, epoch: int | None, repeated: Mapping[str, float], splits: Splits
) -> list[ComparedMetric]:
    """Return the metrics of an epoch, or without one those of the final model on the test set."""
    last = len(manifest.epochs)
    recorded = manifest.final if epoch is None else manifest.epochs[epoch - 1]
    samples = training.samples_per_epoch(manifest.config.training, len(splits.train))
    updates = (epoch or last) * training.batches_per_epoch(manifest.config.training, len(splits.train))
    compared = []
    for name, value in recorded.items():
        # Of the article's runs, whose epochs are judged by the test set.
        other = repeated[name if name in repeated else IN_VALIDATION[name]]
        images = samples if name.startswith("train") else len(splits.validation)
        # Of the smaller one: a recorded value that was made larger must not widen its own tolerance.
        bound = tolerance(name, min(value, other), recorded[name.replace("loss", "accuracy")], images, updates)
        compared.append(ComparedMetric(epoch or last, name, value, other, bound))
    return compared


def tolerance(name: str, value: float, accuracy: float, images: int, updates: int) -> float:
    """Return the difference up to which rounding alone may lead a metric of two trainings apart, after some updates.

    A metric of training is given `_SAFETY` times the measured drift. At most, and for a metric of other images, the two
    err on images as independent draws would: the number of errors has a binomial standard error, and that of the
    difference of two such numbers is the square root of 2 times as large. A mean loss comes from the same few images,
    so it is given the errors' relative spread. That tolerance is three standard errors.
    """
    errors = min(max(images * (1 - accuracy), 1.0), max(images - 1.0, 0.5))
    spread = math.sqrt(2 * errors * (images - errors) / images)
    drift = _SAFETY * _drift(name, updates)
    if name.endswith("accuracy"):
        return min(_STANDARD_ERRORS * spread, max(drift * spread, _IMAGES)) / images
    return value * min(_STANDARD_ERRORS * math.sqrt(2 / errors), drift)


def _drift(name: str, updates: int) -> float:
    """Return the measured drift after so many updates, between two measurements on logarithmic scales."""
    if name not in DRIFT:
        return math.inf
    return float(np.exp(np.interp(math.log(updates), np.log(UPDATES), np.log(DRIFT[name]), right=math.inf)))


def environment_differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return by name what differs between two environments and can change a number, the code's commit included."""
    before, after = training.numeric_environment(recorded), training.numeric_environment(now)
    differences = {
        name: f"{before.get(name, 'none')} recorded, {after.get(name, 'none')} now"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    }
    if Tag.CPU_FLAGS not in before or Tag.CPU_FLAGS not in after:
        # Earlier versions recorded none.
        differences.pop(Tag.CPU_FLAGS, None)
    code, code_now = (each.get(EnvironmentKey.GIT, {}) for each in (recorded, now))
    if code != code_now or code_now.get(EnvironmentKey.DIRTY):
        differences[_CODE] = f"{_commit(code)} recorded, {_commit(code_now)} now"
    return differences


def _commit(state: Mapping[str, Any]) -> str:
    changed = " with uncommitted changes" if state.get(EnvironmentKey.DIRTY) else ""
    return f"commit {str(state.get(EnvironmentKey.COMMIT, 'unknown'))[:10]}{changed}"
