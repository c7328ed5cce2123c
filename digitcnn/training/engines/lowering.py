"""Lowering: a Keras model as the blocks and dense layers that the compiled engine trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from digitcnn.training.engines.winograd import Block

_REGULARIZERS = (
    *("kernel_regularizer", "bias_regularizer", "activity_regularizer"),
    *("kernel_constraint", "bias_constraint"),
)


@dataclass(frozen=True)
class LoweredNetwork:
    """The size of the images, their scaling, the convolution blocks, and the units of the dense layers."""

    image: tuple[int, int]
    scale: float
    offset: float
    blocks: tuple[Block, ...]
    units: tuple[int, ...]


class UnsupportedModel(ValueError):
    """The compiled engine cannot train a model; the message says why."""


def lower_network(model: keras.Model) -> LoweredNetwork:
    """Return a model of Rescaling, Reshape, Conv2D with MaxPooling2D, Flatten and Dense layers as a LoweredNetwork.

    Raises UnsupportedModel with the first thing that does not fit.
    """
    sequential = isinstance(model, keras.Sequential) and model.built and len(model.input_shape) == 3
    _require(sequential, "the model is not a built Sequential with input (height, width)")
    height, width = model.input_shape[1:]
    rest = list(model.layers)
    for layer in rest:
        plain = layer.trainable and layer.dtype_policy.name == "float32"
        _require(plain, f"layer {layer.name} is frozen or not float32")
        plain = getattr(layer, "use_bias", True) and all(getattr(layer, name, None) is None for name in _REGULARIZERS)
        _require(plain, f"layer {layer.name} has a regularizer, a constraint or no bias")
    scale, offset = 1.0, 0.0
    if rest and isinstance(rest[0], layers.Rescaling):
        scaling = rest.pop(0)
        scale, offset = float(scaling.scale), float(scaling.offset)
    if rest and isinstance(rest[0], layers.Reshape):
        shape = tuple(rest[0].target_shape)
        _require(shape == (height, width, 1), f"layer {rest[0].name} reshapes to {shape}, not {(height, width, 1)}")
        rest.pop(0)
    convolutions = []
    while rest and isinstance(rest[0], layers.Conv2D):
        convolutions.append(rest.pop(0))
        _check_block(convolutions[-1], rest.pop(0) if rest else None)
    name = rest[0].name if rest else "Flatten"
    flat = bool(rest) and isinstance(rest[0], layers.Flatten)
    _require(flat, f"layer {name} is missing or not where this engine expects Flatten")
    dense = rest[1:]
    only_dense = bool(dense) and all(isinstance(layer, layers.Dense) for layer in dense)
    _require(only_dense, "the layers after Flatten are not Dense layers only")
    relu = all(layer.activation is keras.activations.relu for layer in dense[:-1])
    _require(relu, "a hidden Dense layer's activation is not relu")
    _require(dense[-1].activation is keras.activations.softmax, "the last layer's activation is not softmax")
    return LoweredNetwork((height, width), scale, offset, _blocks(convolutions), tuple(layer.units for layer in dense))


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise UnsupportedModel(reason)


def _check_block(convolution: Any, pool: Any) -> None:
    """Raise UnsupportedModel unless the layers are a plain convolution with ReLU and 2x2 max-pooling."""
    name = f"layer {convolution.name}"
    plain = (convolution.strides, convolution.padding, convolution.dilation_rate) == ((1, 1), "valid", (1, 1))
    _require(plain, f"{name} has strides, padding or dilation")
    plain = convolution.activation is keras.activations.relu and convolution.groups == 1
    _require(plain, f"{name} has groups or an activation other than relu")
    _require(isinstance(pool, layers.MaxPooling2D), f"{name} is not followed by MaxPooling2D")
    plain = (tuple(pool.pool_size), tuple(pool.strides), pool.padding) == ((2, 2), (2, 2), "valid")
    _require(plain, f"layer {pool.name} pools other than 2x2 in steps of 2 without padding")
    _require("channels_first" not in (convolution.data_format, pool.data_format), f"{name} has its channels first")


def _blocks(convolutions: list[Any]) -> tuple[Block, ...]:
    """Return the blocks, read from the last one back: each keeps only the positions that the next one reads."""
    blocks: list[Block] = []
    needed: tuple[int, int] | None = None
    for index, layer in reversed(list(enumerate(convolutions))):
        rows, columns = layer.kernel_size
        _, height, width, channels = layer.input.shape
        out = needed or ((height - rows + 1) // 2, (width - columns + 1) // 2)
        needed = (2 * out[0] + rows - 1, 2 * out[1] + columns - 1)
        step = -1 if index % 2 else 1
        kernel, size, kept = ((pair[::step][0], pair[::step][1]) for pair in ((rows, columns), needed, out))
        blocks.insert(0, Block(kernel, size, kept, channels, layer.filters, step == -1))
    return tuple(blocks)
