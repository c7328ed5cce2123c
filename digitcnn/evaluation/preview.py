"""The preview of a confirmation: its missing runs and their time."""

from __future__ import annotations

from digitcnn.evaluation.confirmation import ConfirmationPlan, recorded_runs
from digitcnn.formatting import format_count, format_duration, named_null
from digitcnn.runner import describe_time, estimate_seconds, measure_speed, plan_workers


def describe_confirmation(plan: ConfirmationPlan) -> list[str]:
    """Return the preview of a confirmation as lines of text."""
    recorded = recorded_runs(plan)
    missing = recorded.missing(plan.candidates, plan.seeds)
    workers, threads, shares = plan_workers(plan.config.workers, len(missing), "run")
    baseline = plan.candidates[0].config.replace({"training.threads": threads})
    name, seeds = plan.config.study.name, len(plan.seeds)
    lines = [f"confirmation of study {name}: {len(plan.candidates)} configs x {seeds} seeds"]
    speed = measure_speed(baseline, plan.config.workers, workers) if missing else None
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
        lines.append(shares)
        time_left = describe_time(total, plan.config.workers, workers)
        lines.append(f"time: about {time_left} for {format_count(len(missing), 'run')}")
    else:
        lines.append("nothing is missing: confirm compares what is recorded")
    return lines
