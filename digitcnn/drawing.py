"""Shared by all pictures: their style, the palette, and the shading of a confusion matrix."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Source: Okabe and Ito, 2008. They stay apart in print and for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9"
INK, DARK_GREY, GREY = "#222222", "#777777", "#9a9a9a"
# The counts of more classes would not fit into the cells of a confusion matrix.
MAX_LABELLED_CLASSES = 20


def settle_matplotlib() -> None:
    """Let matplotlib obey no file and no variable of a person's, and draw for no screen: before its import."""
    if "matplotlib" not in sys.modules:
        # Wrong names in them, and wrong encodings, are errors.
        os.environ |= {"MPLBACKEND": "agg", "MATPLOTLIBRC": os.devnull}
        # It would say that a home folder cannot be written, or what is misspelt in the folder that it is started in.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)


@contextlib.contextmanager
def plain_style() -> Iterator[None]:
    """Let figures be drawn and saved in matplotlib's own style while the body lasts, whatever a matplotlibrc says."""
    settle_matplotlib()
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def mistake_shares(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each mistake's share of its true class in percent, (classes, classes); the diagonal is 0.

    `confusion[i, j]` counts images of class i predicted as j. The diagonal would drown the mistakes in one colour.
    """
    shares: NDArray[np.float64] = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    return shares
