"""Reading the records: runs, their metrics, files and models, and the champion."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from digitcnn.config import RunConfig, TrackingConfig
from digitcnn.errors import ConfigError, MachineError
from digitcnn.records import Artifact, Tag
from digitcnn.tracking.client import Store, artifact_errors, error_cause, is_refusal, open_store, with_retries
from digitcnn.tracking.operations import deliver, models_of
from digitcnn.values import EpochMetrics

if TYPE_CHECKING:
    import pandas as pd

CHAMPION_MODEL = "digitcnn"
CHAMPION_ALIAS = "champion"
_MAX_RUNS = 1000
_MIN_ID = 6
RUN_IDS = ("a run id", f"at least its first {_MIN_ID} characters")
# MLflow limits the runs and the values of one request for metric histories.
_MAX_HISTORIES = 100
_MAX_VALUES = 25_000


def open_recorded(config: TrackingConfig, wanted: str) -> Store:
    """Open the store in which `wanted` (KEY=VALUE) is searched, and deliver what is queued for it.

    Raises ConfigError, and creates nothing, if nothing is recorded yet.
    """
    if config.uri is None and not (config.folder / "mlflow.db").exists():
        raise ConfigError(f"{wanted}: nothing is recorded in {config.folder}")
    store = open_store(config, reading=True)
    deliver(store)
    return store


def read_text(store: Store, run_id: str, name: str) -> str:
    """Return a text file of a run. Raises MachineError if it cannot be read, and as `artifact_errors` does."""
    try:
        with artifact_errors(store):
            return Path(store.client.download_artifacts(run_id, name)).read_text()
    except OSError as error:
        raise MachineError(f"run {run_id}: its {name} cannot be read ({error}); the records are incomplete") from None


def study_runs(store: Store, study: str, tag: str | None = None) -> list[Any]:
    """Return all runs of a study: its own, its trials' and its confirmation's, of any status; or those with a tag."""
    tagged = f" AND tags.{tag} LIKE '%'" if tag else ""
    return search_runs(store, f"tags.{Tag.STUDY} = '{study}'{tagged}")


def runs_below(store: Store, parent: str, filters: str) -> list[Any]:
    """Return the runs below a study's run, those of its trials' further seeds included, that pass MLflow's filter.

    By the run and not by the study's name: another study in this MLflow store may have the same name.
    """
    own = (f"tags.`{name}` = '{parent}' and {filters}" for name in (Tag.PARENT, Tag.SEED_OF))
    return [run for each in own for run in search_runs(store, each)]


def search_runs(store: Store, filters: str) -> list[Any]:
    """Return the runs of every experiment that pass MLflow's filter, the newest first.

    A study that was resumed with another `tracking.experiment` has runs in both.
    """
    experiments = _pages(lambda token: store.client.search_experiments(page_token=token))
    ids = [each.experiment_id for each in experiments]
    return _pages(lambda token: store.client.search_runs(ids, filters, max_results=_MAX_RUNS, page_token=token))


def _pages(ask: Callable[[str | None], Any]) -> list[Any]:
    """Return what all pages of an answer hold; `ask` returns the page of a token, or the first one."""
    from mlflow.utils import get_results_from_paginated_fn

    return list(get_results_from_paginated_fn(lambda _, token: ask(token), _MAX_RUNS))  # type: ignore[no-untyped-call]


def filtered_runs(store: Store, filters: str) -> list[Any]:
    """Return what `search_runs` finds with a filter that a person typed. Raises ConfigError if MLflow refuses it."""
    try:
        return search_runs(store, filters)
    except Exception as error:
        if not is_refusal(error):
            raise
        raise ConfigError(f"filter: {error_cause(error)}") from None


def run_folders(store: Store, folder: Path, runs: Sequence[Any]) -> list[Path]:
    """Return the folders, within a records folder, of the files of some runs and of their models.

    A store that was made by somebody else may name any place as a run's: others than a run's own are left out.
    """
    root = (folder / "artifacts").resolve()
    places = [(run.info.artifact_uri, run.info.run_id) for run in runs]
    places += [(model.artifact_location, model.model_id) for model in run_models(store, runs)]
    return [path for address, name in places for path in _own_folder(address, name, root)]


def _own_folder(address: str, name: str, root: Path) -> list[Path]:
    """Return the folder called `name` that holds an address, if it is within the root."""
    path = Path(unquote(urlsplit(address).path)).parent
    own = address.startswith("file:") and path.name == name and path.resolve().is_relative_to(root)
    return [path] if own and not path.is_symlink() else []


def run_models(store: Store, runs: Sequence[Any]) -> list[Any]:
    """Return the recorded models of some runs."""
    ids = {run.info.run_id for run in runs}
    experiments = sorted({run.info.experiment_id for run in runs})
    if not experiments:
        return []
    models = _pages(lambda token: store.client.search_logged_models(experiments, page_token=token))
    return [model for model in models if model.source_run_id in ids]


def find_runs(store: Store, filters: str) -> list[Any]:
    """Return what `search_runs` finds; wait for a store that is away."""
    return with_retries(store, lambda: search_runs(store, filters))


def find_run_id(store: Store, beginning: str, key: str, allowed: Sequence[str] = RUN_IDS) -> str:
    """Return the id of the run that begins so. Raises ConfigError if there is no such run, or more than one.

    It names the config's `key`, and what is `allowed` there.
    """
    if not re.fullmatch(rf"[0-9a-f]{{{_MIN_ID},32}}", beginning):
        raise ConfigError(f"{key}={beginning}: must be {', '.join(allowed[:-1])}, or {allowed[-1]}")
    found = search_runs(store, f"attributes.run_id LIKE '{beginning}%'")
    if not found:
        raise ConfigError(f"{key}={beginning}: no such run is recorded")
    if len(found) > 1:
        raise ConfigError(f"{key}={beginning}: several runs begin with that; give more of the id")
    return str(found[0].info.run_id)


def runs_of_ids(store: Store, run_ids: Sequence[str]) -> dict[str, Any]:
    """Return runs by their ids, without those that are not recorded or were deleted."""
    found = []
    for first in range(0, len(run_ids), _MAX_HISTORIES):
        ids = ", ".join(f"'{run_id}'" for run_id in run_ids[first : first + _MAX_HISTORIES])
        found += search_runs(store, f"attributes.run_id IN ({ids})")
    by_id = {run.info.run_id: run for run in found}
    return {run_id: by_id[run_id] for run_id in run_ids if run_id in by_id}


def runs_place(experiment_id: str) -> str:
    """Return what follows the address of MLflow's UI to open an experiment's runs, not a page for language models."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def is_kept(store: Store, run_id: str) -> bool:
    """Return True if a run is recorded, be it in MLflow's trash; False once `mlflow gc` has removed it from there."""
    from mlflow.exceptions import MlflowException

    try:
        return bool(store.client.get_run(run_id))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False


