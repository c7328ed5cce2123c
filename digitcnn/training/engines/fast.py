"""The fast engine: one TensorFlow function around Keras's own network, without what Keras's fit does beside it.

A batch is cut into contiguous shares, as many as there are threads if it is large enough, whose gradients are computed
side by side and added in a fixed order, so that results depend on the number of threads and on nothing else.
docs/performance.md lists what was measured.
"""

import functools
import itertools
import math
import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from digitcnn.config import TrainingConfig
from digitcnn.training.backends import repeat_exactly, thread_count
from digitcnn.training.engines.augmentation import Transforms, transform_images
from digitcnn.training.engines.normalization import FusedNormalization
from digitcnn.training.engines.optimizers import learning_rate
from digitcnn.training.engines.pooling import PooledConvolution
from digitcnn.training.engines.reference import Progress, judge
from digitcnn.training.engines.rewriting import rewrite_for_training
from digitcnn.values import Evaluation, Examples

Tensor = Any
# Keras's defaults of Adam.
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7
# How long one call of TensorFlow should take (s): signals and signs of life are handled between two.
_CALL_SECONDS = 0.5
# Images of a share at least: with fewer, what a share costs for each weight is more than its thread brings.
_SHARE_IMAGES = 100
# Images that are judged in one call: 1,000 take 86 MB more at the peak, and are not faster.
_JUDGED_IMAGES = 250


