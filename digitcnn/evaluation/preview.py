"""The preview of a confirmation: its configs and seeds, the differences that they find, and its time."""

from __future__ import annotations

from collections.abc import Sequence

from digitcnn import runner, tracking
from digitcnn.evaluation.plan import Candidate, ConfirmationPlan, RecordedRuns, recorded_runs
from digitcnn.evaluation.statistics import detectable_difference, spread_between_seeds
from digitcnn.evaluation.verdicts import Looks
from digitcnn.formatting import format_count, format_duration, format_percent, named_null

# Between the seeds of the published study's three confirmed configs: experiments/results/confirmation_runs.csv.
_PUBLISHED_SPREAD = 0.0012


def describe_confirmation(plan: ConfirmationPlan) -> list[str]:
    """Return the preview of a confirmation as lines of text. Raise ConfigError without a store."""
    config = plan.config
    with tracking.store_errors(config.tracking):
        store = tracking.open_recorded(config.tracking, f"study.name={config.study.name}")
        recorded, looks = recorded_runs(plan, store), Looks.read(store, plan.parent_run_id)
    looks.require_margin(config.confirm.margin)
    missing, over = recorded.missing(plan), recorded.over(plan)
    runs = recorded.count(plan) + len(missing)
    workers, threads, shares = runner.plan_workers(config.workers, runs, len(missing), "run")
    baseline = plan.candidates[0].config.replace({"training.threads": threads})
    title, wanted = (
        f"confirmation of study {config.study.name}: {len(plan.candidates)} configs",
        recorded.seeds(missing),
    )
    steps = f" and {format_count(len(plan.steps), 'step')} of the ablation" if config.confirm.ablation else ""
    lines = [f"{title}{steps} x {len(plan.seeds)} seeds", *_promise(plan, recorded, looks, missing)]
    if plan.budget is not None:
        spent, most = format_duration(sum(recorded.cpu_seconds.values())), max(wanted.values())
        lines[0] = f"{title}, {config.confirm.cpu_budget} of CPU time, {spent} of it spent: it buys {most} seeds"
    speed = runner.measure_speed(baseline, config.workers, workers) if missing else None
    total = 0.0
    for candidate in (*recorded.candidates, *plan.steps):
        values = ", ".join(f"{name} {named_null(value)}" for name, value in candidate.parameters.items())
        line, left = f"  {candidate.name}: {values}", sum(each is candidate for each, _ in missing)
        if candidate.name in over:
            line += f"; {over[candidate.name]}"
        elif speed is None or left == 0:
            line += "; all recorded"
        else:
            seconds = runner.estimate_seconds(candidate.config, baseline, speed)
            total += seconds * left
            of = len(plan.seeds) if plan.budget is None else wanted[candidate.name]
            line += f"; {left} of {of} runs to come, {format_duration(seconds)} each"
        lines.append(line)
    if missing:
        lines.append(shares)
        time_left = runner.describe_time(total, config.workers, workers)
        lines.append(f"time: about {time_left} for {format_count(len(missing), 'run')}")
    else:
        lines.append("nothing is missing: confirm compares what is recorded")
    return lines


def _promise(
    plan: ConfirmationPlan, recorded: RecordedRuns, looks: Looks, missing: Sequence[tuple[Candidate, int]]
) -> list[str]:
    """Return the number of the look that a confirmation is, and the difference that it finds."""
    compared, racing = len(recorded.seeds()), recorded.racing_seeds(plan, missing)
    number = looks.number(racing, recorded.seeds(), plan.budget if missing else None)
    # What is recorded of others is compared, but gets no more seeds now. One seed tells nothing.
    seeds = min(racing[each.name] for each in plan.candidates if each.name in racing)
    if compared < 2 or seeds < 2:
        return []
    values, origin = recorded.named_accuracies(), "of its recorded runs"
    spread, freedom = spread_between_seeds(values) if values else (0.0, 0)
    if not freedom:
        spread, origin = _PUBLISHED_SPREAD, "of the published study, for lack of its own"
    found = detectable_difference(spread, compared - 1, seeds, number)
    return [
        f"look {number} at this study: {seeds} seeds find differences of {format_percent(found)} points and more with "
        f"80 % power, at a standard deviation of {format_percent(spread)} points between seeds, that {origin}"
    ]
