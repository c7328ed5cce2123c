"""Samplers and pruners: made as a study's config names them, and which combinations are refused."""

from __future__ import annotations

import importlib.util

import numpy as np
import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from digitcnn.config import RunConfig, StudyConfig
from digitcnn.errors import ConfigError
from digitcnn.records import PRUNING_METRICS
from digitcnn.study.space import Range, Space, grid_points


def check_sampler(config: StudyConfig, space: Space) -> None:
    """Raise ConfigError if the sampler, the pruner and the objectives do not go together."""
    if config.sampler == "grid":
        grid_points(space)
    if config.sampler == "gp" and importlib.util.find_spec("torch") is None:
        raise ConfigError("study.sampler=gp: needs PyTorch; pip install 'digitcnn[gp]', or choose another")
    if config.sampler == "cmaes":
        if len(config.objective) > 1:
            raise ConfigError(
                "study.sampler=cmaes: has one objective; use tpe, nsgaii, gp, qmc, random or grid for more"
            )
        if sum(isinstance(parameter, Range) for parameter in space.values()) < 2:
            raise ConfigError(
                "study.sampler=cmaes: needs at least two ranges in study.space; choices are drawn at random"
            )
    if config.pruner != "none":
        if len(config.objective) > 1:
            raise ConfigError(f"study.pruner={config.pruner}: must be none with more than one objective")
        if config.objective[0] not in PRUNING_METRICS:
            raise ConfigError(f"study.pruner={config.pruner}: must be none with study.objective={config.objective[0]}")


def make_sampler(config: StudyConfig, trials: int) -> BaseSampler:
    """Return the sampler of a study with that many trials, seeded such that it does not draw the same ones again."""
    seed = int(np.random.SeedSequence([config.seed, trials]).generate_state(1)[0])
    match config.sampler:
        case "tpe":
            sampler: BaseSampler = optuna.samplers.TPESampler(seed=seed)
        case "random" | "grid":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        case "qmc":
            # The sequence itself is kept by the store, so its seed must stay.
            sampler = optuna.samplers.QMCSampler(seed=config.seed, warn_asynchronous_seeding=False)
        case "gp":
            sampler = optuna.samplers.GPSampler(seed=seed)
        case "cmaes":
            sampler = optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsgaii":
            # At least five generations: with Optuna's 50 the first one would be the whole of a small study.
            sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(4, config.trials // 5)))
    # Optuna would reseed at random before every trial, so that study.seed would mean nothing. Threads of one process
    # share one generator, which needs no reseeding.
    sampler.reseed_rng = lambda: None  # type: ignore[method-assign]
    return sampler


def make_pruner(config: StudyConfig, space: Space, baseline: RunConfig) -> BasePruner:
    """Return the pruner. It spares the first two epochs, which the number of updates decides, not the network."""
    epochs = space.get("training.epochs")
    searched = () if epochs is None else epochs.extremes
    longest = max((value for value in searched if isinstance(value, int)), default=baseline.training.epochs)
    match config.pruner:
        case "median":
            return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
        case "successive_halving":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=3)
        case "hyperband":
            return optuna.pruners.HyperbandPruner(min_resource=2, max_resource=max(longest, 2), reduction_factor=3)
        case "none":
            return optuna.pruners.NopPruner()
