"""Tests a study's best trials on the test set: `digitcnn confirm study=NAME [KEY=VALUE ...]`."""

from digitcnn import evaluation
from digitcnn.cli import display, tables
from digitcnn.cli.command import main, settled
from digitcnn.config import ConfirmConfig


def confirm(config: ConfirmConfig) -> int:
    """One confirmation, with its progress on the screen; or only what it would do, with `preview=true`."""
    plan = evaluation.plan_confirmation(config)
    if config.preview:
        print("\n".join(evaluation.describe_confirmation(plan)))
        return 0
    screen = display.SweepScreen("runs")
    try:
        result = evaluation.run_confirmation(plan, screen)
    finally:
        screen.close()
    for sentence in evaluation.verdict_sentences(result.table):
        tables.print_line(sentence)
    print(f"written to {plan.folder}; next: digitcnn reproduce run={result.champion_path}")
    return settled(config.tracking)


if __name__ == "__main__":
    main("confirm", ConfirmConfig, confirm, study_by_name=True)
