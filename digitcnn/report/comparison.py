"""Recorded runs side by side: the differences of their parameters, metrics and environments."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pandas as pd

from digitcnn import evaluation, tracking
from digitcnn.config import StudyReference, TrackingConfig, listed
from digitcnn.errors import ConfigError
from digitcnn.records import Tag
from digitcnn.report.record import with_known_flags

_TAGS = {Tag.ENGINE, Tag.CPU, Tag.FLAGS, Tag.GIT_COMMIT, Tag.GIT_DIRTY, Tag.DATA_SHA256, Tag.WEIGHTS_SHA256}


@dataclass(frozen=True)
class RunComparison:
    """The differences of runs: a row per name, a column per run. `alike` other values are the same in all.

    Each flag of an environment has a name of its own: flags.XLA_FLAGS.
    """

    differing: pd.DataFrame
    alike: int


def compare_runs(named: str, study: StudyReference, config: TrackingConfig) -> RunComparison:
    """Compare two or more runs, `[RUN,RUN,...]`. Raise ConfigError if one cannot be found or is named twice."""
    wanted = listed(named)
    if len(wanted) < 2 or not all(wanted):
        raise ConfigError(f"compare={named}: must name at least two runs, such as [1a2b3c,4d5e6f]")
    with tracking.store_errors(config):
        store = tracking.open_recorded(config, f"compare={named}")
        ids = [evaluation.find_run(store, reference, study, config, "compare") for reference in wanted]
        if len(set(ids)) < len(ids):
            raise ConfigError(f"compare={named}: must name each run once")
        found = [store.client.get_run(run_id) for run_id in ids]
    columns = []
    for run in found:
        tags = with_known_flags(run.data.tags)
        tags = {k: v for k, v in tags.items() if k in _TAGS or k.startswith(Tag.VERSION_PREFIX)}
        status = {"name": run.info.run_name, "status": run.info.status}
        parameters = dict(sorted(run.data.params.items()))
        flags = json.loads(tags.pop(Tag.FLAGS, "{}"))
        tags |= {f"{Tag.FLAGS}.{name}": str(value) for name, value in flags.items()}
        columns.append(status | parameters | dict(sorted(run.data.metrics.items())) | tags)
    names = list(dict.fromkeys(name for column in columns for name in column))
    values = {name: [column.get(name) for column in columns] for name in names}
    differing = {name: row for name, row in values.items() if any(each != row[0] for each in row)}
    table = pd.DataFrame.from_dict(differing, orient="index", columns=ids, dtype=object)
    return RunComparison(table, len(values) - len(differing))
