"""Confirmation with several seeds, statistics, the champion, a run's manifest and its reproduction."""

from digitcnn.evaluation.champion import leading_row, verdict_sentences
from digitcnn.evaluation.comparison import read_confirmation
from digitcnn.evaluation.confirmation import plan_confirmation, run_confirmation
from digitcnn.evaluation.manifest import RunManifest, manifest_of, write_manifest
from digitcnn.evaluation.preview import describe_confirmation
from digitcnn.evaluation.reproduction import ComparedMetric, find_manifest, find_run, is_manifest_file, reproduce
from digitcnn.evaluation.statistics import (
    PairedComparison,
    Summary,
    compare_pairs,
    prediction_interval,
    standard_error,
    summarize,
)

__all__ = [
    "ComparedMetric",
    "PairedComparison",
    "RunManifest",
    "Summary",
    "compare_pairs",
    "describe_confirmation",
    "find_manifest",
    "find_run",
    "is_manifest_file",
    "leading_row",
    "manifest_of",
    "plan_confirmation",
    "prediction_interval",
    "read_confirmation",
    "reproduce",
    "run_confirmation",
    "standard_error",
    "summarize",
    "verdict_sentences",
    "write_manifest",
]
