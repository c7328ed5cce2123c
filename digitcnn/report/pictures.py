"""Charts of a report as PNG pictures, for MLflow's UI, which shows those at once; drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from digitcnn.drawing import BLUE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI = 120


def importance_picture(chart: Any, title: str) -> bytes:
    """Return the bars of `charts.importances`, those of the first objective, as a picture."""
    bars = chart.data[0]
    (axes,), save = _figure(1, (7, 1 + 0.45 * len(bars.y)))
    axes.barh(list(bars.y), list(bars.x), height=0.6, color=BLUE)
    axes.set(xlabel="importance (% of all)", title=f"What decides the {title}")
    return save()


def slices_picture(points: Mapping[str, Sequence[Any]], values: Sequence[float], objective: str) -> bytes:
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
