"""The figures of one run: its learning curves and its confusion matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digitcnn.drawing import BLUE, INK, MOST_LABELLED_CLASSES, ORANGE, mistake_shares
from digitcnn.values import EpochMetrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION = BLUE, ORANGE


def learning_curves(epochs: tuple[EpochMetrics, ...], title: str) -> Figure:
    """Draw loss and accuracy over epochs: training, and validation with its best epoch marked, if there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    loss_axes, accuracy_axes = figure.subplots(1, 2)
    numbers = [epoch.epoch for epoch in epochs]
    _lines(loss_axes, numbers, [e.train_loss for e in epochs], _known([e.validation_loss for e in epochs]))
    loss_axes.set(xlabel="epoch", ylabel="cross-entropy (nats)", title="Loss")
    train = [100 * epoch.train_accuracy for epoch in epochs]
    validation = [100 * accuracy for accuracy in _known([e.validation_accuracy for e in epochs])]
    _lines(accuracy_axes, numbers, train, validation)
    accuracy_axes.set(xlabel="epoch", ylabel="accuracy (%)", title="Accuracy")
    if validation:
        best = int(np.argmax(validation))
        accuracy_axes.plot(numbers[best], validation[best], "o", ms=10, mfc="none", mec=_VALIDATION, mew=1.8)
        accuracy_axes.annotate(
            f"best {validation[best]:.2f} %, epoch {numbers[best]}",
            (numbers[best], validation[best]),
            xytext=(0, -26),
            textcoords="offset points",
            ha="right" if best > len(numbers) / 2 else "left",
            color=_VALIDATION,
        )
    accuracy_axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    return figure


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _lines(axes: Axes, epochs: list[int], train: list[float], validation: list[float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.plot(epochs, train, "o-", ms=3.5, lw=1.6, color=_TRAINING, label="training")
    if validation:
        axes.plot(epochs, validation, "o-", ms=3.5, lw=1.6, color=_VALIDATION, label="validation")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def confusion_matrix(confusion: NDArray[np.int64], title: str) -> Figure:
    """Draw counts by true class (rows) and predicted class (columns), coloured by each mistake's share of its row."""
    from matplotlib.figure import Figure

    classes = len(confusion)
    figure = Figure(figsize=(6.6, 6), layout="constrained", dpi=120)
    axes = figure.subplots()
    mistakes = mistake_shares(confusion)
    most = max(1.0, float(mistakes.max()))
    picture = axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=most)
    axes.set(xlabel="predicted class", ylabel="true class")
    if classes <= MOST_LABELLED_CLASSES:
        axes.set(xticks=range(classes), yticks=range(classes))
        for row, column in np.argwhere(confusion):
            weight = "bold" if row == column else "normal"
            color = "white" if mistakes[row, column] > 0.65 * most else INK
            count = str(confusion[row, column])
            axes.text(column, row, count, ha="center", va="center", fontsize=8.5, weight=weight, color=color)
    figure.colorbar(picture, ax=axes, shrink=0.8, label="mistakes (% of the true class)")
    accuracy = 100 * np.trace(confusion) / max(int(confusion.sum()), 1)
    wrong = int(confusion.sum() - np.trace(confusion))
    axes.set_title(f"{title}\n{accuracy:.2f} % right, {wrong} of {int(confusion.sum()):,} wrong", fontsize=10.5)
    return figure
