"""Markdown from texts that may hold anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    return "\n".join(f"| {' | '.join(map(escape_markdown, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def escape_markdown(text: str) -> str:
    """The text with what Markdown would take for a table's bar or for HTML made harmless."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
