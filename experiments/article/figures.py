"""Draw the figure of the published study from its tables."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from digitcnn import evaluation
from digitcnn.drawing import BLUE, DARK_GREY, GREEN, ORANGE, PURPLE, SKY
from digitcnn.records import Column, Metric
from experiments.article import answers, contrasts, results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY)


def draw(tables: contrasts.Tables) -> bytes | None:
    """Return the figure as a PNG: a panel for each question whose tables are there, None if there are none.

    Batch size at two budgets; filter counts and their cost; the default study confirmed.
    """
    from matplotlib.figure import Figure

    panels = {"batch_size": batch_size, "filters": filters, "default": confirmation}
    shown = [panels[question] for question in results.PANELS if results.has(tables, question)]
    if not shown:
        return None
    figure = Figure(figsize=(5 * len(shown), 4.6), layout="constrained", dpi=110)
    for panel, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False)[0], strict=True):
        panel(tables, axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    # Without the version of matplotlib in the file the same tables make the same bytes.
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def batch_size(tables: contrasts.Tables, axes: Axes) -> None:
    """Draw validation accuracy against images seen: a line per batch size and protocol, its end with an interval."""
    curves, finals = tables["batch_size_curves"], tables["batch_size"]
    for study, style in zip(contrasts.BATCH_SIZE_STUDIES, ("-", "--"), strict=True):
        for color, (size, part) in zip(_COLORS, curves.query("study == @study").groupby("batch_size"), strict=False):
            mean = 100 * part.groupby(Metric.SAMPLES_SEEN)[Metric.VALIDATION_ACCURACY].mean()
            label = f"batch size {size}" if study == contrasts.BATCH_SIZE_STUDIES[0] else None
            axes.plot(mean.index, mean, style, color=color, lw=1.5, label=label)
            last = finals[(finals["study"] == study) & (finals["training.batch_size"] == size)]
            summary = evaluation.summarize(last[Metric.VALIDATION_ACCURACY].tolist())
            half = 100 * (summary.high - summary.low) / 2
            marker = "o" if style == "-" else "s"
            axes.errorbar(
                mean.index[-1], 100 * summary.mean, half, fmt=marker, color=color, ms=5, capsize=3, mfc="white"
            )
    axes.plot([], [], "-", color=DARK_GREY, label="as the article counts epochs")
    axes.plot([], [], "--", color=DARK_GREY, label="at an equal number of images")
    axes.set(
        xscale="log",
        xlabel="images seen",
        ylabel="validation accuracy (%), mean; at the end its 95 % interval",
        title="Batch size: own effect or budget?",
    )
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 92))
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def filters(tables: contrasts.Tables, axes: Axes) -> None:
    """Draw mean validation accuracy against CPU seconds: a point per pair of filter counts, the front as a line."""
    summaries = contrasts.filter_summaries(tables)
    front = summaries[summaries["front"]].sort_values(Metric.CPU_SECONDS)
    axes.step(
        front[Metric.CPU_SECONDS], 100 * front["mean"], "-", where="post", color=_COLORS[0], alpha=0.4, label="front"
    )
    for _, row in summaries.iterrows():
        pair = (int(row["model.conv1_filters"]), int(row["model.conv2_filters"]))
        articles = pair == contrasts.ARTICLES_FILTERS
        color, label = (_COLORS[1], "the article's") if articles else (_COLORS[0], None)
        x, y, error = row[Metric.CPU_SECONDS], 100 * row["mean"], 100 * row["sd"] / np.sqrt(row["n"])
        axes.errorbar(x, y, error, fmt="o", color=color, ms=5, capsize=3, elinewidth=1, label=label)
        # The front rises to the right: left of and above its points is room, and below the others.
        end, side, across, align = (
            (y + error, 3, "right", "bottom") if row["front"] else (y - error, -3, "center", "top")
        )
        axes.annotate(
            f"{pair[0]}-{pair[1]}",
            (x, end),
            xytext=(0, side),
            textcoords="offset points",
            fontsize=9,
            ha=across,
            va=align,
            color=color if articles else "#333333",
        )
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    axes.set(xlabel="CPU seconds of a run", ylabel="validation accuracy (%), mean and standard error")
    axes.set_title("Filters: accuracy against cost")
    axes.margins(x=0.16, y=0.1)


def confirmation(tables: contrasts.Tables, axes: Axes) -> None:
    """Draw the test accuracy of each confirmed config: runs, mean and interval; the champion in its own colour."""
    table, runs = tables["confirmation"].iloc[::-1], tables["confirmation_runs"]
    for place, (_, row) in enumerate(table.iterrows()):
        color = _COLORS[1] if row[Column.CHAMPION] else _COLORS[0]
        values = 100 * runs[runs[Column.CONFIG] == row[Column.CONFIG]][Metric.TEST_ACCURACY]
        axes.plot(values, [place - 0.16] * len(values), "|", color=color, ms=9, alpha=0.6)
        half = 100 * (row["high"] - row["low"]) / 2
        axes.errorbar(100 * row["mean"], place, xerr=half, fmt="o", color=color, ms=6, capsize=4)
    names = [
        f"{row[Column.CONFIG]}{' (champion)' if row[Column.CHAMPION] else ''}\n"
        f"{answers.settings(row).replace(', ', chr(10))}"
        for _, row in table.iterrows()
    ]
    axes.set_yticks(range(len(table)), names)
    axes.locator_params(axis="x", nbins=5)
    axes.set(
        xlabel="test accuracy (%), mean and 95 % interval",
        title="The default study, confirmed",
        ylim=(-0.6, len(table) - 0.4),
    )
