"""The charts of a study's report: Optuna's own where it has one, drawn by plotly, all in one look."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from digitcnn.records import TITLES
from digitcnn.study import dominates

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Colours that stay apart in print and for colour-blind readers (Okabe and Ito, 2008).
_BLUE, _ORANGE, _GREY, _INK = "#0072B2", "#D55E00", "#9a9a9a", "#222222"
# A chart of lines is drawn by the browser a line at a time.
MOST_LINES = 300
_MOST_PATHS = 40
# Fewer points of learning curves than this are marked, and drawn as a whole.
_MOST_UNCUT = 40
_FEWEST_TRIALS = 4
# Optuna advises at least five trials above PED-ANOVA's quantile, and takes a tenth of them by default.
_BEST_TRIALS = 5


def title_of(metric: str) -> str:
    """A metric's name with its unit."""
    return TITLES.get(metric, metric.replace("_", " "))


def _shown(metric: str, values: Any) -> Any:
    return values * 100 if metric.endswith("accuracy") else values


def pictured(study: optuna.Study) -> optuna.Study:
    """A copy of a study whose objectives are called and scaled as charts show them: accuracies in percent."""
    names = study.metric_names or ["value"]
    shown = optuna.create_study(directions=study.directions)
    for trial in study.get_trials(deepcopy=False):
        scaled = copy.copy(trial)
        if trial.state == TrialState.COMPLETE:
            scaled.values = [_shown(name, value) for name, value in zip(names, trial.values, strict=True)]
        shown.add_trial(scaled)
    shown.set_metric_names([title_of(name) for name in names])
    return shown


def history(shown: optuna.Study, objective: int) -> Figure:
    """The objective of every completed trial in the order of the trials, and the best so far where there is one."""
    name = (shown.metric_names or ["value"])[objective]
    # With a target Optuna cannot tell which values are better, and draws no line.
    target = None if len(shown.directions) == 1 else _signed(objective, 1.0)
    figure = optuna.visualization.plot_optimization_history(shown, target=target, target_name=name)
    size = 7 if len(shown.get_trials(deepcopy=False)) < 200 else 4
    figure.update_traces(marker={"color": _BLUE, "size": size}, selector={"mode": "markers"})
    figure.update_traces(name="trial", selector={"name": name})
    figure.update_traces(name="best so far", line={"color": _ORANGE, "shape": "hv"}, selector={"mode": "lines"})
    return _finish(figure, "trial", name)


def learning_curves(curves: pd.DataFrame, metric: str, best: int | None, baseline: int | None) -> Figure:
    """A metric over epochs, a line per trial: completed ones, the others faded, best and baseline on top."""
    import plotly.graph_objects as go

    known = curves[curves[metric].notna()]
    plain = known[~known["trial"].isin([best, baseline])]
    complete = plain["state"] == "complete"
    figure = go.Figure(_bundle(plain[~complete], metric, "ended early", _GREY, 0.6))
    figure.add_traces(_bundle(plain[complete], metric, "completed", _BLUE, 1.0))
    looks = {baseline: ("baseline", _INK, "dash"), best: (f"trial {best}, ranked first", _ORANGE, "solid")}
    for number, (name, color, dash) in looks.items():
        part = known[known["trial"] == number]
        if len(part):
            label = "baseline, ranked first" if best == baseline else name
            figure.add_trace(_curve(part, metric, name=label, line={"color": color, "width": 2.6, "dash": dash}))
    values = _shown(metric, known[metric].astype(float))
    if len(values) > _MOST_UNCUT:
        # The first epochs of the worst trials would leave a hair's breadth for what matters.
        cut = (0.1, 1.0) if metric.endswith("accuracy") else (0.0, 0.9)
        low, high = values.quantile(cut[0]), values.quantile(cut[1])
        margin = 0.05 * (high - low)
        figure.update_yaxes(range=[low - margin, high + margin])
    figure.update_xaxes(tickformat="d", **({"dtick": 1} if curves["epoch"].max() <= 15 else {}))
    return _finish(figure, "epoch", title_of(metric))


def _bundle(part: pd.DataFrame, metric: str, name: str, color: str, strength: float) -> list[Any]:
    """The curves of many trials in few traces, the fainter the more they are, and one that stands in the legend."""
    import plotly.graph_objects as go

    if part.empty:
        return []
    trials = part["trial"].unique()
    look: dict[str, Any] = {"line": {"color": color, "width": 1.2}, "name": name, "legendgroup": name}
    opacity = strength * float(np.clip(12 / len(trials), 0.15, 0.6))
    # A trace is one path, which does not darken where it crosses itself: several of them do.
    traces = [
        _curve(part[part["trial"].isin(some)], metric, opacity=opacity, showlegend=False, **look)
        for some in np.array_split(trials, min(len(trials), _MOST_PATHS))
    ]
    return [*traces, go.Scatter(x=[None], y=[None], mode="lines", **look)]


