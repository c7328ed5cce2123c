"""Engines that train a model for an epoch: Keras's own fit, and the compiled step; the same batches for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from digitcnn.config import TrainingConfig
from digitcnn.errors import ConfigError
from digitcnn.training.engines.reference import Engine, KerasEngine
from digitcnn.values import Examples

if TYPE_CHECKING:
    import keras

__all__ = ["make_engine"]


def make_engine(model: keras.Model, examples: Examples, config: TrainingConfig) -> Engine:
    """Return the engine of a config: `auto` is the compiled one where it can train the model, which takes TensorFlow.

    Raises ConfigError if `compiled` was asked for and cannot, with the reason.
    """
    import keras

    if config.engine == "keras" or keras.backend.backend() != "tensorflow":
        return KerasEngine(model, examples, config)
    from digitcnn.training.engines.compiled import CompiledEngine
    from digitcnn.training.engines.lowering import UnsupportedModel

    try:
        return CompiledEngine(model, examples, config)
    except UnsupportedModel as reason:
        if config.engine == "compiled":
            raise ConfigError(
                f"training.engine=compiled: cannot train this model: {reason}; choose auto or keras"
            ) from None
        return KerasEngine(model, examples, config, str(reason))
