"""Engines that train a model for an epoch: a lean one, and Keras's own fit; the same batches for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from digitcnn.config import TrainingConfig
from digitcnn.training.engines.reference import KerasEngine
from digitcnn.values import Examples

if TYPE_CHECKING:
    import keras

    from digitcnn.training.engines.fast import FastEngine


def make_engine(
    model: keras.Sequential, examples: Examples, config: TrainingConfig, augmented: bool = False
) -> KerasEngine | FastEngine:
    """Return the engine of a config, ready to train a model: `fast` is Keras's fit where the backend has no other.

    `augmented`: its epochs will have transforms.
    """
    import keras

    if config.engine == "keras" or keras.backend.backend() != "tensorflow":
        return KerasEngine(model, examples, config)
    from digitcnn.training.engines.fast import FastEngine

    return FastEngine(model, examples, config, augmented)
