"""The schema of what is recorded: its lists name one another's members, and nothing of it is spelled elsewhere."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import get_args

from digitcnn.records import PRUNING_METRICS, TITLES, Artifact, Metric, Objective, StudyAttribute, Tag, is_maximized

REPOSITORY = Path(__file__).parent.parent
# The same words for other things: a template, a parameter, a function.
_OTHER_MEANINGS = {
    ("report/page.py", "report.html"),
    ("training/__init__.py", "weights_sha256"),
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


def test_records_are_spelled_in_one_module() -> None:
    # Names of two words or more: "study" or "engine" alone are words of other things too.
    recorded = {name for name in _names(Tag, Artifact, StudyAttribute) if "_" in name or "." in name}
    found = set()
    for file in (REPOSITORY / "digitcnn").rglob("*.py"):
        place = file.relative_to(REPOSITORY / "digitcnn").as_posix()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in recorded and place != "records.py":
                found.add((place, node.value))
    assert found - _OTHER_MEANINGS == set()
