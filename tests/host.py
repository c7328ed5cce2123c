"""One host of the tests of many: `python tests/host.py CONFIG.json`, a sweep on shared stores without Keras."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from digitcnn import hosts, sweep
from digitcnn.config import SweepConfig, load
from digitcnn.errors import ConfigError, MachineError
from digitcnn.training import EpochMetrics
from tests.trainers import InstantTrainer


class Spoken:
    """A display that prints a line for everything that a test waits for."""

    def began(self, name: str, total: int, finished: int, workers: int, metric: str) -> None: ...

    def trial_began(self, worker: int, trial: int | str, parameters: dict[str, Any], epochs: int) -> None:
        print(f"began {trial}", flush=True)

    def epoch(self, worker: int, trial: int | str, metrics: EpochMetrics) -> None:
        print(f"epoch {metrics.epoch} of {trial}", flush=True)

    def trial_ended(self, worker: int | None, trial: int | str, ending: str, value: float | None, best: str) -> None:
        print(f"ended {trial} {ending}", flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


def main() -> int:
    content = json.loads(Path(sys.argv[1]).read_text())
    for name, value in content["hosts"].items():
        setattr(hosts, name, value)
    try:
        plan = sweep.plan(load(SweepConfig, content["config"]))
        result = sweep.run(plan, Spoken(), InstantTrainer(content["seconds"]))
    except (ConfigError, MachineError) as error:
        print(f"error: {error}", flush=True)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"finished {result.finished} of {result.total}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
