"""The files of a finished run, made where it was trained: its figures, its predictions and its packaged model."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digitcnn.config import RunConfig
from digitcnn.drawing import BLUE, INK, MAX_LABELLED_CLASSES, ORANGE, mistake_shares, plain_style
from digitcnn.records import Artifact, Column, Metric
from digitcnn.tracking.local import settle_variables
from digitcnn.values import EpochMetrics, RunFinished, TrainingResult

if TYPE_CHECKING:
    import keras
    from matplotlib.figure import Figure

# The file of a recorded model that holds its network and weights.
MODEL_FILE = "data/model.keras"
# The packages that loading a saved model takes: Keras, NumPy and the backend.
_MODEL_PACKAGES = ("keras", "numpy", "tensorflow", "jax", "jaxlib", "torch")


def package_result(
    config: RunConfig, result: TrainingResult, model: keras.Model, packages: Mapping[str, str]
) -> RunFinished:
    """Return all that is recorded of a result. Touches no store; `packages` are the installed versions by name."""
    judged = "" if config.data.validation == "holdout" else ", judged on the test set"
    name = f"{config.model.name}, batch size {config.training.batch_size}{judged}"
    files = {Artifact.EPOCHS: json.dumps([vars(each) for each in result.epochs]).encode()}
    with plain_style():
        figures = {
            Artifact.CURVES_PICTURE: learning_curves(result.epochs, name, "test" if judged else "validation"),
            Artifact.CONFUSION_PICTURE: confusion_matrix(result.confusion, f"{name}, after the last epoch"),
        }
        for file, figure in figures.items():
            picture = io.BytesIO()
            figure.savefig(picture)
            files[file] = picture.getvalue()
    if result.final_test_only:
        import pandas as pd

        final = result.final
        columns = {
            Column.LABEL: result.labels,
            Column.PREDICTED: final.predictions,
            Column.PROBABILITY: final.probabilities,
        }
        text = pd.DataFrame(columns).to_csv(index_label=Column.IMAGE, float_format="%.6f")
        files[Artifact.PREDICTIONS] = text.encode()
    return RunFinished(
        ending=result.ending,
        epochs=len(result.epochs),
        summary=result.summary,
        weights_sha256=result.weights_sha256,
        engine=result.engine,
        files=files,
        model=_package_model(model, packages) if result.ending == "completed" else {},
        epochs_before=result.epochs_before,
    )


def _package_model(model: keras.Model, packages: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files of a model in MLflow's format by their relative paths."""
    settle_variables()
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # A copy without the optimizer, whose moments would make every saved model three times as large.
    bare = type(model).from_config(model.get_config())
    bare.set_weights(model.get_weights())
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *bare.input_shape[1:]))]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, *bare.output_shape[1:]))]),
    )
    # Without pins MLflow spends 10 s on working them out. A local version such as 2.13.0+cpu is pinned as 2.13.0:
    # another index may not have that build.
    pins = [f"{name}=={version.partition('+')[0]}" for name, version in packages.items() if name in _MODEL_PACKAGES]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        mlflow.keras.save_model(bare, str(folder), signature=signature, pip_requirements=pins)
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
        }


def learning_curves(epochs: Sequence[EpochMetrics], title: str, judged: str) -> Figure:
    """Draw loss and accuracy over epochs: training, and that on what judges a run, its best epoch marked."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained", dpi=120)
    panels = (
        ("Loss", "cross-entropy (nats)", 1, Metric.TRAIN_LOSS, Metric.VALIDATION_LOSS),
        ("Accuracy", "accuracy (%)", 100, Metric.TRAIN_ACCURACY, Metric.VALIDATION_ACCURACY),
    )
    for axes, (name, unit, scale, *metrics) in zip(figure.subplots(1, 2), panels, strict=True):
        for metric, color, label in zip(metrics, (BLUE, ORANGE), ("training", judged), strict=True):
            points = [(each.epoch, scale * each.metrics()[metric]) for each in epochs if metric in each.metrics()]
            if points:
                axes.plot(*zip(*points, strict=True), "o-", ms=3.5, lw=1.6, color=color, label=label)
        axes.set(xlabel="epoch", ylabel=unit, title=name)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(visible=True, alpha=0.25)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    # What was drawn last is the accuracy that judges the run.
    if points:
        epoch, best = max(points, key=lambda point: point[1])
        axes.plot(epoch, best, "o", ms=10, mfc="none", mec=ORANGE, mew=1.8)
        axes.annotate(
            f"best {best:.2f} %, epoch {epoch}",
            (epoch, best),
            xytext=(0, -26),
            textcoords="offset points",
            ha="right" if epoch > len(epochs) / 2 else "left",
            color=ORANGE,
        )
    axes.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    return figure


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
    if classes <= MAX_LABELLED_CLASSES:
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
