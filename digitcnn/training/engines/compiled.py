"""The compiled engine: the article's kind of network trained as compiled matrix products.

Blocks of convolution, ReLU and pooling (winograd.py) run on micro-batches that stay in the second-level cache, dense
layers on up to 250 samples at once. Each thread takes one contiguous share of every batch and the shares' gradients are
added in a fixed order, so that results depend on the number of threads and on nothing else.
docs/performance.md lists what else was measured.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from digitcnn.config import TrainingConfig
from digitcnn.training.backends import thread_count
from digitcnn.training.engines import winograd
from digitcnn.training.engines.lowering import LoweredNetwork, lower_network
from digitcnn.training.engines.reference import judge
from digitcnn.training.engines.winograd import Array, Tensor
from digitcnn.values import Evaluation, Examples

MICRO_BATCH = 10
LARGEST_CHUNK = 250
PROGRESS_CALLS = 10
# Networks whose compiled functions a warm worker keeps: compiling one takes 2 to 4 s.
_CACHED_NETWORKS = 4


def _input(images: Tensor, network: LoweredNetwork) -> Tensor:
    """Return images (micro, height, width) uint8 as scaled (outer, inner, micro), cropped to the part that is read."""
    rows, columns = network.blocks[0].size
    x = tf.cast(images[:, :rows, :columns], tf.float32) * network.scale + network.offset
    return tf.transpose(x, (1, 2, 0))


def _blocks_forward(images: Tensor, weights: list[Tensor], network: LoweredNetwork) -> tuple[Tensor, Any, Any]:
    """Return the flat features of (micro-batches, micro, height, width), each block's activations and winners."""
    count, micro = images.shape[:2]
    blocks = network.blocks
    factors = [winograd.factor(weights[2 * n], block) for n, block in enumerate(blocks)]

    def forward(index: Tensor, activations: Any, winners: Any) -> tuple[Tensor, Any, Any]:
        x = _input(images[index], network)
        activations, winners = list(activations), list(winners)
        for n, block in enumerate(blocks):
            pooled, winner = winograd.forward(x, factors[n], weights[2 * n + 1], block)
            activations[n] = activations[n].write(index, pooled)
            winners[n] = winners[n].write(index, winner)
            x = tf.reshape(pooled, (*block.out[::-1], micro * block.filters))
        return index + 1, tuple(activations), tuple(winners)

    def arrays(dtype: Any) -> Any:
        return tuple(
            tf.TensorArray(dtype, count, element_shape=winograd.pooled_shape(block, micro)) for block in blocks
        )

    initial = (0, arrays(tf.float32), arrays(tf.int8))
    _, activations, winners = tf.while_loop(lambda index, *_: index < count, forward, initial)
    last = blocks[-1]
    features = tf.reshape(activations[-1].stack(), (count, *last.out[::-1], micro, last.filters))
    features = tf.transpose(features, (0, 3, 1, 2, 4) if last.swapped else (0, 3, 2, 1, 4))
    return tf.reshape(features, (count * micro, -1)), activations, winners


