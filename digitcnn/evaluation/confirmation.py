"""Confirming a study: its best trials and the baseline with several seeds on the test set, and the champion of them."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from digitcnn import runner, study, tracking
from digitcnn.config import ConfirmConfig, RunConfig, load_config, nested
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation.champion import model_card
from digitcnn.evaluation.comparison import Candidate, compare_candidates
from digitcnn.evaluation.manifest import manifest_of, write_manifest
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Metric, Tag
from digitcnn.runner import (
    Interrupted,
    Job,
    Pool,
    RecordedTraining,
    RunDiverged,
    RunFailed,
    SweepDisplay,
    Trainer,
    WorkerDied,
    threads_per_worker,
    worker_count,
)
from digitcnn.tracking import close_abandoned_runs

logger = logging.getLogger(__name__)

_MOST_DEATHS = 3


@dataclass(frozen=True)
class ConfirmationPlan:
    """What a confirmation is going to do, checked: nothing has been created yet. The baseline comes first."""

    config: ConfirmConfig
    contenders: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    workers: int
    parent_run_id: str

    @property
    def folder(self) -> Path:
        """Where the study's reports are."""
        return self.config.tracking.folder / "reports" / self.config.study.name

    @property
    def jobs(self) -> list[tuple[Candidate, int]]:
        """Every config with every seed, in the order in which they are trained."""
        return [(contender, seed) for seed in self.seeds for contender in self.contenders]


@dataclass(frozen=True)
class RecordedRuns:
    """What is recorded of a confirmation: run ids by config and seed, and with which seed a config diverged."""

    runs: dict[tuple[str, int], str]
    diverged: dict[str, int]

    def missing(self, plan: ConfirmationPlan) -> list[tuple[Candidate, int]]:
        """What is still to be trained. A config that diverged once cannot be compared, whatever its other seeds do."""
        return [
            (contender, seed)
            for contender, seed in plan.jobs
            if contender.name not in self.diverged and (contender.name, seed) not in self.runs
        ]


@dataclass(frozen=True)
class ConfirmationResult:
    """A confirmation that ended: a row per config, a row per run, the champion's name and its frozen form's file."""

    table: pd.DataFrame
    runs: pd.DataFrame
    champion: str
    champion_path: Path


def plan_confirmation(config: ConfirmConfig) -> ConfirmationPlan:
    """Checks everything that a confirmation needs. Raises ConfigError; creates nothing."""
    existing = study.recorded_study(config.study, config.tracking.folder)
    with study.storage_errors(config.tracking.folder):
        contenders = _contenders(existing, config)
    runner.check_run(contenders[0].config)
    # Not the seed that the search was judged with: its luck made the best trials the best.
    first = contenders[0].config.training.seed + 1
    seeds = tuple(range(first, first + config.confirm.seeds))
    jobs = len(contenders) * len(seeds)
    workers = worker_count(config.confirm.workers, jobs)
    return ConfirmationPlan(config, contenders, seeds, workers, str(existing.parent_run_id))


def _contenders(existing: study.OpenStudy, config: ConfirmConfig) -> tuple[Candidate, ...]:
    """The baseline and the best trials, each config once."""
    flat = {**existing.identity["baseline"], "data.validation": "test_once"}
    base = load_config(RunConfig, {**nested(flat), "tracking": config.tracking.model_dump()})
    searched = [name for name in existing.identity["space"] if name != "training.seed"]
    start = {name: base.parameters()[name] for name in searched}
    table = study.rank_trials(existing)
    found = [Candidate("baseline", study.baseline_trial_number(table) or 0, start, base)]
    for trial in study.best_first(existing, study.ended_trials(existing).values()):
        parameters = {name: value for name, value in trial.parameters.items() if name in start}
        if len(found) <= config.confirm.top and all(parameters != each.parameters for each in found):
            found.append(Candidate(f"trial {trial.number}", trial.number, parameters, base.replace(parameters)))
    if len(found) == 1:
        raise ConfigError(f"study.name={config.study.name}: no trial beside the baseline has completed")
    return tuple(found)


