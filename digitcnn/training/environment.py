"""Environment of a run: versions, processor, flags and the commit of the code."""

import contextlib
import functools
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from digitcnn.config import Backend, without_credentials
from digitcnn.processor import cpu_model, instruction_sets
from digitcnn.records import EnvironmentKey, Tag
from digitcnn.training.backends import BACKEND_PACKAGES
from digitcnn.training.variables import flags_in_effect

# The packages whose versions can change a number; those of the records cannot.
NUMERIC_PACKAGES = ("keras", "numpy", *(name for names in BACKEND_PACKAGES.values() for name in names))
_PACKAGES = ("keras", "numpy", "mlflow", "optuna", "hydra-core")
# Git sets them for its hooks, and then answers of that repository.
_OF_A_REPOSITORY = re.compile("GIT_(DIR|WORK_TREE|INDEX_FILE|OBJECT_DIRECTORY|COMMON_DIR|PREFIX)")
_FOLDER = Path(__file__).parent
# Of uncommitted changes: the most characters that are kept, and the most untracked files that are named.
_MAX_CHANGES, _MAX_NAMES = 200_000, 10


def describe_environment(threads: int, backend: Backend = "tensorflow") -> dict[str, Any]:
    """Return the environment of a run as plain values, which environment.json holds."""
    return {
        Tag.PYTHON: platform.python_version(),
        EnvironmentKey.PACKAGES: package_versions(backend),
        Tag.PLATFORM: platform.platform(),
        Tag.CPU: cpu_model(),
        Tag.CPU_FLAGS: " ".join(instruction_sets()),
        Tag.CORES: os.cpu_count(),
        Tag.THREADS: threads,
        Tag.BACKEND: backend,
        EnvironmentKey.FLAGS: {name: without_credentials(value) for name, value in flags_in_effect(backend).items()},
        EnvironmentKey.GIT: git_state(),
        Tag.COMMAND: command_line(),
    }


def numeric_environment(environment: Mapping[str, Any]) -> dict[str, str]:
    """Return those of an environment's tags that can change a number: neither the kernel nor what keeps the records."""
    # The system, the processor's kind and the C library, without the kernel's release between them.
    system = re.sub(r"^(\w+)-.*?-(?=x86_64|aarch64|arm64|AMD64)", r"\1-", str(environment.get(Tag.PLATFORM, "unknown")))
    names = (Tag.CPU, Tag.CPU_FLAGS, Tag.THREADS, Tag.BACKEND)
    numeric = {Tag.PLATFORM: system} | {name: str(environment[name]) for name in names if name in environment}
    flags, packages = environment.get(EnvironmentKey.FLAGS, {}), environment.get(EnvironmentKey.PACKAGES, {})
    numeric |= {f"{EnvironmentKey.FLAGS}.{name}": str(value) for name, value in flags.items()}
    return numeric | {f"{Tag.VERSION_PREFIX}{name}": packages[name] for name in NUMERIC_PACKAGES if name in packages}


def command_line() -> str:
    """Return the command line of this process without credentials; that of a script begins with python."""
    words = [without_credentials(word) for word in sys.argv]
    return shlex.join(words if words[:1] == ["digitcnn"] else ["python", *words])


def package_versions(backend: Backend = "tensorflow") -> dict[str, str]:
    """Return the installed versions of the packages that a run's numbers or records depend on."""
    versions = {}
    for name in ("digitcnn", *BACKEND_PACKAGES[backend], *_PACKAGES):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


@functools.cache
def git_state() -> dict[str, Any]:
    """Return the `commit` of the running code and whether it is `dirty`; nothing outside a checkout.

    Git is asked once: a process runs the code that it began with.
    """
    try:
        # An installed package may lie in an environment inside another project's checkout.
        _git(_FOLDER, "ls-files", "--error-unmatch", Path(__file__).name)
        return {
            EnvironmentKey.COMMIT: _git(_FOLDER, "rev-parse", "HEAD").strip(),
            EnvironmentKey.DIRTY: bool(_git(_FOLDER, "status", "--porcelain", "--untracked-files=normal").strip()),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


@functools.cache
def uncommitted_changes(folder: Path = _FOLDER) -> str:
    """Return the changes of a checkout since its last commit, for `git apply`; the heading names what is not in them.

    Those are untracked files, and what is longer than 200,000 characters, of which nothing is kept.
    """
    try:
        root = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
        changes = _git(root, "diff", "--no-color", "--no-ext-diff", "--binary", "HEAD")
        untracked = _git(root, "ls-files", "--others", "--exclude-standard").splitlines()
        commit = _git(root, "rev-parse", "HEAD").strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    heading = [f"git checkout {commit}, then git apply this file, gives the code of the run back."]
    if len(changes) > _MAX_CHANGES:
        heading = [f"{len(changes):,} characters of changes of commit {commit} are too many to be kept."]
        changes = ""
    if untracked:
        more = f" and {len(untracked) - _MAX_NAMES} more" if len(untracked) > _MAX_NAMES else ""
        heading.append(f"Not in it, as untracked: {', '.join(untracked[:_MAX_NAMES])}{more}.")
    return without_credentials("".join(f"# {line}\n" for line in heading) + changes)


def _git(folder: Path, *arguments: str) -> str:
    variables = {name: value for name, value in os.environ.items() if not _OF_A_REPOSITORY.fullmatch(name)}
    line = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        line, env=variables, capture_output=True, text=True, errors="replace", check=True, timeout=10
    ).stdout
