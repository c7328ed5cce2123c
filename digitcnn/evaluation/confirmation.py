"""Confirmation: a study's best trials and the baseline, with several seeds on the test set, and their champion."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from digitcnn import runner, signals, study, tracking
from digitcnn.config import ConfirmConfig, LocalWorkers, RunConfig, load_config, nested
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation.champion import model_card
from digitcnn.evaluation.comparison import Candidate, RecordedRuns, compare_candidates
from digitcnn.evaluation.manifest import manifest_of, write_manifest
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Column, IdentityKey, Metric, Tag
from digitcnn.runner import (
    RunFailed,
    SweepDisplay,
    Worker,
    WorkerDied,
    make_pool,
    plan_workers,
    run_workers,
    stopped_by_signals,
)
from digitcnn.values import Decision, EpochMetrics

logger = logging.getLogger(__name__)

# A worker that dies three times on one run would die again, in a confirmation as in a sweep (study.retries).
_RETRIES = 2
# How often a worker without a run looks whether one has come back.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class ConfirmationPlan:
    """A confirmation that was checked; nothing has been created yet. The first candidate is the baseline."""

    config: ConfirmConfig
    candidates: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    parent_run_id: str

    @property
    def folder(self) -> Path:
        """The folder of the study's reports."""
        return self.config.tracking.folder / "reports" / self.config.study.name


@dataclass(frozen=True)
class ConfirmationResult:
    """A finished confirmation: a row per candidate, a row per run, the champion's name and its manifest's file."""

    table: pd.DataFrame
    runs: pd.DataFrame
    champion: str
    champion_path: Path


def plan_confirmation(config: ConfirmConfig) -> ConfirmationPlan:
    """Check everything that a confirmation needs. Raise ConfigError; create nothing."""
    opened = study.recorded_study(config.study, config.tracking.folder)
    with study.storage_errors(config.tracking.folder):
        candidates = _candidates(opened, config)
    runner.check_run(candidates[0].config)
    # Not the seed that the search was judged with: its luck made the best trials the best.
    first = candidates[0].config.training.seed + 1
    seeds = tuple(range(first, first + config.confirm.seeds))
    return ConfirmationPlan(config, candidates, seeds, str(opened.parent_run_id))


def _candidates(opened: study.OpenStudy, config: ConfirmConfig) -> tuple[Candidate, ...]:
    """Return the baseline and the best trials, each config once."""
    flat = {**opened.identity[IdentityKey.BASELINE], "data.validation": "test_once"}
    base = load_config(RunConfig, {**nested(flat), "tracking": config.tracking.model_dump()})
    searched = [name for name in opened.identity[IdentityKey.SPACE] if name != "training.seed"]
    start = {name: base.parameters()[name] for name in searched}
    table = study.rank_trials(opened)
    found = [Candidate("baseline", study.baseline_trial_number(table) or 0, start, base)]
    for trial in study.best_first(opened, study.ended_trials(opened)):
        parameters = {name: value for name, value in trial.parameters.items() if name in start}
        if len(found) <= config.confirm.top and all(parameters != each.parameters for each in found):
            found.append(Candidate(f"trial {trial.number}", trial.number, parameters, base.replace(parameters)))
    if len(found) == 1:
        raise ConfigError(f"study.name={config.study.name}: no trial beside the baseline has completed")
    return tuple(found)


def recorded_runs(plan: ConfirmationPlan) -> RecordedRuns:
    """Return the runs that are recorded. Raise ConfigError without a store, MachineError if the baseline diverged."""
    config = plan.config
    with tracking.store_errors(config.tracking):
        return _recorded(plan, tracking.open_recorded(config.tracking, f"study.name={config.study.name}"))


