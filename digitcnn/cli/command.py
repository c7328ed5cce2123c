"""What every command shares: composing its config with Hydra, and how it ends: exit status and one line."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

try:
    import hydra
    from hydra.errors import HydraException
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from digitcnn.cli.arguments import CONF, CommandLine, parse
    from digitcnn.cli.display import messages
    from digitcnn.config import (
        Config,
        TrackingConfig,
        expand_user,
        known_keys,
        load_config,
        nearest_key,
        without_credentials,
    )
    from digitcnn.errors import ConfigError, MachineError, TrainingDiverged
    from digitcnn.formatting import printable
    from digitcnn.runner import capture_signals, end_in_order, end_process
    from digitcnn.tracking import pending_message
except ModuleNotFoundError as error:
    # Without what was typed: it may hold a password.
    print(f"error: {sys.executable} has no {error.name}; make .venv, then use .venv/bin/python", file=sys.stderr)
    sys.exit(2)

REPOSITORY = CONF.parent
# Hydra stays where it was started, and writes nothing.
_HYDRA = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=none"]

AnyConfig = TypeVar("AnyConfig", bound=Config)


def main(
    name: str,
    kind: type[AnyConfig],
    task: Callable[[AnyConfig], int],
    *,
    texts: tuple[str, ...] = (),
    words: str | None = None,
    study_by_name: bool = False,
) -> NoReturn:
    """Composes conf/NAME.yaml with the command line's overrides, does the task with it and exits with its status.

    The values of the keys in `texts` are taken as they are typed, and arguments that are no KEY=VALUE as values of the
    key `words`, if there is one. With `study_by_name`, study=NAME means study.name.

    A person's mistake exits with 2 and a failing machine with 1, each with one line; a signal with 128 and its
    number: Ctrl-C 130, SIGTERM 143, a closed terminal 129.
    """
    everything = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print its own many lines and exit with 1; this makes it raise instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    status = 0
    end_in_order()
    # From here on nobody sees a credential that was typed, but the config it is for.
    arguments = [without_credentials(argument) for argument in sys.argv]
    try:
        overrides = sys.argv[1:]
        if study_by_name:
            # conf/study/ is a group of sweeps; here a study is one that was recorded, whatever its name.
            overrides = [re.sub(r"^study=", "study.name=", argument) for argument in overrides]
        line = parse(overrides, texts, words)

        def job(composed: DictConfig) -> None:
            nonlocal status
            status = max(status, task(load_config(kind, _plain(composed, kind, line))))

        with tempfile.TemporaryDirectory() as folder:
            sweep = [f"hydra.sweep.dir={folder}", "hydra.sweep.subdir=."]
            sys.argv = [arguments[0], *line.flags, *line.overrides, *_HYDRA, *sweep]
            hydra.main(version_base=None, config_path=str(CONF), config_name=name)(
                _with_arguments(job, arguments, everything)
            )()
    except Exception as error:
        if everything:
            raise
        _exit(error, kind)
    sys.exit(status)


def _with_arguments(
    job: Callable[[DictConfig], None], arguments: list[str], everything: bool
) -> Callable[[DictConfig], None]:
    """The job as Hydra calls it: with the arguments a person typed, and ending the process at once when it fails."""

    def run(composed: DictConfig) -> None:
        sys.argv = arguments
        try:
            with messages():
                job(composed)
        except KeyboardInterrupt:
            print("interrupted: what had run is recorded", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except (ConfigError, MachineError, TrainingDiverged, OSError, OmegaConfBaseException) as error:
            if everything:
                raise
            _exit(error, Config)

    return run


def _exit(error: Exception, kind: type[Config]) -> NoReturn:
    if isinstance(error, HydraException | OmegaConfBaseException):
        line, status = _hydra_line(error, kind), 2
    elif isinstance(error, ConfigError):
        line, status = str(error), 2
    elif isinstance(error, OSError):
        line, status = f"the machine failed: {error}; what had been recorded is safe", 1
    elif isinstance(error, MachineError | TrainingDiverged):
        line, status = str(error), 1
    else:
        raise error
    print(f"error: {printable(without_credentials(' '.join(line.split())))}", file=sys.stderr)
    sys.exit(status)


def _hydra_line(error: Exception, kind: type[Config]) -> str:
    text = str(error)
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        return f"{unknown[1]}: unknown key; {nearest_key(unknown[1], known_keys(kind))}"
    missing = re.search(r"Could not find '([^']+)'\n\nAvailable options in '([^']+)':\n((?:\t.*\n)+)", text)
    if missing:
        group, _, option = missing[1].rpartition("/")
        return f"{group}={option}: no such file in conf/{group}; must be one of {', '.join(missing[3].split())}"
    cause = f" ({error.__cause__})" if isinstance(error.__cause__, OmegaConfBaseException) else ""
    return text + cause


def _plain(composed: DictConfig, kind: type[Config], line: CommandLine) -> dict[str, Any]:
    """The composed config as plain values, with `tracking.root` below the repository and `data.path` absolute."""
    tree: Any = OmegaConf.to_container(composed, resolve=False)
    tree.pop("experiment", None)
    line.restore(tree)
    groups = [group for group in ("data", "model", "training", "tracking") if group in kind.model_fields]
    missing = [group for group in groups if not isinstance(tree.get(group), dict)]
    if missing:
        raise ConfigError(f"{missing[0]}: missing; every command needs this group of conf/")
    root, path = tree["tracking"].get("root"), tree.get("data", {}).get("path")
    if isinstance(root, str):
        tree["tracking"]["root"] = str(REPOSITORY / expand_user(root))
    if isinstance(path, str) and path != "mnist":
        tree["data"]["path"] = str(expand_user(path).absolute())
    plain: dict[str, Any] = tree
    return plain


def settled(config: TrackingConfig) -> int:
    """The exit status of a command that has done its work: 1, with one line, if its store did not take all records."""
    line = pending_message(config)
    if line:
        print(f"error: {line}", file=sys.stderr)
    return 1 if line else 0


@contextlib.contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Holds back the signals that end a process until the function it gives is called, where it is safe to end.

    An exception in the middle of a database's transaction could leave the records locked. A second signal ends at once.
    """

    def end() -> None:
        if received:
            end_process(received[0])

    with capture_signals(lambda: None, end) as received:
        yield end
    end()
