"""The plan of a sweep, checked without creating anything, and its preview: space, trials, time and disk."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from digitcnn import study, training
from digitcnn.config import Backend, LocalWorkers, RunConfig, SweepConfig, WorkersConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.formatting import format_count, format_duration, named_null
from digitcnn.records import Metric
from digitcnn.runner.pool import Job, RunFailed, WorkerDied, plan_workers, run_workers
from digitcnn.runner.run import check_run, tell_doubts
from digitcnn.runner.takeover import Takeover, plan_takeover
from digitcnn.runner.workers import LocalPool
from digitcnn.values import Events, Examples, RunFinished

# Images that are trained on and judged, once to trace the network and once to be timed.
_TIMED_IMAGES = 1000
_DRAWS = 500
# What a trial takes (s) beside training at full speed: 1.6 for pictures, model and records (median of 8 trials of the
# quick study, two workers on two cores), and 0.5 until TensorFlow has its graph (0.3 to 0.5 were measured).
_SECONDS_BESIDE_EPOCHS = 2.1
# A saved model beside its weights: MLflow's description and environment files.
_BYTES_BESIDE_WEIGHTS = 40_000


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep; nothing has been created yet. `shares` tells of its workers, `taken` of what it takes over.

    `drawn` are configs at random points of the space. `total` trials are asked for, of which `finished` count already.
    """

    config: SweepConfig
    data_sha256: str
    space: study.Space
    drawn: list[RunConfig]
    total: int
    finished: int
    workers: int
    shares: str
    threads: int
    taken: Takeover

    @property
    def baseline(self) -> RunConfig:
        """The baseline with the threads of a worker."""
        return self.config.baseline.replace({"training.threads": self.threads})


def plan_sweep(config: SweepConfig) -> SweepPlan:
    """Return the plan of a sweep, with all checked that can be wrong. Raises ConfigError; creates nothing."""
    if config.data.validation != "holdout":
        raise ConfigError(f"data.validation={config.data.validation}: a search must not see the test set; use holdout")
    baseline = config.baseline
    splits = tell_doubts(baseline)
    space = study.parse_space(config.study.space, baseline)
    height, width = splits.image_shape
    # Not every corner of a wide space.
    varied = []
    for point in (*study.space_corners(space), *study.draw_points(space, _DRAWS)):
        try:
            varied.append(baseline.replace(point))
            training.check_fits(varied[-1].model, height, width, splits.classes)
        except ConfigError as error:
            raise ConfigError(f"study.space: at {point}: {error}") from None
    study.check_sampler(config.study, space)
    existing = study.existing_study(config.tracking.folder, config.study.name)
    total, finished = study.total_trials(config.study, space, baseline), 0
    if existing is not None:
        with study.storage_errors(config.tracking.folder):
            study.refuse_another(existing, study.study_identity(config.study, space, baseline, splits.sha256))
            finished = study.count_finished(existing, config.study.sampler, config.study.retry_failed)
    taken = plan_takeover(config, space, splits.sha256, existing)
    finished += len(taken.trials)
    workers, threads, shares = plan_workers(config.workers, total, total - finished, threads=baseline.training.threads)
    return SweepPlan(
        config=config,
        data_sha256=splits.sha256,
        space=space,
        drawn=varied[-_DRAWS:],
        total=total,
        finished=finished,
        workers=workers,
        shares=shares,
        threads=threads,
        taken=taken,
    )


@dataclass(frozen=True)
class Speed:
    """Images per second of the baseline in one worker while all workers are busy, and a worker's memory (MB)."""

    training: float
    validation: float
    memory: float


