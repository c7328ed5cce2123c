"""Commands of the command line, run in this process: a tenth of the time of a process of their own."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from digitcnn.cli import run_command
from digitcnn.config import Config


def run_here(
    name: str, schema: type[Config], task: Callable[[Any], int], *arguments: str, folder: Path, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the command in the folder and return how it ended; this process stays as it was."""
    output, errors = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    with pytest.MonkeyPatch.context() as kept:
        kept.chdir(folder)
        kept.setenv("HYDRA_FULL_ERROR", "0")
        changed = [(sys, "argv"), (logging, "raiseExceptions"), (logging.root, "handlers"), (logging.root, "level")]
        for holder, attribute in changed:
            kept.setattr(holder, attribute, getattr(holder, attribute))
        # Hydra closes the handlers that there are, and TensorFlow's would close this process's standard error with it.
        kept.setattr(logging, "_handlerList", [])
        try:
            with (
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(errors),
                pytest.raises(SystemExit) as ended,
            ):
                run_command(name, schema, task, arguments=arguments, **options)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
    status = ended.value.code
    assert isinstance(status, int)
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())
