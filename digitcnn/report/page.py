"""The report of a study: its page and its tables, written to files and recorded on the study's run."""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from digitcnn import study, tracking
from digitcnn.config import ReportConfig
from digitcnn.errors import ConfigError
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Metric, is_maximized
from digitcnn.report import charts, record
from digitcnn.report import text as text_module
from digitcnn.report.record import StudyRecord
from digitcnn.report.text import of_champion, summary

_TEMPLATES = files("digitcnn") / "templates"
_MOST_MISTAKES = 24


def write_report(config: ReportConfig) -> Path:
    """Writes the report of a study, records it on the study's run, and returns the page's path.

    Raises ConfigError, having written nothing, if there is no such study.
    """
    folder = config.tracking.folder / "reports" / config.study.name
    url = study.storage_url(config.tracking.folder)
    with tracking.store_errors(config.tracking), study.storage_errors(url):
        store = tracking.open_recorded(config.tracking, f"study.name={config.study.name}")
        found = record.read_study(store, config.study, config.tracking)
        texts = {
            Artifact.REPORT_PAGE: page(found, store),
            Artifact.REPORT_TEXT: summary(found),
            Artifact.LEADERBOARD: found.table.to_csv(index=False),
            Artifact.CURVES: found.curves.to_csv(index=False),
        }
        for name, text in texts.items():
            write_atomically(folder / name, text, "the study is recorded")
        for name in texts if found.parent_run_id is not None else ():
            store.client.log_artifact(found.parent_run_id, str(folder / name))
    return folder / Artifact.REPORT_PAGE


def page(found: StudyRecord, store: tracking.Store) -> str:
    """The page: text, tables, pictures and charts in one file that asks for nothing else."""
    import jinja2
    from markupsafe import Markup

    drawn = _charts(found)
    champion = _champion(found, store, drawn)
    scripts = {"library": charts.library(), "drawing": (_TEMPLATES / "draw.js").read_text(encoding="utf-8")}
    objectives = [charts.title_of(name) for name in found.objectives]
    values = {
        "prose": text_module,
        "found": found,
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "histories": [(f"history{index}", name) for index, name in enumerate(objectives)],
        "slices": [
            (objective, [name for name in drawn if name.startswith(f"slice{index}_")])
            for index, objective in enumerate(objectives)
        ],
        "tradeoffs": [(name, what) for name, what, _, _ in _pairs(found)],
        "heights": {name: figure.layout.height for name, figure in drawn.items()},
        "figures": Markup(charts.as_json(drawn)),
        "policy": _policy(scripts.values()),
    }
    template = (_TEMPLATES / "report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    scripts_as_they_are = {name: Markup(text) for name, text in scripts.items()}
    return environment.from_string(template).render(values | champion | scripts_as_they_are)


def _policy(scripts: Iterable[str]) -> str:
    """What the browser may do with the page: run these scripts and no others, and fetch nothing."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def _charts(found: StudyRecord) -> dict[str, Any]:
    """The charts of the study's trials by name."""
    drawn = {}
    best, baseline = study.best_trial_number(found.table), study.baseline_trial_number(found.table)
    for name in (Metric.VALIDATION_ACCURACY, Metric.VALIDATION_LOSS):
        if found.curves[name].notna().any():
            drawn[f"curves_{name}"] = charts.learning_curves(found.curves, name, best, baseline)
    if found.confirmation is not None and found.confirmation.table["difference"].notna().any():
        drawn["intervals"] = charts.intervals(found.confirmation.table)
    if found.completed.empty:
        return drawn
    shown = charts.pictured(found.study)
    for index in range(len(found.objectives)):
        drawn[f"history{index}"] = charts.history(shown, index)
        for number, figure in enumerate(charts.slices(shown, index)):
            drawn[f"slice{index}_{number}"] = figure
    drawn["parallel"] = charts.parallel_coordinates(shown, found.table)
    importances = charts.importances(shown)
    if importances is not None:
        drawn["importances"] = importances
    for name, _, x, y in _pairs(found):
        larger = (is_maximized(x), is_maximized(y))
        drawn[name] = charts.tradeoff(found.table, x, y, larger, baseline)
    return drawn


def _pairs(found: StudyRecord) -> list[tuple[str, str, str, str]]:
    """The measures that are drawn against each other: name and title of the chart, horizontal and vertical measure."""
    pairs = [(Metric.VALIDATION_ACCURACY, Metric.CPU_SECONDS)]
    for place, name in enumerate(found.objectives):
        pairs += [(name, other) for other in found.objectives[place + 1 :] if {name, other} != set(pairs[0])]
    titles = {name: charts.title_of(name).partition(" (")[0] for pair in pairs for name in pair}
    return [(f"tradeoff{i}", f"{titles[y].capitalize()} against {titles[x]}", x, y) for i, (y, x) in enumerate(pairs)]


def _champion(found: StudyRecord, store: tracking.Store, drawn: dict[str, Any]) -> dict[str, Any]:
    """What the page says of the champion and its mistakes; adds its confusion matrix to the charts."""
    if found.confirmation is None:
        return {"champion": [of_champion(found, 0, 0)], "digits": []}
    frozen = found.confirmation.frozen
    predicted = record.predictions(store, frozen)
    classes = range(int(predicted[["label", "predicted"]].max().max()) + 1)
    counts = pd.crosstab(predicted["label"], predicted["predicted"]).reindex(index=classes, columns=classes)
    drawn["confusion"] = charts.confusion(counts.fillna(0).to_numpy(np.int64))
    wrong = int((predicted["label"] != predicted["predicted"]).sum())
    lines = [of_champion(found, wrong, len(predicted))]
    try:
        mistakes = record.mistakes(frozen, predicted, _MOST_MISTAKES)
    except ConfigError as error:
        return {"champion": [*lines, f"The images cannot be shown: {error}."], "digits": []}
    return {"champion": lines, "digits": [(each, _png(each.pixels)) for each in mistakes]}


def _png(pixels: NDArray[np.uint8]) -> str:
    """A picture, dark on light as on paper, as an address that holds it."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(255 - pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
