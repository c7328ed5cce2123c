"""Train each part of the space with both engines on few images: do they reach the same accuracy?

`python -m experiments.parts.engines [SEEDS]` trains what engines.csv lacks of SEEDS seeds (10), in each precision that
the processor has instructions for, and prints its table. Whatever ends the command costs the two runs that are at work,
and the same command goes on.
"""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from digitcnn import runner
from digitcnn.config import RunConfig
from digitcnn.evaluation import compare
from digitcnn.formatting import format_interval, format_percent, format_points
from digitcnn.processor import cpu_model, has_bfloat16
from digitcnn.records import Column, Metric
from digitcnn.report import markdown_table
from experiments.parts.parts import BASELINE, PARTS, append_runs, said, train_epochs

PATH = Path(__file__).with_name("engines.csv")
_PART, _PRECISION, _ENGINE = "part", "training.precision", "training.engine"
_KEY = [_PART, _PRECISION, Column.SEED, _ENGINE]
_COLUMNS = [*_KEY, "changes", Metric.VALIDATION_ACCURACY, Metric.CPU_SECONDS, "processor"]
# In each, an engine has something else to do. Batch normalization at a constant rate is judged by averages that lag
# behind the weights: the accuracies of two seeds are 5 points apart.
_PARTS = (
    *(BASELINE, "light augmentation", "cosine", "one cycle", "dropout 0.5", "padding", "a third block"),
    *("no dense layer", "weight average 0.99", "adamw", "sgd with momentum, rate 0.05"),
    "cosine, batch normalization, dropout 0.5",
)
_SMALL = {
    "data.train_size": 5000,
    "data.validation_size": 5000,
    "training.batch_size": 50,
    "training.epochs": 4,
    "training.threads": 1,
}


def measure(seeds: Sequence[int]) -> None:
    """Train every part with both engines, two runs at a time; append what engines.csv lacks."""
    precisions = ["float32", "bfloat16"] if has_bfloat16() else ["float32"]
    rows = pd.read_csv(PATH) if PATH.exists() else pd.DataFrame(columns=_COLUMNS)
    known = {*rows[_KEY].itertuples(index=False, name=None)}
    jobs = [
        (part, precision, seed, engine)
        for seed in seeds
        for precision in precisions
        for part in _PARTS
        for engine in ("fast", "keras")
    ]
    append_runs(PATH, [job for job in jobs if job not in known], _row)


def _row(worker: runner.Worker, job: tuple[str, str, int, str], stop: threading.Event) -> pd.DataFrame:
    """Return what a part's training with an engine reached in its last epoch."""
    part, precision, seed, engine = job
    keys = {_PRECISION: precision, "training.seed": seed, _ENGINE: engine}
    last = train_epochs(worker, RunConfig().replace(_SMALL | keys | PARTS[part]), stop)[-1]
    measured = [round(last.metrics()[Metric.VALIDATION_ACCURACY], 6), round(last.cpu_seconds, 1)]
    return pd.DataFrame([[*job, said(part), *measured, cpu_model()]], columns=_COLUMNS)


def table() -> str:
    """Return a line of Markdown per part and precision, and one of their mean: both engines' accuracies, paired.

    The mean is that of all parts with a seed: parts with the same seed are not independent of each other.
    """
    lines, rows = [], pd.read_csv(PATH)
    for precision, runs in rows.groupby(_PRECISION):
        pairs = runs.pivot(index=[_PART, Column.SEED], columns=_ENGINE, values=Metric.VALIDATION_ACCURACY)
        parts = pairs.index.get_level_values(_PART)
        lines += [[part, str(precision), *_compared(pairs[parts == part])] for part in _PARTS if part in parts]
        lines.append(["the mean of all", str(precision), *_compared(pairs.groupby(Column.SEED).mean())])
    head = ["part", "precision", "pairs", "Keras's fit (%)", "fast (%)", "difference (points, 95 %)", "verdict"]
    return markdown_table(head, lines)


def _compared(pairs: pd.DataFrame) -> list[str]:
    """Return the cells of a line: the number of pairs, the means of both engines, their difference, the verdict."""
    pairs = pairs.dropna()
    values = {name: dict(enumerate(pairs[name])) for name in ("keras", "fast")}
    of = compare(values, resolution=1 / _SMALL["data.validation_size"])["fast"]
    means = [f"{format_percent(pairs[name].mean())} (sd {format_percent(pairs[name].std())})" for name in values]
    interval = format_interval(of.low, of.high, signed=True)
    return [str(of.n), *means, f"{format_points(of.difference)} ({interval})", of.verdict]


if __name__ == "__main__":
    measure(range(1, 1 + int((sys.argv[1:] or ["10"])[0])))
    print(table())
