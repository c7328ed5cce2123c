"""Checkpoints: a training after an epoch, as an npz file with a JSON manifest and its SHA-256 behind it; no pickle."""

import functools
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import Config, RunConfig, TrainingConfig
from digitcnn.errors import MachineError
from digitcnn.files import write_atomically
from digitcnn.training.environment import numeric_environment
from digitcnn.values import Checkpoint, EpochMetrics

logger = logging.getLogger(__name__)

# On its way it is held in memory four times: networks of more than 11 million parameters are trained without.
MAX_CHECKPOINT_BYTES = 128 * 2**20
_DIGEST_BYTES = 32

# KEY-RUN-EPOCH; see `checkpoint_key`.
_NAME = re.compile(r"([0-9a-f]{32})-([0-9a-f]{32})-([0-9]{1,6})\.npz")


class CheckpointRefused(Exception):
    """The checkpoint is damaged, or one of another training."""


@dataclass(frozen=True)
class SavedTraining:
    """A training after an epoch: its epochs so far, its peak of memory, and the state of its engine.

    The order of the images is not part of it: it follows from the seed and the number of the epoch.
    """

    epochs: tuple[EpochMetrics, ...]
    peak_memory_mb: float
    state: list[NDArray[Any]]


class _Manifest(Config):
    """The manifest in a checkpoint."""

    format: Literal[2] = 2
    training: dict[str, Any]
    epochs: list[EpochMetrics]
    peak_memory_mb: float


def depends_on_length(config: TrainingConfig) -> bool:
    """Return True if the first epochs of a training depend on the number of its epochs, as with a schedule over them.

    The one place that decides it. The order of the images and their augmentation depend on seed and epoch alone.
    """
    return config.schedule != "constant"


def beginning_of(config: RunConfig, data_sha256: str) -> dict[str, Any]:
    """Return all that decides the epochs of a training: those that share it differ in their number of epochs alone.

    The data are their SHA-256, wherever they lie.
    """
    values = {**config.parameters(), "data.path": data_sha256}
    if not depends_on_length(config.training):
        del values["training.epochs"]
    return values


def checkpoint_key(config: RunConfig, data_sha256: str) -> str:
    """Return the name (32 hexadecimal digits) that the checkpoints of trainings with the same beginning share."""
    return hashlib.sha256(_json(beginning_of(config, data_sha256))).hexdigest()[:32]


