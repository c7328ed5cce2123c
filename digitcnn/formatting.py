"""Numbers, accuracies, times and foreign text as a person reads them."""

import unicodedata
from typing import TypeVar

Value = TypeVar("Value")


def format_duration(seconds: float) -> str:
    """Return seconds as a duration: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def format_bytes(size: float) -> str:
    """Return a number of bytes as a person reads it: 0.3 MB, 12.4 MB, 3,210 MB."""
    return f"{size / 1e6:,.1f} MB" if size < 1e8 else f"{size / 1e6:,.0f} MB"


def format_count(number: int, what: str) -> str:
    """Return a number of things: 1 worker, 2 workers."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def format_percent(fraction: float) -> str:
    """Return a fraction in percent without the sign, which a table says once in its heading: 99.29."""
    return f"{100 * fraction:.2f}"


def format_points(difference: float) -> str:
    """Return a difference of two fractions in percentage points: +0.12; one that is nearly 0 with its sign: -0.004."""
    points = 100 * difference
    return f"{points:+.1g}" if 1e-4 <= abs(points) < 0.005 else f"{points if abs(points) >= 1e-4 else 0:+.2f}"


def format_interval(low: float, high: float, *, signed: bool = False) -> str:
    """Return an interval of fractions in percent, or of differences in points: 98.12 to 98.40, -0.10 to +0.18."""
    text = format_points if signed else format_percent
    return f"{text(low)} to {text(high)}"


def format_p(p: float) -> str:
    """Return a p value with two significant digits: 0.013."""
    return f"{p:.2g}"


def named_null(value: Value | None) -> Value | str:
    """Return a config's value, but none as null, which a config calls it: a table would take it for a missing one."""
    return "null" if value is None else value


def printable(text: str) -> str:
    """Return the text as one line that a terminal shows and does not obey."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)


def has_control_characters(text: str) -> bool:
    """Return True for text that could command a terminal, or cannot be encoded as UTF-8."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
