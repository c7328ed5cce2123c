"""A study as MLflow's UI shows it: its description and pictures, and saved views of its trials and confirming runs."""

from __future__ import annotations

import base64
import io
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optuna.trial import TrialState

from digitcnn import evaluation, study, tracking
from digitcnn.config import StudyReference, TrackingConfig
from digitcnn.drawing import BLUE, plain_style
from digitcnn.records import STUDY_VIEWS, TITLES, Artifact, Metric, Tag, is_maximized
from digitcnn.report import charts, text
from digitcnn.report.record import StudyRecord, read_study

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# MLflow's limit of an experiment's tag; a run's may be longer.
_MAX_NOTE = 5000
_MARK = "_Written by digitcnn, and again when it changes; without this line your own words stay._"
_TRIALS, _CONFIRMATIONS = STUDY_VIEWS
_NAME_WIDTH, _COLUMN_WIDTH = 180, 115
_DPI = 120
_RUN_NAME, _DESCRIPTION = "attributes.`Run Name`", "attributes.`Description`"


@dataclass(frozen=True)
class _View:
    """A saved view of MLflow's table of runs: which ones, their order, their columns, and the tag that groups them."""

    key: str
    title: str
    runs: str
    order: str
    ascending: bool
    columns: tuple[str, ...]
    group: str | None = None

    def tag(self) -> tuple[str, str]:
        """Return the experiment's tag, name and value, in which MLflow 3 keeps such a view."""
        shown = [_RUN_NAME, *self.columns]
        state = {
            "searchFilter": self.runs,
            "orderByKey": self.order,
            "orderByAsc": self.ascending,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "selectedColumns": list(self.columns),
            # Without it parameters would follow all metrics, and both the date.
            "columnOrder": [*shown, "runDateAndNestInfo", "duration"],
            "columnWidths": {
                name: _NAME_WIDTH if name in (_RUN_NAME, _DESCRIPTION) else _COLUMN_WIDTH for name in shown
            },
            "runsHiddenMode": "SHOW_ALL",
        }
        if self.group is not None:
            state["groupBy"] = {
                "aggregateFunction": "average",
                "groupByKeys": [{"mode": "tag", "groupByData": self.group}],
            }
        now = int(time.time() * 1000)
        packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
        value = {"name": self.title, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
        return f"{Tag.VIEW_PREFIX}{self.key}", json.dumps(value)

    def place(self, experiment_id: str) -> str:
        """Return what follows the UI's address to open the view."""
        return f"{tracking.runs_place(experiment_id)}&viewStateShareKey={self.key}"


def present_study(reference: StudyReference, config: TrackingConfig) -> dict[str, str]:
    """Describe a study to whoever opens it in MLflow's UI, as `present` does.

    Raise ConfigError if there is no such study, MachineError if a store fails.
    """
    with tracking.store_errors(config), study.storage_errors(config.folder):
        store = tracking.open_recorded(config, f"study.name={reference.name}")
        return present(read_study(store, reference, config), store)


def present(found: StudyRecord, store: tracking.Store) -> dict[str, str]:
    """Record a study's description, pictures and views; return the views' titles with what follows the UI's address.

    A description that a person has written stays. Returns none of a study whose MLflow run is gone.
    """
    if found.parent_run_id is None or found.experiment_id is None:
        return {}
    views = _views(found)
    for name, value in (view.tag() for view in views):
        store.client.set_experiment_tag(found.experiment_id, name, value)
    places = {view.title: view.place(found.experiment_id) for view in views}
    drawn = _pictures(found)
    if drawn:
        tracking.put_files(store, found.parent_run_id, drawn)
    if _is_ours(found.note):
        tracking.put(store, found.parent_run_id, tracking.tags({Tag.NOTE: _note(found, places)}))
    describe_experiment(store, found.experiment_id)
    return places


def describe_experiment(store: tracking.Store, experiment_id: str) -> None:
    """Record the description of an experiment, a list of its studies, unless a person has written one."""
    tags = store.client.get_experiment(experiment_id).tags
    if _is_ours(tags.get(Tag.NOTE, "")):
        store.client.set_experiment_tag(experiment_id, Tag.NOTE, _note_of_experiment(tags, store, experiment_id))


def _is_ours(note: str) -> bool:
    return not note or note.endswith(_MARK)


def _views(found: StudyRecord) -> list[_View]:
    name, objective = found.study.study_name, found.objectives[0]
    parameters = [f"params.`{each}`" for each in found.space]
    of_study = f"tags.{Tag.STUDY} = '{name}' and tags."
    measured = list(dict.fromkeys([*found.objectives, Metric.VALIDATION_ACCURACY, Metric.CPU_SECONDS]))
    if found.confirmation is not None:
        measured.insert(1, Metric.CONFIRMED_MEAN)
    # A trial's run is that of its first seed, and has the means of all by names of their own.
    mean = Metric.MEAN_SUFFIX if found.seeds > 1 else ""
    metrics = [f"metrics.`{each}{'' if each == Metric.CONFIRMED_MEAN else mean}`" for each in measured]
    # MLflow has one status, and one red cross, for a pruned run and for one that failed: its description tells.
    early = len(found.table) > len(found.completed)
    trials = _View(
        key=f"{name}{_TRIALS}",
        title=f"{name}: trials by {TITLES[objective].partition(' (')[0]}",
        runs=f"{of_study}{Tag.TRIAL} like '%'",
        order=metrics[0],
        ascending=not is_maximized(objective),
        columns=(*([_DESCRIPTION] if early else []), metrics[0], *parameters, *metrics[1:]),
    )
    if found.confirmation is None:
        return [trials]
    metrics = [f"metrics.`{each}`" for each in (Metric.TEST_ACCURACY, Metric.CPU_SECONDS)]
    seed = [each for each in ("params.`training.seed`",) if each not in parameters]
    confirmed = _View(
        key=f"{name}{_CONFIRMATIONS}",
        title=f"{name}: confirmations by test accuracy",
        runs=f"{of_study}{Tag.CONFIRMS} like '%'",
        order=metrics[0],
        ascending=False,
        columns=(metrics[0], *seed, *parameters, metrics[1]),
        group=Tag.CONFIRMS,
    )
    return [trials, confirmed]


def _note(found: StudyRecord, places: Mapping[str, str]) -> str:
    """Return the description of a study's run: the verdict and links, which MLflow shows at once, then the report."""
    links = [_link(title.rpartition(": ")[2], place) for title, place in places.items()]
    if found.confirmation is not None:
        links.append(
            _link("the champion's run", _run_place(str(found.experiment_id), found.confirmation.manifest.run_id))
        )
    links.append(
        _link("report, tables and pictures", _run_place(str(found.experiment_id), f"{found.parent_run_id}/artifacts"))
    )
    return _whole([f"**{_headline(found)}**", "", " · ".join(links), "", *text.summary(found).splitlines()[2:]])


def _headline(found: StudyRecord) -> str:
    """Return the study's result in a sentence: its champion, or the best trial until one is confirmed."""
    if found.confirmation is None:
        return study.best_against_baseline(found.table, found.objectives)
    return f"champion: {evaluation.champion_sentence(found.confirmation.table)}"


def _link(title: str, place: str) -> str:
    return f"[{title}]({place.removeprefix('/')})"


def _run_place(experiment_id: str, run: str) -> str:
    table, _, workflow = tracking.runs_place(experiment_id).partition("?")
    return f"{table}/{run}?{workflow}"


def _whole(lines: Sequence[str]) -> str:
    """Return a description of as many lines as MLflow takes, and its last line, which says whose it is."""
    kept, room = list[str](), _MAX_NOTE - len(_MARK) - 4
    for line in lines:
        room -= len(line.encode()) + 1
        if room < 0:
            kept.append("...")
            break
        kept.append(line)
    return "\n".join([*kept, "", _MARK])


def _note_of_experiment(tags: Mapping[str, str], store: tracking.Store, experiment_id: str) -> str:
    """Return the description of an experiment: its studies, the last one first, with links to their views."""
    lines = []
    for run in tracking.search_runs(store, f"tags.`{Tag.STUDY_KEY}` like '%'"):
        name, ended = run.data.tags[Tag.STUDY], run.data.tags.get(Tag.STUDY_ENDED, "at work, or cut off")
        if run.info.experiment_id != experiment_id:
            continue
        kinds = [kind for kind in STUDY_VIEWS if f"{Tag.VIEW_PREFIX}{name}{kind}" in tags]
        table = tracking.runs_place(experiment_id)
        links = [_link(kind.removeprefix("-"), f"{table}&viewStateShareKey={name}{kind}") for kind in kinds]
        lines.append(f"{', '.join([_link(name, _run_place(experiment_id, run.info.run_id)), *links])} ({ended})")
    # The first line is all that MLflow shows until it is asked for more.
    first = lines[0] if lines else "none is left"
    return _whole([f"Studies, the last one first: {first}", *(f"- {line}" for line in lines[1:])])


def _pictures(found: StudyRecord) -> dict[str, bytes]:
    """Draw the importance of the parameters, and the first objective over each of them; nothing of too few trials."""
    shown = charts.with_chart_units(found.study)
    importances = charts.importances(shown)
    if importances is None:
        return {}
    objective = charts.title_of(found.objectives[0])
    # A pruned trial may have a value too, the last that its pruner saw.
    trials = shown.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    searched = {name: [each.params[name] for each in trials] for name in found.space}
    with plain_style():
        return {
            Artifact.IMPORTANCE_PICTURE: _importance_picture(importances, objective.partition(" (")[0]),
            Artifact.SLICES_PICTURE: _slices_picture(searched, [each.values[0] for each in trials], objective),
        }


def _importance_picture(chart: Any, title: str) -> bytes:
    """Return the bars of `charts.importances`, those of the first objective, as a picture."""
    bars = chart.data[0]
    (axes,), save = _figure(1, (7, 1 + 0.45 * len(bars.y)))
    axes.barh(list(bars.y), list(bars.x), height=0.6, color=BLUE)
    axes.set(xlabel="importance (% of all)", title=f"What decides the {title}")
    return save()


def _slices_picture(points: Mapping[str, Sequence[Any]], values: Sequence[float], objective: str) -> bytes:
    """Return the trials' values of an objective over those of each parameter, side by side, as a picture."""
    every, save = _figure(len(points), (3.2 * len(points), 3.2))
    for axes, (parameter, chosen) in zip(every, points.items(), strict=True):
        numbers = all(isinstance(each, int | float) for each in chosen)
        axes.plot(chosen if numbers else [f"{each} " for each in chosen], values, "o", ms=5, alpha=0.6, color=BLUE)
        axes.set(xlabel=parameter)
    every[0].set(ylabel=objective)
    return save()


def _figure(charts: int, size: tuple[float, float]) -> tuple[list[Axes], Callable[[], bytes]]:
    """Return the axes of charts side by side, and the function that returns their picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained", dpi=_DPI)
    every = figure.subplots(1, charts, sharey=True, squeeze=False)[0]
    for axes in every:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)

    def save() -> bytes:
        file = io.BytesIO()
        figure.savefig(file)
        return file.getvalue()

    return list(every), save
