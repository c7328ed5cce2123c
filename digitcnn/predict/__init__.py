"""Classify pictures of digits with a recorded model that is loaded safely."""

from digitcnn.predict.prediction import (
    predict,
    predict_images,
    prediction_in_words,
    predictions_as_json,
    predictions_as_table,
)
