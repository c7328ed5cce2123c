"""The charts of a study's report: Optuna's own where it has one, drawn by plotly, all in one look."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from plotly import graph_objects as go

from digitcnn.drawing import BLUE, GREY, INK, MAX_LABELLED_CLASSES, ORANGE, SKY, mistake_shares, settle_matplotlib
from digitcnn.records import TITLES, Column, is_maximized
from digitcnn.study import pareto_ranks, study_of_trials

# Optuna's charts import it.
settle_matplotlib()

# The browser draws a chart of lines one line at a time.
MAX_LINES = 300
_MAX_PATHS = 40
# Learning curves with fewer points than this are marked, and drawn as a whole.
_MAX_UNCUT = 40
_MIN_TRIALS = 4
# Optuna advises at least five trials above PED-ANOVA's quantile, and takes a tenth of them by default.
_BEST_TRIALS = 5


def title_of(metric: str) -> str:
    """Return a metric's name with its unit."""
    return TITLES.get(metric, metric.replace("_", " "))


def scaled(metric: str, values: Any) -> Any:
    """Return values of a metric as charts show them: accuracies in percent."""
    return values * 100 if metric.endswith("accuracy") else values


def with_chart_units(study: optuna.Study) -> optuna.Study:
    """Copy a study, its objectives named and scaled as charts show them: accuracies in percent."""
    names = study.metric_names or ["value"]
    trials = []
    for trial in study.get_trials(deepcopy=False):
        copied = copy.copy(trial)
        if trial.state == TrialState.COMPLETE:
            copied.values = [scaled(name, value) for name, value in zip(names, trial.values, strict=True)]
        trials.append(copied)
    shown = study_of_trials(study.directions, trials)
    shown.set_metric_names([title_of(name) for name in names])
    return shown


def _objectives(shown: optuna.Study) -> list[str]:
    return list(shown.metric_names or [])


def _value(objective: int, sign: float = 1.0) -> Callable[[FrozenTrial], float]:
    return lambda trial: sign * float(trial.values[objective])


def history(shown: optuna.Study, objective: int) -> go.Figure:
    """Draw an objective of every completed trial in the order of the trials, and the best so far of a single one."""
    name = _objectives(shown)[objective]
    # With a target Optuna cannot tell which values are better, and draws no line.
    target = None if len(shown.directions) == 1 else _value(objective)
    figure = optuna.visualization.plot_optimization_history(shown, target=target, target_name=name)
    size = 7 if len(shown.get_trials(deepcopy=False)) < 200 else 4
    figure.update_traces(marker={"color": BLUE, "size": size}, selector={"mode": "markers"})
    figure.update_traces(name="trial", selector={"name": name})
    figure.update_traces(name="best so far", line={"color": ORANGE, "shape": "hv"}, selector={"mode": "lines"})
    return finish(figure, "trial", name)


def learning_curves(curves: pd.DataFrame, metric: str, best: int | None, baseline: int | None) -> go.Figure:
    """Draw a metric over epochs, a line per trial: those that ended early faded, best and baseline on top."""
    known = curves[curves[metric].notna()]
    plain = known[~known[Column.TRIAL].isin([best, baseline])]
    complete = plain[Column.STATE].isin(("complete", "infeasible"))
    figure = go.Figure(_bundle(plain[~complete], metric, "ended early", GREY, 0.6))
    figure.add_traces(_bundle(plain[complete], metric, "completed", BLUE, 1.0))
    looks = {baseline: ("baseline", INK, "dash"), best: (f"trial {best}, ranked first", ORANGE, "solid")}
    for number, (name, color, dash) in looks.items():
        part = known[known[Column.TRIAL] == number]
        if len(part):
            label = "baseline, ranked first" if best == baseline else name
            figure.add_trace(_curve(part, metric, name=label, line={"color": color, "width": 2.6, "dash": dash}))
    values = scaled(metric, known[metric].astype(float))
    if len(values) > _MAX_UNCUT:
        # The first epochs of the worst trials would leave a hair's breadth for what matters.
        low, high = values.quantile((0.1, 1.0) if metric.endswith("accuracy") else (0.0, 0.9))
        margin = 0.05 * (high - low)
        figure.update_yaxes(range=[low - margin, high + margin])
    figure.update_xaxes(tickformat="d", **({"dtick": 1} if curves[Column.EPOCH].max() <= 15 else {}))
    return finish(figure, "epoch", title_of(metric))