def _curve(part: pd.DataFrame, metric: str, **look: Any) -> Any:
    """One trace for the curves of some trials, with a gap between two of them."""
    import plotly.graph_objects as go

    x: list[Any] = []
    y: list[Any] = []
    trials: list[Any] = []
    for trial, rows in part.groupby("trial"):
        x += [*rows["epoch"].tolist(), None]
        y += [*_shown(metric, rows[metric].astype(float)).tolist(), None]
        trials += [trial] * (len(rows) + 1)
    hover = "trial %{customdata}, epoch %{x}: %{y:.4g}"
    mode = "lines+markers" if len(part) <= _MOST_UNCUT else "lines"
    return go.Scatter(x=x, y=y, customdata=trials, hovertemplate=hover, mode=mode, marker_size=4, **look)


def parallel_coordinates(shown: optuna.Study, table: pd.DataFrame) -> Figure:
    """A line per completed trial through its objectives and parameters; of very many trials the best."""
    best = table[table["state"] == "complete"]["trial"].head(MOST_LINES)
    trials = shown.get_trials(deepcopy=False)
    some = optuna.create_study(directions=shown.directions)
    some.add_trials([trials[number] for number in sorted(best)])
    names = list(shown.metric_names or ["value"])
    some.set_metric_names(names)
    figure = optuna.visualization.plot_parallel_coordinate(some, target_name=names[0])
    parameters = sorted({name for number in best for name in trials[number].params})
    labels = [name.replace(" (", "<br>(") for name in names] + [name.replace(".", ".<br>") for name in parameters]
    figure.update_xaxes(ticktext=labels, tickangle=0)
    figure = _finish(figure, None, None)
    figure.update_layout(margin={"l": 70, "r": 10, "t": 20, "b": 50}, hovermode="closest")
    (key,) = figure.select_traces({"mode": "markers"})
    # A new one: Optuna's has a tick for every single rank.
    title = {"text": key.marker.colorbar.title.text, "side": "right", "font": {"size": 13}}
    key.marker.colorbar = {"title": title, "thickness": 10, "outlinewidth": 0}
    figure.update_yaxes(visible=False)
    return figure


def importances(shown: optuna.Study) -> Figure | None:
    """How much each parameter decides whether a trial is among the best; None while there are too few trials."""
    import plotly.graph_objects as go

    completed = shown.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(completed) < _FEWEST_TRIALS:
        return None
    quantile = min(max(_BEST_TRIALS / len(completed), 0.1), 0.5)
    figure = go.Figure()
    for index, (name, direction) in enumerate(zip(shown.metric_names or ["value"], shown.directions, strict=True)):
        # The evaluator looks for what makes a target low, whatever the study's direction.
        sign = -1.0 if direction == StudyDirection.MAXIMIZE else 1.0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(
                shown,
                evaluator=optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile),
                target=_signed(index, sign),
            )
        names = list(reversed(found))
        figure.add_trace(
            go.Bar(
                x=[100 * found[each] for each in names],
                y=names,
                name=name,
                orientation="h",
                marker={"color": (_BLUE, _ORANGE, _GREY)[index]},
                hovertemplate="%{y}: %{x:.0f} %<extra></extra>",
                width=0.6 / len(shown.directions),
            )
        )
    figure = _finish(figure, "importance (% of all)", None, height=140 + 44 * len(names))
    return figure.update_yaxes(automargin=True, ticksuffix="  ")


def _signed(objective: int, sign: float) -> Callable[[FrozenTrial], float]:
    return lambda trial: sign * float(trial.values[objective])


def slices(shown: optuna.Study, objective: int) -> list[Figure]:
    """The objective over each parameter, a chart per parameter; later trials are darker."""
    completed = shown.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    name = (shown.metric_names or ["value"])[objective]
    figures = []
    for parameter in sorted({key for trial in completed for key in trial.params}):
        figure = optuna.visualization.plot_slice(
            shown, params=[parameter], target=_signed(objective, 1.0), target_name=name
        )
        figure.update_traces(marker={"showscale": False, "size": 7})
        figure = _finish(figure, parameter, name, height=280)
        figures.append(figure.update_layout(margin={"l": 55, "r": 5, "t": 10, "b": 45}))
    return figures


