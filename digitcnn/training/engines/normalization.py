"""Batch normalization in bfloat16 that takes a third of the time of Keras's."""

from typing import Any

import tensorflow as tf
from keras import layers

Tensor = Any


class FusedNormalization(layers.BatchNormalization):  # type: ignore[misc]
    """A batch normalization in training, of images in bfloat16 as TensorFlow's one operation for it.

    Keras's takes a dozen, on a float32 copy of the images. In float32 it stays: the operation adds one value after the
    other, which puts the variance of 270,000 values 7e-4 off. Of bfloat16 values that is a fifth of their rounding.
    """

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor = None) -> Tensor:
        """Return the normalized images (n, height, width, filters), and move the averages of mean and variance.

        Keras normalizes all else than images in bfloat16.
        """
        if not training or len(inputs.shape) != 4 or inputs.dtype != tf.bfloat16:
            return super().call(inputs, training=training, mask=mask)
        scale, offset = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(inputs, scale, offset, epsilon=self.epsilon)
        # TensorFlow returns the variance over n - 1 values, Keras averages that over n.
        number = tf.cast(tf.size(inputs) / tf.size(mean), tf.float32)
        for average, value in ((self.moving_mean, mean), (self.moving_variance, variance * (number - 1) / number)):
            average.assign(average * self.momentum + value * (1 - self.momentum))
        return outputs
