"""Checkpoints as files: read back as they were written, and refused if anything in them is not as it should be."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from digitcnn import training
from digitcnn.config import RunConfig
from digitcnn.training import CheckpointRefused, SavedTraining, read_checkpoint, write_checkpoint
from digitcnn.training.engines.checkpoint import checkpoint_key
from digitcnn.values import EpochMetrics

EPOCHS = tuple(
    EpochMetrics(number, 1 / number, 0.1 + 0.2, None, None, 1e-9, 1e9, number, 2.0, "ab" * 32) for number in (1, 2, 3)
)
SAVED = SavedTraining(EPOCHS, 12.5, [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7), np.zeros(0)])
CONFIG = RunConfig()
IDENTITY = training.identify_training(CONFIG, "data", {"cpu": "one", "packages": {"keras": "3"}})


def _written() -> bytes:
    content = write_checkpoint(SAVED, IDENTITY)
    assert content is not None
    return content


def _signed(file: io.BytesIO) -> bytes:
    """Return a file as one who wrote it on purpose would: with its SHA-256."""
    return file.getvalue() + hashlib.sha256(file.getvalue()).digest()


def _refusal(content: bytes, identity: dict[str, object] = IDENTITY, epochs: int = 3) -> str:
    with pytest.raises(CheckpointRefused) as caught:
        read_checkpoint(content, identity, epochs)
    return str(caught.value)


def test_checkpoint_is_read_as_it_was_written() -> None:
    found = read_checkpoint(_written(), IDENTITY, 3)
    assert replace(found, state=[]) == replace(SAVED, state=[])
    assert [(a.dtype, a.shape, a.tobytes()) for a in found.state] == [
        (a.dtype, a.shape, a.tobytes()) for a in SAVED.state
    ]


def test_checkpoint_is_that_of_trainings_which_differ_in_epochs_alone() -> None:
    def key(**values: object) -> str:
        return checkpoint_key(CONFIG.replace({name.replace("__", "."): v for name, v in values.items()}), "d")

    assert key() == key(training__epochs=99) == key(data__path="moved.npz")
    # With a schedule over the epochs their number decides the first ones too.
    assert key(training__schedule="cosine") != key(training__schedule="cosine", training__epochs=99)
    assert len({key(), key(training__seed=1), key(training__threads=3), key(training__learning_rate=0.1)}) == 4
    assert checkpoint_key(CONFIG, "other data") != checkpoint_key(CONFIG, "d")


def test_checkpoint_of_anything_else_is_refused() -> None:
    for change in ({"training.learning_rate": 0.01}, {"cpu": "two"}, {"version.keras": "4"}, {"training code": "new"}):
        (name,) = change
        assert _refusal(_written(), IDENTITY | change).startswith(f"was made with another {name} (")
    assert _refusal(_written(), epochs=2) == "is of epoch 3, after the last one"


def test_checkpoint_that_was_changed_is_refused() -> None:
    content = _written()
    for _ in range(200):
        position = random.randrange(len(content))
        damaged = content[:position] + bytes([content[position] ^ 1 << random.randrange(8)]) + content[position + 1 :]
        assert _refusal(damaged) == "is corrupt or truncated (its SHA-256 is another one)"
    for length in (0, 1, len(content) // 2, len(content) - 1):
        assert _refusal(content[:length]).startswith("is corrupt or truncated (")


def test_checkpoint_with_a_pickle_or_a_bomb_is_refused() -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str, ...]]:
            return pytest.fail, ("a pickle was opened",)

    manifest = np.load(io.BytesIO(_written()))["arr_0"]
    pickled, packed = io.BytesIO(), io.BytesIO()
    np.savez(pickled, manifest, np.array([Hostile()], dtype=object))
    assert "allow_pickle" in _refusal(_signed(pickled))
    np.savez_compressed(packed, manifest, np.zeros(10**7))
    assert "its members expand" in _refusal(_signed(packed))
    huge = io.BytesIO()
    with zipfile.ZipFile(huge, "w") as archive:
        for number in range(2):
            with archive.open(f"arr_{number}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f4", "fortran_order": False, "shape": (2**60,)}
                )
    assert _refusal(_signed(huge)).startswith("is corrupt or truncated (")
