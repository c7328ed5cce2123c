"""The schema of what is recorded: its lists name one another's members, and nothing of it is spelled elsewhere."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path
from typing import get_args

from digitcnn.records import (
    PRUNING_METRICS,
    TITLES,
    Artifact,
    Column,
    EnvironmentKey,
    IdentityKey,
    Metric,
    Objective,
    StudyAttribute,
    Tag,
    TrialRecord,
    is_maximized,
)

REPOSITORY = Path(__file__).parent.parent
# The baseline is a candidate too, and an epoch stands in many headings.
_WORDS = {"baseline", "epoch"}
# The same words for other things: headings, kinds of message, keys of a config, of MLflow's answers or of Keras.
_OTHER_MEANINGS = {
    "api.py": {"champion", "image", "study"},
    "cli/composition.py": {"config"},
    "cli/display.py": {"lost", "parameters"},
    "cli/tables.py": {"difference"},
    "config/commands.py": {"champion", "image"},
    "evaluation/comparison.py": {"diverged"},
    "evaluation/confirmation.py": {"lost"},
    "evaluation/reproduction/manifest.py": {"config", "run_id"},
    "evaluation/reproduction/__init__.py": {"champion"},
    "evaluation/verdicts.py": {"diverged"},
    "predict/models.py": {"config"},
    "processor.py": {"flags"},
    "report/charts.py": {"trial"},
    "report/page.py": {"champion", "report.html"},
    "report/search.py": {"trial"},
    "report/runs.py": {"config"},
    "report/text.py": {"config", "objective", "p", "seed", "verdict"},
    "report/views.py": {"state"},
    "runner/plan.py": {"trial"},
    "runner/pool.py": {"trial"},
    "runner/study_run.py": {"study"},
    "runner/sweep.py": {"lost"},
    "runner/workers.py": {"diverged", "trial"},
    "study/leaderboard.py": {"lost"},
    "study/queue.py": {"trial"},
    "study/space.py": {"backend"},
    "study/trials.py": {"repeats"},
    "tracking/operations.py": {"parameters"},
    "tracking/queries.py": {"champion", "run_id"},
    "training/__init__.py": {"weights_sha256"},
    "training/environment.py": {"git", "python"},
    "training/machine.py": {"cpu"},
    "training/network.py": {"image"},
    "training/variables.py": {"cpu"},
}


def _names(*kinds: type) -> set[str]:
    return {value for kind in kinds for name, value in vars(kind).items() if name.isupper()}


def test_objectives_are_metrics_with_titles() -> None:
    assert set(get_args(Objective)) <= _names(Metric)
    assert set(get_args(Objective)) <= set(TITLES)
    assert set(PRUNING_METRICS) <= set(get_args(Objective))


def test_is_maximized_prefers_accuracy_and_low_costs() -> None:
    assert [name for name in get_args(Objective) if is_maximized(name)] == [
        "validation_accuracy",
        "best_validation_accuracy",
    ]


def _recorded_names() -> set[str]:
    names = _names(Tag, Artifact, EnvironmentKey, Metric, Column, StudyAttribute, IdentityKey)
    return names | {field.name for field in fields(TrialRecord)}


def _spelled(folder: Path, names: set[str]) -> dict[str, set[str]]:
    """Return, by module of a folder, the names that stand in it as strings."""
    found: dict[str, set[str]] = {}
    for file in folder.rglob("*.py"):
        tree = ast.parse(file.read_text())
        # Numbers and None are constants too; a name with a prefix is part of an f-string.
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        if spelled := strings & names:
            found[file.relative_to(folder).as_posix()] = spelled
    return found


def test_records_are_spelled_in_one_module() -> None:
    found = _spelled(REPOSITORY / "digitcnn", _recorded_names() - _WORDS)
    assert found.pop("records.py") >= {"run_id", "epochs_run", "best_trial.", "packages"}
    unnamed = {place: names - _OTHER_MEANINGS.get(place, set()) for place, names in found.items()}
    assert {place: names for place, names in unnamed.items() if names} == {}


def test_experiments_spell_no_recorded_name_of_two_words() -> None:
    # One word alone is often a column of the published tables: study, seed, backend.
    names = {name for name in _recorded_names() if "_" in name or "." in name}
    assert _spelled(REPOSITORY / "experiments", names) == {}
