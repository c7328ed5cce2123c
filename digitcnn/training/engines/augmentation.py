"""Augmentation: random shifts, rotations and zooms of the training images.

They are drawn for each image of an epoch from the seed and the number of the epoch alone, so that any number of threads
sees the same bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitcnn import output
from digitcnn.config import AugmentationConfig

Transforms = NDArray[np.float32]


def draw_transforms(
    config: AugmentationConfig, seed: int, epoch: int, samples: int, height: int, width: int
) -> Transforms | None:
    """Return the transforms (samples, 8) of an epoch's images, for `transform_images`; None if nothing is augmented.

    The ranges are drawn from uniformly, around the middle of the image.
    """
    if not config.augments:
        return None
    drawn = np.random.default_rng([seed, 2, epoch]).uniform(-1, 1, (4, samples))
    angle, zoom = np.deg2rad(config.rotation) * drawn[0], 1 + config.zoom * drawn[1]
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    x, y = (width - 1) / 2, (height - 1) / 2
    # From a pixel of the new image to its place in the old one: a0 x + a1 y + a2, b0 x + b1 y + b2.
    right = x - cosine * x + sine * y + config.shift * width * drawn[2]
    down = y - sine * x - cosine * y + config.shift * height * drawn[3]
    nothing = np.zeros(samples)
    return np.stack([cosine, -sine, right, sine, cosine, down, nothing, nothing], axis=1).astype(np.float32)


def transform_images(images: Any, transforms: Any) -> Any:
    """Return images (n, height, width) uint8 transformed as a tensor; pixels from outside repeat the nearest edge."""
    with output.silent_stderr():
        # With another backend it is imported here, and prints notices.
        import tensorflow as tf

    shape = tf.shape(images)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=images[..., tf.newaxis],
        transforms=transforms,
        output_shape=shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )
    return tf.reshape(moved, shape)
