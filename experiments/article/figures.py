"""Draw the figure of the published study from its tables."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import pandas as pd

from digitcnn import evaluation
from digitcnn.drawing import BLUE, DARK_GREY, GREEN, ORANGE, PURPLE, SKY, plain_style
from digitcnn.records import Column, Metric
from experiments.article import contrasts, results
from experiments.article.phrases import changed_names, settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# One kind in all panels, of the spread that the verdicts rest on.
_CAPTION = "Means over seeds with their 95 % intervals, by the spread between seeds that all configs of a panel share"
_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def draw(tables: contrasts.Tables) -> bytes | None:
    """Return the figure as a PNG: a panel for each of results.PANELS whose tables are there, None if there are none."""
    panels = {"batch_size": batch_size, "filters": filters}
    panels |= {question: partial(confirmation, question) for question in results.PANELS if question not in panels}
    shown = [panels[question] for question in results.PANELS if results.has(tables, question)]
    if not shown:
        return None
    with plain_style():
        return _drawn(shown, tables)


def _drawn(shown: Sequence[Callable[[contrasts.Tables, Axes], None]], tables: contrasts.Tables) -> bytes:
    from matplotlib.figure import Figure

    columns = 2 if len(shown) == 4 else len(shown)
    lines = len(shown) // columns
    figure = Figure(figsize=(5 * columns, 4.9 * lines), layout="constrained", dpi=110)
    figure.supxlabel(_CAPTION, fontsize=10)
    for panel, axes in zip(shown, figure.subplots(lines, columns, squeeze=False).flat, strict=True):
        panel(tables, axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    # Without the version of matplotlib in the file the same tables make the same bytes.
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def half_intervals(runs: pd.DataFrame, configs: str | list[str], metric: str) -> pd.Series[float]:
    """Return half the 95 % interval of each config's mean in percent, by the spread between seeds of all configs."""
    from scipy import stats

    groups = runs.groupby(configs)
    values = {
        str(name): dict(zip(part[Column.SEED].tolist(), part[metric].tolist(), strict=True)) for name, part in groups
    }
    spread, freedom = evaluation.spread_between_seeds(values)
    return 100 * float(stats.t.ppf(0.975, freedom)) * spread / groups.size() ** 0.5


def batch_size(tables: contrasts.Tables, axes: Axes) -> None:
    """Draw validation accuracy against images seen: a line per batch size and protocol, its end with an interval."""
    curves, finals = tables["batch_size_curves"], tables["batch_size"]
    halves = {
        str(study): half_intervals(part, "training.batch_size", Metric.VALIDATION_ACCURACY)
        for study, part in finals.groupby("study")
    }
    for study, style in zip(contrasts.BATCH_SIZE_STUDIES, ("-", "--"), strict=True):
        for color, (size, part) in zip(_COLORS, curves.query("study == @study").groupby("batch_size"), strict=False):
            mean = 100 * part.groupby(Metric.SAMPLES_SEEN)[Metric.VALIDATION_ACCURACY].mean()
            label = f"batch size {size}" if study == contrasts.BATCH_SIZE_STUDIES[0] else None
            axes.plot(mean.index, mean, style, color=color, lw=1.5, label=label)
            marker = "o" if style == "-" else "s"
            x, y = mean.index[-1], mean.iloc[-1]
            axes.errorbar(x, y, halves[study][size], fmt=marker, color=color, ms=5, capsize=3, mfc="white")
    axes.plot([], [], "-", color=DARK_GREY, label="as the article counts epochs")
    axes.plot([], [], "--", color=DARK_GREY, label="at an equal number of images")
    axes.set(
        xscale="log",
        xlabel="images seen",
        ylabel="validation accuracy (%)",
        title="Batch size: own effect or budget?",
    )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 92))
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def filters(tables: contrasts.Tables, axes: Axes) -> None:
    """Draw mean validation accuracy against CPU seconds: a point per pair of filter counts, the front as a line."""
    summaries, runs = contrasts.filter_summaries(tables), tables["filters"]
    errors = half_intervals(runs, list(contrasts.LAYERS), Metric.VALIDATION_ACCURACY)
    errors_of_cost = half_intervals(runs, list(contrasts.LAYERS), Metric.CPU_SECONDS) / 100
    front = summaries[summaries["front"]].sort_values(Metric.CPU_SECONDS)
    axes.step(
        front[Metric.CPU_SECONDS], 100 * front["mean"], "-", where="post", color=_COLORS[0], alpha=0.4, label="front"
    )
    for place, (_, row) in enumerate(summaries.sort_values(Metric.CPU_SECONDS).iterrows()):
        pair = (int(row["model.conv1_filters"]), int(row["model.conv2_filters"]))
        articles = pair == contrasts.ARTICLES_FILTERS
        color, label = (_COLORS[1], "the article's") if articles else (_COLORS[0], None)
        x, y, error = row[Metric.CPU_SECONDS], 100 * row["mean"], errors[pair]
        axes.errorbar(
            x, y, error, errors_of_cost[pair], fmt="o", color=color, ms=5, capsize=2, elinewidth=1, label=label
        )
        # Neighbours in cost have their names at different ends of their bars.
        above = place % 2 == 0
        axes.annotate(
            f"{pair[0]}-{pair[1]}",
            (x, y + error if above else y - error),
            xytext=(0, 3 if above else -3),
            textcoords="offset points",
            fontsize=9,
            ha="center",
            va="bottom" if above else "top",
            color=color if articles else "#333333",
        )
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.set(xlabel="CPU seconds of a run", ylabel="validation accuracy (%)")
    axes.set_title("Filters: accuracy against cost")
    axes.margins(x=0.16, y=0.1)


def confirmation(question: str, tables: contrasts.Tables, axes: Axes) -> None:
    """Draw the test accuracy of each confirmed config: runs, mean and interval; the champion in its own colour."""
    _, confirmed, runs, *_ = (tables[name] for name in results.TABLES[question])
    changed, table = changed_names(confirmed), confirmed.iloc[::-1]
    halves = half_intervals(runs, Column.CONFIG, Metric.TEST_ACCURACY)
    for place, (_, row) in enumerate(table.iterrows()):
        color = _COLORS[1] if row[Column.CHAMPION] else _COLORS[0]
        values = 100 * runs[runs[Column.CONFIG] == row[Column.CONFIG]][Metric.TEST_ACCURACY]
        axes.plot(values, [place - 0.16] * len(values), "|", color=color, ms=9, alpha=0.6)
        axes.errorbar(100 * row["mean"], place, xerr=halves[row[Column.CONFIG]], fmt="o", color=color, ms=6, capsize=4)
    names = [
        "\n".join((row[Column.CONFIG] + " (champion)" * row[Column.CHAMPION], *settings(row, changed).split(", ")))
        for _, row in table.iterrows()
    ]
    axes.set_yticks(range(len(table)), names)
    axes.locator_params(axis="x", nbins=5)
    axes.set(
        xlabel="test accuracy (%)",
        title=results.PANELS[question].capitalize(),
        ylim=(-0.6, len(table) - 0.4),
    )
