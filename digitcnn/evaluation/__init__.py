"""Confirmation with several seeds, statistics, the champion, a run's manifest and its reproduction."""

from digitcnn.evaluation.ablation import ablation_texts
from digitcnn.evaluation.comparison import mixed_runs, read_confirmation, values_with_runs
from digitcnn.evaluation.confirmation import run_confirmation
from digitcnn.evaluation.plan import plan_confirmation
from digitcnn.evaluation.preview import describe_confirmation
from digitcnn.evaluation.reproduction import (
    ComparedMetric,
    find_config,
    find_manifest,
    find_run,
    is_manifest_file,
    reproduce,
)
from digitcnn.evaluation.reproduction.manifest import RunManifest, manifest_of, write_manifest
from digitcnn.evaluation.statistics import (
    MARGIN,
    Contrast,
    Summary,
    Verdict,
    compare,
    critical_value,
    decide,
    estimate,
    level_of_look,
    race,
    spread_between_seeds,
    standard_error,
    summarize,
)
from digitcnn.evaluation.verdicts import (
    basis_sentence,
    champion_sentence,
    format_margin,
    format_superiority,
    format_verdict,
    leading_row,
    verdict_of_row,
    verdict_sentences,
)