def _blocks_backward(
    images: Tensor, weights: list[Tensor], activations: Any, winners: Any, gradient: Tensor, network: LoweredNetwork
) -> list[Tensor]:
    """Return the gradients of the blocks' kernels and biases, summed in order; `gradient` is of the flat features."""
    count, micro = images.shape[:2]
    blocks = network.blocks
    last = blocks[-1]
    factors = [winograd.factor(weights[2 * n], block) for n, block in enumerate(blocks)]
    height, width = last.out[::-1] if last.swapped else last.out
    gradient = tf.reshape(gradient, (count, micro, height, width, last.filters))
    gradient = tf.transpose(gradient, (0, 2, 3, 1, 4) if last.swapped else (0, 3, 2, 1, 4))
    gradient = tf.reshape(gradient, (count, *winograd.pooled_shape(last, micro)))

    def backward(index: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        flowing = gradient[index]
        sums = list(sums)
        for n, block in reversed(list(enumerate(blocks))):
            if n:
                x = tf.reshape(activations[n - 1].read(index), (*block.size, micro * block.channels))
            else:
                x = _input(images[index], network)
            winner = winners[n].read(index)
            flowing, factor, bias = winograd.backward(x, factors[n], winner, flowing, block, n == 0)
            sums[2 * n] += factor
            sums[2 * n + 1] += bias
            if n:
                flowing = tf.reshape(flowing, winograd.pooled_shape(blocks[n - 1], micro))
        return index + 1, sums

    zeros = [tf.zeros_like(part) for pair in zip(factors, weights[1::2], strict=False) for part in pair]
    _, sums = tf.while_loop(lambda index, *_: index < count, backward, (0, zeros))
    return [winograd.kernel_gradient(part, blocks[n // 2]) if n % 2 == 0 else part for n, part in enumerate(sums)]


def _dense_forward(x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    """Return the activations from the input to the logits."""
    activations = [x]
    for n in range(0, len(weights), 2):
        z = tf.matmul(activations[-1], weights[n]) + weights[n + 1]
        activations.append(tf.nn.relu(z) if n + 2 < len(weights) else z)
    return activations


def _features(images: Tensor, weights: list[Tensor], network: LoweredNetwork) -> tuple[Tensor, Any, Any]:
    """Return the first dense layer's input (count * micro, features), and the blocks' activations and winners."""
    if network.blocks:
        return _blocks_forward(images, weights, network)
    flat = tf.reshape(images, (images.shape[0] * images.shape[1], -1))
    return tf.cast(flat, tf.float32) * network.scale + network.offset, None, None


def _chunk(
    weights: list[Tensor], images: Tensor, labels: Tensor, valid: Tensor, network: LoweredNetwork
) -> list[Tensor]:
    """Return sums over one chunk's valid samples: gradients of all weights, loss, correct answers, count."""
    split = 2 * len(network.blocks)
    features, saved, winners = _features(images, weights, network)
    activations = _dense_forward(features, weights[split:])
    logits = activations[-1]
    log_probabilities = tf.nn.log_softmax(logits)
    expected = tf.one_hot(labels, network.units[-1])
    loss = -tf.reduce_sum(tf.reduce_sum(log_probabilities * expected, 1) * valid)
    hits = tf.cast(tf.argmax(logits, 1, output_type=tf.int32) == labels, tf.float32)
    gradient = (tf.exp(log_probabilities) - expected) * valid[:, None]
    gradients: list[Tensor] = []
    for n in reversed(range(len(network.units))):
        if n + 1 < len(network.units):
            gradient = tf.where(activations[n + 1] > 0, gradient, 0.0)
        gradients = [
            tf.matmul(activations[n], gradient, transpose_a=True),
            tf.reduce_sum(gradient, 0),
            *gradients,
        ]
        if n or network.blocks:
            gradient = tf.matmul(gradient, weights[split + 2 * n], transpose_b=True)
    if network.blocks:
        gradients = _blocks_backward(images, weights[:split], saved, winners, gradient, network) + gradients
    return [*gradients, loss, tf.reduce_sum(hits * valid), tf.reduce_sum(valid)]


@functools.lru_cache(maxsize=_CACHED_NETWORKS)
def _share_function(network: LoweredNetwork) -> Any:
    """Return the compiled function of `_chunk`'s sums over one thread's share (chunks, micro-batches, micro, ...)."""

    @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def share(weights: list[Tensor], images: Tensor, labels: Tensor, valid: Tensor) -> list[Tensor]:
        chunks = images.shape[0]
        if chunks == 1:
            return _chunk(weights, images[0], labels[0], valid[0], network)

        def add(index: Tensor, sums: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
            parts = _chunk(weights, images[index], labels[index], valid[index], network)
            return index + 1, [a + b for a, b in zip(sums, parts, strict=True)]

        zeros = [*(tf.zeros_like(weight) for weight in weights), 0.0, 0.0, 0.0]
        return list(tf.while_loop(lambda index, *_: index < chunks, add, (0, zeros))[1])

    return share


@functools.lru_cache(maxsize=_CACHED_NETWORKS)
def _update_function(network: LoweredNetwork) -> Any:
    """Return the compiled step: Keras's Adam (epsilon 1e-7) on the mean gradient; metrics (2,) gain loss, correct.

    One function a network, so that what was compiled for a network goes when the network is forgotten.
    """

    @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def update(state: Any, metrics: Any, shares: Any, learning_rate: Tensor, step: Tensor) -> Any:
        sums = [functools.reduce(tf.add, parts) for parts in zip(*shares, strict=True)]
        *gradients, loss, correct, count = sums
        t = tf.cast(step, tf.float32)
        rate = learning_rate * tf.sqrt(1.0 - tf.pow(0.999, t)) / (1.0 - tf.pow(0.9, t))
        new: Any = ([], [], [])
        for weight, old_momentum, old_velocity, total in zip(*state, gradients, strict=True):
            gradient = total / count
            momentum = old_momentum + (gradient - old_momentum) * (1 - 0.9)
            velocity = old_velocity + (tf.square(gradient) - old_velocity) * (1 - 0.999)
            new[0].append(weight - momentum * rate / (tf.sqrt(velocity) + 1e-7))
            new[1].append(momentum)
            new[2].append(velocity)
        return new, metrics + tf.cast(tf.stack([loss, correct]), tf.float64)

    return update


@functools.lru_cache(maxsize=_CACHED_NETWORKS)
def _probabilities_function(network: LoweredNetwork) -> Any:
    """Return the compiled function of images (micro-batches, micro, height, width) to class probabilities."""

    @tf.function(jit_compile=True, autograph=False)  # type: ignore[untyped-decorator]
    def probabilities(weights: list[Tensor], images: Tensor) -> Tensor:
        features = _features(images, weights, network)[0]
        return tf.nn.softmax(_dense_forward(features, weights[2 * len(network.blocks) :])[-1])

    return probabilities


def _layout(rows: int, network: LoweredNetwork) -> tuple[int, int, int]:
    """Return (chunks, micro-batches, micro) for `rows` samples: least padding near the measured best size."""
    chunks = -(-rows // LARGEST_CHUNK)
    rows = -(-rows // chunks)
    if not network.blocks:
        return chunks, 1, rows
    low, high = MICRO_BATCH * 7 // 10, MICRO_BATCH * 12 // 10
    micro = min(range(low, high + 1), key=lambda size: (-rows % size, abs(size - MICRO_BATCH)))
    micro = min(micro, rows)
    return chunks, -(-rows // micro), micro


class CompiledEngine:
    """An engine that holds weights, Adam's moments and steps outside Keras; see Engine.

    Raises UnsupportedModel if it cannot train the model.
    """

    name = "compiled"

    def __init__(self, model: keras.Model, examples: Examples, config: TrainingConfig) -> None:
        self._model, self._network, self._batch_size = model, lower_network(model), config.batch_size
        self._images, self._labels = examples.images, examples.labels.astype(np.int32)
        self._rate = tf.constant(config.learning_rate, tf.float32)
        self._threads = thread_count(config)
        self._pool = ThreadPoolExecutor(self._threads)
        weights = [tf.constant(weight) for weight in model.get_weights()]
        self._state: Any = (weights, [tf.zeros_like(w) for w in weights], [tf.zeros_like(w) for w in weights])
        self._step = 0

    def train_epoch(self, order: Array, progress: Callable[[float], None] | None = None) -> tuple[float, float]:
        """Train once through `order`; see Engine. `progress` is called about ten times."""
        batches = -(-len(order) // self._batch_size)
        largest = min(self._batch_size, len(order))
        share = -(-largest // min(self._threads, largest))
        layout = _layout(share, self._network)
        sums, update = _share_function(self._network), _update_function(self._network)

        def gradients(weights: list[Tensor], rows: Array) -> list[Tensor]:
            padded = np.zeros(int(np.prod(layout)), np.int64)
            padded[: len(rows)] = rows
            valid = (np.arange(len(padded)) < len(rows)).astype(np.float32).reshape(layout[0], -1)
            images = self._images[padded].reshape(*layout, *self._network.image)
            answers = self._labels[padded].reshape(valid.shape)
            return list(sums(weights, tf.constant(images), tf.constant(answers), tf.constant(valid)))

        metrics = tf.zeros(2, tf.float64)
        marks = {-(-batches * part // PROGRESS_CALLS) for part in range(1, PROGRESS_CALLS + 1)}
        for index in range(batches):
            batch = order[index * self._batch_size : (index + 1) * self._batch_size]
            starts = range(0, largest, share)
            if len(starts) == 1:
                shares = [gradients(self._state[0], batch)]
            else:
                parts = [batch[start : start + share] for start in starts]
                shares = list(self._pool.map(gradients, [self._state[0]] * len(parts), parts))
            self._step += 1
            self._state, metrics = update(self._state, metrics, shares, self._rate, tf.constant(self._step))
            if progress and index + 1 in marks:
                progress((index + 1) / batches)
        loss, correct = metrics.numpy() / len(order)
        return float(loss), float(correct)

    def evaluate(self, examples: Examples) -> Evaluation:
        """Evaluate the model at its present weights; see Engine."""
        _, count, micro = _layout(LARGEST_CHUNK, self._network)
        size, image = count * micro, self._network.image
        predict = _probabilities_function(self._network)

        def part(start: int) -> Array:
            padded = np.zeros((size, *image), np.uint8)
            rows = examples.images[start : start + size]
            padded[: len(rows)] = rows
            result = predict(self._state[0], tf.constant(padded.reshape(count, micro, *image)))
            return np.asarray(result)[: len(rows)]

        return judge(np.concatenate(list(self._pool.map(part, range(0, len(examples), size)))), examples)

    def finish(self) -> None:
        """Put the trained weights into the model and end the threads."""
        self._model.set_weights([weight.numpy() for weight in self._state[0]])
        self._pool.shutdown()
