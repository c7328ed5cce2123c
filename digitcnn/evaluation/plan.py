"""The plan of a confirmation: its candidates and seeds, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from digitcnn import runner, study, tracking
from digitcnn.config import MAX_SEEDS, ConfirmConfig, RunConfig, load_config, nested, parse_duration
from digitcnn.errors import ConfigError, MachineError
from digitcnn.evaluation.ablation import step_configs
from digitcnn.evaluation.statistics import race
from digitcnn.formatting import format_duration
from digitcnn.records import IdentityKey, Metric, Tag

_MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Candidate:
    """A config that is confirmed: the baseline or a trial, under the name that tables give it.

    Only the baseline may break a constraint of the study. `cpu_seconds` are those of its runs in the search, the mean.
    A `step` is no candidate: it stands between the baseline and the best trial, for the ablation.
    """

    name: str
    trial: int
    parameters: dict[str, Any]
    config: RunConfig
    feasible: bool = True
    cpu_seconds: float = 0.0
    step: bool = False


@dataclass(frozen=True)
class ConfirmationPlan:
    """A confirmation that was checked; nothing has been created yet.

    `candidates` are those that are asked for, the first of them the baseline; `others` all further ones of the study.
    `seeds` are those that are trained; with `budget`, seconds of CPU time, as many of them as it buys. `steps` are the
    ablation's.
    """

    config: ConfirmConfig
    candidates: tuple[Candidate, ...]
    others: tuple[Candidate, ...]
    seeds: tuple[int, ...]
    parent_run_id: str
    budget: float | None = None
    steps: tuple[Candidate, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the study's reports."""
        return self.config.tracking.reports(self.config.study.name)


@dataclass(frozen=True)
class RecordedRuns:
    """The recorded part of a confirmation.

    `candidates` are those that are asked for now, and all that were confirmed before; `runs` are run ids by candidate
    and seed, `accuracies` and `cpu_seconds` the runs' results; `diverged` holds the seed with which a candidate
    diverged.
    """

    candidates: tuple[Candidate, ...]
    runs: dict[tuple[str, int], str]
    accuracies: dict[tuple[str, int], float]
    diverged: dict[str, int]
    cpu_seconds: dict[tuple[str, int], float] = field(default_factory=dict)

    def missing(self, plan: ConfirmationPlan, begun: Collection[tuple[str, int]] = ()) -> list[tuple[Candidate, int]]:
        """Return the candidates and seeds to train, seed by seed; none of a candidate that is `over`.

        `begun` are those that are being trained. Raise ConfigError if the budget buys no two seeds.
        """
        over = self.over(plan)
        racing = [each for each in (*plan.candidates, *plan.steps) if each.name not in over]
        known = {*self.runs, *begun}
        by_seed = [[(each, seed) for each in racing if (each.name, seed) not in known] for seed in plan.seeds]
        if plan.budget is not None:
            # The baseline alone needs no more seeds.
            by_seed = self._bought(plan, by_seed, plan.budget, begun) if len(racing) > 1 else []
        return [run for runs in by_seed for run in runs]

    def _bought(
        self,
        plan: ConfirmationPlan,
        by_seed: list[list[tuple[Candidate, int]]],
        budget: float,
        begun: Collection[tuple[str, int]],
    ) -> list[list[tuple[Candidate, int]]]:
        """Return the first seeds' runs, as far as the budget takes each seed for all candidates that need it.

        A run costs the mean of the candidate's recorded ones, or of those of the search. What has begun is finished.
        """
        spent = dict(self.cpu_seconds)
        costs = {
            each.name: float(np.mean([s for (name, _), s in spent.items() if name == each.name] or each.cpu_seconds))
            for each in plan.candidates
        }
        left = budget - sum(spent.values()) - sum(costs[name] for name, seed in begun if (name, seed) not in spent)
        for index, runs in enumerate(by_seed):
            left -= sum(costs[each.name] for each, _ in runs)
            if runs and left < 0 and not any(seed == runs[0][1] for _, seed in begun):
                if index > 1:
                    return by_seed[:index]
                if not begun:
                    needed = sum(costs[each.name] for of_seed in by_seed[:2] for each, _ in of_seed)
                    raise ConfigError(
                        f"confirm.cpu_budget={plan.config.confirm.cpu_budget}: two seeds of each config take about "
                        f"{format_duration(needed)} of CPU time more, and {format_duration(sum(spent.values()))} are "
                        "spent; a smaller confirm.top takes less"
                    )
        return by_seed

    def over(self, plan: ConfirmationPlan) -> dict[str, str]:
        """Return the candidates that get no more seeds, and why: they diverged, or are out of the race.

        A candidate that diverged with one seed cannot be compared, whatever its others do.
        """
        names = [each.name for each in self.candidates if each.name not in self.diverged]
        # A copy, as a run may end meanwhile.
        known = pd.Series(dict(self.accuracies) or {("baseline", 0): np.nan})
        table = known.unstack(0).reindex(columns=names).to_numpy(float)
        out = race(table, 1 / len(runner.check_run(plan.candidates[0].config).validation))
        raced = {name: f"behind the best after {n} seeds: no more" for name, n in zip(names, out, strict=True) if n}
        return raced | {name: f"diverged with seed {seed}: left out" for name, seed in self.diverged.items()}

    def seeds(self, more: Sequence[tuple[Candidate, int]] = ()) -> dict[str, int]:
        """Return the number of seeds of each candidate that did not diverge, `more` runs included."""
        names = [name for name, _ in (*self.runs, *((candidate.name, seed) for candidate, seed in more))]
        return {each.name: names.count(each.name) for each in self.candidates if each.name not in self.diverged}

    def count(self, plan: ConfirmationPlan) -> int:
        """Return the number of a plan's runs that are recorded, those of steps included."""
        configs = (*plan.candidates, *plan.steps)
        return sum((each.name, seed) in self.runs for each in configs for seed in plan.seeds)

    def racing_seeds(self, plan: ConfirmationPlan, more: Sequence[tuple[Candidate, int]]) -> dict[str, int]:
        """Return the number of seeds, `more` runs included, of each candidate that is not `over`."""
        over = self.over(plan)
        return {name: n for name, n in self.seeds(more).items() if name not in over}

    def named_accuracies(self) -> dict[str, dict[int, float]]:
        """Return the accuracies by config, those of steps included, and seed; none of a config that diverged."""
        values: dict[str, dict[int, float]] = {}
        for (name, seed), accuracy in sorted(self.accuracies.items()):
            if name not in self.diverged:
                values.setdefault(name, {})[seed] = accuracy
        return values

    def require_baseline(self) -> None:
        """Raise MachineError if the baseline diverged."""
        if "baseline" in self.diverged:
            seed = self.diverged["baseline"]
            raise MachineError(f"the baseline diverged with seed {seed}: there is nothing to compare the others with")


