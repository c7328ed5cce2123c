"""A convolution, ReLU and max-pooling as one layer, whose gradients take less time than those of three."""

from typing import Any

import tensorflow as tf
from keras import layers

Tensor = Any


class PooledConvolution(layers.Layer):  # type: ignore[misc]
    """A convolution with bias and ReLU, and the max-pooling of its outputs.

    A value that passed the ReLU and the pooling passes its gradient to one output of the convolution, and one that did
    not passes none. So the gradients of ReLU and bias are taken of the pooled values, a quarter as many. All gradients
    are those of the three layers bit for bit but the bias's, whose sum has another order.
    """

    def __init__(self, convolution: layers.Conv2D, pooling: layers.MaxPooling2D) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self._convolution, self._pooling = convolution, pooling

    def build(self, shape: tuple[int | None, ...]) -> None:
        """Make the variables of the convolution."""
        self._convolution.build(shape)

    def compute_output_shape(self, shape: tuple[int | None, ...]) -> Any:
        """Return the shape of the pooled outputs."""
        return self._pooling.compute_output_shape(self._convolution.compute_output_shape(shape))

    def call(self, inputs: Tensor) -> Tensor:
        """Return the pooled outputs (n, height, width, filters)."""
        kernel, bias = (tf.convert_to_tensor(each) for each in (self._convolution.kernel, self._convolution.bias))
        outputs = tf.nn.bias_add(self._convolution.convolution_op(inputs, kernel), tf.stop_gradient(bias))
        return _with_gradients(self._pooling(_relu(outputs)), bias)


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _relu(values: Tensor) -> tuple[Tensor, Any]:
    """Return the ReLU of values, and its gradient without the mask, which `_with_gradients` applies."""
    return tf.nn.relu(values), lambda gradient: gradient


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _with_gradients(pooled: Tensor, bias: Tensor) -> tuple[Tensor, Any]:
    """Return pooled values as they are, and a function from their gradient to those before the ReLU and of the bias."""

    def gradients(gradient: Tensor) -> tuple[Tensor, Tensor]:
        masked = tf.raw_ops.ReluGrad(gradients=gradient, features=pooled)
        rows = tf.reshape(masked, (-1, tf.size(bias)))
        # A product with ones, as TensorFlow's BiasAddGrad adds bfloat16 values in bfloat16.
        return masked, tf.reshape(tf.matmul(tf.ones((1, tf.shape(rows)[0]), rows.dtype), rows), (-1,))

    return pooled, gradients
