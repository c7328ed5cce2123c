"""A hyperparameter study, done right, for the CNN digit classifier of a well-known article."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from digitcnn.api import Plots, Study, load_study, predict, sweep, train

__all__ = ["Plots", "Study", "load_study", "predict", "sweep", "train"]

# Where a program that imports digitcnn has configured no logging, Python would print its warnings on standard error.
logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import what notebooks use only for those who use it: it takes seconds."""
    if name not in __all__:
        raise AttributeError(f"module 'digitcnn' has no attribute {name!r}")
    from digitcnn import api

    return getattr(api, name)