def has_run(store: Store, run_id: str) -> bool:
    """Return True if a run is recorded and has not been deleted."""
    return bool(find_runs(store, f"attributes.run_id = '{run_id}'"))


def read_epochs(store: Store, run_id: str) -> tuple[EpochMetrics, ...]:
    """Return the epochs of a run; none if it has not recorded them as a file, as earlier versions did not."""

    def read() -> str:
        deliver(store, run_id)
        recorded = Artifact.EPOCHS in store.artifact_names(run_id)
        return read_text(store, run_id, Artifact.EPOCHS) if recorded else "[]"

    return tuple(EpochMetrics(**each) for each in json.loads(with_retries(store, read)))


def is_running(store: Store, run_id: str) -> bool:
    """Return True if a run is RUNNING."""
    return bool(find_runs(store, f"attributes.run_id = '{run_id}' and attributes.status = 'RUNNING'"))


def metric_histories(store: Store, run_ids: Sequence[str], metric: str) -> dict[str, dict[int, float]]:
    """Return a metric's value by run and step: many runs in one query, where MLflow's client asks once for each."""
    found: dict[str, dict[int, float]] = {run_id: {} for run_id in run_ids}
    for first in range(0, len(run_ids), _MAX_HISTORIES):
        some = run_ids[first : first + _MAX_HISTORIES]
        points = _histories(store, some, metric)
        if len(points) >= _MAX_VALUES:
            # The answer was cut off.
            points = [(each, p.step, p.value) for each in some for p in store.client.get_metric_history(each, metric)]
        for run_id, step, value in points:
            found[run_id][step] = value
    return found


