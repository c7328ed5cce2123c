"""Progress of a command at work: a live picture in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from digitcnn.config import TrainingConfig
from digitcnn.formatting import format_count, format_duration, format_percent, named_null, printable
from digitcnn.output import StartLines
from digitcnn.values import EpochMetrics

_BACKENDS = {"tensorflow": "TensorFlow", "torch": "PyTorch", "jax": "JAX"}


def text_console() -> Console:
    """Return a console that shows texts as they are: `[old]` and `:x:` in a path are no style and no emoji.

    What FORCE_COLOR says is no reason to command a terminal that is not there.
    """
    return Console(force_terminal=sys.stdout.isatty(), markup=False, emoji=False, highlight=False)


def least_width(table: Table, console: Console) -> int:
    """Return the width at which no word of a table is cut, measured where there is room: else all would fit."""
    return console.measure(table, options=console.options.update(max_width=10_000)).minimum


def _is_live(console: Console) -> bool:
    """Return True if the console is a terminal that can move its cursor."""
    known = os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")
    return console.is_terminal and known and os.environ.get("TTY_COMPATIBLE") != "0"


@contextlib.contextmanager
def training_display(config: TrainingConfig, backend: str) -> Iterator[_TrainingLines | _TrainingTable]:
    """Show one run's epochs, and in a terminal the progress within them, while the body lasts."""
    console = text_console()
    if not _is_live(console):
        with contextlib.closing(StartLines(_BACKENDS[backend])) as start:
            yield _TrainingLines(config.epochs, start)
        return
    shown = _TrainingTable(config.epochs, _BACKENDS[backend])
    with Live(shown, console=console, refresh_per_second=5):
        yield shown


def _validation(metrics: EpochMetrics) -> str:
    if metrics.validation_loss is None or metrics.validation_accuracy is None:
        return ""
    return f"validation loss {metrics.validation_loss:.4f}, accuracy {format_percent(metrics.validation_accuracy)} %; "


class _TrainingLines:
    def __init__(self, epochs: int, start: StartLines) -> None:
        self.epochs, self.start = epochs, start

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.start.close()
        print(
            f"epoch {metrics.epoch}/{self.epochs}: "
            f"train loss {metrics.train_loss:.4f}, accuracy {format_percent(metrics.train_accuracy)} %; "
            f"{_validation(metrics)}{metrics.images_per_second:,.0f} images/s",
            flush=True,
        )

    def on_progress(self, epoch: int, fraction: float) -> None:
        self.start.close()


