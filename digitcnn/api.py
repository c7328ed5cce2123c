"""digitcnn from a notebook or a program: train and sweep as the command line does, and read what is recorded."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import digitcnn
from digitcnn import cli, report, study, tracking
from digitcnn.config import (
    AnyConfig,
    PredictConfig,
    StudyReference,
    SweepConfig,
    TrackingConfig,
    TrainConfig,
    load_config,
)
from digitcnn.errors import ConfigError
from digitcnn.evaluation import RunManifest
from digitcnn.predict import predict as predict_files
from digitcnn.predict import predict_images, predictions_as_table
from digitcnn.records import Metric
from digitcnn.runner import FinishedRun


def train(**overrides: object) -> FinishedRun:
    """Train one network and record it, as `digitcnn train` does; return the finished run.

    An override is a key of the command: `training__epochs=2`, or `**{"training.epochs": 2}`, is what
    `training.epochs=2` is there, and `model="mlp"` the group. The run has its `run_id`, the metrics of its `epochs` and
    its `result`. Raises ConfigError for what the command would refuse.
    """
    with _command("train", TrainConfig, overrides) as config:
        return cli.record(config)


def sweep(**overrides: object) -> Study | None:
    """Search around the baseline, as `digitcnn sweep` does: begin a study or go on with it; return the study.

    Overrides are those of `train`, and the command's own: `study="quick"`, `study__trials=4`,
    `study__space__training__epochs={"low": 2, "high": 4}`. In a program it stands below `if __name__ == "__main__":`,
    as each worker process imports the program. Returns None with `preview=True`. Raises ConfigError for what the
    command would refuse, KeyboardInterrupt if the sweep was interrupted; the same call goes on.
    """
    with _command("sweep", SweepConfig, overrides) as config:
        if cli.search(config) >= 128:
            raise KeyboardInterrupt
    return None if config.preview else load_study(config.study.name, **config.tracking.model_dump())


@contextlib.contextmanager
def _command(name: str, schema: type[AnyConfig], overrides: Mapping[str, object]) -> Iterator[AnyConfig]:
    """Compose a command's config as if it had been typed; while the body lasts it is the command that is recorded."""
    words, before = cli.words_of(overrides), sys.argv
    sys.argv = ["digitcnn", name, *words]
    try:
        with tracking.kept_variables(), cli.apart_from_hydra(), cli.messages():
            yield cli.compose_command(name, schema, words)
    finally:
        sys.argv = before


@tracking.kept_variables()
def load_study(name: str, root: str | os.PathLike[str] = "mlruns", **place: str | None) -> Study:
    """Return a recorded study as it is now: finished, at work or stopped.

    `root` is the folder of the records; `place` are the other keys of `tracking`, `uri` and `experiment`. Raises
    ConfigError if there is no such study.
    """
    config = load_config(TrackingConfig, {**place, "root": str(root)})
    with tracking.store_errors(config), study.storage_errors(config.folder):
        store = tracking.open_recorded(config, f"study.name={name}")
        return Study(report.read_study(store, StudyReference(name=name), config))


@tracking.kept_variables()
def predict(
    images: NDArray[np.uint8] | Sequence[str],
    run: str = "champion",
    root: str | os.PathLike[str] = "mlruns",
    study: str = "around_article",
) -> pd.DataFrame:
    """Return what a recorded run's model says of images, a row each: the two likeliest classes, and if it is unsure.

    `images` are (n, rows, columns) uint8, 0 (paper) to 255 (ink), as the run was trained on; or files of pictures,
    prepared as `digitcnn predict` does, without those that cannot be used. `run` is champion, best (of `study`) or an
    id. Raises ConfigError if there is no such run, MachineError if its model is not the recorded one.
    """
    place = {"study": {"name": study}, "tracking": {"root": str(root)}, "run": run}
    if isinstance(images, np.ndarray):
        found = predict_images(images, load_config(PredictConfig, place))
    else:
        with cli.messages():
            found = predict_files(load_config(PredictConfig, {**place, "image": list(images)}))
    return predictions_as_table(found).drop(columns="seen")


@dataclass(frozen=True)
class Study:
    """A recorded study at one moment. Shown in a notebook, it is its finding and the first of its leaderboard."""

    record: report.StudyRecord

    @property
    def trials(self) -> pd.DataFrame:
        """The leaderboard: a row per trial that has begun, the best first, in columns of their own types."""
        return _typed(self.record.table)

    @property
    def curves(self) -> pd.DataFrame:
        """The learning curves: a row per trial and epoch."""
        return _typed(self.record.curves)

    @property
    def best(self) -> pd.Series[Any] | None:
        """The first row of the leaderboard; None before a trial has completed. One run, and lucky: confirm it."""
        completed = _typed(self.record.completed)
        return None if completed.empty else completed.iloc[0]

    @property
    def confirmation(self) -> pd.DataFrame | None:
        """The confirmed configs, a row each: mean, interval, difference to the baseline, verdict; None without one."""
        return None if self.record.confirmation is None else _typed(self.record.confirmation.table)

    @property
    def champion(self) -> RunManifest | None:
        """The manifest of the champion's run, with its `run_id` and its `config`; None before a confirmation."""
        return None if self.record.confirmation is None else self.record.confirmation.manifest

    @property
    def plot(self) -> Plots:
        """The report's figures, drawn by plotly."""
        return Plots(self.record)

    def _repr_html_(self) -> str:
        return report.html_summary(self.record)


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    return table.where(table != "null").convert_dtypes()


@dataclass(frozen=True)
class Plots:
    """The figures of a study's report. Each raises ConfigError where the study has too little to draw."""

    record: report.StudyRecord

    def learning_curves(self, metric: str = Metric.VALIDATION_ACCURACY) -> Any:
        """Draw validation_accuracy or validation_loss over the epochs, a line per trial."""
        return self._draw(f"curves_{metric}")

    def history(self, objective: int = 0) -> Any:
        """Draw an objective of the trials in their order, and the best so far."""
        return self._draw(f"history{objective}")

    def tuning_curve(self) -> Any:
        """Draw the best so far over the CPU time spent."""
        return self._draw("tuning")

    def slice(self, parameter: str, objective: int = 0) -> Any:
        """Draw an objective over a searched parameter, such as training.batch_size."""
        return self._draw(f"slice{objective}_{parameter}")

    def parallel_coordinates(self) -> Any:
        """Draw a line per trial through its objectives and parameters."""
        return self._draw("parallel")

    def importances(self) -> Any:
        """Draw how much each parameter decides if a trial is among the best."""
        return self._draw("importances")

    def tradeoff(self) -> Any:
        """Draw the accuracy of the trials over their CPU time, with the Pareto front."""
        return self._draw("tradeoff0")

    def intervals(self) -> Any:
        """Draw the confirmed configs' differences to the baseline, with simultaneous intervals."""
        return self._draw("intervals")

    def seeds(self) -> Any:
        """Draw the confirmed configs' training loss over the epochs: the mean of their seeds and a band."""
        return self._draw("candidates")

    def _draw(self, name: str) -> Any:
        made = report.drawings(self.record)
        figure = made[name]() if name in made else None
        if figure is None:
            raise ConfigError(f"study {self.record.study.study_name}: has nothing to draw as {name}")
        return figure


# Importing the room of that name has put it there.
digitcnn.predict = predict
