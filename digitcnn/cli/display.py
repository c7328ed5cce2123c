"""Progress of a command at work: a live picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from digitcnn.config import TrainingConfig
from digitcnn.formatting import format_count, format_duration, format_percent, named_null, printable
from digitcnn.values import EpochMetrics


def text_console() -> Console:
    """Return a console that shows texts as they are: `[old]` and `:x:` in a path are no style and no emoji."""
    return Console(markup=False, emoji=False, highlight=False)


class _MessageHandler(logging.Handler):
    """A line for every message: on standard error for an error, on standard output for all else.

    A live picture redirects both, and shows the line above itself.
    """

    def emit(self, record: logging.LogRecord) -> None:
        text = printable(record.getMessage())
        # A terminal that was closed, or a reader that has gone, is no reason to end a study.
        with contextlib.suppress(OSError):
            if record.levelno >= logging.ERROR:
                print(f"error: {text}", file=sys.stderr, flush=True)
            else:
                print(text, flush=True)


@contextlib.contextmanager
def messages(package: str = "digitcnn") -> Iterator[None]:
    """Print what a package logs while the body lasts."""
    logger, handler = logging.getLogger(package), _MessageHandler()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Hydra's own handler, at the root, would print each a second time.
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = propagate
        logger.setLevel(level)
        logger.removeHandler(handler)


@contextlib.contextmanager
def training_display(config: TrainingConfig) -> Iterator[_TrainingLines | _TrainingTable]:
    """Show one run's epochs, and in a terminal the progress within them, while the body lasts."""
    console = text_console()
    if not console.is_terminal:
        yield _TrainingLines(config.epochs)
        return
    shown = _TrainingTable(config.epochs)
    with Live(shown, console=console, refresh_per_second=5):
        yield shown


def _validation(metrics: EpochMetrics) -> str:
    if metrics.validation_loss is None or metrics.validation_accuracy is None:
        return ""
    return f"validation loss {metrics.validation_loss:.4f}, accuracy {format_percent(metrics.validation_accuracy)} %; "


class _TrainingLines:
    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_epoch(self, metrics: EpochMetrics) -> None:
        print(
            f"epoch {metrics.epoch}/{self.epochs}: "
            f"train loss {metrics.train_loss:.4f}, accuracy {format_percent(metrics.train_accuracy)} %; "
            f"{_validation(metrics)}{metrics.images_per_second:,.0f} images/s",
            flush=True,
        )

    def on_progress(self, epoch: int, fraction: float) -> None:
        pass


class _TrainingTable:
    """The last epochs as a table, and a bar of all epochs with the time that is left."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.seen: list[EpochMetrics] = []
        self.began: float | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=40),
            TextColumn("{task.fields[left]}"),
            auto_refresh=False,
        )
        self.task = self.bar.add_task("starting TensorFlow", total=epochs, left="")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.seen.append(metrics)

    def on_progress(self, epoch: int, fraction: float) -> None:
        now = time.perf_counter()
        if self.began is None:
            # The first batch is left out of the estimate: it includes tracing the network.
            self.began = now
        done = epoch - 1 + fraction
        left = (now - self.began) / done * (self.epochs - done) if done > 0.05 else None
        text = "" if left is None else f"{format_duration(left)} left"
        self.bar.update(
            self.task, completed=done, description=f"epoch {min(epoch, self.epochs)}/{self.epochs}", left=text
        )

    def __rich__(self) -> Group:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("epoch", "train loss", "train accuracy", "val. loss", "val. accuracy", "images/s", "seconds"):
            table.add_column(heading, justify="right")
        for metrics in self.seen[-20:]:
            table.add_row(
                str(metrics.epoch),
                f"{metrics.train_loss:.4f}",
                f"{format_percent(metrics.train_accuracy)} %",
                "" if metrics.validation_loss is None else f"{metrics.validation_loss:.4f}",
                Text(_percent(metrics.validation_accuracy), style="bold"),
                f"{metrics.images_per_second:,.0f}",
                f"{metrics.epoch_seconds:.1f}",
            )
        return Group(*([table] if self.seen else []), self.bar)


@dataclass
class _Row:
    """A worker's job and how far it is."""

    job: str
    parameters: str
    epochs: int
    epoch: int = 0
    accuracy: float | None = None
    images_per_second: float | None = None


