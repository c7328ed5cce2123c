"""The two ways to train a model for an epoch: Keras's own fit, and the compiled step; the same batches for both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import TrainingConfig
from digitcnn.errors import ConfigError
from digitcnn.training import backends
from digitcnn.values import Evaluation, Examples

if TYPE_CHECKING:
    import keras

Progress = Callable[[float], None]
# Keras clips probabilities here before taking their logarithm (keras.backend.epsilon).
_EPSILON = 1e-7


class Engine(Protocol):
    """Trains one model on some examples, an epoch at a time."""

    name: str

    def train_epoch(self, order: NDArray[np.int64], progress: Progress | None) -> tuple[float, float]:
        """Trains on the examples of these indices, in this order, a batch after the other.

        Returns the mean loss and accuracy over them, each at the weights before its batch's update.
        """
        ...

    def evaluate(self, examples: Examples) -> Evaluation:
        """How the model does on some examples."""
        ...

    def finish(self) -> None:
        """Leaves the trained weights in the model."""
        ...


def make_engine(model: keras.Model, examples: Examples, config: TrainingConfig) -> Engine:
    """The engine of a config: `auto` is the compiled one where it can train the model, which takes TensorFlow.

    Raises ConfigError if `compiled` was asked for and cannot, with the reason.
    """
    import keras

    if config.engine == "keras" or keras.backend.backend() != "tensorflow":
        return KerasEngine(model, examples, config)
    from digitcnn.training.engines.lowering import unsupported

    reason = unsupported(model)
    if reason is None:
        return CompiledEngine(model, examples, config)
    if config.engine == "compiled":
        raise ConfigError(f"training.engine=compiled: cannot train this model: {reason}; choose auto or keras")
    return KerasEngine(model, examples, config, f"keras ({reason})")


class KerasEngine:
    """The reference: Keras's own `fit` and `predict`."""

    def __init__(self, model: keras.Model, examples: Examples, config: TrainingConfig, name: str = "keras") -> None:
        import keras

        # Without it two runs of one config may differ in the last bits of their weights.
        backends.repeat_exactly(keras.backend.backend())
        self.name, self.model, self.examples, self.batch_size = name, model, examples, config.batch_size
        model.compile(
            keras.optimizers.Adam(config.learning_rate), "sparse_categorical_crossentropy", metrics=["accuracy"]
        )

    def train_epoch(self, order: NDArray[np.int64], progress: Progress | None) -> tuple[float, float]:
        """See Engine."""
        # Cut to the epoch, so that Keras builds no larger buffers than the data.
        batch_size = min(self.batch_size, len(order))
        history = self.model.fit(
            self.examples.images[order],
            self.examples.labels[order],
            batch_size=batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[] if progress is None else [_progress_callback(progress, math.ceil(len(order) / batch_size))],
        ).history
        return float(history["loss"][0]), float(history["accuracy"][0])

    def evaluate(self, examples: Examples) -> Evaluation:
        """See Engine."""
        # 1,000 images a batch: the activations stay within 100 MB, and larger batches are not faster.
        return _judge(self.model.predict(examples.images, batch_size=1000, verbose=0), examples)

    def finish(self) -> None:
        """See Engine. Keras trains in place."""


class CompiledEngine:
    """The same training as matrix products, compiled: see compiled.py."""

    name = "compiled"

    def __init__(self, model: keras.Model, examples: Examples, config: TrainingConfig) -> None:
        from digitcnn.training.engines.compiled import compiled_training

        self.training = compiled_training(model, examples.images, examples.labels, config)

    def train_epoch(self, order: NDArray[np.int64], progress: Progress | None) -> tuple[float, float]:
        """See Engine."""
        return self.training.train_epoch(order, progress)

    def evaluate(self, examples: Examples) -> Evaluation:
        """See Engine."""
        return _judge(self.training.probabilities(examples.images), examples)

    def finish(self) -> None:
        """See Engine."""
        self.training.finish()


def _judge(probabilities: NDArray[np.float32], examples: Examples) -> Evaluation:
    likelihood = probabilities[np.arange(len(examples)), examples.labels].astype(np.float64)
    loss = -np.log(np.clip(likelihood, _EPSILON, 1 - _EPSILON)).mean()
    predictions = probabilities.argmax(axis=1)
    accuracy = float((predictions == examples.labels).mean())
    return Evaluation(float(loss), accuracy, predictions, probabilities.max(axis=1))


def _progress_callback(progress: Progress, batches: int) -> Any:
    import keras

    return keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: progress((batch + 1) / batches))
