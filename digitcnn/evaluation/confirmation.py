"""Confirmation: a study's best trials and the baseline, with several seeds on the test set, and their champion."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from digitcnn import runner, signals, study, tracking, training
from digitcnn.config import LocalWorkers
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation.ablation import compare_steps
from digitcnn.evaluation.comparison import compare_candidates
from digitcnn.evaluation.plan import Candidate, ConfirmationPlan, RecordedRuns, plan_confirmation, recorded_runs
from digitcnn.evaluation.reproduction.manifest import manifest_of, manifest_text
from digitcnn.evaluation.verdicts import Looks, model_card
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Column, Metric, Tag
from digitcnn.values import Decision, EpochMetrics

logger = logging.getLogger(__name__)

# A worker that dies three times on one run would die again, in a confirmation as in a sweep (study.retries).
_RETRIES = 2
# How often a worker without a run looks whether one has come back.
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class ConfirmationResult:
    """A finished confirmation: a row per candidate, a row per run, the champion's name and its manifest's file.

    `ablation` has a row per change and place, if that was asked for.
    """

    table: pd.DataFrame
    runs: pd.DataFrame
    champion: str
    champion_path: Path
    ablation: pd.DataFrame | None = None


def run_confirmation(
    plan: ConfirmationPlan, shown: runner.SweepDisplay, trainer: runner.Trainer | None = None
) -> ConfirmationResult:
    """Train every candidate with every seed that is not recorded yet, compare them and register the champion.

    Raise ConfigError if the study's records are gone or another margin was chosen before, MachineError if the baseline
    diverged or a run failed for good.
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
        recorded, looks = recorded_runs(plan, store), Looks.read(store, plan.parent_run_id)
        looks.require_margin(config.confirm.margin)
        missing = recorded.missing(plan)
        # Who is out of the race meanwhile has fewer seeds than were announced, and makes no other look of it.
        racing = recorded.racing_seeds(plan, missing)
        look = looks.number(racing, recorded.seeds(), plan.budget if missing else None)
        if any(not each.step for each, _ in missing):
            # Whoever gives up on it has seen what it recorded.
            looks = looks.announced(look, recorded.seeds(missing), config.confirm.margin, plan.budget)
            _keep(store, plan, {Artifact.CONFIRMATION_LOOKS: looks.table.to_csv(index=False)})
        backend = plan.candidates[0].config.backend
        _train(plan, missing, recorded, store, shown, trainer or runner.KerasTrainer(backend))
        tracking.deliver(store)
        table, runs = compare_candidates(store, recorded, look, config.confirm.margin)
        _keep(store, plan, {Artifact.CONFIRMATION_LOOKS: looks.taken(table).table.to_csv(index=False)})
        _put_accuracies(store, opened, table)
        result = _conclude(plan, store, table, runs)
        return replace(result, ablation=_ablate(plan, store, recorded, table)) if config.confirm.ablation else result


def _keep(store: tracking.Store, plan: ConfirmationPlan, texts: dict[str, str]) -> None:
    """Write files by their names to the study's reports, and record them on its run."""
    for name, text in texts.items():
        write_atomically(plan.folder / name, text, "the runs are recorded")
    tracking.put_files(store, plan.parent_run_id, texts)


def _ablate(
    plan: ConfirmationPlan, store: tracking.Store, recorded: RecordedRuns, confirmed: pd.DataFrame
) -> pd.DataFrame:
    """Return what each change to the best trial brings, by the runs of baseline, trial and steps; record it."""
    baseline, best = plan.candidates[:2]
    table = compare_steps(baseline.config, best.config, best.name, recorded.named_accuracies(), confirmed)
    _keep(store, plan, {Artifact.ABLATION: table.to_csv(index=False)})
    return table


def _put_accuracies(store: tracking.Store, opened: study.OpenStudy, table: pd.DataFrame) -> None:
    """Record what the seeds of each config got on the run of its trial, by which MLflow's UI can then sort trials."""
    run_ids = {trial.number: str(trial.record.run_id) for trial in study.ended_trials(opened)}
    for row in table[table["n"] > 0].to_dict("records"):
        run_id = run_ids.get(row[Column.TRIAL])
        # One that a person deleted takes no more.
        if run_id is not None and tracking.has_run(store, run_id):
            measured = {f"{Metric.CONFIRMED_PREFIX}{name}": row[name] for name in ("n", "mean", "sd", "low", "high")}
            known = {name: value for name, value in measured.items() if pd.notna(value)}
            tracking.put(store, run_id, tracking.metrics(known, step=row[Column.LOOK]))


