"""Loading: every mistake is one line that names the key, the value and what is allowed."""

from __future__ import annotations

from typing import Any

import pytest

from digitcnn.config import RunConfig, SweepConfig, load_config
from digitcnn.errors import ConfigError

STUDY = {"name": "s", "objective": ["validation_accuracy"], "space": {}}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"training": {"bach_size": 1}}, "training.bach_size: unknown key; did you mean training.batch_size?"),
        ({"batch_size": 1}, "batch_size: unknown key; did you mean training.batch_size?"),
        ({"tracking": {"root": ""}}, "tracking.root=: must name a folder"),
        ({"training": {"batch_size": "abc"}}, "training.batch_size=abc: must be a valid integer"),
        ({"training": {"batch_size": 2.5}}, "training.batch_size=2.5: must be a valid integer"),
        ({"training": {"batch_size": True}}, "training.batch_size=True: must be a valid integer"),
        ({"training": {"batch_size": 0}}, "training.batch_size=0: must be greater than or equal to 1"),
        ({"training": {"epochs": 10**9}}, "training.epochs=1000000000: must be less than or equal to 100000"),
        ({"training": {"learning_rate": -0.1}}, "training.learning_rate=-0.1: must be greater than 0"),
        ({"training": {"learning_rate": float("nan")}}, "training.learning_rate=nan: must be a finite number"),
        (
            {"training": {"early_stopping": 2}, "data": {"validation": "test_once"}},
            "training.early_stopping=2: must not see the test set; needs data.validation=holdout",
        ),
        (
            {"training": {"early_stopping": 2, "schedule": "cosine"}},
            "training.early_stopping=2: would cut the schedule; needs training.schedule=constant",
        ),
        ({"backend": "cntk"}, "backend=cntk: must be 'tensorflow', 'jax' or 'torch'"),
        (
            {"training": {"precision": "float16"}},
            "training.precision=float16: must be 'float32', 'bfloat16' or 'auto'",
        ),
        ({"training": {"engine": "warp"}}, "training.engine=warp: must be 'fast' or 'keras'"),
        (
            {"training": {"steps_per_epoch": "x"}},
            "training.steps_per_epoch=x: must be null, a whole number from 1 to 10000000, or batch_size",
        ),
        ({"training": {"threads": 0}}, "training.threads=0: must be greater than or equal to 1"),
        ({"trainin": {}}, "trainin: unknown key; known keys: data, model, training, augmentation, backend, tracking"),
        ({"model": {"name": "rnn"}}, "model.name=rnn: must be one of cnn, mlp"),
        ({"model": {}}, "model.name=None: must be one of cnn, mlp"),
        ({"model": "cnn"}, "model.name=None: must be one of cnn, mlp"),
        ({"model": {"name": "cnn", "conv1_filters": 0}}, "model.conv1_filters=0: must be greater than or equal to 1"),
        (
            {"model": {"name": "mlp", "conv1_filters": 3}},
            "model.conv1_filters: unknown key; only another model=NAME has it",
        ),
        ({"data": {"validation": "both"}}, "data.validation=both: must be 'holdout', 'test' or 'test_once'"),
        ({"study": {**STUDY, "name": "../x"}}, "study.name=../x: must be 1 to 100 letters, digits, '.', '_' or '-'"),
        ({"study": {**STUDY, "name": "a\nb"}}, "study.name=a\nb: must be 1 to 100 letters"),
        ({"study": {**STUDY, "sampler": "x"}}, "study.sampler=x: must be 'tpe', 'random', 'grid'"),
        ({"study": {**STUDY, "pruner": "x"}}, "study.pruner=x: must be 'none' or 'median'"),
        (
            {"study": {**STUDY, "extends": STUDY["name"]}},
            "must be another study; give this one a study.name of its own",
        ),
        ({"study": {**STUDY, "constraints": {"cpu_seconds": {}}}}, "must have min or max, or both"),
        (
            {"study": {**STUDY, "constraints": {"cpu_seconds": {"min": 2, "max": 1}}}},
            "is empty: min=2.0 is above max=1",
        ),
        (
            {"study": {**STUDY, "constraints": {"weights": {"max": 1}}}},
            "study.constraints.weights=weights: must be 'valid",
        ),
        ({"study": {**STUDY, "timeout": "5"}}, "study.timeout=5: must be a duration such as 90s, 15m or 2h"),
        ({"study": {**STUDY, "trials": 0}}, "study.trials=0: must be greater than or equal to 1"),
        ({"study": {**STUDY, "workers": 2}}, "study.workers: unknown key; is now workers.count"),
        (
            {"study": STUDY, "workers": {"name": "slurm"}},
            "workers.name=slurm: must be one of local, ray",
        ),
        (
            {"study": STUDY, "workers": {"name": "local", "address": "auto"}},
            "workers.address: unknown key; only another workers=NAME has it",
        ),
        (
            {"study": STUDY, "workers": {"name": "local", "patience": "soon"}},
            "workers.patience=soon: must be a duration such as 90s, 15m or 2h",
        ),
        (
            {"study": STUDY, "workers": {"name": "ray", "count": 4, "max": 3}},
            "workers.max=3: must be at least workers.count, 4",
        ),
        (
            {"study": STUDY, "workers": {"name": "ray", "address": "ray://u:secret@h:10001"}},
            "workers.address=ray://***@h:10001: must be auto, HOST:PORT (6379 is Ray's) or ray://HOST:PORT (10001 is",
        ),
        (
            {"study": STUDY, "workers": {"name": "ray", "address": "h:65536"}},
            "workers.address=h:65536: must be auto, HOST:PORT",
        ),
        ({"study": {**STUDY, "objective": ["speed"]}}, "study.objective.0=speed: must be 'validation_accuracy'"),
        ({"study": {**STUDY, "objective": ["cpu_seconds"] * 2}}, "must name each objective once"),
    ],
)
def test_loading_names_a_mistake_in_one_line(tree: dict[str, Any], message: str) -> None:
    kind = SweepConfig if "study" in tree else RunConfig
    with pytest.raises(ConfigError) as caught:
        load_config(kind, tree)
    assert message in str(caught.value)
