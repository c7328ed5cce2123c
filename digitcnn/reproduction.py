"""Trains a recorded run again and judges whether it is the same: identical, equivalent or different."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from omegaconf import OmegaConf
from pydantic import Field

from digitcnn import environment, records, runs, storage, study, tracking
from digitcnn.config import Config, RunConfig, StudyReference, TrackingConfig, load
from digitcnn.data import Splits
from digitcnn.errors import ConfigError
from digitcnn.training import EpochMetrics, samples_per_epoch

Verdict = Literal["IDENTICAL", "EQUIVALENT", "DIFFERENT"]
# What a run's config and seed decide. Seconds and memory are the machine's.
_REPEATABLE = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy")
# Of the difference of two counts: about one comparison in 370 exceeds it by chance.
_STANDARD_ERRORS = 3.0
_FORMAT = 1


class ReproduceConfig(Config):
    """Which run is trained again: champion, best (of a study), a run id, or a frozen run's file."""

    run: str
    threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    study: StudyReference
    tracking: TrackingConfig = TrackingConfig()


@dataclass(frozen=True)
class Frozen:
    """All that it takes to repeat a run and to know it again.

    `epochs` are the metrics of each epoch by name, `final` those of the final model on the test set, if it was judged
    once. `environment` is what environment.json holds.
    """

    run_id: str
    config: RunConfig
    epochs: tuple[dict[str, float], ...]
    final: dict[str, float]
    weights_sha256: str
    data_sha256: str
    engine: str
    environment: dict[str, Any]


@dataclass(frozen=True)
class Compared:
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
    metrics: tuple[Compared, ...]
    run_id: str
    weights_sha256: str


def find(config: ReproduceConfig, say: Callable[[str], None] = lambda _: None) -> Frozen:
    """The run that a config names, as it was recorded or frozen. Raises ConfigError if there is none."""
    if config.run.endswith((".yaml", ".yml")):
        return read(Path(config.run).expanduser())
    with tracking.store_errors(config.tracking):
        store = records.open_recorded(config.tracking, f"run={config.run}", say)
        run_id = _best(config) if config.run == "best" else records.find_run(store, config.run)
        return frozen_of(store, run_id)


def _best(config: ReproduceConfig) -> str:
    url = config.study.storage or storage.sqlite_url(config.tracking.folder / "optuna.db")
    existing = study.existing_study(url, config.study.name)
    best = None if existing is None else study.best(existing)
    if best is None:
        raise ConfigError(f"study.name={config.study.name}: no study of that name with a completed trial is recorded")
    return str(best.user_attrs["run_id"])


def frozen_of(store: tracking.Store, run_id: str) -> Frozen:
    """The frozen form of a recorded run that got to its end. Raises ConfigError for any other."""
    found = store.client.get_run(run_id)
    if found.info.status != "FINISHED" or "weights_sha256" not in found.data.tags:
        raise ConfigError(f"run={run_id}: is {found.info.status}; only a run that got to its end can be reproduced")
    run_id = found.data.tags.get("same_as_run", run_id)
    config = OmegaConf.create(records.read_text(store, run_id, "config.yaml"))
    histories = {
        name: {point.step: point.value for point in store.client.get_metric_history(run_id, name)}
        for name in _REPEATABLE
        if name in found.data.metrics
    }
    last = max(histories["train_loss"])
    return Frozen(
        run_id=run_id,
        config=load(RunConfig, _plain(OmegaConf.to_container(config))),
        epochs=tuple(
            {name: history[epoch] for name, history in histories.items() if not name.startswith("test")}
            for epoch in range(1, last + 1)
        ),
        final={name: history[last] for name, history in histories.items() if name.startswith("test")},
        weights_sha256=found.data.tags["weights_sha256"],
        data_sha256=found.data.tags["data_sha256"],
        engine=found.data.tags["engine"],
        environment=_plain(yaml.safe_load(records.read_text(store, run_id, "environment.json"))),
    )


