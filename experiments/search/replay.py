"""The study's own code replayed on the grid: queue, samplers, pruner and seeds; trainings are read off the table."""

from __future__ import annotations

import importlib.util
import io
import tempfile
import threading
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray

from digitcnn import study
from digitcnn.config import SweepConfig, load_config
from digitcnn.drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, plain_style
from digitcnn.errors import ConfigError
from digitcnn.records import Column, Metric
from experiments.search.grid import EPOCHS, PATH, SearchConfig

FIGURE = PATH.with_name("search.png")
# As the study of experiments/results/ was searched: ten trials at random before TPE chooses, all pruned from epoch 2
# on, and each trained whatever is recorded.
FIRST = "as the first edition"
# What a method changes of the study; cmaes is Optuna's own sampler, which digitcnn does not offer.
METHODS: dict[str, dict[str, Any]] = {
    "random": {"sampler": "random"},
    "tpe": {"sampler": "tpe"},
    "tpe, median pruner": {"sampler": "tpe", "pruner": "median"},
    "tpe, up to 3 seeds": {"sampler": "tpe", "seeds": 3},
    "gp": {"sampler": "gp"},
    "cmaes": {"sampler": "random"},
    FIRST: {"sampler": "tpe", "startup_trials": 10},
}
_NEEDS = {"gp": "torch", "cmaes": "cmaes"}
_COLORS = dict(zip(METHODS, (INK, BLUE, SKY, GREEN, PURPLE, ORANGE, GREY), strict=True))
# By CPU seconds, in rising order: those spent so far, and how good the best trial is, in the mean of all seeds.
Curve = list[tuple[float, float]]


@dataclass
class Search:
    """One search: its course, the epochs it trained and those it read off other trials, and its trials.

    Of these how many the sampler chose, how good each would be if it was trained to its end, and which were pruned.
    """

    course: Curve = field(default_factory=list)
    spent: float = 0.0
    trained: int = 0
    saved: int = 0
    chosen: int = 0
    qualities: list[float] = field(default_factory=list)
    pruned: list[int] = field(default_factory=list)

    @property
    def lost(self) -> int:
        """Return the number of pruned trials that would have ended among the best quarter."""
        best = sorted(self.qualities, reverse=True)[: -(-len(self.qualities) // 4)]
        return sum(self.qualities[number] >= best[-1] for number in self.pruned)


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


def replay(config: SearchConfig, method: str, grid: Grid, repetition: int) -> Search:
    """Search once with a method."""
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
    startup = study.startup_trials(searched)
    if method == "cmaes":
        startup = searched.trials // 4
        opened.sampler = optuna.samplers.CmaEsSampler(seed=repetition, n_startup_trials=startup)
    if method == FIRST:
        opened.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    queue = study.TrialQueue(opened, searched, space, searched.trials, None, threading.Event())
    first_judged = study.first_judged_epoch(space, baseline)
    # Epochs that were trained, by all that decides them but their number.
    trained: defaultdict[tuple[str, int], int] = defaultdict(int)
    search = Search()
    while (trial := queue.next()) is not None:
        values, pruned, wanted = list[float](), False, int(trial.params[EPOCHS])
        while not values or (not pruned and study.needs_seed(opened, searched, values)):
            # Each repetition begins with another one, whose luck is its own.
            seed, key = 1 + (repetition + len(values)) % grid.seeds, study.beginning_key(trial.params)
            curve, before, epoch = grid.curve(trial.params, seed), min(trained[key, seed], wanted), 0
            for epoch in range(1, wanted + 1):
                metrics = {Metric.VALIDATION_ACCURACY: float(curve[epoch - 1, 0])}
                against = 0 if values else study.report_epoch(trial, searched, first_judged, metrics, epoch)
                # What is there already is read, and not judged.
                pruned = (bool(against) or (method == FIRST and trial.should_prune())) and before <= epoch < wanted
                if pruned:
                    break
            if epoch > before:
                search.spent += float(curve[epoch - 1, 1] - (curve[before - 1, 1] if before else 0.0))
                trained[key, seed] = 0 if method == FIRST else epoch
            search.trained += max(epoch - before, 0)
            search.saved += min(epoch, before)
            values.append(float(curve[epoch - 1, 0]))
        search.chosen += 0 < startup <= trial.number
        search.pruned += [trial.number] if pruned else []
        search.qualities.append(grid.quality(trial.params))
        if pruned:
            queue.tell(trial, None)
            continue
        summaries = [{Metric.VALIDATION_ACCURACY: each, Metric.CPU_SECONDS: 0.0} for each in values]
        summary = study.mean_of_seeds(summaries, searched.objective[0])
        study.record_trial(opened, trial, study.outcome_record(wanted, summary))
        queue.tell(trial, [summary[searched.objective[0]]])
        best = study.best_trial(opened)
        if best is not None:
            search.course.append((search.spent, grid.quality(best.parameters)))
    return search


def compare(config: SearchConfig, table: pd.DataFrame, repetitions: int) -> dict[str, list[Search]]:
    """Return the searches of all methods that this machine has, each repeated."""
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


def draw(compared: Mapping[str, list[Search]]) -> bytes:
    """Return the figure as a PNG: median and the middle 80 % of each method's courses."""
    longest = max(each.spent for searches in compared.values() for each in searches)
    seconds = np.linspace(0, longest, 400)
    with plain_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained", dpi=110)
        axes = figure.subplots()
        for name, searches in compared.items():
            values = 100 * at([each.course for each in searches], seconds)
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


def summarize(compared: Mapping[str, list[Search]]) -> pd.DataFrame:
    """Return a row per method: its best in points, with the middle 80 % of the searches, and medians of what it took.

    The best is that after a half of the CPU seconds of a random search, at which all are compared alike, and at the
    end. Of pruned trials it is the mean, and of how many a full training would have shown to be in the best quarter.
    """
    rows = []
    budget = float(np.median([each.spent for each in compared["random"]])) / 2
    for name, searches in compared.items():
        courses = [each.course for each in searches]
        early = 100 * at(courses, np.array([budget]))[:, 0]
        final = 100 * np.array([course[-1][1] for course in courses])
        row = {"method": name}
        for when, values in ((f"after {budget:.0f} s", early), ("at the end", final)):
            low, median, high = np.nanquantile(values, (0.1, 0.5, 0.9))
            row[when] = f"{median:.2f} ({low:.2f} to {high:.2f})"
        row["CPU s"] = f"{np.median([each.spent for each in searches]):.0f}"
        for column, counts in (
            ("chosen", [each.chosen for each in searches]),
            ("epochs trained", [each.trained for each in searches]),
            ("saved", [each.saved for each in searches]),
        ):
            row[column] = f"{np.median(counts):.0f}"
        row["pruned"] = f"{np.mean([len(each.pruned) for each in searches]):.1f}"
        row["of the best quarter"] = f"{np.mean([each.lost for each in searches]):.1f}"
        rows.append(row)
    return pd.DataFrame(rows)