def run_confirmation(plan: ConfirmationPlan, shown: SweepDisplay, trainer: Trainer | None = None) -> ConfirmationResult:
    """Trains every config with every seed that is not recorded yet, compares them and registers the champion."""
    config, name = plan.config, plan.config.study.name
    opened = study.recorded_study(config.study, config.tracking.folder)
    with (
        study.storage_errors(config.tracking.folder),
        tracking.store_errors(config.tracking),
        study.only_process(config.tracking.folder, name),
    ):
        store = tracking.open_store(config.tracking)
        close_abandoned_runs(store)
        plan = _reconciled(plan, store, opened)
        known = _known(plan, store)
        training = trainer or RecordedTraining(plan.contenders[0].config.backend)
        _Confirmation(plan, shown, store, known).work(training)
        tracking.deliver(store)
        table, rows = compare_candidates(plan.contenders, store, known.runs, known.diverged)
        return _conclude(plan, store, table, rows)


def _reconciled(planned: ConfirmationPlan, store: tracking.Store, opened: study.OpenStudy) -> ConfirmationPlan:
    """The plan, made again if the study's records had to be repaired: there may be another result among them."""
    repaired = runner.repair_records(opened, store)
    if repaired:
        logger.warning(repaired)
        planned = plan_confirmation(planned.config)
    if not tracking.has_run(store, planned.parent_run_id):
        name = planned.config.study.name
        raise ConfigError(
            f"study.name={name}: MLflow's records of it are gone; sweep it again first, which begins new ones"
        )
    return planned


def recorded_runs(plan: ConfirmationPlan) -> RecordedRuns:
    """What is recorded of a confirmation so far. Raises as `run` does if nothing can be confirmed."""
    config = plan.config
    with tracking.store_errors(config.tracking):
        return _known(plan, tracking.open_recorded(config.tracking, f"study.name={config.study.name}"))


def _known(plan: ConfirmationPlan, store: tracking.Store) -> RecordedRuns:
    found = tracking.confirmation_runs(store, plan.config.study.name)
    # A file of the same name may hold other images by now.
    data = runner.check_run(plan.contenders[0].config).sha256
    of_data = [each for each in found if each.data.tags.get(Tag.DATA_SHA256, data) == data]
    known = RecordedRuns({}, {})
    for contender in plan.contenders:
        for each in reversed(of_data):
            seed = int(each.data.params["training.seed"])
            if not tracking.was_trained_with(each, contender.config.replace({"training.seed": seed})):
                continue
            if Tag.DIVERGED in each.data.tags:
                # Whatever seeds are asked for now: the others alone would flatter it.
                known.diverged.setdefault(contender.name, seed)
            elif each.info.status == "FINISHED" and seed in plan.seeds:
                known.runs[contender.name, seed] = each.info.run_id
    _need_baseline(known)
    return known


def _need_baseline(known: RecordedRuns) -> None:
    if "baseline" in known.diverged:
        seed = known.diverged["baseline"]
        raise MachineError(f"the baseline diverged with seed {seed}: there is nothing to compare the others with")


