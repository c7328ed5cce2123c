"""The schema of what is recorded: MLflow's tags, artifacts and metrics, tables' columns, Optuna's user attributes.

Names and values are those of every store that exists: changing one makes earlier studies unreadable.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


class Tag:
    """The tags of MLflow runs."""

    # Set when a run is created.
    PARENT = "mlflow.parentRunId"
    HOST = "host"
    # From these MLflow's UI shows the source of a run.
    SOURCE_NAME = "mlflow.source.name"
    SOURCE_TYPE = "mlflow.source.type"
    SOURCE_COMMIT = "mlflow.source.git.commit"
    # The description that it shows of a run or an experiment, in Markdown, and its saved views of an experiment.
    NOTE = "mlflow.note.content"
    VIEW_PREFIX = "mlflow.sharedViewState."
    # Of every run of a study; `trial`, `confirms` and `ablates` tell trials, confirming runs and an ablation's apart.
    STUDY = "study"
    TRIAL = "trial"
    CONFIRMS = "confirms"
    ABLATES = "ablates"
    # With study.seeds: of a trial's run how many there may be, and of the runs of further ones, which are below it, the
    # id of the study's run.
    SEEDS = "seeds"
    SEED_OF = "seed_of"
    # Of a study's own run.
    STUDY_KEY = "study.key"
    STUDY_TRIALS = "study.trials"
    # What it was last resumed with: the parameters of the same names say what it was begun with.
    STUDY_SAMPLER = "study.sampler"
    STUDY_PRUNER = "study.pruner"
    STUDY_SEED = "study.seed"
    STUDY_ENDED = "study.ended"
    # The id of the run that this one repeats, or whose result it took over.
    REPRODUCES = "reproduces"
    # With the name of a study that took the run over as one of its trials: it has no other run there.
    TAKEN_BY_PREFIX = "taken_by."
    SAME_AS_RUN = "same_as_run"
    # The id of the run whose first epochs are this one's, and of the one whose last checkpoint it goes on from.
    PREFIX_OF = "prefix_of"
    CONTINUES = "continues"
    # The result.
    DATA_SHA256 = "data_sha256"
    WEIGHTS_SHA256 = "weights_sha256"
    MODEL_SHA256 = "model_sha256"
    ENGINE = "engine"
    # Why there is none; after how many epochs a run was pruned, and against how many values.
    FAILURE = "failure"
    DIVERGED = "diverged"
    PRUNED_AFTER = "pruned_after"
    PRUNED_AGAINST = "pruned_against"
    # The environment: the keys of environment.json, one level deep, with `version.PACKAGE` of its packages.
    BACKEND = "backend"
    COMMAND = "command"
    CORES = "cores"
    CPU = "cpu"
    CPU_FLAGS = "cpu_flags"
    FLAGS = "flags"
    GIT_PREFIX = "git."
    GIT_COMMIT = "git.commit"
    GIT_DIRTY = "git.dirty"
    PLATFORM = "platform"
    PYTHON = "python"
    THREADS = "threads"
    VERSION_PREFIX = "version."


# The ends of the names of a study's views, behind VIEW_PREFIX and the study's own name.
STUDY_VIEWS = ("-trials", "-confirmations")


class Artifact:
    """The files that are recorded of MLflow runs, and written below `reports/STUDY`."""

    # Of a run.
    CONFIG = "config.yaml"
    ENVIRONMENT = "environment.json"
    CHANGES = "uncommitted.diff"
    CURVES_PICTURE = "learning_curves.png"
    CONFUSION_PICTURE = "confusion_matrix.png"
    PREDICTIONS = "test_predictions.csv"
    EPOCHS = "epochs.json"
    # Of a study.
    LEADERBOARD = "leaderboard.csv"
    CURVES = "learning_curves.csv"
    CONFIRMATION = "confirmation.csv"
    CONFIRMATION_RUNS = "confirmation_runs.csv"
    CONFIRMATION_LOOKS = "confirmation_looks.csv"
    ABLATION = "ablation.csv"
    CHAMPION = "champion.yaml"
    REPORT_PAGE = "report.html"
    REPORT_TEXT = "report.md"
    IMPORTANCE_PICTURE = "parameter_importance.png"
    SLICES_PICTURE = "slices.png"


class EnvironmentKey:
    """The keys of environment.json that hold mappings, and those of `git`. Every other key is that of its tag."""

    PACKAGES = "packages"
    FLAGS = Tag.FLAGS
    GIT = "git"
    COMMIT = "commit"
    DIRTY = "dirty"


class Metric:
    """The metrics of MLflow runs."""

    TRAIN_LOSS = "train_loss"
    TRAIN_ACCURACY = "train_accuracy"
    VALIDATION_LOSS = "validation_loss"
    VALIDATION_ACCURACY = "validation_accuracy"
    BEST_VALIDATION_ACCURACY = "best_validation_accuracy"
    TEST_LOSS = "test_loss"
    TEST_ACCURACY = "test_accuracy"
    BEST_TEST_ACCURACY = "best_test_accuracy"
    # Of the whole training, and of the run itself: less, if its first epochs were another's.
    CPU_SECONDS = "cpu_seconds"
    CPU_SPENT = "cpu_spent"
    TRAINING_SECONDS = "training_seconds"
    COMPILE_SECONDS = "compile_seconds"
    PARAMETERS = "parameters"
    BEST_EPOCH = "best_epoch"
    EPOCH_SECONDS = "epoch_seconds"
    IMAGES_PER_SECOND = "images_per_second"
    PEAK_MEMORY_MB = "peak_memory_mb"
    # Fewer than the config's where it stopped early.
    EPOCHS_RUN = "epochs_run"
    # Of a process, after an epoch; MLflow's UI shows what begins like this on a page of its own.
    SYSTEM_CPU = "system/cpu_utilization_percentage"
    SYSTEM_MEMORY = "system/memory_usage_megabytes"
    SAMPLES_SEEN = "samples_seen"
    UPDATES = "updates"
    # Of the run of a trial that was confirmed, with the fields of statistics.Summary: what its seeds got.
    CONFIRMED_PREFIX = "test_accuracy."
    CONFIRMED_MEAN = "test_accuracy.mean"
    # Of the run of a trial with several seeds: their number, the standard deviation and the standard error of the
    # objective, and the mean of each metric by its name and this end. Every other metric is the first seed's.
    SEEDS = "seeds"
    SEEDS_SD = "seeds.sd"
    SEEDS_ERROR = "seeds.standard_error"
    MEAN_SUFFIX = ".mean"
    # Of a study's own run: each objective of its best trial.
    BEST_TRIAL_PREFIX = "best_trial."


class Column:
    """The columns of the recorded tables, beside parameters, metrics and the fields of statistics.Summary."""

    # Of the leaderboard.
    RANK = "rank"
    TRIAL = "trial"
    EPOCHS_RUN = "epochs_run"
    # The number of seeds of a trial, and the standard deviation of the objective between them.
    SEEDS = "seeds"
    SEEDS_SD = "seeds_sd"
    STATE = "state"
    RUN_ID = "run_id"
    NOTE = "note"
    # Of the learning curves, with a trial's state and run.
    EPOCH = "epoch"
    # Of a confirmation; CONFIG also stands on the champion's model version.
    CONFIG = "config"
    SEED = "seed"
    DIFFERENCE = "difference"
    DIFFERENCE_LOW = "difference_low"
    DIFFERENCE_HIGH = "difference_high"
    P = "p"
    SUPERIORITY = "superiority"
    SUPERIORITY_LOW = "superiority_low"
    SUPERIORITY_HIGH = "superiority_high"
    ONLY_CANDIDATE_RIGHT = "only_candidate_right"
    ONLY_BASELINE_RIGHT = "only_baseline_right"
    IMAGES_ERROR = "images_error"
    DETECTABLE = "detectable"
    SEEDS_NEEDED = "seeds_needed"
    DIVERGED_SEED = "diverged_seed"
    # After how many seeds a config was so far behind that it got no more.
    RACED_OUT = "raced_out"
    VERDICT = "verdict"
    FEASIBLE = "feasible"
    AS_GOOD = "as_good_as_best"
    CHAMPION = "champion"
    SPREAD = "spread"
    MARGIN = "margin"
    LOOK = "look"
    # Of a look that was announced: its seconds of CPU time, if they decide how many seeds there are.
    CPU_BUDGET = "cpu_budget"
    VERSIONS = "versions"
    # Of the predictions on the test set.
    IMAGE = "image"
    LABEL = "label"
    PREDICTED = "predicted"
    PROBABILITY = "probability"


# Recorded after every epoch; those on the validation examples unless they are the test set, judged once.
TRAIN_METRICS = (Metric.TRAIN_LOSS, Metric.TRAIN_ACCURACY)
EPOCH_METRICS = (*TRAIN_METRICS, Metric.VALIDATION_LOSS, Metric.VALIDATION_ACCURACY)
TEST_METRICS = (Metric.TEST_LOSS, Metric.TEST_ACCURACY)
# The metrics of a run whose epochs are judged by the test set, as the article's were, by the names of validation.
ON_TEST = {
    Metric.VALIDATION_LOSS: Metric.TEST_LOSS,
    Metric.VALIDATION_ACCURACY: Metric.TEST_ACCURACY,
    Metric.BEST_VALIDATION_ACCURACY: Metric.BEST_TEST_ACCURACY,
}
IN_VALIDATION = {of_test: name for name, of_test in ON_TEST.items()}

Objective = Literal[
    "validation_accuracy",
    "best_validation_accuracy",
    "validation_loss",
    "cpu_seconds",
    "training_seconds",
    "parameters",
]
# The metric of an epoch from which a pruner can tell how good an objective will be. Costs say nothing about that.
PRUNING_METRICS = {
    Metric.VALIDATION_ACCURACY: Metric.VALIDATION_ACCURACY,
    Metric.BEST_VALIDATION_ACCURACY: Metric.VALIDATION_ACCURACY,
    Metric.VALIDATION_LOSS: Metric.VALIDATION_LOSS,
}
# Names with units, for charts.
TITLES = {
    Metric.VALIDATION_ACCURACY: "validation accuracy (%)",
    Metric.BEST_VALIDATION_ACCURACY: "best validation accuracy (%)",
    Metric.TEST_ACCURACY: "test accuracy (%)",
    Metric.BEST_TEST_ACCURACY: "best test accuracy (%)",
    Metric.VALIDATION_LOSS: "validation loss (nats)",
    Metric.CPU_SECONDS: "CPU time (s)",
    Metric.TRAINING_SECONDS: "training time (s)",
    Metric.PARAMETERS: "weights (number)",
}


def is_maximized(metric: str) -> bool:
    """Return True if larger values of a metric are better: of accuracies; losses and costs are minimized."""
    return metric.endswith("accuracy")


class StudyAttribute:
    """The user attributes of an Optuna study."""

    # A globally unique id: the study's MLflow run is found by it.
    KEY = "key"
    # The space, the objectives and every value that is not searched. Written last: a study that has it is complete.
    IDENTITY = "identity"
    # The id of the study's MLflow run.
    PARENT_RUN_ID = "parent_run_id"
    # Not of the user: the note that optuna-dashboard shows of a study, and its version.
    DASHBOARD_NOTE = "dashboard:note_str:0"
    DASHBOARD_NOTE_VERSION = "dashboard:note_ver"


class IdentityKey:
    """The keys of a study's identity."""

    SPACE = "space"
    OBJECTIVE = "objective"
    BASELINE = "baseline"
    # Studies that an earlier version began have none of them.
    DATA_SHA256 = "data_sha256"
    CONSTRAINTS = "constraints"
    SEEDS = "seeds"


