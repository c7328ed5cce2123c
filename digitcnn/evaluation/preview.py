"""The preview of a confirmation: its missing runs and their time."""

from __future__ import annotations

from digitcnn.evaluation.confirmation import ConfirmationPlan, recorded_runs
from digitcnn.formatting import format_count, format_duration, named_null
from digitcnn.runner import estimate_seconds, measure_speed, threads_per_worker, worker_count


def describe_confirmation(plan: ConfirmationPlan) -> list[str]:
    """Return the preview of a confirmation as lines of text."""
    recorded = recorded_runs(plan)
    missing = recorded.missing(plan)
    workers, limit = worker_count(plan.config.workers.count, len(missing), "run")
    threads = threads_per_worker(workers)
    baseline = plan.candidates[0].config.replace({"training.threads": threads})
    name, seeds = plan.config.study.name, len(plan.seeds)
    lines = [f"confirmation of study {name}: {len(plan.candidates)} configs x {seeds} seeds"]
    speed = measure_speed(baseline, workers) if missing else None
    total = 0.0
    for candidate in plan.candidates:
        values = ", ".join(f"{name} {named_null(value)}" for name, value in candidate.parameters.items())
        line, left = f"  {candidate.name}: {values}", sum(each is candidate for each, _ in missing)
        if candidate.name in recorded.diverged:
            line += f"; diverged with seed {recorded.diverged[candidate.name]}: left out"
        elif speed is None or left == 0:
            line += "; all recorded"
        else:
            seconds = estimate_seconds(candidate.config, baseline, speed)
            total += seconds * left
            line += f"; {left} of {seeds} runs to come, {format_duration(seconds)} each"
        lines.append(line)
    if missing:
        lines.append(f"{format_count(workers, 'worker')} of {format_count(threads, 'thread')}: {limit}")
        lines.append(
            f"time: about {format_duration(total / workers)} for {format_count(len(missing), 'run')} "
            f"by {format_count(workers, 'worker')}"
        )
    else:
        lines.append("nothing is missing: confirm compares what is recorded")
    return lines