def _bundle(part: pd.DataFrame, metric: str, name: str, color: str, strength: float) -> list[Any]:
    """Return the curves of many trials as few traces, the fainter the more they are, and one for the legend."""
    if part.empty:
        return []
    trials = part[Column.TRIAL].unique()
    look: dict[str, Any] = {"line": {"color": color, "width": 1.2}, "name": name, "legendgroup": name}
    opacity = strength * float(np.clip(12 / len(trials), 0.15, 0.6))
    # A trace is one path, which does not darken where it crosses itself: several of them do.
    traces = [
        _curve(part[part[Column.TRIAL].isin(some)], metric, opacity=opacity, showlegend=False, **look)
        for some in np.array_split(trials, min(len(trials), _MAX_PATHS))
    ]
    return [*traces, go.Scatter(x=[None], y=[None], mode="lines", **look)]


def _curve(part: pd.DataFrame, metric: str, **look: Any) -> Any:
    """Return one trace for the curves of some trials, with a gap between two of them."""
    x: list[Any] = []
    y: list[Any] = []
    trials: list[Any] = []
    for trial, rows in part.groupby(Column.TRIAL):
        x += [*rows[Column.EPOCH].tolist(), None]
        y += [*scaled(metric, rows[metric].astype(float)).tolist(), None]
        trials += [trial] * (len(rows) + 1)
    hover = "trial %{customdata}, epoch %{x}: %{y:.4g}"
    mode = "lines+markers" if len(part) <= _MAX_UNCUT else "lines"
    return go.Scatter(x=x, y=y, customdata=trials, hovertemplate=hover, mode=mode, marker_size=4, **look)


def parallel_coordinates(shown: optuna.Study, table: pd.DataFrame) -> go.Figure:
    """Draw a line per completed trial through its objectives and parameters; of very many trials the best."""
    best = table[table[Column.STATE] == "complete"][Column.TRIAL].head(MAX_LINES)
    trials = shown.get_trials(deepcopy=False)
    some = study_of_trials(shown.directions, [trials[number] for number in sorted(best)])
    names = _objectives(shown)
    some.set_metric_names(names)
    figure = optuna.visualization.plot_parallel_coordinate(some, target_name=names[0])
    parameters = sorted({name for number in best for name in trials[number].params})
    labels = [name.replace(" (", "<br>(") for name in names] + [name.replace(".", ".<br>") for name in parameters]
    figure.update_xaxes(ticktext=labels, tickangle=0)
    finish(figure, None, None)
    figure.update_layout(margin={"l": 70, "r": 10, "t": 20, "b": 50}, hovermode="closest")
    (key,) = figure.select_traces({"mode": "markers"})
    # A new one: Optuna's has a tick for every single rank.
    key.marker.colorbar = _colorbar(key.marker.colorbar.title.text)
    return figure.update_yaxes(visible=False)


