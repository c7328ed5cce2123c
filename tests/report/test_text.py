"""The words of a report."""

from __future__ import annotations

from digitcnn.report import markdown_table


def test_markdown_table_escapes_what_markdown_would_obey() -> None:
    assert (
        markdown_table(["a|b", "c"], [["<b>", "two\nlines"]]) == "| a\\|b | c |\n| --- | --- |\n| &lt;b> | two lines |"
    )
