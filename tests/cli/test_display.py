"""Displays: messages of the library as lines, with a live picture or without."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from rich.console import Console
from rich.live import Live

from digitcnn.cli import messages

LOGGER = logging.getLogger("digitcnn.somewhere")


def test_messages_are_lines_only_while_a_command_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    # When
    LOGGER.warning("before")
    with messages():
        LOGGER.info("100 % of [them] are there")
        LOGGER.debug("a detail")
        LOGGER.error("a\x1b[2J.png: is no picture")
        logging.getLogger("somebody.else").info("of another library")
    LOGGER.warning("after")
    # Then
    shown = capsys.readouterr()
    assert shown.out == "100 % of [them] are there\n"
    assert shown.err == "error: a\\x1b[2J.png: is no picture\n"
    assert logging.getLogger("digitcnn").level == logging.NOTSET


def test_messages_stand_above_a_live_picture(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=40)
    with messages(), Live("the picture", console=console, auto_refresh=False):
        LOGGER.warning("the store [mlflow.db] does not answer")
    lines = capsys.readouterr().out.split("\n")
    (place,) = [index for index, line in enumerate(lines) if "the store [mlflow.db] does not answer" in line]
    assert "the picture" in lines[place + 1]


def test_messages_are_silent_in_a_program_that_shows_none() -> None:
    program = "import logging, digitcnn.tracking; logging.getLogger('digitcnn.tracking').warning('away')"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout + ended.stderr == ""
