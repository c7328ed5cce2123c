"""The reference engine, Keras's own fit and predict: other engines have its methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import TrainingConfig
from digitcnn.training.backends import repeat_exactly
from digitcnn.training.engines.augmentation import Transforms, transform_images
from digitcnn.training.engines.optimizers import make_optimizer
from digitcnn.values import Evaluation, Examples

if TYPE_CHECKING:
    import keras

Progress = Callable[[float], None]
# The smallest probability whose logarithm is exact in float32: a softmax rounds smaller ones to zero.
_SMALLEST = float(np.finfo(np.float32).tiny)


def judge(probabilities: NDArray[np.float32], examples: Examples) -> Evaluation:
    """Return the evaluation of the classes' probabilities (n, classes) of n examples, without clipping."""
    likelihood = probabilities[np.arange(len(examples)), examples.labels].astype(np.float64)
    loss = -np.log(np.maximum(likelihood, _SMALLEST)).mean()
    predictions = probabilities.argmax(axis=1)
    accuracy = float((predictions == examples.labels).mean())
    return Evaluation(float(loss), accuracy, predictions, probabilities.max(axis=1))


class KerasEngine:
    """Keras's own training of one model on some examples, an epoch at a time."""

    name = "keras"

    def __init__(self, model: keras.Sequential, examples: Examples, config: TrainingConfig) -> None:
        import keras

        from digitcnn.training.engines.rewriting import rewrite_for_training

        repeat_exactly(keras.backend.backend())
        self._model, self._examples, self._batch_size = model, examples, config.batch_size
        self._network = model
        self._averaged = config.weight_average > 0
        if config.precision != "float32" or self._averaged:
            self._network = rewrite_for_training(model, config.precision)
            self._network.set_weights(model.get_weights())
        optimizer = make_optimizer(config, len(examples))
        self._network.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])

    def train_epoch(
        self, order: NDArray[np.int64], progress: Progress | None = None, transforms: Transforms | None = None
    ) -> tuple[float, float]:
        """Train once through `order`; return the mean loss and accuracy, each at the weights before its batch's update.

        `order` (samples,) holds indices of examples, any number, repeats allowed; batches are its consecutive slices
        and the last one may be smaller. `progress` gets the fraction done, from time to time. `transforms` (samples, 8)
        are those of draw_transforms.
        """
        import keras

        # Cut to the epoch, so that Keras builds no larger buffers than the data.
        batch_size = min(self._batch_size, len(order))
        batches = math.ceil(len(order) / batch_size)
        tell = progress or (lambda fraction: None)
        weights: list[NDArray[Any]] = []
        callback = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: tell((batch + 1) / batches),
            on_epoch_end=lambda epoch, logs: weights.extend(self._network.get_weights() if self._averaged else ()),
        )
        images = self._examples.images[order]
        history = self._network.fit(
            images if transforms is None else transform_images(images, transforms).numpy(),
            self._examples.labels[order],
            batch_size=batch_size,
            shuffle=False,
            verbose=0,
            callbacks=[callback] if progress or self._averaged else [],
        ).history
        if weights:
            # Keras's fit ends with the averages in their place.
            self._network.set_weights(weights)
        return float(history["loss"][0]), float(history["accuracy"][0])

    def evaluate(self, examples: Examples) -> Evaluation:
        """Return the loss, accuracy and predictions of the model at its present weights, as it is saved."""
        self.finish()
        # 1,000 images a batch: the activations stay within 100 MB, and larger batches are not faster.
        return judge(self._model.predict(examples.images, batch_size=1000, verbose=0), examples)

    def finish(self) -> None:
        """Put the trained weights into the model, if they are not there."""
        if self._network is not self._model:
            self._model.set_weights(self._network.get_weights())
        optimizer = self._network.optimizer
        if self._averaged and optimizer.built:
            # Puts the averages of the network's weights in their place, in whichever model has as many.
            optimizer.finalize_variable_values(self._model.trainable_variables)

    def state(self) -> list[NDArray[Any]]:
        """Return all that the next epoch depends on, beside its order: weights, moments, step, random layers' seeds."""
        return [variable.numpy() for variable in self._variables()]

    def restore(self, state: Sequence[NDArray[Any]]) -> None:
        """Go on from what `state` returned, in another process maybe. Raises ValueError for that of another network."""
        for variable, value in zip(self._variables(), state, strict=True):
            variable.assign(value)

    def _variables(self) -> list[Any]:
        optimizer = self._network.optimizer
        if not optimizer.built:
            optimizer.build(self._network.trainable_variables)
        return [*self._network.variables, *optimizer.variables]