class FastEngine:
    """An engine that holds weights and Adam's moments in variables of its own; see KerasEngine."""

    name = "fast"

    def __init__(
        self, model: keras.Sequential, examples: Examples, config: TrainingConfig, augmented: bool = False
    ) -> None:
        repeat_exactly("tensorflow")
        self._model = model
        self._network = rewrite_for_training(model, config.precision, PooledConvolution, FusedNormalization)
        self._config, self._batch_size, self._threads = config, config.batch_size, thread_count(config)
        self._rate = learning_rate(config, len(examples))
        # A layer with statistics of the batch, as batch normalization has, must see it whole.
        most = 1 if model.non_trainable_weights else self._threads
        self._shares = max(1, min(most, self._batch_size // _SHARE_IMAGES))
        self._images, self._labels = tf.constant(examples.images), tf.constant(examples.labels.astype(np.int32))
        self._weights = [tf.Variable(variable.value) for variable in model.trainable_variables]
        self._state = [tf.Variable(variable.value) for variable in model.non_trainable_variables]
        # Momentum, and Adam's second moment.
        moments = 1 if config.optimizer == "sgd" else 2
        self._kept = [[tf.Variable(tf.zeros_like(w)) for w in self._weights] for _ in range(moments)]
        # What is judged and saved.
        self._judged = self._weights
        if config.weight_average:
            self._judged = [tf.Variable(variable.value) for variable in model.trainable_variables]
            self._kept.append(self._judged)
        self._step, self._batches_per_call = 0, 1
        # By their number of shares: another one is needed for batches with fewer images than that.
        self._graphs: dict[tuple[str, int, int], Any] = {}
        self._train_function(self._shares, augmented)

    def train_epoch(
        self, order: NDArray[np.int64], progress: Progress | None = None, transforms: Transforms | None = None
    ) -> tuple[float, float]:
        """Train once through `order`; see KerasEngine. `progress` is called about twice a second."""
        batches, done = math.ceil(len(order) / self._batch_size), 0
        alone = 0 < len(order) % self._batch_size < self._shares
        sums = np.zeros(2)
        while done < batches:
            began = time.perf_counter()
            together = batches - done - 1 if alone and done < batches - 1 else batches - done
            now = min(self._batches_per_call, together)
            part = slice(done * self._batch_size, (done + now) * self._batch_size)
            rows, moved = order[part], [] if transforms is None else [tf.constant(transforms[part])]
            shares = min(self._shares, len(rows) - (now - 1) * self._batch_size)
            train = self._train_function(shares, transforms is not None)
            # Added in one order, however many batches a call has.
            sums = train(tf.constant(rows), tf.constant(self._step), tf.constant(sums), *moved).numpy()
            self._step, done = self._step + now, done + now
            self._batches_per_call = max(1, int(now * _CALL_SECONDS / (time.perf_counter() - began)))
            if progress:
                progress(done / batches)
        loss, correct = sums / len(order)
        return float(loss), float(correct)

    def evaluate(self, examples: Examples) -> Evaluation:
        """Evaluate the model at its present weights, as it is saved; see KerasEngine."""
        found = []
        for start in range(0, len(examples), _JUDGED_IMAGES):
            images = tf.constant(examples.images[start : start + _JUDGED_IMAGES])
            found.append(self._predict_function(min(self._threads, len(images)))(images).numpy())
        return judge(np.concatenate(found), examples)

    def finish(self) -> None:
        """Put the trained weights into the model."""
        ours, theirs = [*self._judged, *self._state], self._model.trainable_variables
        for variable, value in zip([*theirs, *self._model.non_trainable_variables], ours, strict=True):
            variable.assign(value)

    def state(self) -> list[NDArray[Any]]:
        """Return all that the next epoch depends on; see KerasEngine."""
        return [*(variable.numpy() for variable in self._variables()), np.array(self._step)]

    def restore(self, state: Sequence[NDArray[Any]]) -> None:
        """Go on from a state; see KerasEngine."""
        *values, step = state
        for variable, value in zip(self._variables(), values, strict=True):
            variable.assign(value)
        self._step = int(step)

    def _variables(self) -> list[Any]:
        return [*self._weights, *self._state, *itertools.chain.from_iterable(self._kept)]

    def _traced(self, function: Any, parts: int, *inputs: Any) -> Any:
        """Return the graph of a function of a number of parts and of such inputs, traced when it is first needed."""
        key = function.__name__, parts, len(inputs)
        if key not in self._graphs:
            compute = tf.function(functools.partial(function, parts), autograph=False)
            self._graphs[key] = compute.get_concrete_function(*inputs)
        return self._graphs[key]

    def _train_function(self, shares: int, augmented: bool) -> Any:
        inputs = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int32), tf.TensorSpec([2], tf.float64)]
        return self._traced(self._train_batches, shares, *inputs, *[tf.TensorSpec([None, 8], tf.float32)] * augmented)

    def _predict_function(self, parts: int) -> Any:
        return self._traced(self._probabilities, parts, tf.TensorSpec([None, *self._images.shape[1:]], tf.uint8))

    def _train_batches(
        self, shares: int, order: Tensor, step: Tensor, sums: Tensor, transforms: Tensor = None
    ) -> Tensor:
        """Train on consecutive batches of `order` (samples,), each of at least `shares` images, after `step` updates.

        The images are transformed by `transforms` (samples, 8) if these are given. Return `sums` (2,) with all samples'
        losses and the number of those that were right added.
        """
        batches = -(-tf.size(order) // self._batch_size)

        def train_batch(index: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
            start = index * self._batch_size
            batch = [each[start : start + self._batch_size] for each in (order, transforms) if each is not None]
            return index + 1, sums + self._train_batch(shares, batch, step + index + 1)

        return tf.while_loop(lambda index, _: index < batches, train_batch, (0, sums), parallel_iterations=1)[1]

    def _train_batch(self, shares: int, batch: list[Tensor], step: Tensor) -> Tensor:
        weights = [variable.read_value() for variable in self._weights]
        state = [variable.read_value() for variable in self._state]
        size = tf.size(batch[0])
        parts = zip(*(_parts(each, size, shares) for each in batch), strict=True)
        found = [self._share(number, weights, state, size, *part) for number, part in enumerate(parts)]
        for variable, value in zip(self._state, found[0][2], strict=True):
            variable.assign(value)
        gradients = [functools.reduce(tf.add, parts) for parts in zip(*(share[0] for share in found), strict=True)]
        self._update(gradients, tf.cast(step, tf.float32))
        return tf.cast(functools.reduce(tf.add, [share[1] for share in found]), tf.float64)

    def _share(
        self,
        number: int,
        weights: list[Tensor],
        state: list[Tensor],
        size: Tensor,
        rows: Tensor,
        transforms: Tensor = None,
    ) -> tuple[list[Tensor], Tensor, list[Tensor]]:
        """Return a share's part of the mean gradients over `size` samples, its sums (2,), and the network's new state.

        Whole numbers in the state are the seeds of random layers, and each share has its own.
        """
        state = [value + tf.constant([number, 0], value.dtype) if value.dtype.is_integer else value for value in state]
        images, labels = tf.gather(self._images, rows), tf.gather(self._labels, rows)
        if transforms is not None:
            images = transform_images(images, transforms)
        with tf.GradientTape() as tape:
            tape.watch(weights)
            probabilities, state, penalties = self._network.stateless_call(
                weights, state, images, training=True, return_losses=True
            )
            loss = tf.reduce_sum(keras.losses.sparse_categorical_crossentropy(labels, probabilities))
            mean = loss / tf.cast(size, tf.float32)
            if number == 0:
                mean += sum(penalties)
        right = tf.argmax(probabilities, 1, tf.int32) == labels
        return tape.gradient(mean, weights), tf.stack([loss, tf.reduce_sum(tf.cast(right, tf.float32))]), state

    def _update(self, gradients: list[Tensor], step: Tensor) -> None:
        """Update all in place, as Keras's optimizers do: one pass over each, where XLA needs more."""
        config, rate = self._config, self._rate if isinstance(self._rate, float) else self._rate(step - 1)
        for weight, gradient, *kept in zip(self._weights, gradients, *self._kept, strict=True):
            if config.optimizer == "adamw":
                weight.assign(weight * (1 - config.weight_decay * rate))
            if config.optimizer == "sgd":
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=weight.handle, accum=kept[0].handle, lr=rate, grad=gradient, momentum=config.momentum
                )
            else:
                tf.raw_ops.ResourceApplyAdam(
                    var=weight.handle,
                    m=kept[0].handle,
                    v=kept[1].handle,
                    beta1_power=tf.pow(_BETA_1, step),
                    beta2_power=tf.pow(_BETA_2, step),
                    lr=rate,
                    beta1=_BETA_1,
                    beta2=_BETA_2,
                    epsilon=_EPSILON,
                    grad=gradient,
                )
            if config.weight_average:
                share = tf.where(step > 1, config.weight_average, 0.0)
                kept[-1].assign(share * kept[-1] + (1 - share) * weight)

    def _probabilities(self, parts: int, images: Tensor) -> Tensor:
        """Return the probabilities (n, classes) of images (n, height, width), cut into parts for the threads."""
        weights = [variable.read_value() for variable in self._judged]
        state = [variable.read_value() for variable in self._state]
        cut = _parts(images, tf.shape(images)[0], parts)
        return tf.concat([self._model.stateless_call(weights, state, part, training=False)[0] for part in cut], 0)


def _parts(rows: Tensor, size: Tensor, number: int) -> list[Tensor]:
    """Cut rows (size, ...) into consecutive parts whose lengths differ by one at most."""
    return [rows[part * size // number : (part + 1) * size // number] for part in range(number)]