@dataclass(frozen=True)
class Calibration:
    """A trainer for measuring the speed of a config; it records nothing."""

    backend: Backend

    def prepare(self, threads: int) -> None:
        training.import_keras(threads, self.backend)

    def run(self, job: Job, on_progress: Callable[[int, float], None]) -> Events:
        config = job.config
        splits = check_run(config)
        height, width = splits.image_shape
        model = training.build_model(config.model, height, width, splits.classes, config.training.seed)
        engine = training.make_engine(model, splits.train, config.training, config.augmentation.augments)
        batch = min(config.training.batch_size, len(splits.train))
        order = np.arange(max(1, _TIMED_IMAGES // batch) * batch) % len(splits.train)
        transforms = training.draw_transforms(config.augmentation, config.training.seed, 1, len(order), height, width)
        judged = Examples(splits.validation.images[:_TIMED_IMAGES], splits.validation.labels[:_TIMED_IMAGES])
        rates = {}
        for _ in range(2):
            began = time.perf_counter()
            engine.train_epoch(order, None, transforms)
            trained = time.perf_counter()
            engine.evaluate(judged)
            rates = {
                "training": len(order) / (trained - began),
                "validation": len(judged) / (time.perf_counter() - trained),
                "memory": training.resident_memory_mb(),
            }
        yield RunFinished("completed", 0, rates, weights_sha256="", engine=engine.name, files={}, model={})


def measure_speed(baseline: RunConfig, config: WorkersConfig, workers: int) -> Speed:
    """Return the speed of a baseline, from some steps in that many workers at once: the slowest counts.

    A cluster is not used: one worker here stands for its own.
    """
    workers = workers if isinstance(config, LocalWorkers) else 1
    print(f"measuring the speed of {format_count(workers, 'worker')}, half a minute ...", file=sys.stderr)
    trainer, measured = Calibration(baseline.backend), list[dict[str, float]]()
    try:
        with contextlib.closing(LocalPool(trainer, workers, training.thread_count(baseline.training))) as pool:
            run_workers(pool, lambda w: measured.append(w.run(Job(baseline), lambda _: "stop", pool.stop).summary))
    except (WorkerDied, RunFailed) as error:
        raise MachineError(f"the calibration failed: {error}") from None
    slowest = {key: min(rates[key] for rates in measured) for key in ("training", "validation")}
    return Speed(**slowest, memory=max(rates["memory"] for rates in measured))


def describe_sweep(plan: SweepPlan, speed: Speed) -> list[str]:
    """Return the preview as lines of text."""
    config, baseline = plan.config, plan.baseline
    values = baseline.parameters()
    points = study.space_size(plan.space)
    lines = [f"study {config.study.name}: {', '.join(config.study.objective)}, {config.study.sampler} sampler, "]
    lines[0] += f"{config.study.pruner} pruner"
    lines.append(plan.shares)
    number = "continuous" if math.isinf(points) else f"{points:,.0f} points"
    lines.append(f"space: {number}; the baseline is trial 0")
    width = max(len(name) for name in plan.space)
    for name, parameter in plan.space.items():
        inside = "" if parameter.contains(values[name]) else ", off the grid"
        lines.append(f"  {name:<{width}}  {parameter}; baseline {named_null(values[name])}{inside}")
    if config.study.constraints:
        lines.append(f"constraints: {_constraints(plan)}")
    left = max(plan.total - plan.finished, 0)
    recorded = f"{plan.finished} recorded" if plan.finished else "none recorded yet"
    lines += filter(None, [plan.taken.line])
    lines.append(f"trials to come: {left} of {plan.total} ({recorded})")
    start = study.startup_trials(config.study)
    if start:
        chosen = max(left - max(start - plan.finished, 0), 0)
        lines.append(f"{config.study.sampler} chooses {chosen} of them, once {start} have ended; the others are random")
    doubt = study.pruning_doubt(config.study, plan.space, baseline)
    if doubt:
        lines.append(f"study.pruner={config.study.pruner}: {doubt}")
    lines += filter(None, [_shared_epochs(plan)])
    lines.append(f"networks: {_networks([baseline])}; of {_DRAWS} drawn {_networks(plan.drawn)}")
    seconds = float(np.mean([estimate_seconds(each, baseline, speed) for each in plan.drawn]))
    parameters = float(np.mean([parameters_of(each) for each in plan.drawn]))
    if config.study.seeds > 1:
        seconds *= config.study.seeds
        lines.append(f"seeds: 1 to {config.study.seeds} for a trial, fewer for one that cannot be the best any more")
    images = f"{speed.training:,.0f} images/s and {speed.memory:,.0f} MB a worker, measured"
    time_left = describe_time(left * seconds, config.workers, min(plan.workers, max(left, 1)))
    lines.append(f"time: about {time_left} without pruning ({format_duration(seconds)} a trial; {images})")
    megabytes = left * config.study.seeds * (4 * parameters + _BYTES_BESIDE_WEIGHTS) / 1e6
    lines.append(f"disk: about {megabytes:,.0f} MB for the models of {format_count(left, 'trial')}, if none is pruned")
    return lines


def _shared_epochs(plan: SweepPlan) -> str:
    """Return how many epochs of a grid are trained, as far as trials that differ in them alone share them."""
    epochs, config = plan.space.get("training.epochs"), plan.config
    whole = config.study.sampler == "grid" and plan.total >= study.space_size(plan.space)
    if epochs is None or not whole or "training.schedule" in plan.space or training.depends_on_length(config.training):
        return ""
    values = [int(str(value)) for value in epochs.values]
    others = int(study.space_size(plan.space)) // len(values)
    return f"epochs: {others * max(values):,} are trained, of {others * sum(values):,} that the trials have together"


def describe_time(seconds: float, config: WorkersConfig, workers: int) -> str:
    """Return the time of jobs that take one worker so many seconds, in words; a cluster has any number of workers."""
    if isinstance(config, LocalWorkers):
        return format_duration(seconds / workers)
    return f"{format_duration(seconds)} of one worker like this machine's, shared by those of the cluster"


def _networks(configs: Sequence[RunConfig]) -> str:
    """Return the sizes of some runs' networks, the smallest and the largest, in words."""
    splits = check_run(configs[0])
    said = []
    counts = {
        "million parameters": training.count_parameters,
        "million multiply-adds an image": training.count_multiplications,
    }
    for unit, count in counts.items():
        sizes = [count(each.model, *splits.image_shape, splits.classes) / 1e6 for each in configs]
        said.append(" to ".join(f"{size:.3g}" for size in dict.fromkeys((min(sizes), max(sizes)))) + f" {unit}")
    return ", ".join(said)


def _constraints(plan: SweepPlan) -> str:
    """Return the constraints in words, with the share of the space that keeps the one on parameters."""
    bounds = plan.config.study.bounds()
    said = [f"{name} {side} {bound:,.6g}" for name, sides in bounds.items() for side, bound in sides.items()]
    if Metric.PARAMETERS in bounds:
        sizes = ({Metric.PARAMETERS: float(parameters_of(config))} for config in plan.drawn)
        kept = np.mean([not study.broken(study.constraint_values(bounds, size)) for size in sizes])
        said.append(f"{100 * kept:.0f} % of the space keep the one on parameters, others are not trained")
    return ", ".join(said)


def parameters_of(config: RunConfig) -> int:
    """Return the number of weights of a run's network."""
    splits = check_run(config)
    return training.count_parameters(config.model, *splits.image_shape, splits.classes)


def estimate_seconds(config: RunConfig, baseline: RunConfig, speed: Speed) -> float:
    """Return the seconds of one run, from the baseline's speed: time grows with a network's multiplications."""
    splits = check_run(baseline)
    shape = (*splits.image_shape, splits.classes)
    multiplications = training.count_multiplications(config.model, *shape)
    work = multiplications / training.count_multiplications(baseline.model, *shape)
    epochs = config.training.epochs
    trained = epochs * training.samples_per_epoch(config.training, len(splits.train)) / speed.training
    judged = len(splits.validation) * (1 if splits.final_test_only else epochs) / speed.validation
    return _SECONDS_BESIDE_EPOCHS + (trained + judged) * work