def _histories(store: Store, run_ids: Sequence[str], metric: str) -> list[tuple[str, int, float]]:
    """Return run, step and value of up to `_MAX_VALUES` points, from the store behind the client."""
    from mlflow.utils.rest_utils import http_request_safe

    behind = store.client._tracking_client.store
    if hasattr(behind, "get_metric_history_bulk"):
        points = [point.to_dict() for point in behind.get_metric_history_bulk(run_ids, metric, _MAX_VALUES)]
    else:
        wanted = {"run_id": list(run_ids), "metric_key": metric, "max_results": _MAX_VALUES}
        path = "/ajax-api/2.0/mlflow/metrics/get-history-bulk"
        answer = http_request_safe(behind.get_host_creds(), path, "GET", params=wanted)  # type: ignore[no-untyped-call]
        points = answer.json()["metrics"]
    return [(point["run_id"], int(point["step"]), float(point["value"])) for point in points]


def was_trained_with(run: Any, config: RunConfig) -> bool:
    """Return True if a run had this config, a key that there was not its default; threads change speed only."""
    recorded = config.completed(run.data.params) | {"training.threads": str(config.training.threads)}
    return all(recorded[name] == str(value) for name, value in config.parameters().items())


def same_training(store: Store, config: RunConfig, data_sha256: str) -> str | None:
    """Return the newest finished run of the command train with a config and its data, if there is one."""
    parameters = config.parameters()
    # Some of them spare thousands of runs; all would be too many joins for a database.
    some = ("model.name", "training.seed", "training.epochs", "training.batch_size")
    filters = ["attributes.status = 'FINISHED'", f"tags.{Tag.DATA_SHA256} = '{data_sha256}'"]
    filters += [f"params.`{name}` = '{parameters[name]}'" for name in some]
    for run in find_runs(store, " AND ".join(filters)):
        if was_trained_with(run, config) and not {Tag.STUDY, Tag.REPRODUCES} & set(run.data.tags):
            return str(run.info.run_id)
    return None


def trained_run(store: Store, run_id: str) -> Any:
    """Return a run; of a trial that took over the result of an earlier one, the run that was trained."""
    run = store.client.get_run(run_id)
    original = run.data.tags.get(Tag.SAME_AS_RUN)
    return run if original is None else store.client.get_run(original)


def read_predictions(store: Store, run_id: str) -> pd.DataFrame:
    """Return the predicted class of every test image: image, label, predicted, probability."""
    import pandas as pd

    return pd.read_csv(io.StringIO(read_text(store, run_id, Artifact.PREDICTIONS)))


def logged_model(store: Store, run_id: str) -> Any:
    """Return the logged model of a run. Raises ConfigError if it has none."""
    models = models_of(store.client, run_id)
    if not models and Tag.PREFIX_OF in store.client.get_run(run_id).data.tags:
        again = f"digitcnn train run={run_id}"
        raise ConfigError(
            f"run={run_id}: has no model, as it was read off a longer run; {again} makes one with a model"
        )
    if not models:
        raise ConfigError(f"run={run_id}: has no model; runs that were pruned or failed keep none")
    return models[0]


def model_file(store: Store, model_id: str, name: str) -> Path:
    """Return the path of a recorded model's file on this machine; a server's file is fetched first."""
    import mlflow

    location = store.client.get_logged_model(model_id).artifact_location
    return Path(mlflow.artifacts.download_artifacts(f"{location}/{name}", tracking_uri=store.uri))


def champion_run(store: Store) -> str:
    """Return the id of the champion's run. Raises ConfigError if there is no champion."""
    models = store.client.search_registered_models(f"name = '{CHAMPION_MODEL}'")
    version = models[0].aliases.get(CHAMPION_ALIAS) if models else None
    if version is None:
        raise ConfigError("run=champion: there is none yet; digitcnn confirm study=NAME finds it")
    return str(store.client.get_model_version(CHAMPION_MODEL, version).run_id)


def register_champion(store: Store, run_id: str, tags: Mapping[str, str], card: str) -> str:
    """Make the model of a run the champion, with tags and a model card; return its version."""
    if not store.client.search_registered_models(f"name = '{CHAMPION_MODEL}'"):
        store.client.create_registered_model(CHAMPION_MODEL)
    known = store.client.search_model_versions(f"name = '{CHAMPION_MODEL}' and run_id = '{run_id}'")
    if known:
        version = str(known[0].version)
        store.client.update_model_version(CHAMPION_MODEL, version, card)
        for key, value in tags.items():
            store.client.set_model_version_tag(CHAMPION_MODEL, version, key, value)
    else:
        model = logged_model(store, run_id)
        created = store.client.create_model_version(
            CHAMPION_MODEL, model.artifact_location, run_id, dict(tags), description=card, model_id=model.model_id
        )
        version = str(created.version)
    store.client.set_registered_model_alias(CHAMPION_MODEL, CHAMPION_ALIAS, version)
    return version
