"""Optuna: the search space, the study, samplers, pruning, the queue of trials and the leaderboard."""

from optuna.trial import FrozenTrial, Trial

from digitcnn.study.leaderboard import (
    baseline_trial_number,
    best_against_baseline,
    best_trial_number,
    column_heading,
    differences_in_words,
    epochs_in_words,
    format_cell,
    frequent_failure,
    parameter_in_words,
    parameters_among,
    pareto_ranks,
    rank_trials,
)
from digitcnn.study.queue import TrialQueue, end_running_trials, tell_recorded
from digitcnn.study.samplers import (
    check_sampler,
    first_judged_epoch,
    judged_from,
    needs_seed,
    pruning_doubt,
    report_epoch,
    startup_trials,
)
from digitcnn.study.space import Choices, Range, Space, draw_points, parse_space, space_corners, space_size
from digitcnn.study.storage import STORAGE_FAILURES, only_process, owner, stop_file, storage_errors
from digitcnn.study.study import (
    OpenStudy,
    delete_study,
    existing_study,
    fixed_values,
    open_study,
    recorded_studies,
    recorded_study,
    refuse_another,
    save_note,
    snapshot_study,
    study_identity,
    study_of_trials,
    total_trials,
)
from digitcnn.study.trials import (
    EndedTrial,
    beginning_key,
    best_first,
    best_trial,
    broken,
    constraint_values,
    copy_result,
    count_finished,
    ended_trial,
    ended_trials,
    failed_trials,
    longest_trials,
    mean_of_seeds,
    named_means,
    outcome_record,
    parameters_key,
    read_trial,
    record_constraints,
    record_trial,
    reusable_trials,
    signed_values,
    trial_of_run,
)
