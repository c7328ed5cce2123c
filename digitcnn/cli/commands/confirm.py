"""Test a study's best trials on the test set: `digitcnn confirm study=NAME [KEY=VALUE ...]`."""

import contextlib

from digitcnn import evaluation, runner
from digitcnn.cli import display, tables
from digitcnn.cli.command import settled
from digitcnn.config import ConfirmConfig
from digitcnn.output import StartLines


def main(config: ConfirmConfig) -> int:
    """Confirm a study with the progress on the screen, or only say how with `preview=true`; return the exit status."""
    with contextlib.closing(StartLines("the confirmation")):
        plan = evaluation.plan_confirmation(config)
    runner.tell_doubts(plan.candidates[0].config)
    if config.preview:
        print("\n".join(evaluation.describe_confirmation(plan)))
        return 0
    screen = display.SweepScreen(plan.candidates[0].config.backend, "runs")
    try:
        result = evaluation.run_confirmation(plan, screen)
    finally:
        screen.close()
    for sentence in (*evaluation.verdict_sentences(result.table), *evaluation.mixed_runs(result.runs)):
        tables.print_line(sentence)
    if result.ablation is not None:
        tables.print_line(f"what each change from the baseline to {plan.candidates[1].name} brings, test accuracy:")
        tables.print_table(evaluation.ablation_texts(result.ablation), hint="")
    print(f"written to {plan.folder}; next: digitcnn reproduce run={result.champion_path}")
    return settled(config.tracking, config.study.name)
