"""Say what digit a picture shows: `digitcnn predict FILE... [KEY=VALUE ...]`."""

import contextlib
import sys

from digitcnn.cli.command import delivered
from digitcnn.config import PredictConfig
from digitcnn.formatting import printable
from digitcnn.output import StartLines
from digitcnn.predict import predict, prediction_in_words, predictions_as_json, predictions_as_table


def main(config: PredictConfig) -> int:
    """Print a line for every picture; for each that cannot be used one on standard error, and return 1."""
    # A file's name need not be text: for machines it is written as it is.
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    # Whatever is said of the records or of a picture is no part of JSON or CSV.
    start = contextlib.closing(StartLines("TensorFlow", on_error_stream=True))
    with contextlib.redirect_stdout(sys.stderr), start:
        found = predict(config)
    if config.format == "json":
        print(predictions_as_json(found))
    elif config.format == "csv":
        print(predictions_as_table(found).to_csv(index=False), end="")
    else:
        for each in found:
            print(printable(prediction_in_words(each)))
    return delivered(0 if len(found) == len(config.image) else 1)