def _recorded(plan: ConfirmationPlan, store: tracking.Store) -> RecordedRuns:
    # A file of the same name may hold other images by now.
    data = runner.check_run(plan.candidates[0].config).sha256
    found = tracking.confirmation_runs(store, plan.config.study.name)
    of_data = [run for run in found if run.data.tags.get(Tag.DATA_SHA256, data) == data]
    recorded = RecordedRuns({}, {})
    for candidate in plan.candidates:
        for run in reversed(of_data):
            seed = int(run.data.params["training.seed"])
            if not tracking.was_trained_with(run, candidate.config.replace({"training.seed": seed})):
                continue
            if Tag.DIVERGED in run.data.tags:
                # Whatever seeds are asked for now: the others alone would flatter it.
                recorded.diverged.setdefault(candidate.name, seed)
            elif run.info.status == "FINISHED" and seed in plan.seeds:
                recorded.runs[candidate.name, seed] = run.info.run_id
    recorded.require_baseline()
    return recorded


def run_confirmation(
    plan: ConfirmationPlan, shown: SweepDisplay, trainer: runner.Trainer | None = None
) -> ConfirmationResult:
    """Train every candidate with every seed that is not recorded yet, compare them and register the champion.

    Raise ConfigError if the study's records are gone, MachineError if the baseline diverged or a run failed for good.
    """
    config = plan.config
    opened = study.recorded_study(config.study, config.tracking.folder)
    with (
        study.storage_errors(config.tracking.folder),
        tracking.store_errors(config.tracking),
        study.only_process(config.tracking.folder, config.study.name),
    ):
        store = tracking.open_store(config.tracking)
        tracking.close_abandoned_runs(store)
        repaired = runner.repair_records(opened, store)
        if repaired:
            logger.warning(repaired)
            # There may be another result among the repaired ones.
            plan = plan_confirmation(config)
        if not tracking.has_run(store, plan.parent_run_id):
            raise ConfigError(
                f"study.name={config.study.name}: MLflow's records of it are gone; sweep it again first, "
                "which begins new ones"
            )
        recorded = _recorded(plan, store)
        backend = plan.candidates[0].config.backend
        _train_missing(plan, recorded, store, shown, trainer or runner.KerasTrainer(backend))
        tracking.deliver(store)
        table, runs = compare_candidates(plan.candidates, store, recorded.runs, recorded.diverged)
        return _conclude(plan, store, table, runs)


def _train_missing(
    plan: ConfirmationPlan,
    recorded: RecordedRuns,
    store: tracking.Store,
    shown: SweepDisplay,
    trainer: runner.Trainer,
) -> None:
    """Train what is not recorded, and add it. Raise MachineError if a run failed for good or the baseline diverged."""
    for name, seed in recorded.diverged.items():
        logger.warning(f"{name} diverged with seed {seed}: it is left out")
    missing = recorded.missing(plan.candidates, plan.seeds)
    total = (len(plan.candidates) - len(recorded.diverged)) * len(plan.seeds)
    workers, threads, _ = plan_workers(plan.config.workers, len(missing))
    local = workers if isinstance(plan.config.workers, LocalWorkers) else None
    shown.began(plan.config.study.name, total, total - len(missing), local, Metric.TEST_ACCURACY)
    if not missing:
        return
    with closing(make_pool(plan.config.workers, trainer, plan.candidates[0].config, workers, threads)) as pool:
        work = _Trainings(plan, recorded, store, shown, threads, pool.stop, deque(missing))
        # Inside, so that a store that is away is told from other failures when a signal has come.
        with stopped_by_signals(pool) as received, tracking.store_errors(plan.config.tracking):
            store.stopped = pool.stop.is_set
            run_workers(pool, work.loop)
        if received:
            signals.end_process(received[0])
    if work.failed:
        name, cause = next(iter(work.failed.items()))
        raise MachineError(
            f"{name} failed: {cause}; the other runs are recorded, confirm again to go on; "
            "if it fails each time, a smaller confirm.top leaves it out"
        )


