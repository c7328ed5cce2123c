"""The published results are those of the published tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitcnn.errors import ConfigError
from experiments.article import publication, results
from tests.conftest import REPOSITORY
from tests.support.published import PUBLISHED


def test_published_text_and_figure_are_made_again_from_the_tables_alone(tmp_path: Path) -> None:
    # Given
    for table in PUBLISHED.glob("*.csv"):
        shutil.copy(table, tmp_path)
    # When
    written = publication.publish_from_tables(tmp_path)
    # Then
    assert written.read_bytes() == (PUBLISHED / "RESULTS.md").read_bytes()
    made, published = (np.asarray(Image.open(folder / "results.png"), float) for folder in (tmp_path, PUBLISHED))
    # The same pixels, but for what another processor rounds differently at the edges of lines and letters.
    assert made.shape == published.shape
    assert np.mean(made != published) < 0.01


def test_from_tables_needs_tables(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no tables; from_tables=false writes them from the records"):
        publication.publish_from_tables(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_readme_begins_with_the_published_result() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "\n".join(results.headline(results.read_tables(PUBLISHED))) in readme
