"""Searches around the baseline and records every trial: `experiments/sweep.py [KEY=VALUE ...]`."""

import shlex
import sys

from command import main, settled

from digitcnn import display, leaderboard, preview, printing, sweep
from digitcnn.config import SweepConfig


def search(config: SweepConfig) -> int:
    """One sweep, with its progress on the screen; or only what it would do, with `preview=true`."""
    plan = sweep.plan(config)
    if config.preview:
        print("\n".join(preview.describe(plan, preview.measure(plan.baseline, plan.workers))))
        return 0
    screen = display.SweepScreen()
    try:
        result = sweep.run(plan, screen)
    finally:
        screen.close()
    printing.leaderboard(result.leaderboard, list(plan.space), config.study.objective)
    printing.say(leaderboard.best_against_baseline(result.leaderboard, config.study.objective))
    print(f"leaderboard: {result.leaderboard_path}")
    if result.interrupted is not None:
        print(f"stopped at {result.finished} of {result.total} trials; resume with: {_this_command()}")
    elif result.finished < result.total:
        print(f"time is up at {result.finished} of {result.total} trials; go on with: {_this_command()}")
    else:
        print(f"recorded as run {result.parent_run_id}; next: make ui, and compare the trials")
    status = settled(config.tracking)
    return status if result.interrupted is None else 128 + result.interrupted


def _this_command() -> str:
    return shlex.join([".venv/bin/python", *sys.argv])


if __name__ == "__main__":
    main("sweep", SweepConfig, search)
