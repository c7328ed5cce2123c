"""Provenance: commands that anybody can type, and the machines, versions and times of the runs."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pandas as pd

from experiments.article import provenance, results
from tests.support.published import provenance_row


def test_describe_names_every_version_and_commit() -> None:
    # Given
    first = {"cores": "2", "cpu": "Fast", "python": "3.11.7", "version.keras": "3.15.1", "git.dirty": "false"}
    tensorflow = {**first, "version.tensorflow": "2.21.0", "git.commit": "a" * 40}
    torch = {**first, "version.torch": "2.13.0", "git.commit": f"{'a' * 40}; {'b' * 40}"}
    clean = results.render_text({"provenance": pd.concat([provenance_row(**tensorflow), provenance_row(**torch)])})
    dirty = results.render_text(
        {"provenance": provenance_row(**torch | {"git.dirty": "false; true", "cpu": "Fast; Slow"})}
    )
    # Then
    assert "On 2 cores of Fast.\n" in clean
    assert (
        "\nPython 3.11.7, Keras 3.15.1, TensorFlow 2.21.0, PyTorch 2.13.0; commits aaaaaaaaaa, bbbbbbbbbb.\n" in clean
    )
    assert "On 2 cores of Fast; Slow.\n" in dirty
    assert "; commits aaaaaaaaaa, bbbbbbbbbb, and code that differed from its commit.\n" in dirty


def test_published_command_holds_no_place_of_a_machine() -> None:
    published = provenance.published_command
    recorded = (
        "python '/home/a b/experiments/train.py' --multirun model=cnn,mlp tracking.root=/home/a training.seed=0,1"
    )
    assert published(recorded) == "digitcnn train --multirun model=cnn,mlp training.seed=0,1"
    assert published("python train.py +tracking.uri=http://host tracking=server") == "digitcnn train"


def test_busy_time_leaves_out_pauses() -> None:
    busy: Callable[[list[tuple[int, int]]], int] = provenance._busy
    assert busy([(0, 10), (5, 12), (20, 30), (22, 25)]) == 22
    assert busy([]) == 0


def test_commands_are_listed_as_they_were_typed_with_the_time_that_they_took() -> None:
    def run(command: str, start: int, **metrics: float) -> SimpleNamespace:
        data = SimpleNamespace(tags={"command": command}, metrics=metrics)
        return SimpleNamespace(data=data, info=SimpleNamespace(start_time=start, end_time=start + 1))

    # Given runs, one of which was given half of its epochs by another, and one of an earlier version
    runs = [
        run("digitcnn confirm", 40, cpu_seconds=10.0, cpu_spent=5.0),
        run("digitcnn sweep", 10, cpu_seconds=10.0),
        run("digitcnn confirm", 20, cpu_seconds=10.0, cpu_spent=10.0),
    ]
    # When
    made = provenance.rows("beyond", runs)
    # Then
    said = [(row["command"], row["runs"], row["cpu_seconds"]) for row in made]
    assert said == [("digitcnn sweep", 1, 10), ("digitcnn confirm", 2, 15)]
