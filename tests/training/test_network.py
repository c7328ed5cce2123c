"""Networks: the article's layers, counted as Keras counts them, and the same weights for the same seed."""

from __future__ import annotations

import numpy as np
import pytest

from digitcnn import training
from digitcnn.config import CnnConfig, MlpConfig, ModelConfig, RunConfig
from digitcnn.errors import ConfigError
from digitcnn.training import build_model, weights_sha256

# Fewer and more blocks, with all that may be beside them.
DEEPER = (
    CnnConfig(conv1_pooling=3, conv2_filters=0, batch_normalization=True, dense_units=0, dropout=0.25),
    CnnConfig(
        **{f"conv{number}_filters": 4 for number in range(1, 5)},
        conv1_pooling=1,
        padding="same",
        batch_normalization=True,
    ),
)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (CnnConfig(), 843_658),
        (MlpConfig(), 104_938),
        (CnnConfig(conv1_filters=5, conv2_kernel=4, dense_units=3), None),
        *((model, None) for model in DEEPER),
    ],
)
def test_count_parameters_counts_as_keras_does(model: ModelConfig, parameters: int | None) -> None:
    training.import_keras(1)
    built = build_model(model, 28, 28, 10, 0)
    assert built.count_params() == training.count_parameters(model, 28, 28, 10)
    assert parameters in (None, built.count_params())


def test_build_model_gives_the_articles_list_of_standard_layers() -> None:
    training.import_keras(1)
    names = [type(layer).__name__ for layer in build_model(CnnConfig(), 28, 28, 10, 0).layers]
    assert names == [
        *("Rescaling", "Reshape", "Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense")
    ]


def test_build_model_gives_the_blocks_that_are_asked_for() -> None:
    training.import_keras(1)
    names = [layer.name for layer in build_model(DEEPER[0], 28, 28, 10, 0).layers]
    assert names == [
        *("scale", "channel", "conv1", "normalization1", "relu1", "pool1", "flatten", "dropout", "probabilities")
    ]
    names = [layer.name for layer in build_model(DEEPER[1], 28, 28, 10, 0).layers]
    assert [name for name in names if "conv" in name or "pool" in name] == [
        *("conv1", "conv2", "pool2", "conv3", "pool3", "conv4", "pool4")
    ]


def test_check_fits_refuses_kernels_and_networks_that_are_too_large() -> None:
    training.check_fits(CnnConfig(conv1_kernel=3, conv2_kernel=12), 28, 28, 10)
    with pytest.raises(ConfigError, match="model.conv2_kernel=13: leaves no pixels of images of 28 x 28"):
        training.check_fits(CnnConfig(conv1_kernel=3, conv2_kernel=13), 28, 28, 10)
    with pytest.raises(ConfigError, match="model.conv2_pooling=9: leaves no pixels of images of 9 x 9"):
        training.check_fits(CnnConfig(conv2_pooling=9, padding="same"), 9, 9, 10)
    with pytest.raises(ConfigError, match="must have at most"):
        training.check_fits(CnnConfig(conv2_filters=4096, dense_units=65_536), 28, 28, 10)


def test_build_model_draws_the_weights_that_published_runs_began_with() -> None:
    """Another order in which the layers are made, or another Keras, would change every recorded run."""
    training.import_keras(1)
    assert weights_sha256(build_model(CnnConfig(), 28, 28, 10, 0)).startswith("921bac342475b8c2")
    assert weights_sha256(build_model(MlpConfig(), 28, 28, 10, 0)).startswith("e4ba5b12bb17db70")


def test_count_multiplications_counts_each_pixel_that_pooling_reads() -> None:
    assert training.count_multiplications(MlpConfig(), 28, 28, 10) == 784 * 128 + 128 * 32 + 32 * 10
    blocks = 26 * 26 * 9 * 32 + 10 * 10 * 9 * 32 * 64
    assert training.count_multiplications(CnnConfig(), 28, 28, 10) == blocks + 1600 * 512 + 512 * 10


def test_weights_sha256_tells_any_change_of_a_weight(small_config: RunConfig) -> None:
    training.import_keras(1)
    model = build_model(small_config.model, 28, 28, 10, 0)
    before = weights_sha256(model)
    weights = model.get_weights()
    weights[0].flat[0] = np.nextafter(weights[0].flat[0], 1)
    model.set_weights(weights)
    assert weights_sha256(model) != before