@dataclass
class _Confirmation:
    """The state of a confirmation at work."""

    plan: ConfirmationPlan
    shown: SweepDisplay
    store: tracking.Store
    known: RecordedRuns
    failed: dict[str, str] = field(default_factory=dict)

    def work(self, trainer: Trainer) -> None:
        """Trains what is missing. Raises MachineError if a run failed for good, or if the baseline diverged."""
        for name, seed in self.known.diverged.items():
            logger.warning(f"{name} diverged with seed {seed}: it is left out")
        missing = self.known.missing(self.plan)
        total = sum(contender.name not in self.known.diverged for contender, _ in self.plan.jobs)
        workers = worker_count(self.plan.workers, len(missing))
        study_name = self.plan.config.study.name
        self.shown.began(study_name, total, total - len(missing), workers, Metric.TEST_ACCURACY)
        if missing:
            threads = threads_per_worker(workers)
            pool = Pool(trainer, workers, threads)
            try:
                with (
                    pool.stopped_by_signals() as received,
                    tracking.store_errors(self.plan.config.tracking),
                    ThreadPoolExecutor(workers) as executor,
                ):
                    self.store.stopped = pool.stop.is_set
                    futures = [executor.submit(self._confirm, pool, threads, *job) for job in missing]
                    try:
                        for future in futures:
                            future.result()
                    except BaseException:
                        # The machine failed: what has not begun does not begin, what runs ends at its next epoch.
                        pool.stop.set()
                        executor.shutdown(wait=True, cancel_futures=True)
                        raise
                if received:
                    runner.end_process(received[0])
            finally:
                pool.close()
        if self.failed:
            contender, cause = next(iter(self.failed.items()))
            raise MachineError(
                f"{contender} failed: {cause}; the other runs are recorded, confirm again to go on; "
                "if it fails each time, a smaller confirm.top leaves it out"
            )

    def _confirm(self, pool: Pool, threads: int, contender: Candidate, seed: int) -> None:
        if pool.stop.is_set() or contender.name in self.known.diverged:
            return
        config = contender.config.replace({"training.seed": seed, "training.threads": threads})
        study_name = self.plan.config.study.name
        tags = {Tag.STUDY: study_name, Tag.CONFIRMS: contender.name}
        label = f"{contender.name}, seed {seed}"
        for attempt in range(1, _MOST_DEATHS + 1):
            run_id = tracking.create_training_run(
                self.store, config, f"{study_name} {label}", tags, self.plan.parent_run_id
            )
            job = Job(config, tags, run_id)
            try:
                with runner.run_job(self.store, pool, job, self.shown, label, contender.parameters) as (index, outcome):
                    if outcome.ending == "completed":
                        self.known.runs[contender.name, seed] = run_id
                        self.shown.trial_ended(index, label, "complete", outcome.summary[Metric.TEST_ACCURACY], "")
                return
            except Interrupted:
                return
            except RunDiverged:
                self.known.diverged.setdefault(contender.name, seed)
                _need_baseline(self.known)
                return
            except (RunFailed, WorkerDied) as error:
                if isinstance(error, RunFailed) or attempt == _MOST_DEATHS:
                    self.failed[contender.name] = str(error)
                    return


def _conclude(
    plan: ConfirmationPlan, store: tracking.Store, table: pd.DataFrame, rows: pd.DataFrame
) -> ConfirmationResult:
    """Writes the tables and the champion's frozen form, records them, and registers the champion."""
    champion = table[table["champion"]].iloc[0]
    name = str(champion["config"])
    # The first seed, which was chosen before anything was seen: the luckiest one would be chosen by the test set.
    run_id = str(rows[rows["config"] == name].iloc[0]["run_id"])
    manifest = manifest_of(store, run_id)
    card = model_card(plan.config.study.name, plan.contenders[0].config.data, plan.seeds, table, run_id)
    path = plan.folder / Artifact.CHAMPION
    for file, content in ((Artifact.CONFIRMATION, table), (Artifact.CONFIRMATION_RUNS, rows)):
        write_atomically(plan.folder / file, content.to_csv(index=False), "the runs are recorded")
    write_manifest(manifest, path, card)
    written = (Artifact.CONFIRMATION, Artifact.CONFIRMATION_RUNS, Artifact.CHAMPION)
    texts = {file: (plan.folder / file).read_text(encoding="utf-8") for file in written}
    tracking.put_files(store, plan.parent_run_id, texts)
    tags = {
        Tag.STUDY: plan.config.study.name,
        "config": name,
        f"{Metric.TEST_ACCURACY}.mean": f"{champion['mean']:.6f}",
        Tag.WEIGHTS_SHA256: manifest.weights_sha256,
    }
    tracking.register_champion(store, run_id, tags, card)
    return ConfirmationResult(table, rows, name, path)
