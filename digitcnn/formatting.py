"""Numbers, times and foreign text as a person reads them."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def format_count(number: int, what: str) -> str:
    """A number of things: 1 worker, 2 workers."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Return the text as one line that a terminal shows and does not obey."""
    return "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