def plan_confirmation(config: ConfirmConfig) -> ConfirmationPlan:
    """Check everything that a confirmation needs. Raise ConfigError; create nothing."""
    opened = study.recorded_study(config.study, config.tracking.folder)
    with study.storage_errors(config.tracking.folder):
        every, searched = _candidates(opened, config)
    asked = every[: 1 + config.confirm.top]
    runner.check_run(asked[0].config)
    # Not the seeds that the search was judged with: their luck made the best trials the best.
    budget = None if config.confirm.cpu_budget is None else parse_duration(config.confirm.cpu_budget)
    first, count = 1 + max(searched), config.confirm.seeds if budget is None else MAX_SEEDS
    if first + count - 1 > _MAX_SEED:
        raise ConfigError(f"confirm.seeds={count}: begins at {first}, and no seed may exceed {_MAX_SEED}")
    seeds = tuple(range(first, first + count))
    steps = _steps(*asked[:2]) if config.confirm.ablation else ()
    return ConfirmationPlan(config, asked, every[len(asked) :], seeds, str(opened.parent_run_id), budget, steps)


def _steps(baseline: Candidate, best: Candidate) -> tuple[Candidate, ...]:
    configs = step_configs(baseline.config, best.config)
    return tuple(Candidate(name, best.trial, values, config, step=True) for name, (values, config) in configs.items())


