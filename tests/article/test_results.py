"""The published results are those of the published tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitcnn.errors import ConfigError
from digitcnn.formatting import format_interval, format_percent
from experiments.article import answers, contrasts, publication, results
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


def test_readme_findings_are_those_of_the_published_tables() -> None:
    # Given
    tables = results.read_tables(PUBLISHED)
    readme = " ".join((REPOSITORY / "README.md").read_text().split())
    cnn, mlp = (list(contrasts.accuracies(tables["article"], network=name).values()) for name in answers.NETWORKS)
    as_article, equal = (contrasts.batch_size_comparisons(tables, study)[50] for study in contrasts.BATCH_SIZE_STUDIES)
    (champion,) = tables["confirmation"].query("champion")["config"]
    # Then
    assert f"It gets {100 * np.mean(cnn):.1f} % of the test images right on average" in readme
    assert contrasts.prediction_interval(cnn)[1] > answers.NETWORKS["cnn"]
    assert f"Its fully connected network gets {100 * np.mean(mlp):.1f} %, less than the 98.01 %" in readme
    assert contrasts.prediction_interval(mlp)[1] < answers.NETWORKS["mlp"]
    assert f"batch size 50 loses {-100 * as_article.difference:.1f} points to 250" in readme
    assert (as_article.verdict, equal.verdict) == ("worse", "undecided")
    assert "the two could not be shown to differ" in readme
    assert champion == "baseline"
    assert set(tables["confirmation"]["verdict"][1:]) == {"undecided"}
    assert "Other batch sizes, epochs and filters could not be shown to be better." in readme
    baseline, helped = (row for _, row in tables["beyond_confirmation"].iterrows())
    assert (helped["verdict"], helped["champion"], helped["n"]) == ("better", True, 10)
    gain, *ends = (helped[name] for name in ("difference", "difference_low", "difference_high"))
    assert f"they gain {100 * gain:.2f} points on the test set ({format_interval(*ends, signed=True)}, 10" in readme
    share = helped["cpu_seconds"] / baseline["cpu_seconds"]
    assert f"{format_percent(helped['mean'])} %, for {share:.2f} times the CPU seconds." in readme
    baseline, cheapest, *_ = (row for _, row in tables["cheapest_confirmation"].iterrows())
    assert (cheapest["verdict"], cheapest["n"], cheapest["training.epochs"]) == ("better", 10, 4)
    assert cheapest["model.dense_units"] / baseline["model.dense_units"] == 0.5
    assert cheapest["cpu_seconds"] == tables["cheapest_confirmation"]["cpu_seconds"].min()
    assert (
        f"**{100 * cheapest['cpu_seconds'] / baseline['cpu_seconds']:.0f} % of the article's CPU seconds are enough"
        in readme
    )
    gain, *ends = (cheapest[name] for name in ("difference", "difference_low", "difference_high"))
    assert f"gain {100 * gain:.2f} points ({format_interval(*ends, signed=True)}, 10 seeds)." in readme
    pairs = contrasts.filter_comparisons(tables)
    assert {pair for pair, each in pairs.items() if each.verdict == "worse"} == {(16, 32), (32, 32)}
    assert "16-32 and 32-32 filters lose 0.2 to 0.4 points to 32-64" in readme
