"""Studies without training: what tests of the queue and of samplers run."""

from __future__ import annotations

import threading
from pathlib import Path

import optuna

from digitcnn import study
from digitcnn.config import SweepConfig
from digitcnn.study import Space, parse_space


def space_of(config: SweepConfig) -> Space:
    """Return the space of a study."""
    return parse_space(config.study.space, config.baseline)


def open_in(config: SweepConfig, folder: Path, data_sha256: str = "a" * 64) -> study.OpenStudy:
    """Create or resume a study in a folder, of data with that digest."""
    return study.open_study(folder, config.study, space_of(config), config.baseline, data_sha256)


def run_all(opened: study.OpenStudy, config: SweepConfig, total: int | None = None) -> None:
    """Run the trials of a study whose objectives are its batch sizes."""

    def objective(trial: optuna.Trial) -> list[float]:
        return [float(trial.params["training.batch_size"])] * len(config.study.objective)

    total = total or study.total_trials(config.study, space_of(config), config.baseline)
    study.run_trials(opened, space_of(config), objective, total, None, 2, config.study.retries, threading.Event())
