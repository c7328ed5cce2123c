"""The study's own code replayed on the grid: queue, samplers, pruner and seeds; trainings are read off the table."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from digitcnn import study
from digitcnn.config import SweepConfig, load_config
from digitcnn.drawing import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, plain_style
from digitcnn.errors import ConfigError
from digitcnn.records import Column, Metric
from experiments.search.grid import EPOCHS, PATH, SearchConfig

FIGURE = PATH.with_name("search.png")
# What a method changes of the study; the last is Optuna's own sampler, which digitcnn does not offer.
METHODS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe"},
    "tpe, median pruner": {"sampler": "tpe", "pruner": "median"},
    "tpe, up to 3 seeds": {"sampler": "tpe", "seeds": 3},
    "gp": {"sampler": "gp"},
    "cmaes": {"sampler": "random"},
}
_NEEDS = {"gp": "torch", "cmaes": "cmaes"}
_COLORS = dict(zip(METHODS, (INK, BLUE, SKY, GREEN, PURPLE, ORANGE), strict=True))
# By CPU seconds, in rising order: those spent so far, and how good the best trial is, in the mean of all seeds.
Curve = list[tuple[float, float]]


class Grid:
    """The recorded runs: a metric's values after each epoch, by configuration and seed."""

    def __init__(self, table: pd.DataFrame, seeds: int) -> None:
        self.names = [name for name in table.columns if "." in name]
        self.seeds = seeds
        whole = table.sort_values(Column.EPOCH).groupby([*self.names, Column.SEED])
        self.curves = {key: part[[Metric.VALIDATION_ACCURACY, Metric.CPU_SECONDS]].to_numpy() for key, part in whole}

    def curve(self, parameters: Mapping[str, Any], seed: int) -> NDArray[np.float64]:
        """Return accuracy and CPU seconds so far of each epoch (epochs, 2). Raises ConfigError without a record."""
        key = (*(parameters[name] for name in self.names), seed)
        if key not in self.curves:
            named = ", ".join(f"{name}={value}" for name, value in zip(self.names, key, strict=False))
            raise ConfigError(f"{PATH.name}: has no run of {named} with seed {seed}; grid=true trains what is missing")
        return self.curves[key]

    def quality(self, parameters: Mapping[str, Any]) -> float:
        """Return how good a configuration is: its mean accuracy over all seeds."""
        epoch = int(parameters[EPOCHS])
        return float(np.mean([self.curve(parameters, seed)[epoch - 1, 0] for seed in range(1, self.seeds + 1)]))


