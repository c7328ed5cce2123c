"""Measurement of `digitcnn predict` on disturbed pictures of MNIST's test images, and on what is no digit."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from digitcnn.config import DataConfig, PredictConfig, StudyReference, TrackingConfig
from digitcnn.predict import predict
from digitcnn.training import load_splits
from tests.support import pictures

# Of the mixed set more are taken: it is asked for 98 %.
_MIXED_TIMES = 6


def measure(tracking: TrackingConfig, run: str, count: int) -> Iterator[list[str]]:
    """Yield a table's heading and rows: `count` pictures of each kind, as many of each digit, and what is no digit."""
    examples = load_splits(DataConfig(validation="test")).validation
    yield ["pictures", "n", "right", "refused", "wrong", "of these unsure"]
    yield ["---"] * 6
    for name, disturb in (pictures.HARD | pictures.OTHERS | pictures.MIXED).items():
        number = count * (_MIXED_TIMES if name in pictures.MIXED else 1)
        chosen = np.concatenate(
            [np.flatnonzero(examples.labels == digit)[20 : 20 + number // 10] for digit in range(10)]
        )
        drawn = [
            disturb(examples.images[index], np.random.default_rng([zlib.crc32(name.encode()), index]))
            for index in chosen
        ]
        yield _row(name, drawn, examples.labels[chosen].tolist(), tracking, run)
    for name, shown in (
        ("26 letters", pictures.letters()),
        ("12 signs", pictures.signs()),
        ("12 blanks", pictures.blanks()),
        ("several digits, text", pictures.several(examples.images, examples.labels)),
    ):
        yield _row(name, list(shown.values()), None, tracking, run)


def _row(
    name: str, drawn: Sequence[Image.Image], labels: Sequence[int] | None, tracking: TrackingConfig, run: str
) -> list[str]:
    """Return the row of some pictures; without labels no answer is right."""
    with tempfile.TemporaryDirectory() as folder:
        places = [str(Path(folder) / f"{number}.png") for number in range(len(drawn))]
        for place, picture in zip(places, drawn, strict=True):
            picture.save(place)
        found = predict(PredictConfig(image=places, run=run, study=StudyReference(name="none"), tracking=tracking))
    true = dict(zip(places, labels or [-1] * len(places), strict=True))
    wrong = [each for each in found if each.predicted != true[each.image]]
    right = f"{100 * (len(found) - len(wrong)) / len(places):.1f} %" if labels else ""
    unsure = sum(each.unsure for each in wrong)
    return [name, str(len(places)), right, str(len(places) - len(found)), str(len(wrong)), str(unsure)]
