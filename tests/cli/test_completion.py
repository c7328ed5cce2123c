"""Completion of what is typed, in a real bash."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

_READY = b"ready to type"


def _read(terminal: int, until: bytes, seconds: float) -> bytes:
    """Return the terminal's output until it holds the text, or the time is over."""
    seen, end = b"", time.monotonic() + seconds
    while until not in seen and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 65_536)
    return seen


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_knows_commands_groups_and_keys_in_bash(tmp_path: Path) -> None:
    (tmp_path / "digitcnn").write_text(f'#!/bin/sh\nexec {sys.executable} -m digitcnn "$@"\n')
    (tmp_path / "digitcnn").chmod(0o755)
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\n")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        path = f"{tmp_path}:{os.environ['PATH']}"
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], os.environ | {"PATH": path, "TERM": "dumb"})
    try:
        os.write(terminal, b'eval "$(digitcnn -sc install=bash)"; echo "ready to"" type"\n')
        assert _READY in _read(terminal, _READY, 30)
        for typed, expected in (
            ("digitcnn sw", b"eep"),
            ("digitcnn repo", b"rt"),
            ("digitcnn sweep study=qui", b"ck"),
            ("digitcnn sweep training.ba", b"tch_size="),
            ("digitcnn sweep -m model=ml", b"p"),
            ("digitcnn train --config-dir own experiment=mi", b"ne"),
            ("digitcnn ui po", b"rt="),
        ):
            os.write(terminal, typed.encode() + b"\t")
            shown = _read(terminal, typed.encode() + expected, 20)
            assert typed.encode() + expected in shown, shown
            # Ctrl-U: the line is let go.
            os.write(terminal, b"\x15")
        os.write(terminal, b"digitcnn sweep study=\t\t")
        assert b"study=pareto" in _read(terminal, b"study=pareto", 20)
    finally:
        os.close(terminal)
        os.waitpid(child, 0)