class SweepScreen:
    """A sweep in a terminal, live: overall bar, best so far, a row per worker. Elsewhere a line per event.

    `unit` is what the bar counts: the trials of a study, or the runs of its confirmation.
    """

    def __init__(self, unit: str = "trials") -> None:
        self.unit = unit
        self.console = text_console()
        self.live: Live | None = None
        self.rows: dict[int, _Row] = {}
        self.best = ""
        self.lock = threading.Lock()
        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40),
            TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}  {task.fields[left]}"),
            auto_refresh=False,
        )
        self.started = time.monotonic()
        self.at_start = 0.0

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None:
        """Show the start of the work: the study, its trials and the workers."""
        self.metric, self.workers, self.at_start, self.started = metric, workers or 0, finished, time.monotonic()
        self.total = total
        self.task = self.bar.add_task(name, total=total, completed=finished, left="", unit=self.unit)
        if finished >= total:
            self._note(f"study {name}: all {total} {self.unit} are recorded")
            return
        resumed = f", {finished} recorded before" if finished else ""
        by = "on a Ray cluster" if workers is None else format_count(workers, "worker")
        self._note(f"study {name}: {total} {self.unit}{resumed}, {by}")
        if self.console.is_terminal:
            self.live = Live(self, console=self.console, refresh_per_second=4)
            self.live.start()

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None:
        """Show that a worker begins a trial."""
        text = ", ".join(f"{name.partition('.')[2]} {_number(value)}" for name, value in parameters.items())
        with self.lock:
            self.rows[worker] = _Row(_job(trial), text, epochs)
            self.workers = max(self.workers, worker + 1)
        self._line(f"{_job(trial)} began: {text}")

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        """Show the metrics of a trial's epoch."""
        with self.lock:
            row = self.rows[worker]
            row.epoch, row.accuracy, row.images_per_second = (
                metrics.epoch,
                metrics.train_accuracy if metrics.validation_accuracy is None else metrics.validation_accuracy,
                metrics.images_per_second,
            )
        self._line(
            f"{_job(trial)} epoch {metrics.epoch}/{row.epochs}: {_accuracy(metrics)}, "
            f"{metrics.images_per_second:,.0f} images/s"
        )

    def trial_ended(self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str) -> None:
        """Show how a trial ended, and the best value of the study so far."""
        with self.lock:
            self.best = best
            self.rows.pop(-1 if worker is None else worker, None)
            # A lost trial is repeated, so it does not count.
            if not ending.startswith(("interrupted", "lost")):
                self.bar.advance(self.task)
        reached = "" if value is None else f", {self.metric} {_number(value)}"
        leading = f"; best {best or 'none yet'}" if self.unit == "trials" else ""
        self._note(f"{_job(trial)} {ending}{reached}{leading}")

    def _note(self, text: str) -> None:
        """Print a line that stays on the screen."""
        with contextlib.suppress(OSError):
            self.console.print(printable(text), soft_wrap=True)

    def close(self) -> None:
        """End the live picture."""
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self, text: str) -> None:
        if self.live is None:
            with contextlib.suppress(OSError):
                print(printable(text), flush=True)

    def __rich__(self) -> Group:
        with self.lock:
            table = Table(box=None, padding=(0, 2, 0, 0))
            for heading in ("worker", "job", "parameters", "epoch", "accuracy", "images/s"):
                table.add_column(heading, justify="left" if heading == "parameters" else "right")
            for worker in range(self.workers):
                row = self.rows.get(worker)
                if row is None:
                    table.add_row(str(worker), "", Text("idle", style="dim"), "", "", "")
                    continue
                table.add_row(
                    str(worker),
                    row.job,
                    row.parameters,
                    f"{row.epoch}/{row.epochs}",
                    _percent(row.accuracy),
                    "" if row.images_per_second is None else f"{row.images_per_second:,.0f}",
                )
            self.bar.update(self.task, left=self._time_left())
            leading = [Text(f"best {self.metric}: {self.best}")] if self.best else []
            return Group(self.bar, *leading, table)

    def _time_left(self) -> str:
        """Estimate the time left from the trials that this sweep has ended; epochs under way are parts of a trial."""
        begun = sum(row.epoch / row.epochs for row in self.rows.values())
        done = self.bar.tasks[0].completed - self.at_start + begun
        if done < 0.5:
            return ""
        return f"{format_duration((time.monotonic() - self.started) / done * (self.total - self.at_start - done))} left"


def _job(trial: int | str) -> str:
    """Return the name of a worker's job: a trial by its number, or a confirming run by its name."""
    return trial if isinstance(trial, str) else f"trial {trial}"


def _accuracy(metrics: EpochMetrics) -> str:
    if metrics.validation_accuracy is None:
        return f"training accuracy {_percent(metrics.train_accuracy)}"
    return f"validation accuracy {_percent(metrics.validation_accuracy)}"


def _percent(accuracy: float | None) -> str:
    return "" if accuracy is None else f"{format_percent(accuracy)} %"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(named_null(value))
