"""Rewriting of a network for training: the precision that it computes in, and the cheaper of two equal orders."""

import keras
from keras import layers

from digitcnn.config import Precision


def rewrite_for_training(model: keras.Sequential, precision: Precision) -> keras.Sequential:
    """Return a new network of the same function, whose variables are those of a model in the same order.

    A convolution's ReLU comes after its max-pooling, where it has a quarter of the values to work on: the outputs and
    the gradients are the same, bit for bit. With `bfloat16` all layers but the last have Keras's policy
    mixed_bfloat16: their variables stay float32, and so do the softmax and the loss.
    """
    rewritten = [keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype)]
    moved = False
    for layer, following in zip(model.layers, [*model.layers[1:], None], strict=True):
        config = layer.get_config()
        if precision == "bfloat16" and following is not None:
            config["dtype"] = "mixed_bfloat16"
        pooled = isinstance(following, layers.MaxPooling2D) and not moved
        if pooled and isinstance(layer, layers.Conv2D) and layer.activation is keras.activations.relu:
            config["activation"], moved = "linear", True
        if pooled and isinstance(layer, layers.ReLU):
            moved = True
            continue
        rewritten.append(type(layer).from_config(config))
        if isinstance(layer, layers.MaxPooling2D) and moved:
            rewritten.append(layers.ReLU(dtype=config["dtype"]))
            moved = False
    return keras.Sequential(rewritten)
