"""One process that owns a study: pools of workers, the sweep, recovery and the preview."""

from digitcnn.runner.plan import describe_sweep, describe_time, estimate_seconds, measure_speed, plan_sweep
from digitcnn.runner.pool import (
    Job,
    Pool,
    RunDiverged,
    RunFailed,
    Trainer,
    Worker,
    WorkerDied,
    plan_workers,
    run_workers,
    stopped_by_signals,
    threads_per_worker,
    worker_count,
)
from digitcnn.runner.run import (
    FinishedRun,
    Interrupted,
    KerasTrainer,
    SweepDisplay,
    check_run,
    record_run,
    record_training,
    recorded_before,
    tell_doubts,
)
from digitcnn.runner.study_run import repair_records
from digitcnn.runner.sweep import run_sweep
from digitcnn.runner.workers import LocalPool, make_pool
