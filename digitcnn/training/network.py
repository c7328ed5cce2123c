"""Networks: their layers as standard Keras layers, and their sizes before they are built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from digitcnn.config import CnnConfig, MlpConfig, ModelConfig
from digitcnn.errors import ConfigError

if TYPE_CHECKING:
    import keras

# A network of this many parameters takes 2 GB with Adam's two moments and the gradient: more than a worker's share.
MAX_PARAMETERS = 134_000_000
_BLOCKS, _SIZES = ("conv1", "conv2", "conv3", "conv4"), ("filters", "kernel", "pooling")


class Block(NamedTuple):
    """A convolution, ReLU and max-pooling; with batch normalization before the ReLU if it is normalized."""

    name: str
    filters: int
    kernel: int
    pooling: int
    padding: str
    normalized: bool


def _structure(config: ModelConfig) -> tuple[list[Block], dict[str, int]]:
    """Return the blocks, and the units of the dense layers with ReLU, between the scaled image and the softmax."""
    if isinstance(config, MlpConfig):
        return [], {"dense1": config.dense1_units, "dense2": config.dense2_units}
    values, shared = config.model_dump(), (config.padding, config.batch_normalization)
    blocks = [Block._make([name, *(values[f"{name}_{key}"] for key in _SIZES), *shared]) for name in _BLOCKS]
    return [block for block in blocks if block.filters], {"dense": config.dense_units} if config.dense_units else {}


def build_model(config: ModelConfig, height: int, width: int, classes: int, seed: int) -> keras.Model:
    """Return a Keras model of grey images (n, height, width) uint8, 0 to 255, to probabilities (n, classes) float32.

    Scaling to 0..1 is a layer, so that a saved model takes images as they are. The initial weights depend on the
    seed and the shapes alone. The caller has checked that the images are large enough (`check_fits`).
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    blocks, hidden = _structure(config)
    # A layer draws the seed of its weights when it is made: this order is part of every recorded run.
    output = layers.Dense(classes, "softmax", name="probabilities")
    stack = [keras.Input((height, width), dtype="uint8", name="image"), layers.Rescaling(1 / 255, name="scale")]
    if blocks:
        stack.append(layers.Reshape((height, width, 1), name="channel"))
    for block in blocks:
        stack += _block_layers(block)
    stack.append(layers.Flatten(name="flatten"))
    stack += [layers.Dense(units, "relu", name=name) for name, units in hidden.items()]
    if isinstance(config, CnnConfig) and config.dropout:
        stack.append(layers.Dropout(config.dropout, name="dropout"))
    return keras.Sequential([*stack, output], name=config.name)


def _block_layers(block: Block) -> list[keras.Layer]:
    from keras import layers

    name, number = block.name, block.name.removeprefix("conv")
    sizes = {"filters": block.filters, "kernel_size": block.kernel, "padding": block.padding, "name": name}
    if block.normalized:
        # Its own bias replaces the convolution's.
        stack = [layers.Conv2D(**sizes, use_bias=False), layers.BatchNormalization(name=f"normalization{number}")]
        stack.append(layers.ReLU(name=f"relu{number}"))
    else:
        stack = [layers.Conv2D(**sizes, activation="relu")]
    return stack if block.pooling == 1 else [*stack, layers.MaxPooling2D(block.pooling, name=f"pool{number}")]


class _Product(NamedTuple):
    """A layer as a matrix product: `outputs` sums of `inputs` weighted values at every position.

    Each output has so many parameters beside its weights: a bias, or what batch normalization keeps.
    """

    inputs: int
    outputs: int
    positions: int
    beside: int = 1


def _products(config: ModelConfig, height: int, width: int, classes: int) -> Iterator[_Product]:
    """Yield the layers that have weights. Raises ConfigError if a block leaves no pixels of the images."""
    blocks, hidden = _structure(config)
    image, channels = f"{height} x {width}", 1
    for name, filters, kernel, pooling, padding, normalized in blocks:
        lost = kernel - 1 if padding == "valid" else 0
        height, width = (height - lost) // pooling, (width - lost) // pooling
        if height < 1 or width < 1:
            key = f"kernel={kernel}" if pooling == 1 or pooling <= kernel else f"pooling={pooling}"
            raise ConfigError(
                f"model.{name}_{key}: leaves no pixels of images of {image}; take a smaller one, or model=mlp"
            )
        # Pooling keeps one of so many outputs.
        positions = pooling**2 * height * width
        yield _Product(kernel**2 * channels, filters, positions, 4 if normalized else 1)
        channels = filters
    inputs = height * width * channels
    for units in [*hidden.values(), classes]:
        yield _Product(inputs, units, 1)
        inputs = units


def count_parameters(config: ModelConfig, height: int, width: int, classes: int) -> int:
    """Return the number of weights and biases of the network for images of height x width."""
    return sum((layer.inputs + layer.beside) * layer.outputs for layer in _products(config, height, width, classes))


def count_multiplications(config: ModelConfig, height: int, width: int, classes: int) -> int:
    """Return the multiply-adds of one image's forward pass: a training step's time is roughly proportional to them."""
    return sum(layer.inputs * layer.outputs * layer.positions for layer in _products(config, height, width, classes))


def check_fits(config: ModelConfig, height: int, width: int, classes: int) -> None:
    """Raise ConfigError if the network leaves no pixels of such images, or is too large to train here."""
    parameters = count_parameters(config, height, width, classes)
    if parameters > MAX_PARAMETERS:
        raise ConfigError(f"model: has {parameters:,} parameters; must have at most {MAX_PARAMETERS:,}")


def weights_sha256(model: keras.Model) -> str:
    """Return the SHA-256 of all weights, in the order of the layers: equal if and only if they are, bit for bit."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(f"{weights.dtype} {weights.shape}".encode())
        digest.update(weights.tobytes())
    return digest.hexdigest()
