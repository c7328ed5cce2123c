"""End what is at work on a study, in order: `digitcnn stop study=NAME`."""

import time

from digitcnn import study
from digitcnn.config import ReportConfig
from digitcnn.errors import ConfigError


def main(config: ReportConfig) -> int:
    """Ask the process at work on a study to end with its present epochs, and wait for it; return the exit status.

    Raises ConfigError if none is.
    """
    name, folder = config.study.name, config.tracking.folder
    owner = study.owner(folder, name)
    if owner is None:
        study.recorded_study(config.study, folder)
        raise ConfigError(
            f"study.name={name}: nothing is at work on it; digitcnn status study={name} says how far it is"
        )
    study.stop_file(folder, name).touch()
    print(f"{owner} ends with its present epochs ...", flush=True)
    while study.owner(folder, name) == owner:
        time.sleep(0.2)
    print("ended; the same command goes on where it was")
    return 0
