"""A trial's training: with one seed after the other, each from what there is of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from digitcnn import study, tracking, training
from digitcnn.config import RunConfig
from digitcnn.records import Tag, TrialRecord
from digitcnn.runner.plan import SweepPlan
from digitcnn.runner.pool import Worker
from digitcnn.runner.run import Interrupted, SweepDisplay, ThisProcess, record_training
from digitcnn.runner.trial.beginning import recorded_epochs
from digitcnn.tracking import Status
from digitcnn.training import Checkpoints
from digitcnn.values import Decision, EpochMetrics, RunFinished


@dataclass(frozen=True)
class Trainings:
    """The trainings of a sweep's trials.

    `parent` is the id of the study's run, `longest` holds by `beginning_key` the trials that were trained for most
    epochs, and `stop` ends what runs.
    """

    plan: SweepPlan
    shown: SweepDisplay
    store: tracking.Store
    opened: study.OpenStudy
    parent: str
    longest: dict[str, study.EndedTrial]
    stop: threading.Event

    @property
    def folder(self) -> Path:
        """The folder of the study's checkpoints."""
        return self.plan.config.tracking.checkpoints("sweep", self.plan.config.study.name)

    @cached_property
    def _first_judged(self) -> int:
        return study.first_judged_epoch(self.plan.space, self.plan.baseline)

    def train(self, trial: study.Trial, worker: Worker, config: RunConfig, run_id: str) -> RunFinished:
        """Train a trial with one seed after the other, as long as it may be the best; return the result, their means.

        The trial's run is that of the first, and closed last; those of the others are below it. What ends one of them
        ends the trial, whose next attempt goes on at the checkpoints of each. Raises as `record_training` does.
        """
        searched, runs = self.plan.config.study, list[str]()
        results = [self._train_seed(trial, worker, config, run_id, 0)]
        if searched.seeds == 1 or results[0].ending != "completed":
            return results[0]
        try:
            while study.needs_seed(self.opened, searched, [each.summary[searched.objective[0]] for each in results]):
                each = _with_seed(config, len(results))
                name = f"{trial.number}: seed {each.training.seed}"
                tags = {Tag.STUDY: searched.name, Tag.SEED_OF: self.parent}
                runs.append(tracking.create_training_run(self.store, each, name, tags, run_id))
                results.append(self._train_seed(trial, worker, each, runs[-1], len(results)))
                if results[-1].ending != "completed":
                    raise Interrupted("interrupted")
        except BaseException as error:
            status: Status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
            tracking.close_run(self.store, run_id, status, f"one of its seeds: {error}")
            raise
        summary = study.mean_of_seeds([each.summary for each in results], searched.objective[0])
        study.record_trial(self.opened, trial, TrialRecord(seed_runs=runs))
        tracking.put(self.store, run_id, tracking.metrics(study.named_means(summary), results[0].epochs))
        tracking.close_run(self.store, run_id, "FINISHED")
        return replace(results[0], summary=summary)

    def _train_seed(
        self, trial: study.Trial, worker: Worker, config: RunConfig, run_id: str, index: int
    ) -> RunFinished:
        """Train a trial with one of its seeds, from what there is of it; the first one tells pruner and record."""
        longer = self.longest.get(study.beginning_key(trial.params))
        longer_runs = [] if longer is None else [str(longer.record.run_id), *longer.record.seed_runs]
        curve = recorded_epochs(self.store, longer_runs[index], config) if index < len(longer_runs) else None
        checkpoints = None if curve else self._checkpoints(config)
        start = None if checkpoints is None else checkpoints.find(config.training.epochs)
        before = config.training.epochs if curve else start.epoch if start else 0
        label = f"trial {trial.number}, seed {config.training.seed}" if index else trial.number
        self.shown.trial_began(worker.index, label, trial.params, config.training.epochs)

        epochs: list[EpochMetrics] = []

        def on_epoch(metrics: EpochMetrics) -> Decision:
            epochs.append(metrics)
            self.shown.epoch(worker.index, label, metrics)
            if index:
                return "continue"
            study.record_trial(self.opened, trial, TrialRecord(epochs_run=metrics.epoch))
            values = metrics.metrics()
            against = study.report_epoch(trial, self.plan.config.study, self._first_judged, values, metrics.epoch)
            last = training.is_last(epochs, config.training)
            # It may be judged from the last epoch on that was trained before.
            if not against or metrics.epoch < before or last:
                return "continue"
            study.record_trial(self.opened, trial, TrialRecord(pruned_against=against))
            tracking.put(self.store, run_id, tracking.tags({Tag.PRUNED_AGAINST: str(against)}))
            return "prune"

        close = index > 0 or self.plan.config.study.seeds == 1
        trains: Worker = worker
        if curve is not None:
            # What is read off a longer run has no checkpoints, and no model.
            tracking.put(self.store, run_id, tracking.tags({Tag.PREFIX_OF: curve.run_id}))
            trains = ThisProcess(curve, lambda epoch, fraction: None)
        finished = record_training(self.store, trains, config, run_id, on_epoch, self.stop, checkpoints, start, close)
        if index == 0 and longer is not None and curve is not None:
            study.record_trial(self.opened, trial, TrialRecord(prefix_of=longer.number))
        elif index == 0 and start is not None and finished.epochs_before:
            earlier = study.trial_of_run(self.opened, start.run_id)
            study.record_trial(self.opened, trial, TrialRecord(continues=earlier, epochs_before=start.epoch))
        return finished

    def drop_checkpoints(self, config: RunConfig) -> None:
        """Remove the checkpoints of a trial that has ended, unless they are to be kept or longer trials may come."""
        if self.plan.config.study.checkpoints == "delete" and "training.epochs" not in self.plan.space:
            for index in range(self.plan.config.study.seeds):
                self._checkpoints(_with_seed(config, index)).drop()

    def _checkpoints(self, config: RunConfig) -> Checkpoints:
        return training.checkpoints_of(self.folder, config, self.plan.data_sha256)


def _with_seed(config: RunConfig, index: int) -> RunConfig:
    return config.replace({"training.seed": config.training.seed + index})
