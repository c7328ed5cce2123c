"""Says what digit a picture shows: `experiments/predict.py FILE... [KEY=VALUE ...]`."""

import sys

from command import main, printable

from digitcnn import prediction
from digitcnn.prediction import PredictConfig


def predict(config: PredictConfig) -> int:
    """A line for every picture; one on standard error for each that cannot be used, and exit status 1."""
    # A file's name need not be text: for machines it is written as it is.
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]
    found = prediction.predict(config, lambda line: print(printable(line), file=sys.stderr))
    if config.format == "json":
        print(prediction.as_json(found))
    elif config.format == "csv":
        print(prediction.as_csv(found))
    else:
        for each in found:
            print(printable(prediction.in_words(each)))
    return 0 if len(found) == len(config.image) else 1


if __name__ == "__main__":
    main("predict", PredictConfig, predict, texts=("run",), words="image", study_by_name=True)
