"""The report of a study: its page and its tables, written to files and recorded on the study's run."""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import io
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitcnn import evaluation, study, tracking
from digitcnn.config import ReportConfig
from digitcnn.errors import ConfigError
from digitcnn.files import write_atomically
from digitcnn.records import Artifact, Column, IdentityKey, Metric
from digitcnn.report import charts, search, text
from digitcnn.report.record import StudyRecord, most_confident_mistakes, read_study
from digitcnn.report.views import present

_MAX_MISTAKES = 24
# The part of plotly.js that draws our charts, a third of the whole that plotly's Python package brings; of the same
# version: `npm pack plotly.js-cartesian-dist-min@VERSION`.
_PLOTLY = "plotly-cartesian.min.js"


def write_report(config: ReportConfig) -> Path:
    """Write the report of a study, record it on the study's run, and return the page's path.

    Raise ConfigError, having written nothing, if there is no such study.
    """
    folder = config.tracking.reports(config.study.name)
    with tracking.store_errors(config.tracking), study.storage_errors(config.tracking.folder):
        store = tracking.open_recorded(config.tracking, f"study.name={config.study.name}")
        found = read_study(store, config.study, config.tracking)
        contents = {
            Artifact.REPORT_PAGE: page(found, store),
            Artifact.REPORT_TEXT: text.summary(found, search.early_sentence(search.early_epochs_of(found))),
            Artifact.LEADERBOARD: found.table.to_csv(index=False),
            Artifact.CURVES: found.curves.to_csv(index=False),
        }
        for name, content in contents.items():
            write_atomically(folder / name, content, "the study is recorded")
        if found.parent_run_id is not None and found.experiment_id is not None:
            tracking.put_files(store, found.parent_run_id, contents)
        present(found, store)
    return folder / Artifact.REPORT_PAGE


def page(found: StudyRecord, store: tracking.Store) -> str:
    """Return the page as HTML: text, tables, pictures and charts in one file that asks for nothing else."""
    import jinja2

    drawn = {name: figure for name, draw in drawings(found).items() if (figure := draw()) is not None}
    champion, mistakes = _champion(found, store, drawn)
    library, drawing = ((files("digitcnn") / f"templates/{name}").read_text("utf-8") for name in (_PLOTLY, "draw.js"))
    objectives = [charts.title_of(name) for name in found.objectives]
    values = {
        "library": _packed(library),
        "drawing": drawing,
        "text": text,
        "charts": charts,
        "search": search,
        "early": search.early_epochs_of(found),
        "ablation_texts": evaluation.ablation_texts,
        "found": found,
        "baseline_trial": study.baseline_trial_number(found.table),
        "written": time.strftime("%Y-%m-%d %H:%M"),
        "histories": [(f"history{index}", name) for index, name in enumerate(objectives)],
        "slices": [
            (objective, [name for name in drawn if name.startswith(f"slice{index}_")])
            for index, objective in enumerate(objectives)
        ],
        "tradeoffs": [(name, title) for name, title, _, _ in _tradeoffs(found)],
        "champion": champion,
        "digits": mistakes,
        "cut": [name for name, figure in drawn.items() if name.startswith("curves") and figure.layout.yaxis.range],
        "heights": {name: figure.layout.height for name, figure in drawn.items()},
        "figures": _packed(charts.as_json(drawn)),
        "policy": _policy((library, drawing)),
    }
    loader = jinja2.PackageLoader("digitcnn")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html").render(values)


def html_summary(found: StudyRecord) -> str:
    """Return a study in short as HTML: its finding and the first of its leaderboard."""
    lines = [f"Study {found.study.study_name}: {text.state(found)}", *text.abstract(found)]
    table = found.table.drop(columns=[Column.RUN_ID, Column.NOTE], errors="ignore").head()
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines) + table.to_html(index=False, na_rep="")


