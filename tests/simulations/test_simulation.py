"""Simulated studies: the rule that digitcnn judges by keeps its promise, and others are what they are said to be."""

from __future__ import annotations

import numpy as np
import pytest

from digitcnn.evaluation import compare
from experiments.simulations import simulation
from experiments.simulations.simulation import RULES, USES, pooled_with_spending, published_spread, said, share

# Of a share of 5 % in this many studies the standard error is 1.3 %.
STUDIES = 300


def test_simulated_rule_is_the_one_that_confirm_judges_by() -> None:
    generator = np.random.default_rng(1)
    for look in (1, 2, 5):
        runs = published_spread().draw((0.004, 0.0, -0.004), generator)[:8]
        values = {str(config): dict(enumerate(column)) for config, column in enumerate(runs.T)}
        compared = compare(values, look=look, resolution=1e-4)
        assert pooled_with_spending(runs, look) == [each.verdict for each in compared.values()]


@pytest.mark.parametrize("use", USES)
def test_no_way_of_asking_finds_a_difference_where_there_is_none(use: str) -> None:
    found = said(published_spread(), pooled_with_spending, USES[use], (0.0, 0.0, 0.0), STUDIES, seed=3)
    assert share(found, "better") <= 0.05


def test_looking_again_and_again_fooled_the_first_edition() -> None:
    rule, use = simulation.paired_with_holm, USES["a look after each of 5 to 30 seeds"]
    found = said(published_spread(), rule, use, (0.0, 0.0, 0.0), STUDIES, seed=3)
    assert share(found, "better") > 0.07


def test_table_has_a_row_for_each_use_and_a_column_for_each_rule() -> None:
    lines = simulation.table(3).splitlines()
    assert lines[0] == f"|  | {' | '.join(RULES)} |"
    assert sum(line.startswith("| false better, worse: ") for line in lines) == len(USES)
