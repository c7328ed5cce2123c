"""Overrides of commands that train with real Keras, for some seconds."""

from __future__ import annotations

SMALL = [
    *("data.path=mnist", "data.train_size=500", "data.validation_size=200", "model.conv1_filters=2"),
    *("model.conv2_filters=4", "model.dense_units=16", "training.epochs=2"),
]
# A study named `moved`, without a space.
STUDY = [
    *("study=quick", *SMALL, "study.name=moved", "workers.count=1"),
    *("study.space.model.conv1_filters=null", "study.space.model.conv2_filters=null"),
]
