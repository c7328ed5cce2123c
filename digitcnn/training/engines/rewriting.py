"""Rewriting of a network for training: the precision that it computes in, and the cheaper of two equal orders."""

from collections.abc import Callable
from typing import Any

import keras
from keras import layers

from digitcnn.config import Precision

Pooled = Callable[[layers.Conv2D, layers.MaxPooling2D], layers.Layer]


def rewrite_for_training(
    model: keras.Sequential,
    precision: Precision,
    pooled: Pooled | None = None,
    normalization: type[layers.BatchNormalization] = layers.BatchNormalization,
) -> keras.Sequential:
    """Return a new network of the same function, whose variables are those of a model in the same order.

    A ReLU comes after the max-pooling that followed it, where it has a quarter of the values to work on: the outputs
    and the gradients are the same, bit for bit. Convolution, ReLU and pooling become the one layer that `pooled`
    returns for the first and the last, if it is given, and batch normalization is of the class `normalization`.
    With `bfloat16` all layers but the last have Keras's policy mixed_bfloat16: their variables stay float32, and so do
    the softmax and the loss.
    """
    dtype = "mixed_bfloat16" if precision == "bfloat16" else "float32"

    def copy(layer: layers.Layer, **changes: Any) -> layers.Layer:
        kind = normalization if isinstance(layer, layers.BatchNormalization) else type(layer)
        return kind.from_config({**layer.get_config(), "dtype": dtype, **changes})

    rewritten = [keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype)]
    *remaining, last = model.layers
    while remaining:
        layer, *remaining = remaining
        pooling = remaining[0] if remaining and isinstance(remaining[0], layers.MaxPooling2D) else None
        convolution = isinstance(layer, layers.Conv2D) and layer.activation is keras.activations.relu
        if pooling is None or not (convolution or isinstance(layer, layers.ReLU)):
            rewritten.append(copy(layer))
            continue
        del remaining[0]
        if convolution and layer.use_bias and pooled is not None:
            rewritten.append(pooled(copy(layer), copy(pooling)))
            continue
        if convolution:
            rewritten.append(copy(layer, activation="linear"))
        rewritten += [copy(pooling), layers.ReLU(dtype=dtype)]
    return keras.Sequential([*rewritten, copy(last, dtype="float32")])
