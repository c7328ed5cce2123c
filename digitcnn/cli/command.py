"""Run a command: its config composed by Hydra, one job or many, and their end: exit status and one line."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from digitcnn.cli.arguments import CommandLine, parse_arguments, showable, without_secrets, without_typed_credentials
from digitcnn.cli.composition import adds_unlisted, config_of, hydra_line, set_up_hydra
from digitcnn.cli.display import training_display
from digitcnn.cli.help import command_help
from digitcnn.config import AnyConfig, Config, StudyReference, TrackingConfig, TrainingConfig, known_keys
from digitcnn.errors import RECORDS_SAFE, AlreadyRecorded, ConfigError, MachineError, StoreAway, TrainingDiverged
from digitcnn.output import lost_output, messages, survive_readers
from digitcnn.signals import capture_signals, end_in_order, end_process
from digitcnn.tracking import pending_message
from digitcnn.values import Decision, EpochMetrics

# Any other error is one of ours, and shown with its traceback.
KNOWN_ERRORS = (ConfigError, MachineError, TrainingDiverged, OSError, HydraException, OmegaConfBaseException)

_LAUNCHERS = ("hydra._internal.core_plugins.basic_launcher", "hydra_plugins.hydra_joblib_launcher._core")


def run_command(
    name: str,
    schema: type[AnyConfig],
    task: Callable[[AnyConfig], int],
    *,
    arguments: Sequence[str] | None = None,
    config_path: Path | None = None,
) -> NoReturn:
    """Compose NAME.yaml with the arguments, do the task with it and exit with its status.

    `config_path` is a folder of further configs, which come before digitcnn's own. Where the schema knows a study by
    its name alone, study=NAME means study.name.

    A person's mistake exits with 2 and a failing machine with 1, each with one line; a multirun of which some jobs
    failed with 1; a signal with 128 and its number: Ctrl-C 130, SIGTERM 143, a closed terminal 129.
    """
    typed = list(sys.argv[1:] if arguments is None else arguments)
    everything = os.environ.get("HYDRA_FULL_ERROR") == "1"
    # Hydra would print its own many lines and exit with 1; this makes it raise instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    survive_readers()
    end_in_order()
    # From here on nobody sees a credential that was typed: no key takes an address with one. Hydra alone is given the
    # values of secrets, such as a variable of its jobs' environment.
    typed = [without_typed_credentials(argument) for argument in typed]
    sys.argv = [*(sys.argv[:1] if arguments is None else ["digitcnn", name]), *map(without_secrets, typed)]
    for launcher in _LAUNCHERS:
        logging.getLogger(launcher).addFilter(_make_showable)
    with _temporary_folder() as folder:
        jobs = Path(folder, "jobs")
        jobs.mkdir()
        try:
            if [key for key in known_keys(schema) if key.startswith("study.")] == ["study.name"]:
                # conf/study/ is a group of sweeps; here a study is one that was recorded, whatever its name.
                typed = [re.sub(r"^study=", "study.name=", argument) for argument in typed]
            line = parse_arguments(typed, schema)
            job = _job(task, schema, line, everything, jobs)
            set_up_hydra(folder)
            primary = None if config_path is None else str(config_path)
            main = hydra.main(version_base=None, config_path=primary, config_name=name)(job)
            if line.flags["help"]:
                print(command_help(name, typed, config_path))
            else:
                while True:
                    sys.argv = [sys.argv[0], *line.argv()]
                    try:
                        main()
                        break
                    except HydraException as error:
                        if any(jobs.iterdir()) or not adds_unlisted(error, schema, line):
                            raise
        except KeyboardInterrupt:
            _say("interrupted: what had run is recorded")
            sys.exit(128 + signal.SIGINT)
        except Exception as error:
            if everything:
                raise
            status = tell(error, schema)
            # Before a job has begun nothing but what was typed is to blame, whatever Hydra makes of it.
            sys.exit(1 if any(jobs.iterdir()) else status)
        sys.exit(_ended(jobs))


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    except OSError as error:
        _say(f"error: no folder for temporary files: {error.strerror or error}; set TMPDIR to one")
        sys.exit(1)


def _make_showable(record: logging.LogRecord) -> bool:
    """Let a launcher's line name the overrides of its jobs without what nobody should see."""
    record.msg, record.args = showable(record.getMessage().expandtabs(4)), ()
    return True