def _packed(text: str) -> str:
    """Return a text as draw.js unpacks it: compressed, in letters that HTML leaves as they are."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _policy(scripts: Iterable[str]) -> str:
    """Return the page's content security policy: run these scripts and no others, and fetch nothing."""
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def drawings(found: StudyRecord) -> dict[str, Callable[[], Any]]:
    """Return the functions that draw the charts of a study's trials, by name; without those that there is no data for.

    The chart of the parameters' importance is None where too few trials have completed.
    """
    made: dict[str, Callable[[], Any]] = {}
    best, baseline = study.best_trial_number(found.table), study.baseline_trial_number(found.table)
    for name in (Metric.VALIDATION_ACCURACY, Metric.VALIDATION_LOSS):
        if found.curves[name].notna().any():
            made[f"curves_{name}"] = partial(charts.learning_curves, found.curves, name, best, baseline)
    if found.confirmation is not None and found.confirmation.table[Column.DIFFERENCE].notna().any():
        made["intervals"] = partial(charts.intervals, found.confirmation.table)
        made["candidates"] = partial(search.seed_curves, found.confirming_curves)
    if found.ablation is not None:
        made["ablation"] = partial(charts.intervals, found.ablation, bars=True)
    if found.completed.empty:
        return made
    shown = charts.with_chart_units(found.study)
    if len(found.objectives) == 1:
        made["tuning"] = partial(search.tuning_curve, found)
    for index in range(len(found.objectives)):
        made[f"history{index}"] = partial(charts.history, shown, index)
        for parameter in found.identity[IdentityKey.SPACE]:
            made[f"slice{index}_{parameter}"] = partial(charts.slice_of, shown, index, parameter)
    made["parallel"] = partial(charts.parallel_coordinates, shown, found.table)
    made["importances"] = partial(charts.importances, shown)
    for name, _, x, y in _tradeoffs(found):
        made[name] = partial(charts.tradeoff, found.table, x, y, baseline)
    return made


def _tradeoffs(found: StudyRecord) -> list[tuple[str, str, str, str]]:
    """Return the pairs of measures to draw against each other: chart's name and title, horizontal, vertical measure."""
    pairs = [(Metric.VALIDATION_ACCURACY, Metric.CPU_SECONDS)]
    for place, name in enumerate(found.objectives):
        pairs += [(name, other) for other in found.objectives[place + 1 :] if {name, other} != set(pairs[0])]
    titles = {name: charts.title_of(name).partition(" (")[0] for pair in pairs for name in pair}
    return [
        (f"tradeoff{i}", f"{titles[y][0].upper()}{titles[y][1:]} against {titles[x]}", x, y)
        for i, (y, x) in enumerate(pairs)
    ]


def _champion(
    found: StudyRecord, store: tracking.Store, drawn: dict[str, Any]
) -> tuple[list[str], list[tuple[dict[str, Any], str]]]:
    """Return sentences on the champion and its mistakes with their pictures; add its confusion matrix to the charts."""
    if found.confirmation is None:
        return [text.of_champion(found, 0, 0)], []
    manifest = found.confirmation.manifest
    predicted = tracking.read_predictions(store, manifest.run_id)
    classes = 1 + int(predicted[[Column.LABEL, Column.PREDICTED]].max().max())
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (predicted[Column.LABEL], predicted[Column.PREDICTED]), 1)
    drawn["confusion"] = charts.confusion(counts)
    lines = [text.of_champion(found, len(predicted) - int(counts.trace()), len(predicted))]
    try:
        mistakes = most_confident_mistakes(manifest, predicted, _MAX_MISTAKES)
    except ConfigError as error:
        return [*lines, f"The images cannot be shown: {error}."], []
    return lines, [(each, _data_url(pixels)) for each, pixels in mistakes]


def _data_url(pixels: NDArray[np.uint8]) -> str:
    """Return a picture, dark on light as on paper, as a data URL of its PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(255 - pixels).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