def _plain(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ConfigError("a record is torn: it holds no keys")
    return content


def write(frozen: Frozen, path: Path, comment: str) -> None:
    """Writes a frozen run as YAML, headed by a comment."""
    content = dataclasses.asdict(frozen)
    content["config"] = frozen.config.model_dump(exclude={"tracking"})
    content["epochs"] = list(frozen.epochs)
    heading = "".join(f"# {line}\n" for line in comment.splitlines())
    path.write_text(heading + yaml.safe_dump({"format": _FORMAT, **content}, sort_keys=False, allow_unicode=True))


def read(path: Path) -> Frozen:
    """A frozen run from its file. Raises ConfigError with one line if that is none."""
    try:
        content = yaml.safe_load(path.read_text())
        if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
            raise ConfigError(f"run={path}: is not a frozen run of format {_FORMAT}")
        config = load(RunConfig, content.pop("config"))
        epochs = tuple({str(name): float(value) for name, value in epoch.items()} for epoch in content.pop("epochs"))
        return Frozen(config=config, epochs=epochs, **content)
    except OSError as error:
        raise ConfigError(f"run={path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, KeyError, AttributeError) as error:
        cause = " ".join(str(error).split())
        raise ConfigError(f"run={path}: is not a frozen run, or is torn ({cause})") from None


def reproduce(frozen: Frozen, store: TrackingConfig, threads: int | None, on_epoch: Any) -> Reproduction:
    """Trains the run again in this process, with its own threads unless others are asked for, and compares.

    For a process that has not imported TensorFlow: threads and flags are settled before that.
    """
    for name, value in frozen.environment.get("flags", {}).items():
        if name.startswith(environment.FLAG_PREFIXES):
            os.environ[name] = str(value)
    config = frozen.config.model_copy(update={"tracking": store})
    if threads is not None:
        config = config.replace({"training.threads": threads})
    splits = runs.check(config)
    if splits.sha256 != frozen.data_sha256:
        raise ConfigError(f"data.path={config.data.path}: holds other data than the run was trained on (SHA-256)")
    finished = runs.record_run(config, tags={"reproduces": frozen.run_id}, on_epoch=on_epoch)
    result = finished.result
    final = result.summary() if result.judged_once else {}
    metrics = _side_by_side(frozen, result.epochs, final, splits)
    now = environment.describe(config.training.threads or 1) | {"engine": result.engine}
    differences = _differences({**frozen.environment, "engine": frozen.engine}, now)
    verdict, reasons = judge(frozen.weights_sha256, result.weights_sha256, differences, metrics)
    code = _code(frozen.environment.get("git", {}), environment.git_state())
    return Reproduction(verdict, reasons, code, metrics, finished.run_id, result.weights_sha256)


def judge(
    recorded: str, repeated: str, differences: Mapping[str, str], metrics: tuple[Compared, ...]
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
    frozen: Frozen, epochs: tuple[EpochMetrics, ...], final: Mapping[str, float], splits: Splits
) -> tuple[Compared, ...]:
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
            bound = tolerance(name, value, recorded[name.replace("loss", "accuracy")], images)
            found.append(Compared(number, name, value, repeated[name], bound))
    return tuple(found)


def tolerance(name: str, value: float, accuracy: float, images: int) -> float:
    """By how much a metric of two trainings may differ that rounding has led apart.

    They err on images as two independent draws would: the number of errors has a binomial standard error, and that of
    the difference of two such numbers is the square root of 2 times as large. A mean loss comes from the same few
    images, so it is given the errors' relative spread. Three standard errors.
    """
    errors = min(max(images * (1 - accuracy), 1.0), images - 1.0)
    if name.endswith("accuracy"):
        return _STANDARD_ERRORS * math.sqrt(2 * errors * (images - errors) / images) / images
    return _STANDARD_ERRORS * value * math.sqrt(2 / errors)


def _differences(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs of two environments, by name; not the code, the command line, or what cannot change a number."""
    names = ("python", "packages", "platform", "cpu", "threads", "backend", "flags", "engine")
    before = environment.flatten_tags({name: recorded.get(name, {}) for name in names})
    after = environment.flatten_tags({name: now[name] for name in names})
    ours = "version.digitcnn"
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