def _train(
    plan: ConfirmationPlan,
    missing: Sequence[tuple[Candidate, int]],
    recorded: RecordedRuns,
    store: tracking.Store,
    shown: runner.SweepDisplay,
    trainer: runner.Trainer,
) -> None:
    """Train what is missing, and add it to what is recorded.

    Raise MachineError if a run failed for good or the baseline diverged.
    """
    for name, seed in recorded.diverged.items():
        logger.warning(f"{name} diverged with seed {seed}: it is left out")
    finished = recorded.count(plan)
    workers, threads, _ = runner.plan_workers(plan.config.workers, finished + len(missing), len(missing))
    local = workers if isinstance(plan.config.workers, LocalWorkers) else None
    shown.began(plan.config.study.name, finished + len(missing), finished, local, Metric.TEST_ACCURACY)
    if not missing:
        return
    with closing(runner.make_pool(plan.config.workers, trainer, plan.candidates[0].config, workers, threads)) as pool:
        work = _Trainings(plan, recorded, store, shown, threads, pool.stop)
        if plan.budget is None:
            work.waiting.extend(missing)
        # Inside, so that a store that is away is told from other failures when a signal has come.
        asked = study.stop_file(plan.config.tracking.folder, plan.config.study.name)
        with runner.stopped_by_signals(pool, asked) as received, tracking.store_errors(plan.config.tracking):
            store.stopped = pool.stop.is_set
            runner.run_workers(pool, work.loop)
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
    shown: runner.SweepDisplay
    threads: int
    stop: threading.Event
    waiting: deque[tuple[Candidate, int]] = field(default_factory=deque)
    begun: set[tuple[str, int]] = field(default_factory=set)
    running: int = 0
    deaths: Counter[tuple[str, int]] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def loop(self, worker: runner.Worker) -> None:
        """Train one run after the other on a worker."""
        while worker.wait_ready() and (run := self._next()) is not None:
            again = self._train(*run, worker)
            with self.lock:
                self.running -= 1
                self.waiting.extend([run] if again else [])

    def _next(self) -> tuple[Candidate, int] | None:
        """Return the next run; None when there is none, and none at work that could come back."""
        while not self.stop.is_set():
            with self.lock:
                if not self.waiting and self.plan.budget is not None:
                    # Seed by seed: what was trained says what the next one costs, and who needs it.
                    bought = self.recorded.missing(self.plan, self.begun)
                    self.waiting.extend(run for run in bought if run[1] == bought[0][1])
                while self.waiting:
                    candidate, seed = self.waiting.popleft()
                    self.begun.add((candidate.name, seed))
                    why = self.recorded.over(self.plan).get(candidate.name)
                    if why is None:
                        self.running += 1
                        return candidate, seed
                    self.shown.trial_ended(None, f"{candidate.name}, seed {seed}", f"not trained: {why}", None, "")
                if not self.running:
                    return None
            self.stop.wait(_POLL_SECONDS)
        return None

    def _train(self, candidate: Candidate, seed: int, worker: runner.Worker) -> bool:
        """Train a run and record how it ended; return True if its worker died and it is to be tried again."""
        config = candidate.config.replace({"training.seed": seed, "training.threads": self.threads})
        label, study_name = f"{candidate.name}, seed {seed}", self.plan.config.study.name
        tags = {Tag.STUDY: study_name, Tag.ABLATES if candidate.step else Tag.CONFIRMS: candidate.name}
        parent = self.plan.parent_run_id
        run_id = tracking.create_training_run(self.store, config, label, tags, parent)
        self.shown.trial_began(worker.index, label, candidate.parameters, config.training.epochs)

        def on_epoch(metrics: EpochMetrics) -> Decision:
            self.shown.epoch(worker.index, label, metrics)
            return "continue"

        def show(ending: str, value: float | None = None) -> None:
            self.shown.trial_ended(worker.index, label, ending, value, "")

        folder, data = self.plan.config.tracking.checkpoints("confirm", study_name), runner.check_run(config)
        checkpoints = training.checkpoints_of(folder, config, data.sha256)
        start = checkpoints.find(config.training.epochs)
        try:
            finished = runner.record_training(
                self.store, worker, config, run_id, on_epoch, self.stop, checkpoints, start
            )
        except runner.Interrupted:
            show("interrupted")
        except runner.RunDiverged as error:
            show(f"failed: {error}")
            self.recorded.diverged.setdefault(candidate.name, seed)
            self.recorded.require_baseline()
        except (runner.RunFailed, runner.WorkerDied) as error:
            show(f"{'failed' if isinstance(error, runner.RunFailed) else 'lost'}: {error}")
            self.deaths[candidate.name, seed] += isinstance(error, runner.WorkerDied)
            if isinstance(error, runner.WorkerDied) and self.deaths[candidate.name, seed] <= _RETRIES:
                return True
            self.failed[candidate.name] = str(error)
        else:
            if finished.ending == "completed":
                checkpoints.drop()
                self.recorded.cpu_seconds[candidate.name, seed] = finished.summary[Metric.CPU_SECONDS]
                self.recorded.accuracies[candidate.name, seed] = finished.summary[Metric.TEST_ACCURACY]
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
    seeds = sorted(runs[Column.SEED])
    card = model_card(plan.config.study.name, plan.candidates[0].config.data, seeds, table, run_id)
    tables = {Artifact.CONFIRMATION: table, Artifact.CONFIRMATION_RUNS: runs}
    texts = {name: content.to_csv(index=False) for name, content in tables.items()}
    _keep(store, plan, texts | {Artifact.CHAMPION: manifest_text(manifest, card)})
    tags = {
        Tag.STUDY: plan.config.study.name,
        Column.CONFIG: name,
        Metric.CONFIRMED_MEAN: f"{champion['mean']:.6f}",
        Tag.WEIGHTS_SHA256: manifest.weights_sha256,
    }
    tracking.register_champion(store, run_id, tags, card)
    return ConfirmationResult(table, runs, name, plan.folder / Artifact.CHAMPION)
