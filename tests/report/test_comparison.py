"""Runs side by side, by the command: the flags that differ, and all that differs as CSV."""

from __future__ import annotations

import io
import json

import pandas as pd

from digitcnn import tracking
from digitcnn.config import SweepConfig
from digitcnn.records import Tag
from tests.conftest import Command


def test_comparison_has_a_line_for_each_flag_that_differs_and_csv_is_whole(
    copied: SweepConfig, store: tracking.Store, command: Command
) -> None:
    # Given three runs, two of which had a flag of their own
    experiments = [each.experiment_id for each in store.client.search_experiments()]
    runs = [run for run in store.client.search_runs(experiments) if Tag.TRIAL in run.data.tags]
    ids = [run.info.run_id for run in runs]
    for number, run_id in enumerate(ids):
        flags = {"TF_ENABLE_ONEDNN_OPTS": "1"} | ({"XLA_FLAGS": f"--xla_{number}"} if number else {})
        store.client.set_tag(run_id, Tag.FLAGS, json.dumps(flags))
    compare = [*ids, f"tracking.root={copied.tracking.folder}"]
    # When
    shown, whole = command("diff", *compare), command("diff", *compare, "format=csv")
    # Then
    assert (shown.returncode, whole.returncode) == (0, 0), shown.stderr + whole.stderr
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("flags")]
    assert line.split() == ["flags.XLA_FLAGS", "--xla_1", "--xla_2"]
    table = pd.read_csv(io.StringIO(whole.stdout))
    assert table["run_id"].tolist() == ids
    assert table["flags.XLA_FLAGS"].fillna("").tolist() == ["", "--xla_1", "--xla_2"]
    assert "training.batch_size" in table
    assert "flags.TF_ENABLE_ONEDNN_OPTS" not in table
