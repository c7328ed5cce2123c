"""The published results, and a row of their provenance."""

from __future__ import annotations

import pandas as pd

from experiments.article import provenance
from tests.conftest import REPOSITORY

PUBLISHED = REPOSITORY / "experiments" / "results"


def provenance_row(**values: str) -> pd.DataFrame:
    """Return a provenance table of one row, with other values in it."""
    row = {
        "part": "article",
        "command": "python x",
        "runs": 6,
        "wall_seconds": 90,
        "cpu_seconds": 180,
        "threads": "2",
        "engine": "compiled",
        "date": "2026-11-24",
    }
    return pd.DataFrame([row | values], columns=list(provenance.COLUMNS)).fillna("")