def _job(
    task: Callable[[AnyConfig], int], schema: type[AnyConfig], line: CommandLine, everything: bool, jobs: Path
) -> Callable[[DictConfig], int]:
    """Return the task as Hydra calls it, here or in a process of a launcher: of a single run, it ends the process.

    A job of a multirun leaves its overrides and its status in a file of the folder `jobs`, and others go on.
    """
    shown, folder = sys.argv, Path.cwd()

    @functools.wraps(task)
    def run(composed: DictConfig) -> int:
        sys.argv = shown
        settings, many = HydraConfig.get(), is_multirun()
        # Unresolved: an interpolation that leads nowhere is for the task to say.
        overrides = OmegaConf.to_container(settings.overrides.task)
        kept_in = jobs / str(settings.job.num if many else 0)
        kept_in.write_text(f"1 {' '.join(showable(str(override)) for override in overrides or ())}")
        try:
            with messages():
                status = task(config_of(composed, schema, line, folder))
        except AlreadyRecorded as error:
            print(error)
            kept_in.write_text("recorded")
            return 0
        except Exception as error:
            if everything:
                raise
            status = tell(error, schema) if isinstance(error, KNOWN_ERRORS) else 1
            if not isinstance(error, KNOWN_ERRORS):
                traceback.print_exc()
        if not many or status >= 128:
            sys.exit(status)
        kept_in.write_text(f"{min(status, 1)}{kept_in.read_text()[1:]}")
        return status

    return run


def is_multirun() -> bool:
    """Return True within a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _ended(jobs: Path) -> int:
    """Return the exit status of a multirun: 1, with one line that names them, if some of its jobs failed."""
    ends = {int(path.name): path.read_text().partition(" ") for path in jobs.iterdir()}
    failed = [f"{number} ({overrides})" for number, (status, _, overrides) in sorted(ends.items()) if status == "1"]
    recorded = sum(status == "recorded" for status, _, _ in ends.values())
    if recorded:
        print(f"{recorded} of {len(ends)} were recorded before; all=true trains them again")
    if failed:
        _say(f"error: {len(failed)} of {len(ends)} jobs failed: {', '.join(failed)}")
    return 1 if failed else 0


def tell(error: Exception, schema: type[Config]) -> int:
    """Say in one line what went wrong and return the exit status: 1 for a failing machine, 2 for a mistake."""
    text, status = str(error), 2
    if isinstance(error, HydraException | OmegaConfBaseException):
        text = hydra_line(error, schema)
    elif text == "[Errno 2] No such file or directory":  # of no file: it asked where it is
        text = "the folder that this is run in is gone; change to another one"
    elif isinstance(error, OSError):
        text, status = f"the machine failed: {error}; {RECORDS_SAFE}", 1
    elif isinstance(error, MachineError | TrainingDiverged):
        status = 1
    elif not isinstance(error, ConfigError | ValueError | YAMLError):
        text = f"{type(error).__name__}: {error}"
    _say(f"error: {showable(' '.join(text.split()))}")
    return status


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def settled(config: TrackingConfig, study: str | None = None) -> int:
    """Return the exit status of a command that has done its work: 1, with one line, if its store did not take all.

    Before that, describe the study that it worked on in MLflow's UI.
    """
    if study is not None:
        from digitcnn import report

        # Of a store that is away the line below says enough.
        with contextlib.suppress(StoreAway):
            report.present_study(StudyReference(name=study), config)
    line = pending_message(config)
    if line:
        _say(f"error: {line}")
    return 1 if line else 0


def delivered(status: int) -> int:
    """Return the exit status of a command whose result is what it printed: 1, with one line, if that was not written.

    Not so if the reader went away, who wanted no more.
    """
    lost = lost_output()
    if lost is None:
        return status
    _say(f"error: standard output is not complete: {lost.strerror}")
    return status or 1


@contextlib.contextmanager
def training_callbacks(
    config: TrainingConfig, backend: str
) -> Iterator[tuple[Callable[[EpochMetrics], Decision], Callable[[int, float], None]]]:
    """Show a run's epochs while the body lasts; yield what training calls after an epoch and within one.

    Signals that end a process are held back until then, where it is safe to end: an exception in the middle of a
    database's transaction could leave the records locked. A second signal ends at once.
    """

    def end_if_asked() -> None:
        if received:
            end_process(received[0])

    def on_epoch(metrics: EpochMetrics) -> Decision:
        shown.on_epoch(metrics)
        end_if_asked()
        return "continue"

    def on_progress(epoch: int, fraction: float) -> None:
        shown.on_progress(epoch, fraction)
        end_if_asked()

    with training_display(config, backend) as shown, capture_signals(lambda: None, end_if_asked) as received:
        yield on_epoch, on_progress
    end_if_asked()
