"""What a confirmation would do, and how long it would take."""

from __future__ import annotations

from digitcnn.evaluation.confirmation import ConfirmationPlan, recorded_runs
from digitcnn.formatting import format_count, format_duration
from digitcnn.runner import estimate_seconds, measure_speed, threads_per_worker, worker_count


def describe_confirmation(plan: ConfirmationPlan) -> list[str]:
    """The preview of a confirmation as lines of text."""
    known = recorded_runs(plan)
    missing = known.missing(plan)
    workers = worker_count(plan.workers, len(missing))
    threads = threads_per_worker(workers)
    baseline = plan.contenders[0].config.replace({"training.threads": threads})
    name, seeds = plan.config.study.name, len(plan.seeds)
    lines = [f"confirmation of study {name}: {len(plan.contenders)} configs x {seeds} seeds"]
    speed = measure_speed(baseline, workers) if missing else None
    total = 0.0
    for contender in plan.contenders:
        values = ", ".join(f"{name} {value}" for name, value in contender.parameters.items())
        line, left = f"  {contender.name}: {values}", sum(each is contender for each, _ in missing)
        if contender.name in known.diverged:
            line += f"; diverged with seed {known.diverged[contender.name]}: left out"
        elif speed is None or left == 0:
            line += "; all recorded"
        else:
            seconds = estimate_seconds(contender.config, baseline, speed)
            total += seconds * left
            line += f"; {left} of {seeds} runs to come, {format_duration(seconds)} each"
        lines.append(line)
    if missing:
        lines.append(
            f"time: about {format_duration(total / workers)} for {format_count(len(missing), 'run')} "
            f"by {format_count(workers, 'worker')}"
        )
    else:
        lines.append("nothing is missing: confirm compares what is recorded")
    return lines
