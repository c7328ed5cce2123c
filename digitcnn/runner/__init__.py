"""One process that owns a study: a pool of workers, the sweep, recovery and the preview."""

from digitcnn.runner.preview import describe_sweep, estimate_seconds, measure_speed
from digitcnn.runner.recovery import repair_records
from digitcnn.runner.run import (
    Interrupted,
    RecordedTraining,
    SweepDisplay,
    check_run,
    record_run,
    run_job,
)
from digitcnn.runner.signals import capture_signals, end_in_order, end_process
from digitcnn.runner.sweep import plan_sweep, run_sweep
from digitcnn.runner.workers import (
    Job,
    Outcome,
    Pool,
    RunDiverged,
    RunFailed,
    Trainer,
    WorkerDied,
    local_workers,
    threads_per_worker,
    worker_count,
)

__all__ = [
    "Interrupted",
    "Job",
    "Outcome",
    "Pool",
    "RecordedTraining",
    "RunDiverged",
    "RunFailed",
    "SweepDisplay",
    "Trainer",
    "WorkerDied",
    "capture_signals",
    "check_run",
    "describe_sweep",
    "end_in_order",
    "end_process",
    "estimate_seconds",
    "local_workers",
    "measure_speed",
    "plan_sweep",
    "record_run",
    "repair_records",
    "run_job",
    "run_sweep",
    "threads_per_worker",
    "worker_count",
]
