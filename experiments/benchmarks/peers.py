"""The article's network trained as the documentations of Keras, PyTorch and JAX show it: the benchmark's peers.

Each function returns another that trains one epoch: images (n, height, width) uint8, labels (n,) of ten classes; float
images in memory, a new order each epoch, Adam, no callbacks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from digitcnn.config import CnnConfig, RunConfig

Images = Any
Epoch = Callable[[], None]


def _prepared(config: RunConfig, images: Images) -> tuple[CnnConfig, Images]:
    """Return the network, and the images as floats from 0 to 1."""
    assert isinstance(config.model, CnnConfig)
    return config.model, images.astype("float32") / 255


def _batches(count: int, batch_size: int, generator: np.random.Generator) -> list[Any]:
    order = generator.permutation(count)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def keras_fit(config: RunConfig, images: Images, labels: Images, task: str, threads: int) -> Epoch:
    """Keras's fit, with its policy mixed_bfloat16 if the config asks for bfloat16; the softmax is float32."""
    import keras
    from keras import layers

    network, pixels = _prepared(config, images)
    keras.config.set_dtype_policy("mixed_bfloat16" if config.training.precision == "bfloat16" else "float32")
    model = keras.Sequential(
        [
            keras.Input((*images.shape[1:], 1)),
            layers.Conv2D(network.conv1_filters, network.conv1_kernel, activation="relu"),
            layers.MaxPooling2D(),
            layers.Conv2D(network.conv2_filters, network.conv2_kernel, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(network.dense_units, activation="relu"),
            layers.Dense(10, activation="softmax", dtype="float32"),
        ]
    )
    keras.config.set_dtype_policy("float32")
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x = pixels[..., None]
    return lambda: model.fit(x, labels, batch_size=config.training.batch_size, verbose=0) and None


def _flat_size(network: CnnConfig, examples: Images) -> int:
    """Return the values of the last pooling's output."""
    height, width = examples.shape[1:]
    for kernel in (network.conv1_kernel, network.conv2_kernel):
        height, width = (height - kernel + 1) // 2, (width - kernel + 1) // 2
    return int(height * width * network.conv2_filters)


def torch_loop(config: RunConfig, images: Images, labels: Images, task: str, threads: int) -> Epoch:
    """PyTorch's training loop; with the task torch.compile the model and its loss are compiled."""
    import torch
    from torch import nn

    torch.set_num_threads(threads)
    network, pixels = _prepared(config, images)
    model: Any = nn.Sequential(
        *(nn.Conv2d(1, network.conv1_filters, network.conv1_kernel), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(network.conv1_filters, network.conv2_filters, network.conv2_kernel), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(_flat_size(network, images), network.dense_units), nn.ReLU()),
        nn.Linear(network.dense_units, 10),
    )
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=config.training.learning_rate)

    def loss_of(x: Any, y: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=config.training.precision == "bfloat16"):
            return criterion(model(x), y)

    function = torch.compile(loss_of) if task == "torch.compile" else loss_of
    x, y = torch.from_numpy(pixels[:, None]), torch.from_numpy(np.asarray(labels, np.int64))
    generator = np.random.default_rng(0)

    def epoch() -> None:
        for rows in _batches(len(images), config.training.batch_size, generator):
            optimizer.zero_grad()
            loss = function(x[rows], y[rows])
            loss.backward()
            optimizer.step()

    return epoch


def jax_loop(config: RunConfig, images: Images, labels: Images, task: str, threads: int) -> Epoch:
    """JAX's loop: a step that is jit-compiled whole, with Adam written out as in its tutorials."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    network, pixels = _prepared(config, images)
    generator = np.random.default_rng(0)
    dtype = jnp.bfloat16 if config.training.precision == "bfloat16" else jnp.float32

    def weights(*shape: int) -> Any:
        scale = math.sqrt(2 / math.prod(shape[:-1]))
        return jnp.asarray(generator.normal(0, scale, shape), jnp.float32), jnp.zeros(shape[-1])

    sizes = [
        (network.conv1_kernel, network.conv1_kernel, 1, network.conv1_filters),
        (network.conv2_kernel, network.conv2_kernel, network.conv1_filters, network.conv2_filters),
        (_flat_size(network, images), network.dense_units),
        (network.dense_units, 10),
    ]
    parameters = [weights(*size) for size in sizes]

    def loss_of(parameters: Any, x: Any, y: Any) -> Any:
        (k1, b1), (k2, b2), (k3, b3), (k4, b4) = jax.tree.map(lambda a: a.astype(dtype), parameters)
        x = x.astype(dtype)
        for kernel, bias in ((k1, b1), (k2, b2)):
            x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = lax.reduce_window(jax.nn.relu(x + bias), -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = jax.nn.relu(x.reshape(len(x), -1) @ k3 + b3)
        scores = jax.nn.log_softmax((x @ k4 + b4).astype(jnp.float32))
        return -scores[jnp.arange(len(y)), y].mean()

    @jax.jit  # type: ignore[untyped-decorator]
    def step(state: Any, x: Any, y: Any, t: Any) -> Any:
        parameters, m, v = state
        g = jax.grad(loss_of)(parameters, x, y)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        rate = config.training.learning_rate * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        parameters = jax.tree.map(lambda p, m, v: p - rate * m / (jnp.sqrt(v) + 1e-7), parameters, m, v)
        return parameters, m, v

    zeros = jax.tree.map(jnp.zeros_like, parameters)
    state, done = (parameters, zeros, zeros), 0
    x, y = pixels[..., None], np.asarray(labels)

    def epoch() -> None:
        nonlocal state, done
        for rows in _batches(len(images), config.training.batch_size, generator):
            done += 1
            state = step(state, x[rows], y[rows], float(done))
        jax.block_until_ready(state)

    return epoch
