"""Show the records in MLflow's UI: `digitcnn ui [study=NAME] [port=5001]`."""

import contextlib
import json
import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Iterator, Mapping

from digitcnn.config import StudyReference, UiConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.signals import capture_signals
from digitcnn.tracking import relocate_artifacts, runs_place

logger = logging.getLogger(__name__)

_START_SECONDS = 120
# Without the proxy of http_proxy, which knows nothing of this machine's own ports.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# uvicorn ends open requests before it ends itself.
_END_SECONDS = 15


def main(config: UiConfig) -> int:
    """Serve the UI until Ctrl-C or SIGTERM and print its address when it listens; return 128 and the signal's number.

    Of a server, which has a UI of its own, only print the addresses of a study's views. Raises ConfigError if the port
    is in use or nothing is recorded, MachineError if the server ends or does not answer.
    """
    if config.tracking.uri is not None:
        if config.study.name is None:
            raise ConfigError(f"tracking.uri={config.tracking.uri}: the server has a UI of its own at this address")
        _show(config, config.tracking.uri.rstrip("/"), _views(config), end="")
        return 0
    _check_free(config.port)
    if not (config.tracking.folder / "mlflow.db").exists():
        raise ConfigError(f"tracking.root={config.tracking.root}: nothing is recorded in {config.tracking.folder}")
    try:
        relocate_artifacts(config.tracking.folder)
    except ConfigError as error:
        logger.warning(str(error))
    except sqlite3.Error as error:
        raise MachineError(f"{config.tracking.folder}/mlflow.db cannot be used: {error}") from None
    address, listens = f"http://127.0.0.1:{config.port}", threading.Event()
    with capture_signals(lambda: None, lambda: None) as received, _served(config) as server:
        said = _relay(server, listens)
        began = time.monotonic()
        # Meanwhile the server starts.
        views = _views(config)
        while not received and server.poll() is None:
            if not listens.is_set() and _answers(f"{address}/health"):
                listens.set()
                _show(config, address, views or _table(config, address), end="Ctrl-C ends it")
            if not listens.is_set() and time.monotonic() - began > _START_SECONDS:
                raise MachineError(f"MLflow's UI does not answer on {address} after {_START_SECONDS} seconds")
            time.sleep(0.1)
        if not received:
            last = next((line for line in reversed(said) if line.strip()), "it said nothing")
            raise MachineError(f"MLflow's UI ended with exit status {server.wait()}: {last.strip()}")
    return 128 + received[0]


def _views(config: UiConfig) -> dict[str, str]:
    """Return the titles of the study's views with what follows the UI's address; none if no study is named."""
    if config.study.name is None:
        return {}
    from digitcnn import report

    return report.present_study(StudyReference(name=config.study.name), config.tracking)


def _table(config: UiConfig, address: str) -> dict[str, str]:
    """Return what follows the UI's address to see all runs of the experiment, if there is one."""
    wanted = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={config.tracking.experiment}"
    try:
        with _LOCAL.open(wanted, timeout=_START_SECONDS) as answer:
            found = json.load(answer)["experiment"]["experiment_id"]
    except OSError:
        return {"": ""}
    return {"": runs_place(found)}


def _show(config: UiConfig, address: str, views: Mapping[str, str], end: str) -> None:
    """Print the address of each view, and open the first one in a browser if that is wanted."""
    for title, place in views.items():
        notes = ", ".join(filter(None, (title, end)))
        print(f"{address}{place}  ({notes})" if notes else f"{address}{place}", flush=True)
    first = f"{address}{next(iter(views.values()), '')}"
    if config.open and not webbrowser.open(first):
        logger.warning("open=true: no browser was found here; open the address above")


def _relay(server: subprocess.Popen[str], listens: threading.Event) -> list[str]:
    """Return the lines that the server says before it listens, still growing; show those that it says later.

    What it logs during a successful start would only hide the address.
    """
    said: list[str] = []

    def read() -> None:
        assert server.stdout is not None
        for line in server.stdout:
            if listens.is_set():
                sys.stderr.write(line)
            else:
                said.append(line)

    threading.Thread(target=read, daemon=True).start()
    return said


def _check_free(port: int) -> None:
    """Raise ConfigError if another program listens on the port."""
    if not _is_free(port):
        others = (other for other in range(port + 1, min(port + 100, 65_536)) if _is_free(other))
        raise ConfigError(f"port {port} is in use: digitcnn ui port={next(others, 'N')}")


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        # As the server does: a connection that was closed a moment ago is no hindrance.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
            tried.listen()
        except PermissionError as error:
            raise ConfigError(f"port={port}: {error.strerror}; choose one above 1023") from None
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _served(config: UiConfig) -> Iterator[subprocess.Popen[str]]:
    """Run MLflow's server while the body lasts, in a process group of its own that is gone afterwards.

    Ctrl-C in the terminal thus reaches it as SIGTERM, on which it ends without a traceback.
    """
    # They could name another store, place or page.
    theirs = ("MLFLOW_", "_MLFLOW_", "UVICORN_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    # Deprecation warnings of MLflow's libraries concern their developers only.
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"PYTHONWARNINGS": "ignore"}
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", config.tracking.store_uri),
            *("--host", "127.0.0.1", "--port", str(config.port), "--workers", "1"),
            *("--allowed-hosts", "127.0.0.1:*,localhost:*"),
            *("--cors-allowed-origins", f"http://127.0.0.1:{config.port}", "--uvicorn-opts", "--log-level warning"),
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        yield server
    finally:
        _end(server)


def _end(server: subprocess.Popen[str]) -> None:
    """End the server and every process that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=_END_SECONDS)


def _answers(address: str) -> bool:
    try:
        with _LOCAL.open(address, timeout=2):
            return True
    except OSError:
        return False