def identify_training(config: RunConfig, data_sha256: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that must be equal for a training to go on with the same bits: config, data, environment and code."""
    return {**beginning_of(config, data_sha256), **numeric_environment(environment), "training code": _code_sha256()}


@functools.cache
def _code_sha256() -> str:
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def write_checkpoint(saved: SavedTraining, training: Mapping[str, Any]) -> bytes | None:
    """Return the checkpoint of a training that `identify_training` identifies; None if it would be too large."""
    if sum(array.nbytes for array in saved.state) > MAX_CHECKPOINT_BYTES:
        return None
    manifest = _Manifest(training=dict(training), epochs=list(saved.epochs), peak_memory_mb=saved.peak_memory_mb)
    file = io.BytesIO()
    np.savez(file, np.frombuffer(_json(manifest.model_dump()), np.uint8), *saved.state)
    file.write(hashlib.sha256(file.getbuffer()).digest())
    return file.getvalue() if file.tell() <= MAX_CHECKPOINT_BYTES else None


def read_checkpoint(content: bytes, training: Mapping[str, Any], epochs: int) -> SavedTraining:
    """Return the training in a checkpoint that one of so many epochs can go on from. Raises CheckpointRefused."""
    try:
        manifest, state = _parse(content)
    except Exception as error:
        # Of what is damaged, zipfile, NumPy and json raise errors of every kind.
        raise CheckpointRefused(f"is corrupt or truncated ({' '.join(str(error).split())[:100]})") from None
    for name in dict.fromkeys([*training, *manifest.training]):
        if manifest.training.get(name) != training.get(name):
            before, now = manifest.training.get(name, "none"), training.get(name, "none")
            raise CheckpointRefused(f"was made with another {name} ({before}, here {now})")
    if len(manifest.epochs) > epochs:
        raise CheckpointRefused(f"is of epoch {len(manifest.epochs)}, after the last one")
    return SavedTraining(tuple(manifest.epochs), manifest.peak_memory_mb, state)


def _parse(content: bytes) -> tuple[_Manifest, list[NDArray[Any]]]:
    """Return manifest and arrays of a checkpoint that ends with its SHA-256; raise some error for any other file."""
    if len(content) > MAX_CHECKPOINT_BYTES:
        raise ValueError(f"it has more than {MAX_CHECKPOINT_BYTES:,} bytes")
    if hashlib.sha256(memoryview(content)[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        raise ValueError("its SHA-256 is another one")
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        members = archive.zip.infolist()
        # Nothing may expand as it is read: we compress nothing.
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its members expand")
        first, *state = (archive[f"arr_{number}"] for number in range(len(members)))
    # Lenient, as JSON knows no tuples.
    manifest = _Manifest.model_validate(json.loads(first.tobytes()), strict=False)
    if [each.epoch for each in manifest.epochs] != list(range(1, len(manifest.epochs) + 1)) or not manifest.epochs:
        raise ValueError("its epochs are incomplete")
    return manifest, state


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint in its file: the run that made it, and after which epoch."""

    path: Path
    run_id: str
    epoch: int

    def read(self) -> bytes:
        """Return the content of the file, no more of it than a checkpoint may have; empty if it cannot be read."""
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_CHECKPOINT_BYTES + 1)
        except OSError:
            return b""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training in a folder, the last one of each run; written by one process."""

    folder: Path
    key: str

    def find(self, epochs: int) -> StoredCheckpoint | None:
        """Return the furthest one from which a training of so many epochs can go on."""
        return _furthest(self.folder.glob(f"{self.key}-*.npz"), epochs)

    def keep(self, run_id: str, checkpoint: Checkpoint) -> None:
        """Write a run's checkpoint in place of those that did not come as far; warn if the disk does not take it."""
        path = self.folder / f"{self.key}-{run_id}-{checkpoint.epoch}.npz"
        try:
            write_atomically(path, checkpoint.content, "the run goes on without this checkpoint")
        except MachineError as error:
            logger.warning(str(error))
            return
        while (earlier := _furthest(set(self.folder.glob(f"{self.key}-*.npz")) - {path}, checkpoint.epoch)) is not None:
            earlier.path.unlink(missing_ok=True)

    def finish(self, epochs: int) -> None:
        """Put them where only the id of their run finds them: a training of so many epochs is over.

        Those that have come further stay: they are of longer trainings, which may not be over.
        """
        finished = self.folder.parent / "finished"
        while (over := self.find(epochs)) is not None:
            finished.mkdir(exist_ok=True)
            over.path.replace(finished / over.path.name)

    def drop(self) -> None:
        """Remove them all, those included that a killed process was writing."""
        for path in [*self.folder.glob(f"{self.key}-*"), *self.folder.glob(f".{self.key}-*")]:
            path.unlink(missing_ok=True)


def checkpoints_of(folder: Path, config: RunConfig, data_sha256: str) -> Checkpoints:
    """Return the checkpoints of all trainings in a folder that differ from a config in their number of epochs alone."""
    return Checkpoints(folder, checkpoint_key(config, data_sha256))


def checkpoint_of_run(folder: Path, run_id: str, epochs: int) -> StoredCheckpoint | None:
    """Return a run's checkpoint, wherever it lies below a folder, if a training of so many epochs can go on from it."""
    return _furthest(folder.rglob(f"*-{run_id}-*.npz"), epochs)


def _furthest(paths: Iterable[Path], epochs: int) -> StoredCheckpoint | None:
    named = [(path, match) for path in paths if (match := _NAME.fullmatch(path.name))]
    found = [StoredCheckpoint(path, match[2], int(match[3])) for path, match in named if int(match[3]) <= epochs]
    return max(found, key=lambda each: each.epoch, default=None)
