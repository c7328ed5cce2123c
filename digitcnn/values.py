"""Values that rooms pass to each other: examples and splits, an epoch's metrics, a run's result."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digitcnn.records import Metric, Tag

# The answer to an event of a run.
Decision = Literal["continue", "prune", "stop"]
Ending = Literal["completed", "pruned", "stopped"]


def sha256_of_arrays(*arrays: NDArray[Any]) -> str:
    """Return the SHA-256 of the arrays' raw bytes, one after the other."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


@dataclass(frozen=True)
class Examples:
    """Grey images (n, height, width) uint8 with their labels (n,) int64, 0 to classes - 1."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """Return the SHA-256 of images and labels, in their order."""
        return sha256_of_arrays(self.images, self.labels)


# Two are the same only if they are one object: comparing would read all images.
@dataclass(frozen=True, eq=False)
class Splits:
    """The examples that one run trains on and is judged by: after every epoch, or `final_test_only` after the last.

    `sha256` identifies the arrays that were read, and the way they are split. `doubts` are sentences on what makes
    results doubtful, such as images on both sides.
    """

    name: str
    path: str
    train: Examples
    validation: Examples
    classes: int
    sha256: str
    final_test_only: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int]:
        """Height and width."""
        _, height, width = self.train.images.shape
        return height, width


@dataclass(frozen=True)
class Evaluation:
    """A model's results on n examples.

    Mean cross-entropy in nats, the fraction it had right, its predicted classes (n,) and their probabilities (n,).
    """

    loss: float
    accuracy: float
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch. Losses are mean cross-entropies in nats, accuracies fractions.

    The training metrics are means over the epoch's samples at the weights of each update, the validation metrics
    those at the epoch's end; none where the examples are judged once. `epoch_seconds` covers training and validation,
    `images_per_second` training alone. `training_seconds` and `cpu_seconds` are those of all epochs so far, and
    `weights_sha256` is the digest of the weights at the epoch's end, `memory_mb` what the process then holds.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float | None
    epoch_seconds: float
    images_per_second: float
    training_seconds: float = 0.0
    cpu_seconds: float = 0.0
    weights_sha256: str = ""
    memory_mb: float = 0.0

    def metrics(self) -> dict[str, float]:
        """Return the epoch's own metrics by name, without those that were not measured."""
        others = ("epoch", Metric.TRAINING_SECONDS, Metric.CPU_SECONDS, Tag.WEIGHTS_SHA256, "memory_mb")
        return {name: value for name, value in vars(self).items() if name not in others and value is not None}


@dataclass(frozen=True)
class TrainingResult:
    """A training that ended by itself (`completed`) or was ended at an epoch (`pruned`, `stopped`).

    `final` are the final model's results on the examples that judge the run, `labels` (n,) their classes. With
    `final_test_only` they are the test set, read for this alone. `confusion[i, j]` counts those of class i that the
    model takes for class j. `summary` are the final metrics by name: the last and the best validation, or the test; and
    the cost of all epochs, also of the first `epochs_before` that came with a checkpoint.
    """

    ending: Ending
    epochs: tuple[EpochMetrics, ...]
    final: Evaluation
    labels: NDArray[np.int64]
    final_test_only: bool
    confusion: NDArray[np.int64]
    summary: dict[str, float]
    weights_sha256: str
    engine: str
    epochs_before: int


@dataclass(frozen=True)
class RunStarted:
    """The first event of a run: its process's environment (`describe_environment`), and the SHA-256 of its data.

    `refused` says why it does not go on from its checkpoint, if there was one.
    """

    environment: Mapping[str, Any]
    data_sha256: str
    refused: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after an epoch, as the bytes of a file."""

    epoch: int
    content: bytes


@dataclass(frozen=True)
class RunFinished:
    """The last event of a run: how it ended, after how many epochs, and all that is to be recorded of its result.

    `summary` are the final metrics by name, `files` the artifacts by name, `model` the files of the model in MLflow's
    format by their relative paths; empty unless the training was completed. The first `epochs_before` epochs came with
    a checkpoint.
    """

    ending: Ending
    epochs: int
    summary: dict[str, float]
    weights_sha256: str
    engine: str
    files: dict[str, bytes]
    model: dict[str, bytes]
    epochs_before: int = 0


# A run as its worker yields it: each event is answered with a decision.
Event = RunStarted | EpochMetrics | Checkpoint | RunFinished
Events = Generator[Event, Decision, None]
