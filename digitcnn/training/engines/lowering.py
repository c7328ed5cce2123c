"""What the compiled engine makes of a Keras model: its layers as blocks and dense layers, or why it cannot train it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras

from digitcnn.training.engines.winograd import Block


@dataclass(frozen=True)
class LoweredNetwork:
    """All that a compiled function depends on, read from the model's layers."""

    image: tuple[int, int]
    scale: float
    offset: float
    blocks: tuple[Block, ...]
    units: tuple[int, ...]


def unsupported(model: keras.Model) -> str | None:
    """Return why `compiled_training` cannot train this model, or None if it can."""
    plan = lower_network(model)
    return plan if isinstance(plan, str) else None


def lower_network(model: keras.Model) -> LoweredNetwork | str:  # noqa: PLR0911
    """Read Rescaling, Reshape, Conv2D + MaxPooling2D, Flatten and Dense, or say what does not fit."""
    layers = keras.layers
    if not isinstance(model, keras.Sequential) or not model.built or len(model.input_shape) != 3:
        return "the model is not a built Sequential with input (height, width)"
    height, width = model.input_shape[1:]
    rest = list(model.layers)
    for layer in rest:
        if not layer.trainable or layer.dtype_policy.name != "float32":
            return f"layer {layer.name} is frozen or not float32"
        names = (
            "kernel_regularizer",
            "bias_regularizer",
            "activity_regularizer",
            "kernel_constraint",
            "bias_constraint",
        )
        if any(getattr(layer, name, None) is not None for name in names) or not getattr(layer, "use_bias", True):
            return f"layer {layer.name} has a regularizer, a constraint or no bias"
    scale, offset = 1.0, 0.0
    if rest and isinstance(rest[0], layers.Rescaling):
        scale, offset = float(rest[0].scale), float(rest[0].offset)
        rest.pop(0)
    if rest and isinstance(rest[0], layers.Reshape):
        if tuple(rest[0].target_shape) != (height, width, 1):
            return f"layer {rest[0].name} reshapes to {rest[0].target_shape}, not to {(height, width, 1)}"
        rest.pop(0)
    convolutions = []
    while rest and isinstance(rest[0], layers.Conv2D):
        convolution = rest.pop(0)
        if (convolution.strides, convolution.padding, convolution.dilation_rate) != ((1, 1), "valid", (1, 1)):
            return f"layer {convolution.name} has strides, padding or dilation"
        if convolution.activation is not keras.activations.relu or convolution.groups != 1:
            return f"layer {convolution.name} has groups or an activation other than relu"
        pool = rest.pop(0) if rest else None
        if not isinstance(pool, layers.MaxPooling2D):
            return f"layer {convolution.name} is not followed by MaxPooling2D"
        if (tuple(pool.pool_size), tuple(pool.strides), pool.padding) != ((2, 2), (2, 2), "valid"):
            return f"layer {pool.name} pools other than 2x2 in steps of 2 without padding"
        if "channels_first" in (convolution.data_format, pool.data_format):
            return f"layer {convolution.name} has its channels first"
        convolutions.append(convolution)
    if not rest or not isinstance(rest[0], layers.Flatten):
        return f"layer {rest[0].name if rest else 'Flatten'} is missing or not where this engine expects Flatten"
    dense = rest[1:]
    if not dense or not all(isinstance(layer, layers.Dense) for layer in dense):
        return "what follows Flatten is not Dense layers only"
    if any(layer.activation is not keras.activations.relu for layer in dense[:-1]):
        return "a hidden Dense layer's activation is not relu"
    if dense[-1].activation is not keras.activations.softmax:
        return "the last layer's activation is not softmax"
    return LoweredNetwork((height, width), scale, offset, _blocks(convolutions), tuple(layer.units for layer in dense))


def _blocks(convolutions: list[Any]) -> tuple[Block, ...]:
    """From the last block back: each keeps only the positions that the next one reads."""
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
