"""Optimizers and the learning rate's schedules, as Keras defines them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from digitcnn.config import TrainingConfig

if TYPE_CHECKING:
    import keras

# Of one cycle: the share of the updates in which the rate rises, from this part of its highest value.
# Source: Smith and Topin, "Super-Convergence", 2018; the values are those of PyTorch's OneCycleLR.
_RISING, _FIRST_PART = 0.3, 1 / 25


def batches_per_epoch(config: TrainingConfig, examples: int) -> int:
    """Return the updates of an epoch; a full pass ends with a partial batch if the sizes do not divide."""
    if config.steps_per_epoch is None:
        return math.ceil(examples / config.batch_size)
    return config.batch_size if config.steps_per_epoch == "batch_size" else config.steps_per_epoch


def learning_rate(config: TrainingConfig, examples: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """Return the learning rate of a training on so many examples: a number, or a function of the updates done."""
    from keras.optimizers.schedules import CosineDecay

    highest, updates = config.learning_rate, batches_per_epoch(config, examples) * config.epochs
    if config.schedule == "constant":
        return highest
    if config.schedule == "cosine":
        return CosineDecay(highest, updates)
    rising = max(1, round(_RISING * updates))
    return CosineDecay(highest * _FIRST_PART, max(1, updates - rising), warmup_target=highest, warmup_steps=rising)


def make_optimizer(config: TrainingConfig, examples: int) -> keras.Optimizer:
    """Return the optimizer of a training on so many examples."""
    from keras import optimizers

    rate = learning_rate(config, examples)
    average = {"use_ema": True, "ema_momentum": config.weight_average} if config.weight_average else {}
    if config.optimizer == "sgd":
        return optimizers.SGD(rate, momentum=config.momentum, **average)
    if config.optimizer == "adamw":
        return optimizers.AdamW(rate, weight_decay=config.weight_decay, **average)
    return optimizers.Adam(rate, **average)
