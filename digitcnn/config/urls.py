"""Addresses of stores and servers: validation, and text without the credentials in them."""

import re

# It ends where a message goes on after it: an address that is taken holds no spaces or quotes.
_ADDRESS = re.compile(r"([A-Za-z][\w+.-]*)://[^\s'\"]*")
# User and password, host and port, path, query: told apart only where none of them can hold a piece of another.
_PARTS = re.compile(r"([\w+.-]+://)([^@/?#]*@)?([^@/?#]*)(/[^@?#]*)?(\?[^@#]*)?")
_NO_CREDENTIALS = ("sqlite", "file")
_WITHOUT_END = re.compile(r"([A-Za-z][\w+.-]*)://.*[\s'\"]", re.DOTALL)

# Without asterisks: of an address that was typed with credentials those are left.
_PLAIN = r"[^@/?#*\s'\"\x00-\x1f]"
# A host by its name or its number, that of IPv6 in brackets, and a port.
_CLUSTER = re.compile(r"auto|(ray://)?([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_SERVER = re.compile(rf"https?://{_PLAIN}+(/({_PLAIN}|/)*)?")


def without_credentials(text: str) -> str:
    """Return the text with user, password and parameters of every address in it replaced by asterisks.

    Of an address whose parts cannot be told apart, such as one with an @ in its password, only the scheme is left.
    """
    return _ADDRESS.sub(_masked, text)


def value_without_credentials(value: str) -> str:
    """Return the value of a key without credentials, as `without_credentials` does.

    Where an address with spaces or quotes ends, nobody can tell: of such a one only the scheme is left.
    """
    address = _WITHOUT_END.search(value.strip("'\""))
    return f"{address[1]}://***" if address else without_credentials(value)


def _masked(address: re.Match[str]) -> str:
    if address[1] in _NO_CREDENTIALS:
        return address[0]
    parts = _PARTS.fullmatch(address[0])
    if parts is None:
        return f"{address[1]}://***"
    scheme, user, host, path, query = parts.groups(default="")
    return f"{scheme}{'***@' if user else ''}{host}{path}{'?***' if query else ''}"


def check_server(value: str) -> str:
    """Return the address of an MLflow server, which MLflow itself prints and records. Raises ValueError otherwise."""
    if _SERVER.fullmatch(value) is None:
        raise ValueError(
            "must be http://HOST:PORT or https://HOST, without user, password or parameters: "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, hold those"
        )
    return value


def check_cluster(value: str) -> str:
    """Return the address of a Ray cluster. Raises ValueError for anything else."""
    parts = _CLUSTER.fullmatch(value)
    if parts is None or (parts[3] and not 0 < int(parts[3]) < 65_536):
        raise ValueError("must be auto, HOST:PORT (6379 is Ray's) or ray://HOST:PORT (10001 is Ray's)")
    return value
