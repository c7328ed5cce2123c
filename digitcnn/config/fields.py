"""Types of single values: names, numbers in a range, paths, addresses, durations; their checks and messages."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, WrapValidator

from digitcnn.config.urls import check_cluster, check_server
from digitcnn.formatting import has_control_characters
from digitcnn.processor import has_bfloat16
from digitcnn.records import Objective

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh])")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What file systems allow, in bytes.
_MAX_PATH_BYTES, _MAX_NAME_BYTES = 4000, 255
_MAX_COUNT = 10_000_000


def parse_duration(duration: str) -> float:
    """Return the seconds of a duration such as `90s`, `15m` or `2h`. Raises ValueError for anything else."""
    match = _DURATION.fullmatch(duration)
    if match is None or float(match[1]) <= 0:
        raise ValueError("must be a duration such as 90s, 15m or 2h")
    return float(match[1]) * _SECONDS[match[2]]


def listed(text: str) -> list[str]:
    """Return the words of a list that was typed as a text: `[1a2b3c,champion]`, with or without brackets."""
    return [part.strip() for part in text.strip().removeprefix("[").removesuffix("]").split(",")]


def expand_user(path: str) -> Path:
    """Return the path with ~ and ~USER replaced where there is such a user: Path.expanduser raises for any other."""
    return Path(os.path.expanduser(path))  # noqa: PTH111


def _check_duration(value: str) -> str:
    parse_duration(value)
    return value


def _check_name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError("must be 1 to 100 letters, digits, '.', '_' or '-', beginning with a letter or digit")
    return value


def _check_path(value: str) -> str:
    if has_control_characters(value):
        raise ValueError("must hold no control characters and be UTF-8")
    if "://" in value:
        raise ValueError("must be a path, not an address")
    encoded = os.fsencode(value)
    if len(encoded) > _MAX_PATH_BYTES or any(len(name) > _MAX_NAME_BYTES for name in encoded.split(b"/")):
        raise ValueError(f"must be at most {_MAX_PATH_BYTES} bytes long, and each name in it {_MAX_NAME_BYTES}")
    return value


def _check_root(value: str) -> str:
    if not value:
        raise ValueError("must name a folder")
    if re.search("%[0-9A-Fa-f]{2}", str(Path(_check_path(value)).absolute())):
        raise ValueError("must have no % with two hexadecimal digits in its path: MLflow takes that for a character")
    return value


def _check_steps(value: Any, check: Callable[[Any], Any]) -> Any:
    try:
        return check(value)
    except ValidationError:
        raise ValueError(f"must be null, a whole number from 1 to {_MAX_COUNT}, or batch_size") from None


def _check_objective(value: list[str]) -> list[str]:
    if len(set(value)) != len(value):
        raise ValueError("must name each objective once")
    return value


Count = Annotated[int, Field(ge=1, le=_MAX_COUNT)]
Filters = Annotated[int, Field(ge=1, le=4096)]
OptionalFilters = Annotated[int, Field(ge=0, le=4096)]
Kernel = Annotated[int, Field(ge=1, le=99)]
Pooling = Annotated[int, Field(ge=1, le=99)]
Units = Annotated[int, Field(ge=1, le=65_536)]
OptionalUnits = Annotated[int, Field(ge=0, le=65_536)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
Processes = Annotated[int, Field(ge=1, le=1024)]
# The descriptions are docs/configuration.md's.
Name = Annotated[str, AfterValidator(_check_name), Field(description="1 to 100 letters, digits, `.`, `_` or `-`")]
FilePath = Annotated[str, AfterValidator(_check_path), Field(description="a path")]
Root = Annotated[str, AfterValidator(_check_root), Field(description="a folder's path")]
Server = Annotated[str, AfterValidator(check_server), Field(description="`http://HOST:PORT` or `https://HOST`")]
Cluster = Annotated[str, AfterValidator(check_cluster), Field(description="`auto`, `HOST:6379` or `ray://HOST:10001`")]
Duration = Annotated[str, AfterValidator(_check_duration), Field(description="a number with `s`, `m` or `h`")]
Steps = Annotated[Count | Literal["batch_size"] | None, WrapValidator(_check_steps)]
Backend = Literal["tensorflow", "jax", "torch"]
# What is recorded is what was used: `auto` is settled when a config is read.
Precision = Annotated[
    Literal["float32", "bfloat16", "auto"],
    AfterValidator(lambda value: ("bfloat16" if has_bfloat16() else "float32") if value == "auto" else value),
]
# The predecessors of the fast engine, which recorded runs name.
Engine = Annotated[
    Literal["fast", "keras"], BeforeValidator(lambda value: "fast" if value in ("auto", "compiled") else value)
]
# One objective may be written without the list's brackets.
Objectives = Annotated[
    list[Objective],
    Field(min_length=1, max_length=3),
    AfterValidator(_check_objective),
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value),
]
