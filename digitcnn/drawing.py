"""Shared by all pictures: the palette, and the shading of a confusion matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Source: Okabe and Ito, 2008. They stay apart in print and for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
INK, DARK_GREY, GREY = "#222222", "#777777", "#9a9a9a"
# The counts of more classes would not fit into the cells of a confusion matrix.
MAX_LABELLED_CLASSES = 20


def mistake_shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each mistake's share of its true class in percent, (classes, classes); the diagonal is 0.

    `confusion[i, j]` counts images of class i predicted as j. The diagonal would drown the mistakes in one colour.
    """
    shares: NDArray[np.float64] = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    return shares