def replay(config: SearchConfig, method: str, grid: Grid, repetition: int) -> Curve:
    """Search once with a method; return the course of its best trial."""
    changes = {**METHODS[method], "seed": repetition}
    plain = {name: value for name, value in config.model_dump().items() if name in SweepConfig.model_fields}
    sweep = load_config(SweepConfig, {**plain, "study": {**plain["study"], **changes}})
    searched, baseline = sweep.study, sweep.baseline
    space = study.parse_space(searched.space, baseline)
    with tempfile.TemporaryDirectory() as folder:
        recorded = study.open_study(Path(folder), searched, space, baseline, "")
        # A copy in memory, as nothing of it is kept.
        opened = cast(study.OpenStudy, study.snapshot_study(recorded))
        opened.sampler = recorded.sampler
    if method == "cmaes":
        opened.sampler = optuna.samplers.CmaEsSampler(seed=repetition, n_startup_trials=searched.trials // 4)
    queue = study.TrialQueue(opened, searched, space, searched.trials, None, threading.Event())
    first_judged = study.first_judged_epoch(space, baseline)
    # Epochs that were trained, by all that decides them but their number.
    trained: defaultdict[tuple[str, int], int] = defaultdict(int)
    spent, course = 0.0, Curve()
    while (trial := queue.next()) is not None:
        values, pruned, wanted = list[float](), False, int(trial.params[EPOCHS])
        while not values or (not pruned and study.needs_seed(opened, searched, values)):
            # Each repetition begins with another one, whose luck is its own.
            seed, key = 1 + (repetition + len(values)) % grid.seeds, study.beginning_key(trial.params)
            curve, before, epoch = grid.curve(trial.params, seed), trained[key, seed], 0
            for epoch in range(1, wanted + 1):
                metrics = {Metric.VALIDATION_ACCURACY: float(curve[epoch - 1, 0])}
                against = 0 if values else study.report_epoch(trial, searched, first_judged, metrics, epoch)
                # What is there already is read, and not judged.
                pruned = bool(against) and min(before, wanted) <= epoch < wanted
                if pruned:
                    break
            if epoch > before:
                spent += float(curve[epoch - 1, 1] - (curve[before - 1, 1] if before else 0.0))
                trained[key, seed] = epoch
            values.append(float(curve[epoch - 1, 0]))
        if pruned:
            queue.tell(trial, None)
            continue
        summaries = [{Metric.VALIDATION_ACCURACY: each, Metric.CPU_SECONDS: 0.0} for each in values]
        summary = study.mean_of_seeds(summaries, searched.objective[0])
        study.record_trial(opened, trial, study.outcome_record(wanted, summary))
        queue.tell(trial, [summary[searched.objective[0]]])
        best = study.best_trial(opened)
        if best is not None:
            course.append((spent, grid.quality(best.parameters)))
    return course


def compare(config: SearchConfig, table: pd.DataFrame, repetitions: int) -> dict[str, list[Curve]]:
    """Return the courses of all methods that this machine has, each repeated."""
    grid = Grid(table, config.seeds)
    there = [name for name in METHODS if name not in _NEEDS or importlib.util.find_spec(_NEEDS[name])]
    return {name: [replay(config, name, grid, number) for number in range(repetitions)] for name in there}


def at(courses: list[Curve], seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how good the best trial of each course is after so many CPU seconds (courses, seconds); NaN before one."""
    found = np.full((len(courses), len(seconds)), np.nan)
    for row, course in zip(found, courses, strict=True):
        times, values = np.array(course).T
        place = np.searchsorted(times, seconds, side="right") - 1
        row[place >= 0] = values[place[place >= 0]]
    return found


def draw(compared: Mapping[str, list[Curve]]) -> bytes:
    """Return the figure as a PNG: median and the middle 80 % of each method's courses."""
    longest = max(course[-1][0] for courses in compared.values() for course in courses)
    seconds = np.linspace(0, longest, 400)
    with plain_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained", dpi=110)
        axes = figure.subplots()
        for name, courses in compared.items():
            values = 100 * at(courses, seconds)
            told = ~np.isnan(values).any(axis=0)
            low, median, high = np.quantile(values[:, told], (0.1, 0.5, 0.9), axis=0)
            axes.plot(seconds[told], median, color=_COLORS[name], label=name)
            axes.fill_between(seconds[told], low, high, color=_COLORS[name], alpha=0.12, linewidth=0)
        axes.set_xlabel("CPU time spent (s)")
        axes.set_ylabel("validation accuracy of the best trial, mean of all seeds (%)")
        axes.set_title(f"Median and middle 80 % of {len(next(iter(compared.values())))} searches")
        axes.legend(frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def summarize(compared: Mapping[str, list[Curve]]) -> pd.DataFrame:
    """Return a row per method: CPU seconds of a whole search, and its best in points, with the middle 80 %.

    Beside it what it has after a half of the CPU seconds of a random search, at which all are compared alike.
    """
    rows = []
    budget = float(np.median([course[-1][0] for course in compared["random"]])) / 2
    for name, courses in compared.items():
        early = 100 * at(courses, np.array([budget]))[:, 0]
        final = 100 * np.array([course[-1][1] for course in courses])
        row = {"method": name, "CPU s": np.median([course[-1][0] for course in courses])}
        for when, values in ((f"after {budget:.0f} s", early), ("at the end", final)):
            low, median, high = np.nanquantile(values, (0.1, 0.5, 0.9))
            row[when] = f"{median:.2f} ({low:.2f} to {high:.2f})"
        rows.append(row)
    return pd.DataFrame(rows)
