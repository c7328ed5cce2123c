"""Search around the baseline and record every trial: `digitcnn sweep [KEY=VALUE ...]`."""

import contextlib
import shlex
import sys

from digitcnn import runner, study
from digitcnn.cli import display, tables
from digitcnn.cli.command import settled
from digitcnn.config import SweepConfig
from digitcnn.formatting import printable
from digitcnn.output import StartLines


def search(config: SweepConfig) -> int:
    """Run a sweep with its progress on the screen, or only describe it with `preview=true`; return the exit status."""
    with contextlib.closing(StartLines("the study")):
        plan = runner.plan_sweep(config)
    if config.preview:
        speed = runner.measure_speed(plan.baseline, config.workers, plan.workers)
        print("\n".join(runner.describe_sweep(plan, speed)))
        return 0
    if plan.taken.line:
        print(plan.taken.line)
    screen = display.SweepScreen(plan.baseline.backend)
    try:
        result = runner.run_sweep(plan, screen)
    finally:
        screen.close()
    tables.print_leaderboard(result.leaderboard, list(plan.space), config.study.objective)
    tables.print_line(study.best_against_baseline(result.leaderboard, config.study.objective))
    print(result.epochs)
    print(f"leaderboard: {result.leaderboard_path}")
    if result.overtime:
        print(result.overtime)
    if result.interrupted is not None:
        print(f"stopped at {result.finished} of {result.total} trials; resume with: {_this_command()}")
    elif result.finished < result.total:
        print(f"time is up at {result.finished} of {result.total} trials; go on with: {_this_command()}")
    elif result.completed:
        print(f"recorded as run {result.parent_run_id}; next: digitcnn ui study={config.study.name}")
    else:
        print(f"recorded as run {result.parent_run_id}")
    status = settled(config.tracking, None if result.interrupted else config.study.name)
    if result.completed == 0 and result.interrupted is None:
        otherwise = "time was up" if result.finished < result.total else "all were pruned"
        print(f"error: no trial has completed: {printable(result.failure or otherwise)}", file=sys.stderr)
        status = 1
    return status if result.interrupted is None else 128 + result.interrupted


def _this_command() -> str:
    return shlex.join(sys.argv)


main = search