class _TrainingTable:
    """The last epochs as a table, and a bar of all epochs with the time that is left."""

    def __init__(self, epochs: int, backend: str) -> None:
        self.epochs = epochs
        self.seen: list[EpochMetrics] = []
        self.began: float | None = None
        self.first = 0.0
        self.bar = _bar("{task.fields[left]}")
        self.task = self.bar.add_task(f"starting {backend}", total=epochs, left="")

    def on_epoch(self, metrics: EpochMetrics) -> None:
        self.seen.append(metrics)

    def on_progress(self, epoch: int, fraction: float) -> None:
        now, done = time.perf_counter(), epoch - 1 + fraction
        if self.began is None:
            # The first batch is left out of the estimate: it includes tracing the network. So are epochs before it.
            self.began, self.first = now, done
        here = done - self.first
        left = (now - self.began) / here * (self.epochs - done) if here > 0.05 else None
        text = "" if left is None else f"{format_duration(left)} left"
        words = f"epoch {min(epoch, self.epochs)}/{self.epochs}"
        self.bar.update(self.task, completed=done, description=words, left=text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        rows = [
            (
                str(metrics.epoch),
                f"{metrics.train_loss:.4f}",
                f"{format_percent(metrics.train_accuracy)} %",
                "" if metrics.validation_loss is None else f"{metrics.validation_loss:.4f}",
                Text(_percent(metrics.validation_accuracy), style="bold"),
                f"{metrics.images_per_second:,.0f}",
                f"{metrics.epoch_seconds:.1f}",
            )
            for metrics in self.seen[-20:]
        ]
        if rows:
            headings = "epoch, train loss, train accuracy, val. loss, val. accuracy, images/s, seconds"
            yield _fitting(headings, "train accuracy, val. loss, train loss, images/s, seconds", rows, console)
        yield self.bar


def _bar(right: str) -> Progress:
    columns = TextColumn("{task.description}", markup=False), BarColumn(bar_width=40), TextColumn(right)
    return Progress(*columns, auto_refresh=False)


def _fitting(headings: str, dispensable: str, rows: Sequence[Sequence[str | Text]], console: Console) -> Table:
    """Return a table of columns with such headings, without those of the dispensable ones that have no room."""
    left_out, kept = dispensable.split(", "), dict(zip(headings.split(", "), zip(*rows, strict=True), strict=True))
    while True:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for name, cells in kept.items():
            if name == "parameters":
                table.add_column(name)
            else:
                # Else Rich would make it narrower than its words.
                table.add_column(name, justify="right", no_wrap=True, min_width=max(map(len, [name, *cells])))
        for row in zip(*kept.values(), strict=True):
            table.add_row(*row)
        if not left_out or least_width(table, console) <= console.width:
            return table
        del kept[left_out.pop()]


@dataclass
class _Row:
    """A worker's job and how far it is."""

    job: str
    parameters: str
    epochs: int
    last: EpochMetrics | None = None


class SweepScreen:
    """A sweep in a terminal, live: overall bar, best so far, a row per worker. Elsewhere a line per event.

    `unit` is what the bar counts: the trials of a study, or the runs of its confirmation.
    """

    def __init__(self, backend: str, unit: str = "trials") -> None:
        self.backend, self.unit = _BACKENDS[backend], unit
        self.console = text_console()
        self.start = StartLines("the study")
        self.live: Live | None = None
        self.rows: dict[int, _Row] = {}
        self.best = self.starting = ""
        self.lock = threading.Lock()
        self.bar = _bar("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}  {task.fields[left]}")
        self.started = time.monotonic()
        self.at_start = 0.0

    def began(self, name: str, total: int, finished: int, workers: int | None, metric: str) -> None:
        """Show the start of the work: the study, its trials and the workers."""
        self.metric, self.workers, self.at_start, self.started = metric, workers or 0, finished, time.monotonic()
        self.total = total
        counted = format_count(total, self.unit.removesuffix("s"))
        self.task = self.bar.add_task(name, total=total, completed=finished, left="", unit=counted.partition(" ")[2])
        self.start.close()
        if finished >= total:
            self._note(f"study {name}: {'all ' if total > 1 else ''}{counted} {'are' if total > 1 else 'is'} recorded")
            return
        resumed = f", {finished} recorded before" if finished else ""
        by = "on a Ray cluster" if workers is None else format_count(workers, "worker")
        self._note(f"study {name}: {counted}{resumed}, {by}")
        by = "Ray" if workers is None else by
        if _is_live(self.console):
            self.starting = f"starting {by} ({self.backend})"
            self.live = Live(self, console=self.console, refresh_per_second=4)
            self.live.start()
        else:
            self.start = StartLines(f"{by} ({self.backend})")

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None:
        """Show that a worker begins a trial."""
        text = ", ".join(f"{name.partition('.')[2]} {_number(value)}" for name, value in parameters.items())
        with self.lock:
            self.rows[worker] = _Row(_job(trial), text, epochs)
            self.workers = max(self.workers, worker + 1)
        self._line(f"{_job(trial)} began: {text}")

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        """Show the metrics of a trial's epoch."""
        self._started()
        with self.lock:
            row = self.rows[worker]
            row.last = metrics
        self._line(
            f"{_job(trial)} epoch {metrics.epoch}/{row.epochs}: {_accuracy(metrics)}, "
            f"{metrics.images_per_second:,.0f} images/s"
        )

    def trial_ended(self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str) -> None:
        """Show how a trial ended, and the best value of the study so far."""
        self._started()
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
        self.console.print(printable(text), soft_wrap=True)

    def _started(self) -> None:
        """Say no more that the workers start: one of them has come to something."""
        self.start.close()
        self.starting = ""

    def close(self) -> None:
        """End the live picture."""
        self.start.close()
        if self.live is not None:
            self.live.stop()
            self.live = None

    def _line(self, text: str) -> None:
        if self.live is None:
            print(printable(text), flush=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        with self.lock:
            rows = [(str(worker), *self._cells(self.rows.get(worker))) for worker in range(self.workers)]
            self.bar.update(self.task, left=self._time_left())
            leading = f"best {self.metric}: {self.best}" if self.best else ""
            if self.starting:
                leading = f"{self.starting}: {format_duration(time.monotonic() - self.started)}"
        yield self.bar
        yield from [Text(leading)] if leading else []
        if rows:
            headings = "worker, job, parameters, epoch, accuracy, images/s"
            yield _fitting(headings, "worker, parameters, images/s", rows, console)

    def _cells(self, row: _Row | None) -> tuple[str | Text, ...]:
        if row is None:
            return "", Text("idle", style="dim"), "", "", ""
        if row.last is None:
            return row.job, row.parameters, f"0/{row.epochs}", "", ""
        judged = row.last.train_accuracy if row.last.validation_accuracy is None else row.last.validation_accuracy
        speed = f"{row.last.images_per_second:,.0f}"
        return row.job, row.parameters, f"{row.last.epoch}/{row.epochs}", _percent(judged), speed

    def _time_left(self) -> str:
        """Estimate the time left from the trials that this sweep has ended; epochs under way are parts of a trial."""
        begun = sum(row.last.epoch / row.epochs for row in self.rows.values() if row.last)
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