@dataclass
class _Trainings:
    """The runs of a confirmation that are to be trained; `failed` holds the causes by candidate."""

    plan: ConfirmationPlan
    recorded: RecordedRuns
    store: tracking.Store
    shown: SweepDisplay
    threads: int
    stop: threading.Event
    waiting: deque[tuple[Candidate, int]]
    running: int = 0
    deaths: Counter[tuple[str, int]] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def loop(self, worker: Worker) -> None:
        """Train one run after the other on a worker."""
        try:
            while worker.wait_ready() and (run := self._next()) is not None:
                again = self._train(*run, worker)
                with self.lock:
                    self.running -= 1
                    self.waiting.extend([run] if again else [])
        except BaseException:
            # The machine failed: what has not begun does not begin, what runs ends at its next epoch.
            self.stop.set()
            raise

    def _next(self) -> tuple[Candidate, int] | None:
        """Return the next run; None when there is none, and none at work that could come back."""
        while not self.stop.is_set():
            with self.lock:
                while self.waiting:
                    candidate, seed = self.waiting.popleft()
                    if candidate.name not in self.recorded.diverged:
                        self.running += 1
                        return candidate, seed
                if not self.running:
                    return None
            self.stop.wait(_POLL_SECONDS)
        return None

    def _train(self, candidate: Candidate, seed: int, worker: Worker) -> bool:
        """Train a run and record how it ended; return True if its worker died and it is to be tried again."""
        config = candidate.config.replace({"training.seed": seed, "training.threads": self.threads})
        label, study_name = f"{candidate.name}, seed {seed}", self.plan.config.study.name
        tags = {Tag.STUDY: study_name, Tag.CONFIRMS: candidate.name}
        parent = self.plan.parent_run_id
        run_id = tracking.create_training_run(self.store, config, f"{study_name} {label}", tags, parent)
        self.shown.trial_began(worker.index, label, candidate.parameters, config.training.epochs)

        def on_epoch(metrics: EpochMetrics) -> Decision:
            self.shown.epoch(worker.index, label, metrics)
            return "continue"

        def show(ending: str, value: float | None = None) -> None:
            self.shown.trial_ended(worker.index, label, ending, value, "")

        try:
            finished = runner.record_training(self.store, worker, config, run_id, on_epoch, self.stop)
        except runner.Interrupted:
            show("interrupted")
        except runner.RunDiverged as error:
            show(f"failed: {error}")
            self.recorded.diverged.setdefault(candidate.name, seed)
            self.recorded.require_baseline()
        except (RunFailed, WorkerDied) as error:
            show(f"{'failed' if isinstance(error, RunFailed) else 'lost'}: {error}")
            self.deaths[candidate.name, seed] += isinstance(error, WorkerDied)
            if isinstance(error, WorkerDied) and self.deaths[candidate.name, seed] <= _RETRIES:
                return True
            self.failed[candidate.name] = str(error)
        else:
            if finished.ending == "completed":
                self.recorded.runs[candidate.name, seed] = run_id
                show("complete", finished.summary[Metric.TEST_ACCURACY])
        return False


def _conclude(
    plan: ConfirmationPlan, store: tracking.Store, table: pd.DataFrame, runs: pd.DataFrame
) -> ConfirmationResult:
    """Write and record the tables and the champion's manifest, and register the champion."""
    champion = table[table[Column.CHAMPION]].iloc[0]
    name = str(champion[Column.CONFIG])
    # The first seed, which was chosen before anything was seen: the luckiest one would be chosen by the test set.
    run_id = str(runs[runs[Column.CONFIG] == name].iloc[0][Column.RUN_ID])
    manifest = manifest_of(store, run_id)
    card = model_card(plan.config.study.name, plan.candidates[0].config.data, plan.seeds, table, run_id)
    path = plan.folder / Artifact.CHAMPION
    for file, content in ((Artifact.CONFIRMATION, table), (Artifact.CONFIRMATION_RUNS, runs)):
        write_atomically(plan.folder / file, content.to_csv(index=False), "the runs are recorded")
    write_manifest(manifest, path, card)
    written = (Artifact.CONFIRMATION, Artifact.CONFIRMATION_RUNS, Artifact.CHAMPION)
    texts = {file: (plan.folder / file).read_text(encoding="utf-8") for file in written}
    tracking.put_files(store, plan.parent_run_id, texts)
    tags = {
        Tag.STUDY: plan.config.study.name,
        Column.CONFIG: name,
        f"{Metric.TEST_ACCURACY}.mean": f"{champion['mean']:.6f}",
        Tag.WEIGHTS_SHA256: manifest.weights_sha256,
    }
    tracking.register_champion(store, run_id, tags, card)
    return ConfirmationResult(table, runs, name, path)
