"""Samplers, made as a study's config names them; pruning; and which combinations are refused."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import Trial, TrialState

from digitcnn.config import RunConfig, StudyConfig
from digitcnn.errors import ConfigError
from digitcnn.records import PRUNING_METRICS, is_maximized
from digitcnn.study.space import Space, grid_points
from digitcnn.study.trials import beginning_key, best_trial, ended_trials, signed_values

# Samplers that choose by what earlier trials reached, once some have.
_LEARNING = ("tpe", "gp")
# Of 15 published runs (experiments/results/batch_size_curves.csv, five passes each) epoch 2 has a rank correlation of
# 0.39 with the end, and the median of all would have cut 44 % of those that end in the better half.
_FIRST_JUDGED = 4
_MIN_VALUES = 4
# The level of the test that ends a trial's seeds: `python -m experiments.search` compares it with others.
_BEHIND = 0.1
# The median of n values is uncertain by 1.25 of their standard deviations over the root of n: a third of one for 16.
_ENOUGH_TRIALS = 20


def check_sampler(config: StudyConfig, space: Space) -> None:
    """Raise ConfigError if the sampler, the pruner and the objectives do not go together."""
    if config.sampler == "grid":
        grid_points(space)
    if config.sampler == "gp" and importlib.util.find_spec("torch") is None:
        raise ConfigError("study.sampler=gp: needs PyTorch; pip install 'digitcnn[gp]', or choose another")
    if config.startup_trials is not None and config.sampler not in _LEARNING:
        raise ConfigError(
            f"study.startup_trials={config.startup_trials}: must be null with study.sampler={config.sampler}, which "
            f"learns nothing from trials; {' and '.join(_LEARNING)} do"
        )
    if config.seeds > 1 and "training.seed" in space:
        raise ConfigError(f"study.seeds={config.seeds}: must be 1, as study.space varies training.seed")
    if config.pruner != "none":
        if len(config.objective) > 1:
            raise ConfigError(f"study.pruner={config.pruner}: must be none with more than one objective")
        if config.objective[0] not in PRUNING_METRICS:
            raise ConfigError(f"study.pruner={config.pruner}: must be none with study.objective={config.objective[0]}")


def startup_trials(config: StudyConfig) -> int:
    """Return the number of trials, the baseline among them, that end before the sampler chooses; the others' is 0."""
    if config.sampler not in _LEARNING:
        return 0
    return config.startup_trials or max(4, config.trials // 4)


def make_sampler(config: StudyConfig, trials: int) -> BaseSampler:
    """Return the sampler of a study with that many trials, seeded such that it does not draw the same ones again."""
    seed = int(np.random.SeedSequence([config.seed, trials]).generate_state(1)[0])
    match config.sampler:
        case "tpe":
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup_trials(config))
        case "random" | "grid":
            return optuna.samplers.RandomSampler(seed=seed)
        case "qmc":
            # The sequence itself is kept by the store, so its seed must stay; without scrambling it has no effect.
            return optuna.samplers.QMCSampler(seed=config.seed, scramble=True, warn_asynchronous_seeding=False)
        case "gp":
            return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup_trials(config))
        case "nsgaii":
            # At least five generations: with Optuna's 50 the first one would be the whole of a small study.
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, config.trials // 5)))


def first_judged_epoch(space: Space, baseline: RunConfig) -> int:
    """Return the first epoch in which a trial of a study may be pruned."""
    return judged_from(_most_epochs(space, baseline))


def judged_from(longest: int) -> int:
    """Return the first epoch that is judged where the longest training has so many: a quarter, and at least four."""
    return max(_FIRST_JUDGED, math.ceil(longest / 4))


def _most_epochs(space: Space, baseline: RunConfig) -> int:
    epochs = space.get("training.epochs")
    searched = () if epochs is None else epochs.extremes
    return max((value for value in searched if isinstance(value, int)), default=baseline.training.epochs)


def pruning_doubt(config: StudyConfig, space: Space, baseline: RunConfig) -> str:
    """Return why a study is too small to prune; empty if it is large enough, or does not."""
    if config.pruner == "none":
        return ""
    most, first = _most_epochs(space, baseline), first_judged_epoch(space, baseline)
    if most <= first:
        return f"no trial has more than {most} epochs, and none is judged before epoch {first}: nothing is pruned"
    if config.trials < _ENOUGH_TRIALS:
        return (
            f"{config.trials} trials are too few to prune by: the median of a handful of values is mostly chance; "
            "study.pruner=none trains each to its end"
        )
    return ""


def report_epoch(trial: Trial, config: StudyConfig, first: int, metrics: Mapping[str, float], epoch: int) -> int:
    """Tell a study of an epoch; return the number of values against which the trial is pruned, 0 if it goes on.

    It is pruned if its best value so far is worse than the median of completed trials in this epoch: from the epoch
    `first` on, and against at least four values. Never with several objectives, or with one that epochs do not tell.
    """
    if len(config.objective) > 1 or config.objective[0] not in PRUNING_METRICS:
        return 0
    metric = PRUNING_METRICS[config.objective[0]]
    trial.report(metrics[metric], epoch)
    if config.pruner == "none" or epoch < first:
        return 0
    others = _values_in(trial.study, epoch)
    reached = trial.study._storage.get_trial(trial._trial_id).intermediate_values.values()
    if len(others) < _MIN_VALUES:
        return 0
    median = statistics.median(others)
    worse = max(reached) < median if is_maximized(metric) else min(reached) > median
    return len(others) if worse else 0


def needs_seed(study: Study, config: StudyConfig, values: Sequence[float]) -> bool:
    """Return True if a trial is to be trained with a further seed, given the objective's value with each one so far.

    Not if it lies so far behind the best trial that a one-sided t test at 10 % tells it from that, by the spread
    between seeds that all trials share; with several objectives there is no best.
    """
    from scipy import stats

    if len(values) == config.seeds or len(config.objective) > 1:
        return len(values) < config.seeds
    best, ended = best_trial(study), ended_trials(study)
    spreads = [(each.record.seeds - 1, each.record.seeds_sd or 0.0) for each in ended if each.record.seeds]
    spreads += [(len(values) - 1, statistics.stdev(values))] if len(values) > 1 else []
    freedom = sum(count for count, _ in spreads)
    if best is None or not freedom:
        return True
    spread = math.sqrt(sum(count * sd**2 for count, sd in spreads) / freedom)
    reached, leading = (signed_values(study, [each])[0] for each in (statistics.fmean(values), (best.values or [])[0]))
    error = spread * math.sqrt(1 / len(values) + 1 / (best.record.seeds or 1))
    return bool(reached - leading <= stats.t.isf(_BEHIND, freedom) * error)


def _values_in(study: Study, epoch: int) -> list[float]:
    """Return the values that completed trials had in an epoch, each curve once: trials may share it but for its end.

    Optuna's own pruner counts a duplicate, and the same training with fewer epochs, as further values.
    """
    values = {}
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        if epoch in trial.intermediate_values:
            values[beginning_key(trial.params)] = trial.intermediate_values[epoch]
    return list(values.values())