@dataclass(frozen=True)
class TrialRecord:
    """The user attributes of an Optuna trial. A field with its default is not stored."""

    # The id of the trial's MLflow run.
    run_id: str | None = None
    # The trial of the study's baseline.
    baseline: bool = False
    # Why the trial got to no result: for a reason outside it, so that it is tried again, or for its own.
    lost: str | None = None
    failure: str | None = None
    # The objectives' values at the end of a trial that a pruner or an interruption ended.
    reached: dict[str, float] = field(default_factory=dict)
    # How often these parameters failed, or their worker was killed from outside, while other trials succeeded.
    failures: int = 0
    kills: int = 0
    # The number of the lost trial that this one tries again, and of the one whose result it took over.
    repeats: int | None = None
    same_as: int | None = None
    # The trial of another study, or the run, whose record this trial is.
    taken_from: str | None = None
    # The number of the trial whose first epochs are this one's; of the one from whose checkpoint this one went on, and
    # the epoch of that.
    prefix_of: int | None = None
    continues: int | None = None
    epochs_before: int | None = None
    epochs_run: int | None = None
    # The number of values of completed trials that the last of these epochs was judged against, if it was pruned then.
    pruned_against: int | None = None
    # With study.seeds: the number of its seeds, the standard deviation of the objective, and the runs of further seeds.
    seeds: int | None = None
    seeds_sd: float | None = None
    seed_runs: list[str] = field(default_factory=list)
    # Means of the seeds, as the objectives.
    validation_accuracy: float | None = None
    # Of the whole training, and of the trial itself, all seeds: less, if its first epochs were another's.
    cpu_seconds: float | None = None
    cpu_spent: float | None = None

    def attributes(self) -> dict[str, Any]:
        """Return the user attributes to store."""
        empty = vars(TrialRecord())
        return {name: value for name, value in vars(self).items() if value != empty[name]}
