"""Networks: their layers as standard Keras layers, and their sizes before they are built."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from digitcnn.config import MlpConfig, ModelConfig
from digitcnn.errors import ConfigError

if TYPE_CHECKING:
    import keras

# A network of this many parameters takes 2 GB with Adam's two moments and the gradient: more than a worker's share.
MAX_PARAMETERS = 134_000_000


class Convolution(NamedTuple):
    """A convolution without padding, ReLU and 2 x 2 max-pooling."""

    name: str
    filters: int
    kernel: int


class Hidden(NamedTuple):
    """A dense layer with ReLU."""

    name: str
    units: int


def _structure(config: ModelConfig) -> tuple[list[Convolution], list[Hidden]]:
    """Return the layers between the scaled image and the softmax over the classes."""
    if isinstance(config, MlpConfig):
        return [], [Hidden("dense1", config.dense1_units), Hidden("dense2", config.dense2_units)]
    convolutions = [
        Convolution("conv1", config.conv1_filters, config.conv1_kernel),
        Convolution("conv2", config.conv2_filters, config.conv2_kernel),
    ]
    return convolutions, [Hidden("dense", config.dense_units)]


def build_model(config: ModelConfig, height: int, width: int, classes: int, seed: int) -> keras.Model:
    """Return a Keras model of grey images (n, height, width) uint8, 0 to 255, to probabilities (n, classes) float32.

    Scaling to 0..1 is a layer, so that a saved model takes images as they are. The initial weights depend on the
    seed and the shapes alone. The caller has checked that the images are large enough (`check_fits`).
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    convolutions, hidden = _structure(config)
    # A layer draws the seed of its weights when it is made: this order is part of every recorded run.
    output = layers.Dense(classes, "softmax", name="probabilities")
    stack = [keras.Input((height, width), dtype="uint8", name="image"), layers.Rescaling(1 / 255, name="scale")]
    if convolutions:
        stack.append(layers.Reshape((height, width, 1), name="channel"))
    for name, filters, kernel in convolutions:
        stack.append(layers.Conv2D(filters, kernel, activation="relu", name=name))
        stack.append(layers.MaxPooling2D(name=name.replace("conv", "pool")))
    stack.append(layers.Flatten(name="flatten"))
    stack += [layers.Dense(units, "relu", name=name) for name, units in hidden]
    return keras.Sequential([*stack, output], name=config.name)


class _Product(NamedTuple):
    """A layer as a matrix product: `outputs` sums of `inputs` weighted values and a bias, at every position."""

    inputs: int
    outputs: int
    positions: int


def _products(config: ModelConfig, height: int, width: int, classes: int) -> Iterator[_Product]:
    """Yield the layers that have weights. Raises ConfigError if a kernel leaves no pixels of the images."""
    convolutions, hidden = _structure(config)
    image, channels = f"{height} x {width}", 1
    for name, filters, kernel in convolutions:
        height, width = (height - kernel + 1) // 2, (width - kernel + 1) // 2
        if height < 1 or width < 1:
            raise ConfigError(f"model.{name}_kernel={kernel}: leaves no pixels of images of {image}")
        # Four outputs are computed for each that pooling keeps.
        yield _Product(kernel**2 * channels, filters, 4 * height * width)
        channels = filters
    inputs = height * width * channels
    for units in [*(layer.units for layer in hidden), classes]:
        yield _Product(inputs, units, 1)
        inputs = units


def count_parameters(config: ModelConfig, height: int, width: int, classes: int) -> int:
    """Return the number of weights and biases of the network for images of height x width."""
    return sum((layer.inputs + 1) * layer.outputs for layer in _products(config, height, width, classes))


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
