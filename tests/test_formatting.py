"""Numbers as a person reads them."""

from __future__ import annotations

import pytest

from digitcnn.formatting import (
    format_count,
    format_duration,
    format_interval,
    format_p,
    format_percent,
    format_points,
    has_control_characters,
)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "1 h 40 min"), (12_000, "3 h 20 min")]
)
def test_format_duration_uses_the_unit_that_fits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_format_count_knows_the_plural() -> None:
    assert [format_count(number, "run") for number in (0, 1, 1234)] == ["0 runs", "1 run", "1,234 runs"]


def test_format_percent_and_points_have_two_digits() -> None:
    assert (format_percent(0.9929), format_points(0.0012), format_points(-0.05)) == ("99.29", "+0.12", "-5.00")
    assert format_interval(0.9812, 0.984) == "98.12 to 98.40"
    assert format_interval(-0.001, 0.0018, signed=True) == "-0.10 to +0.18"


def test_format_p_has_significant_digits() -> None:
    assert (format_p(0.01234), format_p(1.0)) == ("0.012", "1")


def test_has_control_characters_finds_escapes_and_surrogates() -> None:
    assert [has_control_characters(text) for text in ("é 7", "a\x1b[2J", "\udcff")] == [False, True, True]
