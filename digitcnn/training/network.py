"""The networks: standard Keras layers, readable as the article's list."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from digitcnn.config import CnnConfig, MlpConfig

if TYPE_CHECKING:
    import keras


def build_model(config: CnnConfig | MlpConfig, height: int, width: int, classes: int, seed: int) -> keras.Model:
    """A Keras model of grey images (n, height, width) uint8, 0 to 255, giving probabilities (n, classes) float32.

    Scaling to 0..1 is a layer, so that a saved model takes images as they are. The initial weights depend on the
    seed and the shapes alone. The caller has checked that the images are large enough (architecture.check_fits).
    """
    import keras
    from keras import layers

    keras.utils.set_random_seed(seed)
    scaled = [keras.Input((height, width), dtype="uint8", name="image"), layers.Rescaling(1 / 255, name="scale")]
    output = layers.Dense(classes, "softmax", name="probabilities")
    if isinstance(config, MlpConfig):
        return keras.Sequential(
            [
                *scaled,
                layers.Flatten(name="flatten"),
                layers.Dense(config.dense1_units, "relu", name="dense1"),
                layers.Dense(config.dense2_units, "relu", name="dense2"),
                output,
            ],
            name="mlp",
        )
    return keras.Sequential(
        [
            *scaled,
            layers.Reshape((height, width, 1), name="channel"),
            layers.Conv2D(config.conv1_filters, config.conv1_kernel, activation="relu", name="conv1"),
            layers.MaxPooling2D(name="pool1"),
            layers.Conv2D(config.conv2_filters, config.conv2_kernel, activation="relu", name="conv2"),
            layers.MaxPooling2D(name="pool2"),
            layers.Flatten(name="flatten"),
            layers.Dense(config.dense_units, "relu", name="dense"),
            output,
        ],
        name="cnn",
    )


def weights_sha256(model: keras.Model) -> str:
    """The SHA-256 of all weights, in the order of the layers: equal if and only if they are, bit for bit."""
    digest = hashlib.sha256()
    for weights in model.get_weights():
        digest.update(f"{weights.dtype} {weights.shape}".encode())
        digest.update(weights.tobytes())
    return digest.hexdigest()
