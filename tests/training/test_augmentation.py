"""Augmentation: what is drawn follows from seed and epoch, and moves images as it says."""

from __future__ import annotations

import numpy as np
import pytest

from digitcnn import runner, training
from digitcnn.config import AugmentationConfig, RunConfig
from digitcnn.training import build_model, draw_transforms, train
from digitcnn.training.engines.augmentation import transform_images
from tests.support.trainers import result_of

ALL = AugmentationConfig(shift=0.1, rotation=15, zoom=0.2)


def test_transforms_follow_from_seed_and_epoch_alone() -> None:
    first = draw_transforms(ALL, 3, 1, 50, 28, 28)
    assert first is not None
    assert first.shape == (50, 8)
    assert np.array_equal(first, draw_transforms(ALL, 3, 1, 50, 28, 28))
    for seed, epoch in ((4, 1), (3, 2)):
        assert not np.array_equal(first, draw_transforms(ALL, seed, epoch, 50, 28, 28))
    assert draw_transforms(AugmentationConfig(), 3, 1, 50, 28, 28) is None


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 13)])
def test_images_are_moved_within_the_ranges(height: int, width: int) -> None:
    training.import_keras(1)
    images = np.zeros((200, height, width), np.uint8)
    images[:, height // 2 - 1 : height // 2 + 1, width // 2 - 1 : width // 2 + 1] = 240
    middle = np.array([height // 2 - 0.5, width // 2 - 0.5])
    transforms = draw_transforms(AugmentationConfig(shift=0.2), 0, 1, 200, height, width)
    moved = transform_images(images, transforms).numpy()
    assert moved.dtype == np.uint8
    assert moved.shape == images.shape
    weights = moved / moved.sum(axis=(1, 2), keepdims=True)
    rows, columns = np.arange(height)[:, None], np.arange(width)
    shifts = np.stack([(weights * rows).sum((1, 2)), (weights * columns).sum((1, 2))], axis=1) - middle
    sides = np.array([height, width])
    assert (np.abs(shifts) <= 0.2 * sides + 0.1).all()
    # Uniform between both ends.
    assert (np.abs(shifts).max(axis=0) > 0.18 * sides).all()
    assert np.abs(shifts).mean(axis=0) == pytest.approx(0.1 * sides, rel=0.2)


def test_images_turn_and_grow_around_their_middle() -> None:
    training.import_keras(1)
    images = np.zeros((100, 29, 29), np.uint8)
    images[:, 14, 14:25] = 255
    turned = transform_images(images, draw_transforms(AugmentationConfig(rotation=90), 0, 1, 100, 29, 29)).numpy()
    assert (turned[:, 14, 14] > 200).all()
    angles = np.rad2deg([np.arctan2(*(np.argwhere(each > 60).mean(axis=0) - 14)) for each in turned])
    assert np.abs(angles).max() == pytest.approx(88, abs=5)
    assert np.abs(angles).mean() == pytest.approx(45, abs=10)
    grown = transform_images(images, draw_transforms(AugmentationConfig(zoom=0.5), 0, 1, 100, 29, 29)).numpy()
    lengths = (grown[:, 14] > 127).sum(axis=1)
    assert (lengths.min(), lengths.max()) == (pytest.approx(5.5, abs=1.5), pytest.approx(15, abs=1.5))


def test_images_are_the_same_in_any_shares() -> None:
    training.import_keras(1)
    images = np.random.default_rng(0).integers(0, 256, (60, 28, 28)).astype(np.uint8)
    transforms = draw_transforms(ALL, 0, 1, 60, 28, 28)
    assert transforms is not None
    whole = transform_images(images, transforms).numpy()
    parts = [transform_images(images[part], transforms[part]).numpy() for part in (slice(0, 7), slice(7, 60))]
    assert np.array_equal(whole, np.concatenate(parts))


def test_training_is_augmented_and_repeats_its_bits(small_config: RunConfig) -> None:
    splits = runner.check_run(small_config)
    digests = []
    for values in ({}, {"augmentation.shift": 0.1}, {"augmentation.shift": 0.1}):
        config = small_config.replace(values)
        model = build_model(config.model, *splits.image_shape, splits.classes, 0)
        digests.append(result_of(train(model, splits, config)).weights_sha256)
    assert digests[0] != digests[1] == digests[2]