def importances(shown: optuna.Study) -> go.Figure | None:
    """Draw how much each parameter decides if a trial is among the best; None while there are too few trials."""
    completed = shown.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < _MIN_TRIALS:
        return None
    quantile = min(max(_BEST_TRIALS / len(completed), 0.1), 0.5)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
    figure = go.Figure()
    for index, (name, direction) in enumerate(zip(_objectives(shown), shown.directions, strict=True)):
        # Of a target the evaluator takes low values for good, whatever the study's direction, and warns of it.
        target = _value(index, -1.0 if direction == StudyDirection.MAXIMIZE else 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(shown, evaluator=evaluator, target=target)
        names = list(reversed(found))
        bars = go.Bar(x=[100 * found[each] for each in names], y=names, name=name, orientation="h")
        bars.update(marker_color=(BLUE, ORANGE, GREY)[index], width=0.6 / len(shown.directions))
        figure.add_trace(bars.update(hovertemplate="%{y}: %{x:.0f} %<extra></extra>"))
    figure.update_yaxes(automargin=True, ticksuffix="  ")
    return finish(figure, "importance (% of all)", None, height=140 + 44 * len(names))


def slice_of(shown: optuna.Study, objective: int, parameter: str) -> go.Figure:
    """Draw an objective over a parameter; later trials are darker."""
    name, target = _objectives(shown)[objective], _value(objective)
    figure = optuna.visualization.plot_slice(shown, params=[parameter], target=target, target_name=name)
    figure.update_traces(marker={"showscale": False, "size": 7})
    finish(figure, parameter, name, height=280)
    return figure.update_layout(margin={"l": 55, "r": 5, "t": 10, "b": 45})


def tradeoff(table: pd.DataFrame, x: str, y: str, baseline: int | None) -> go.Figure:
    """Draw two measures of every completed trial; on the line are those that no other trial beats in both.

    Not `optuna.visualization.plot_pareto_front`, which knows objectives only: CPU time is seldom one.
    """
    known = table.loc[(table[Column.STATE] == "complete") & table[x].notna() & table[y].notna()]
    signs = [-1 if is_maximized(name) else 1 for name in (x, y)]
    on_front = pd.Series(pareto_ranks(known[[x, y]].to_numpy(float) * signs) == 1, index=known.index)
    # The line is where one measure stays as good while the other is given away.
    shape = "vh" if is_maximized(x) else "hv"
    line = {"color": ORANGE, "width": 1.5, "shape": shape}
    parameters = [name for name in table.columns if "." in name]
    figure = go.Figure()
    for name, part, look in (
        ("trial", known.loc[~on_front], {"marker": {"color": BLUE, "size": 7, "opacity": 0.55}}),
        ("Pareto front", known.loc[on_front].sort_values(x), {"marker": {"color": ORANGE, "size": 9}, "line": line}),
        (
            "baseline",
            known.loc[known[Column.TRIAL] == baseline],
            {"marker": {"symbol": "star", "color": INK, "size": 14}},
        ),
    ):
        if part.empty:
            continue
        points = go.Scatter(x=scaled(x, part[x]).tolist(), y=scaled(y, part[y]).tolist(), name=name, **look)
        points.text = [
            f"trial {row[Column.TRIAL]}<br>" + "<br>".join(f"{key} {row[key]}" for key in parameters)
            for row in part.to_dict("records")
        ]
        mode = "lines+markers" if "line" in look else "markers"
        figure.add_trace(points.update(mode=mode, hovertemplate="%{text}<br>%{y:.4g} at %{x:.4g}<extra></extra>"))
    return finish(figure, title_of(x), title_of(y))


def intervals(confirmed: pd.DataFrame, bars: bool = False) -> go.Figure:
    """Draw each config's difference in points of test accuracy, with simultaneous intervals, as a point or a bar."""
    rows = confirmed[confirmed[Column.DIFFERENCE].notna()].iloc[::-1]
    middle, low, high = (
        100 * rows[name] for name in (Column.DIFFERENCE, Column.DIFFERENCE_LOW, Column.DIFFERENCE_HIGH)
    )
    drawn = go.Bar(orientation="h", width=0.5) if bars else go.Scatter(mode="markers", marker_size=11)
    drawn.update(
        x=middle,
        y=rows[Column.CONFIG],
        error_x={"type": "data", "array": high - middle, "arrayminus": middle - low, "thickness": 2, "width": 6},
        marker_color=SKY if bars else BLUE,
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y}: %{x:+.2f} (%{customdata[0]:+.2f} to %{customdata[1]:+.2f})<extra></extra>",
    )
    figure = go.Figure(drawn)
    figure.add_vline(x=0, line={"color": INK, "width": 1.2, "dash": "dash"})
    for side in (-1, 1):
        margin = side * 100 * float(confirmed[Column.MARGIN].iloc[0])
        figure.add_vline(x=margin, line={"color": GREY, "width": 1.2, "dash": "dot"})
    figure.update_yaxes(automargin=True, ticksuffix="  ", range=[-0.6, len(rows) - 0.4])
    return finish(figure, "difference (points of test accuracy)", None, height=110 + 46 * len(rows))


def confusion(counts: NDArray[np.int64]) -> go.Figure:
    """Draw counts of images by true (rows) and predicted class (columns), coloured by a mistake's share of its row."""
    classes = [str(number) for number in range(len(counts))]
    cells = go.Heatmap(
        z=mistake_shares(counts),
        x=classes,
        y=classes,
        text=np.where(counts > 0, counts.astype(str), ""),
        texttemplate="%{text}" if len(counts) <= MAX_LABELLED_CLASSES else None,
        colorscale=[[0, "#ffffff"], [1, "#f0965a"]],
        colorbar=_colorbar("share of the row (%)"),
        hovertemplate="true %{y}, predicted %{x}: %{text} images<extra></extra>",
        xgap=1,
        ygap=1,
    )
    figure = finish(go.Figure(cells), "predicted class", "true class", height=460)
    figure.update_xaxes(type="category", showgrid=False, dtick=1)
    return figure.update_yaxes(type="category", showgrid=False, dtick=1, autorange="reversed")


def _colorbar(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right", "font": {"size": 13}}, "thickness": 10, "outlinewidth": 0}


def finish(figure: go.Figure, x: str | None, y: str | None, height: int = 380) -> go.Figure:
    """Give a chart the look of all. Titles are the page's: there they wrap on a narrow screen."""
    figure.update_layout(
        title=None,
        template="plotly_white",
        height=height,
        width=None,
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        margin={"l": 60, "r": 15, "t": 35 if len(figure.data) > 1 else 10, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "title": None},
        hoverlabel={"bgcolor": "white"},
    )
    look = {"linecolor": "#888888", "ticks": "outside", "gridcolor": "#e8e8e8", "zeroline": False}
    figure.update_xaxes(title=x, title_font_size=13, **look)
    return figure.update_yaxes(title=y, title_font_size=13, **look)


def as_json(figures: dict[str, go.Figure]) -> str:
    """Return figures by name as JSON."""
    parts = [f'"{name}": {figure.to_json()}' for name, figure in figures.items()]
    return "{" + ", ".join(parts) + "}"
