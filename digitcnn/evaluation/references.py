"""Which recorded run a person means: the champion, the best trial of a study, or a run by its id."""

from __future__ import annotations

import re

from digitcnn import study, tracking
from digitcnn.config import StudyReference, TrackingConfig
from digitcnn.errors import ConfigError

_SHORTEST = 6
_WORDS = ("champion", "best with study=NAME", "a run id", f"at least its first {_SHORTEST} characters")


def is_manifest_file(reference: str) -> bool:
    """Whether a run is given as the file of a frozen one."""
    return reference.endswith((".yaml", ".yml"))


def find_run(
    store: tracking.Store, reference: str, of: StudyReference, config: TrackingConfig, key: str = "run"
) -> str:
    """The id of the champion's run, of the best trial's, or of the run that has this id or alone begins with it.

    Raises ConfigError, which names the config's `key`, if there is no such run or more than one.
    """
    if reference == "champion":
        return tracking.champion_run(store)
    if reference == "best":
        return _best(of, config)
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},32}}", reference):
        # Only `run` may be a file; `compare` puts recorded runs side by side.
        words = [*_WORDS, "a frozen run's FILE.yaml"] if key == "run" else _WORDS
        raise ConfigError(f"{key}={reference}: must be {', '.join(words[:-1])}, or {words[-1]}")
    found = store.client.search_runs([store.experiment_id], f"attributes.run_id LIKE '{reference}%'", max_results=2)
    if not found:
        raise ConfigError(f"{key}={reference}: no such run is recorded")
    if len(found) > 1:
        raise ConfigError(f"{key}={reference}: several runs begin with that; give more of the id")
    return str(found[0].info.run_id)


def _best(of: StudyReference, config: TrackingConfig) -> str:
    """The run of the trial with the best first objective."""
    opened = study.recorded_study(of, config.folder)
    with study.storage_errors(config.folder):
        best = study.best_trial(opened)
    if best is None:
        raise ConfigError(f"study.name={of.name}: no trial of it has completed yet")
    return str(best.record.run_id)
