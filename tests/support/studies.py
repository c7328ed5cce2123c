"""Studies without training: what tests of the queue and of samplers run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def run_trials(
    opened: study.OpenStudy,
    config: SweepConfig,
    objective: Callable[[optuna.Trial], list[float] | None],
    total: int,
    deadline: float | None = None,
) -> study.TrialQueue:
    """Run trials in two threads; one whose objective gives no values failed, for a reason that is not known."""
    stop = threading.Event()
    queue = study.TrialQueue(opened, config.study, space_of(config), total, deadline, stop)

    def loop() -> None:
        try:
            while (trial := queue.next()) is not None:
                values = objective(trial)
                if values is None:
                    queue.end_failed(trial, "out of luck", killed=False, machine_works=lambda: True)
                else:
                    queue.note_success()
                    queue.tell(trial, values)
        finally:
            stop.set()

    with ThreadPoolExecutor(2) as threads:
        for thread in [threads.submit(loop) for _ in range(2)]:
            thread.result()
    return queue


def run_all(opened: study.OpenStudy, config: SweepConfig, total: int | None = None) -> None:
    """Run the trials of a study whose objectives are its batch sizes."""

    def objective(trial: optuna.Trial) -> list[float]:
        return [float(trial.params["training.batch_size"])] * len(config.study.objective)

    run_trials(opened, config, objective, total or study.total_trials(config.study, space_of(config), config.baseline))
