"""A planted password, and the check that it stands nowhere."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

USER = "planter"
# A password whose halves are found apart as well, as it is typed in an address and as it is.
PASSWORD = "pl4nted@:/?#&= 'w0rd"
TYPED = quote(PASSWORD, safe="")
HALVES = ("pl4nted", "w0rd")
# What a request says instead of user and password: as good as both.
BASIC = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def assert_in_no_text(text: str) -> None:
    """Assert that neither half of the password is in a text, nor what a request says instead."""
    assert not any(part in text for part in (*HALVES, BASIC)), text


def assert_in_no_file(folder: Path) -> None:
    """Assert that neither half of the password is in a file below a folder or in the name of one, nor is BASIC."""
    texts = {path: path.name.encode() + path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [path for path, text in texts.items() if any(part.encode() in text for part in (*HALVES, BASIC))] == []