def tradeoff(table: pd.DataFrame, x: str, y: str, larger_is_better: tuple[bool, bool], baseline: int | None) -> Figure:
    """Two measures of every completed trial; on the line are those that no other trial beats in both."""
    import plotly.graph_objects as go

    known = table.loc[(table["state"] == "complete") & table[x].notna() & table[y].notna()]
    points = known[[x, y]].to_numpy(float)
    signs = [1 if larger else -1 for larger in larger_is_better]
    on_front = pd.Series(~dominates(points * signs).any(axis=0), index=known.index)
    # The line is where one measure stays as good while the other is given away.
    shape = "vh" if larger_is_better[0] else "hv"
    parameters = [name for name in table.columns if "." in name]
    figure = go.Figure()
    series: list[tuple[str, pd.DataFrame, str, dict[str, Any]]] = [
        ("trial", known.loc[~on_front], "markers", {"marker": {"color": _BLUE, "size": 7, "opacity": 0.55}}),
        (
            "Pareto front",
            known.loc[on_front].sort_values(x),
            "lines+markers",
            {"marker": {"color": _ORANGE, "size": 9}, "line": {"color": _ORANGE, "width": 1.5, "shape": shape}},
        ),
        (
            "baseline",
            known.loc[known["trial"] == baseline],
            "markers",
            {"marker": {"symbol": "star", "color": _INK, "size": 14}},
        ),
    ]
    for name, part, mode, look in series:
        if len(part):
            text = [
                f"trial {row['trial']}<br>" + "<br>".join(f"{key} {row[key]}" for key in parameters)
                for row in part.to_dict("records")
            ]
            figure.add_trace(
                go.Scatter(
                    x=_shown(x, part[x]).tolist(),
                    y=_shown(y, part[y]).tolist(),
                    text=text,
                    name=name,
                    mode=mode,
                    hovertemplate="%{text}<br>%{y:.4g} at %{x:.4g}<extra></extra>",
                    **look,
                )
            )
    return _finish(figure, title_of(x), title_of(y))


def intervals(confirmed: pd.DataFrame) -> Figure:
    """Each candidate's mean difference to the baseline in points of test accuracy, with its 95 % interval."""
    import plotly.graph_objects as go

    rows = confirmed[confirmed["difference"].notna()].iloc[::-1]
    middle, low, high = (100 * rows[name] for name in ("difference", "difference_low", "difference_high"))
    figure = go.Figure(
        go.Scatter(
            x=middle,
            y=rows["config"],
            error_x={"type": "data", "array": high - middle, "arrayminus": middle - low, "thickness": 2, "width": 6},
            mode="markers",
            marker={"size": 11, "color": _BLUE},
            customdata=np.stack([low, high], axis=1),
            hovertemplate="%{y}: %{x:+.2f} (%{customdata[0]:+.2f} to %{customdata[1]:+.2f})<extra></extra>",
        )
    )
    figure.add_vline(x=0, line={"color": _INK, "width": 1.2, "dash": "dash"})
    axis = "difference (points of test accuracy)"
    figure = _finish(figure, axis, None, height=110 + 46 * len(rows))
    return figure.update_yaxes(automargin=True, ticksuffix="  ", range=[-0.6, len(rows) - 0.4])


def confusion(counts: NDArray[np.int64]) -> Figure:
    """Images by true (rows) and predicted class (columns); the colour shows a mistake's share of its row."""
    import plotly.graph_objects as go

    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # The diagonal would drown the mistakes in one colour: it is left white, its counts are written in it.
    np.fill_diagonal(shares, 0)
    classes = [str(number) for number in range(len(counts))]
    figure = go.Figure(
        go.Heatmap(
            z=shares,
            x=classes,
            y=classes,
            text=np.where(counts > 0, counts.astype(str), ""),
            texttemplate="%{text}" if len(counts) <= 20 else None,
            colorscale=[[0, "#ffffff"], [1, "#f0965a"]],
            colorbar={
                "title": {"text": "share of the row (%)", "side": "right", "font": {"size": 13}},
                "thickness": 10,
                "outlinewidth": 0,
            },
            hovertemplate="true %{y}, predicted %{x}: %{text} images<extra></extra>",
            xgap=1,
            ygap=1,
        )
    )
    figure = _finish(figure, "predicted class", "true class", height=460)
    figure.update_xaxes(type="category", showgrid=False, dtick=1)
    return figure.update_yaxes(type="category", showgrid=False, dtick=1, autorange="reversed")


def _finish(figure: Figure, x: str | None, y: str | None, height: int = 380) -> Figure:
    """The look that all charts share. Titles are the page's: there they wrap on a narrow screen."""
    figure.update_layout(
        title=None,
        template="plotly_white",
        height=height,
        width=None,
        font={"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        margin={"l": 60, "r": 15, "t": 35 if len(figure.data) > 1 else 10, "b": 50},
        legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "title": None},
        hoverlabel={"bgcolor": "white"},
    )
    axes: dict[str, Any] = {
        "linecolor": "#888888",
        "ticks": "outside",
        "gridcolor": "#e8e8e8",
        "zeroline": False,
        "title_font_size": 13,
    }
    figure.update_xaxes(title=x, **axes)
    figure.update_yaxes(title=y, **axes)
    return figure


def as_json(figures: dict[str, Figure]) -> str:
    """Figures by name as JSON that can stand in a page's script element."""
    parts = [f'"{name}": {figure.to_json()}' for name, figure in figures.items()]
    return ("{" + ", ".join(parts) + "}").replace("<", "\\u003c")


def library() -> str:
    """The source of plotly.js, which draws the figures in a browser."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source
