"""The connection of this process to a Ray cluster."""

import logging
import socket
import threading

import ray

from digitcnn import output
from digitcnn.errors import ConfigError, MachineError

# How long a cluster may take to answer. Ray itself would wait for minutes.
CONNECT_SECONDS = 28.0


def connect(address: str) -> str:
    """Connect this process to a Ray cluster, quietly; return the address of its head.

    Raises MachineError if there is none or it does not answer, ConfigError if it refuses this process.
    """
    key = f"workers.address={address}"
    head = _head_address(address)
    if head is None:
        raise MachineError(f"{key}: no Ray cluster was found on this machine; `ray start --head` begins one")
    if not answers(head):
        raise MachineError(f"{key}: no Ray cluster answers at {head}")
    # Ray prints a paragraph for each worker and node that dies, whatever log_to_driver says.
    vars(ray._private.worker)["print_to_stdstream"] = lambda *_, **__: None
    failed: list[Exception] = []

    def begin() -> None:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            failed.append(error)

    # In the main thread Ray would take the handler of SIGTERM for itself.
    thread = threading.Thread(target=begin, daemon=True)
    with output.silent_stderr():
        thread.start()
        thread.join(CONNECT_SECONDS)
    if thread.is_alive():
        why = "; a wrong token looks like that" if "://" in address else ""
        raise MachineError(f"{key}: the Ray cluster at {head} did not answer within {CONNECT_SECONDS:.0f} s{why}")
    for error in failed:
        text = " ".join(f"{error} {error.__cause__ or ''}".split())
        if "token" in text:
            raise ConfigError(
                f"{key}: the cluster refuses this process, which has not its token; "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN=... or RAY_AUTH_TOKEN_PATH=FILE give it"
            )
        if "ersion mismatch" in text:
            raise ConfigError(f"{key}: {text[:300]}")
        raise MachineError(f"{key}: {text[:300]}")
    return head


def _head_address(address: str) -> str | None:
    """Return host and port of a cluster's head, or of its server for clients; None if there is no cluster here."""
    if address != "auto":
        return address.removeprefix("ray://")
    try:
        found: str | None = ray._private.services.canonicalize_bootstrap_address("auto")
    except ConnectionError:
        return None
    return None if found is None else found.removeprefix("ray://")


def answers(address: str) -> bool:
    """Return True if a host takes connections at a port, given as HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3.0):
            return True
    except OSError:
        return False
