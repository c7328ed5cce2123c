"""What a network amounts to before it is built: image sizes, parameters and arithmetic."""

from __future__ import annotations

from digitcnn.config import CnnConfig, MlpConfig
from digitcnn.errors import ConfigError


def image_sizes(model: CnnConfig, height: int, width: int) -> list[tuple[str, int, int]]:
    """Height and width after each convolution and pooling of the network, with the key that decided it."""
    sizes: list[tuple[str, int, int]] = []
    for key, kernel in (("model.conv1_kernel", model.conv1_kernel), ("model.conv2_kernel", model.conv2_kernel)):
        height, width = (height - kernel + 1) // 2, (width - kernel + 1) // 2
        sizes.append((key, height, width))
    return sizes


# A network of this many parameters takes 2 GB with Adam's two moments and the gradient: more than a worker's share.
MOST_PARAMETERS = 134_000_000


def count_parameters(model: CnnConfig | MlpConfig, height: int, width: int, classes: int) -> int:
    """The number of weights and biases of the network for images of height x width."""
    if isinstance(model, MlpConfig):
        return (
            (height * width + 1) * model.dense1_units
            + (model.dense1_units + 1) * model.dense2_units
            + (model.dense2_units + 1) * classes
        )
    _, last_height, last_width = image_sizes(model, height, width)[-1]
    return (
        (model.conv1_kernel**2 + 1) * model.conv1_filters
        + (model.conv2_kernel**2 * model.conv1_filters + 1) * model.conv2_filters
        + (last_height * last_width * model.conv2_filters + 1) * model.dense_units
        + (model.dense_units + 1) * classes
    )


def check_fits(model: CnnConfig | MlpConfig, height: int, width: int, classes: int) -> None:
    """Raises ConfigError if the network leaves no pixels of such images, or is too large to train here."""
    if isinstance(model, CnnConfig):
        for key, remaining_height, remaining_width in image_sizes(model, height, width):
            if remaining_height < 1 or remaining_width < 1:
                kernel = getattr(model, key.removeprefix("model."))
                raise ConfigError(f"{key}={kernel}: leaves no pixels of images of {height} x {width}")
    parameters = count_parameters(model, height, width, classes)
    if parameters > MOST_PARAMETERS:
        raise ConfigError(f"model: has {parameters:,} parameters; must have at most {MOST_PARAMETERS:,}")


def count_multiplications(model: CnnConfig | MlpConfig, height: int, width: int, classes: int) -> int:
    """Multiply-adds of one image's forward pass: what the time of a training step is roughly proportional to."""
    if isinstance(model, MlpConfig):
        return count_parameters(model, height, width, classes)
    (_, height1, width1), (_, height2, width2) = image_sizes(model, height, width)
    return (
        4 * height1 * width1 * model.conv1_kernel**2 * model.conv1_filters
        + 4 * height2 * width2 * model.conv2_kernel**2 * model.conv1_filters * model.conv2_filters
        + height2 * width2 * model.conv2_filters * model.dense_units
        + model.dense_units * classes
    )
