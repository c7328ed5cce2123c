"""Predictions of pictures by a recorded model, as values, text, JSON and CSV."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from digitcnn import evaluation, tracking
from digitcnn.config import PredictConfig
from digitcnn.errors import ConfigError
from digitcnn.files import write_atomically
from digitcnn.predict import models
from digitcnn.predict.preprocess import prepare_picture
from digitcnn.predict.reading import read_picture

logger = logging.getLogger(__name__)

# Bytes of a picture's name that the name of its .seen.png keeps: a file's name has at most 255.
_MAX_NAME_BYTES = 200
# Of 10,000 held-out digits the article's network gives 1 % a lower probability; docs/method.md compares other measures.
_SURE = 0.8


@dataclass(frozen=True)
class Prediction:
    """The two likeliest classes of a picture, the probabilities of all, and the file of its prepared form.

    The classes are digits if the model was trained on digits. `unsure`: the probability is below 80 %.
    """

    image: str
    predicted: int
    probability: float
    runner_up: int
    runner_up_probability: float
    unsure: bool
    seen: str | None
    probabilities: tuple[float, ...]


def predict(config: PredictConfig) -> list[Prediction]:
    """Return the predictions of a config's pictures, in their order; log an error for each that cannot be used.

    Raises ConfigError without a picture, or without such a run or model, MachineError if its model is refused.
    """
    if not config.image:
        raise ConfigError("image: names no picture; digitcnn predict FILE...")
    model = _model(config)
    _, height, width = model.input_shape
    prepared: list[tuple[str, NDArray[np.uint8]]] = []
    for image in config.image:
        try:
            prepared.append((image, prepare_picture(read_picture(image), height, width)))
        except ValueError as error:
            logger.error(f"{image}: {error}")
    if not prepared:
        return []
    files = _write(prepared, config) if config.show else [None] * len(prepared)
    names, pictures = zip(*prepared, strict=True)
    return _predictions(model, names, np.stack(pictures), files)


def predict_images(images: NDArray[np.uint8], config: PredictConfig) -> list[Prediction]:
    """Return the predictions of images (n, height, width), 0 (paper) to 255 (ink), as the config's run was trained on.

    Raises as `predict` does, and ConfigError for images of another kind.
    """
    model = _model(config)
    if images.dtype != np.uint8 or images.shape[1:] != tuple(model.input_shape[1:]):
        shape = ", ".join(map(str, model.input_shape[1:]))
        raise ConfigError(
            f"images: must be (n, {shape}) uint8, 0 (paper) to 255 (ink), not {images.shape} {images.dtype}"
        )
    return _predictions(model, [str(index) for index in range(len(images))], images, [None] * len(images))


def _model(config: PredictConfig) -> Any:
    if evaluation.is_manifest_file(config.run):
        again = f"digitcnn reproduce run={config.run}"
        raise ConfigError(f"run={config.run}: a manifest holds no model; {again} makes a run with one")
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, f"run={config.run}")
        run_id = evaluation.find_run(store, config.run, config.study, config.tracking)
        return models.load_recorded_model(store, config.tracking, run_id)


def _predictions(
    model: Any, names: Sequence[str], images: NDArray[np.uint8], files: Sequence[str | None]
) -> list[Prediction]:
    found = []
    for image, row, file in zip(names, model.predict(images, batch_size=1000, verbose=0), files, strict=True):
        second, first = (int(each) for each in np.argsort(row, kind="stable")[-2:])
        best, next_best = float(row[first]), float(row[second])
        found.append(Prediction(image, first, best, second, next_best, best < _SURE, file, tuple(map(float, row))))
    return found


def _write(pictures: list[tuple[str, NDArray[np.uint8]]], config: PredictConfig) -> list[str]:
    """Write the prepared form of each picture, never over a picture, and return the files."""
    folder = config.tracking.reports("predictions")
    taken = {os.path.realpath(image) for image in config.image}
    places = []
    for image, picture in pictures:
        name = os.fsdecode(os.fsencode(Path(image).name)[:_MAX_NAME_BYTES])
        names = itertools.chain([f"{name}.seen.png"], (f"{name}.{number}.seen.png" for number in itertools.count(2)))
        place = next(folder / each for each in names if os.path.realpath(folder / each) not in taken)
        taken.add(os.path.realpath(place))
        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png")
        write_atomically(place, file.getvalue(), "show=false needs no disk")
        places.append(str(place))
    return places


def prediction_in_words(each: Prediction) -> str:
    """Return a prediction as a line for people."""
    line = f"{each.image}: {each.predicted} ({100 * each.probability:.1f} %{', unsure' if each.unsure else ''}), "
    line += f"runner-up {each.runner_up} ({100 * each.runner_up_probability:.1f} %)"
    return line if each.seen is None else f"{line}; the model saw {each.seen}"


def predictions_as_json(found: list[Prediction]) -> str:
    """Return predictions as a JSON array of objects, an object a line."""
    return "[" + ",\n ".join(json.dumps(dataclasses.asdict(each)) for each in found) + "]"


def predictions_as_table(found: list[Prediction]) -> pd.DataFrame:
    """Return predictions as a table, without the probabilities of all classes."""
    names = [field.name for field in dataclasses.fields(Prediction) if field.name != "probabilities"]
    return pd.DataFrame([vars(each) for each in found], columns=names)