def _candidates(opened: study.OpenStudy, config: ConfirmConfig) -> tuple[tuple[Candidate, ...], set[int]]:
    """Return the baseline and all other completed configs, the best first, each once; and the seeds of the search.

    A config that was searched with several seeds is as good as their mean.
    """
    flat = opened.identity[IdentityKey.BASELINE]
    base = load_config(RunConfig, {**nested(flat), "tracking": config.tracking.model_dump()})
    names = [name for name in opened.identity[IdentityKey.SPACE] if name != "training.seed"]
    start = {name: base.parameters()[name] for name in names}
    baseline = study.baseline_trial_number(study.rank_trials(opened)) or 0
    ended, start_key = study.ended_trials(opened), study.parameters_key(start)
    grouped: dict[str, list[study.EndedTrial]] = {}
    for trial in ended:
        key = study.parameters_key({name: value for name, value in trial.parameters.items() if name in start})
        # Epochs and cost of a baseline that breaks a constraint are those of its trials too.
        if trial.values is not None and (key == start_key or not study.broken(trial.constraints)):
            grouped.setdefault(key, []).append(trial)
    of_baseline = grouped.pop(start_key, [])
    means = {
        trials[0].number: np.mean([study.signed_values(opened, each.values or []) for each in trials], axis=0).tolist()
        for trials in grouped.values()
    }
    feasible = not any(study.broken(trial.constraints) for trial in ended if trial.number == baseline)
    config_of_baseline, cost = _confirmed(base, of_baseline), _cost(of_baseline)
    found = [Candidate("baseline", baseline, start, config_of_baseline, feasible, cost)]
    for trials in sorted(grouped.values(), key=lambda trials: (means[trials[0].number], trials[0].number)):
        parameters = {name: value for name, value in trials[0].parameters.items() if name in start}
        number = trials[0].number
        confirmed = _confirmed(base.replace(parameters), trials)
        found.append(Candidate(f"trial {number}", number, parameters, confirmed, cpu_seconds=_cost(trials)))
    if len(found) == 1:
        raise ConfigError(f"study.name={config.study.name}: no trial beside the baseline has completed")
    seed = base.training.seed
    searched = range(seed, seed + opened.identity.get(IdentityKey.SEEDS, 1))
    return tuple(found), {*searched, *(int(trial.parameters.get("training.seed", seed) or 0) for trial in ended)}


def _confirmed(config: RunConfig, trials: Sequence[study.EndedTrial]) -> RunConfig:
    """Return the config of runs that the test set judges once, and does not stop: they have the trials' epochs."""
    epochs = [trial.record.epochs_run or config.training.epochs for trial in trials] or [config.training.epochs]
    return config.stopped_after(round(np.median(epochs))).replace({"data.validation": "test_once"})


def _cost(trials: Sequence[study.EndedTrial]) -> float:
    """Return the mean CPU seconds of a run of some trials, 0 if none is recorded."""
    return float(np.mean([trial.record.cpu_seconds or 0.0 for trial in trials] or 0.0))


def recorded_runs(plan: ConfirmationPlan, store: tracking.Store) -> RecordedRuns:
    """Return the runs that are recorded. Raise MachineError if the baseline diverged."""
    # A file of the same name may hold other images by now.
    data = runner.check_run(plan.candidates[0].config).sha256
    name = plan.config.study.name
    found = tracking.study_runs(store, name, Tag.CONFIRMS)
    # A step may be a trial that was confirmed.
    further = tracking.study_runs(store, name, Tag.ABLATES) if plan.steps else []
    named = {run.data.tags[Tag.CONFIRMS] for run in found}
    recorded = RecordedRuns((), {}, {}, {})
    for candidate in (*plan.candidates, *(each for each in plan.others if each.name in named), *plan.steps):
        for run in reversed([*found, *further] if candidate.step else found):
            if run.data.tags.get(Tag.DATA_SHA256, data) != data:
                continue
            # MLflow takes a run and its parameters one after the other, and the process may have ended between the two.
            if "training.seed" not in run.data.params:
                continue
            seed = int(run.data.params["training.seed"])
            if seed < plan.seeds[0]:
                # An earlier version may have confirmed with the seeds of the search.
                continue
            if not tracking.was_trained_with(run, candidate.config.replace({"training.seed": seed})):
                continue
            if Tag.DIVERGED in run.data.tags:
                # Whatever seeds are asked for now: the others alone would flatter it.
                recorded.diverged.setdefault(candidate.name, seed)
            elif run.info.status == "FINISHED":
                recorded.runs[candidate.name, seed] = run.info.run_id
                recorded.accuracies[candidate.name, seed] = run.data.metrics[Metric.TEST_ACCURACY]
                recorded.cpu_seconds[candidate.name, seed] = run.data.metrics[Metric.CPU_SECONDS]
    recorded.require_baseline()
    confirmed = {*(name for name, _ in recorded.runs), *recorded.diverged}
    others = (each for each in plan.others if each.name in confirmed)
    return replace(recorded, candidates=(*plan.candidates, *others))
