"""MLflow servers on loopback, and a proxy that cuts the connections to one."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import http.server
import ipaddress
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from digitcnn.files import sqlite_url


def free_port() -> int:
    """Return a port of loopback on which no program listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@dataclass
class MLflowServer:
    """A real `mlflow server` on loopback that keeps its records in a folder."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        store_uri = sqlite_url(self.folder / "mlflow.db")
        line = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store_uri, "--serve-artifacts"]
        line += ["--artifacts-destination", str(self.folder / "served"), "--host", "127.0.0.1"]
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [*line, "--port", str(self.port), "--workers", "1"],
                env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                cwd=self.folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def answers(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5):
            return True
        return False


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """Run an MLflow server with its records in a folder while the body lasts; yield its address."""
    server = MLflowServer(folder, free_port())
    try:
        server.start()
        yield server.uri
    finally:
        server.kill()


class Proxy:
    """A port that leads to another one while the proxy is up; while it is down, connections are refused."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.listener: socket.socket | None = None
        self.port = 0
        self.ends: list[socket.socket] = []
        self.up()

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def down(self) -> None:
        if self.listener is not None:
            # A thread that is accepting would keep the port open.
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        for end in self.ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.to))
                self.ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


# Of one connection, and not of what is passed on.
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


@dataclass
class Guard:
    """A server on loopback that passes on to another what comes with user and password, and answers 401 to the rest.

    `basic` is what a request must say: user and password in base64. `passed` and `refused` are the requests' paths.
    What is written to a path with `too_large` in it is answered with 413, as a proxy does.
    """

    to: int
    basic: str
    uri: str = ""
    too_large: str = ""
    passed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def self_signed(path: Path) -> Path:
    """Write a key and its certificate of 127.0.0.1, which no authority has signed, to a file; return it."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = x509.CertificateBuilder(
        name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1)
    )
    signed = made.add_extension(host, critical=False).sign(key, hashes.SHA256())
    written = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(written + signed.public_bytes(serialization.Encoding.PEM))
    return path


@contextlib.contextmanager
def guarded(to: int, basic: str, certificate: Path | None = None) -> Iterator[Guard]:
    """Guard a server's port with a password while the body lasts.

    With a `certificate` and its key by HTTPS, which also asks for that one of whoever connects.
    """
    guard = Guard(to, basic)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            if self.headers.get("Authorization") != f"Basic {guard.basic}":
                guard.refused.append(self.path)
                self._send(401, {"WWW-Authenticate": 'Basic realm="mlflow"'}, b"You are not authenticated.")
                return
            if guard.too_large and self.command == "PUT" and guard.too_large in self.path:
                self._send(413, {}, b"Request Entity Too Large")
                return
            guard.passed.append(self.path)
            behind = http.client.HTTPConnection("127.0.0.1", guard.to, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
            behind.request(self.command, self.path, body, headers)
            answer = behind.getresponse()
            self._send(answer.status, dict(answer.getheaders()), answer.read())
            behind.close()

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        guard.uri = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            context.load_verify_locations(certificate)
            context.verify_mode = ssl.CERT_REQUIRED
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield guard
        finally:
            server.shutdown()
            thread.join()
