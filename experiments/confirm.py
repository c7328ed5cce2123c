"""Tests a study's best trials on the test set: `experiments/confirm.py study=NAME [KEY=VALUE ...]`."""

from command import main, settled

from digitcnn import confirmation, display, preview, printing, verdicts
from digitcnn.confirmation import ConfirmConfig


def confirm(config: ConfirmConfig) -> int:
    """One confirmation, with its progress on the screen; or only what it would do, with `preview=true`."""
    plan = confirmation.plan(config)
    if config.preview:
        print("\n".join(preview.describe_confirmation(plan)))
        return 0
    screen = display.SweepScreen("runs")
    try:
        result = confirmation.run(plan, screen)
    finally:
        screen.close()
    for sentence in verdicts.sentences(result.table):
        printing.say(sentence)
    print(f"written to {plan.folder}; next: .venv/bin/python experiments/reproduce.py run={result.champion_path}")
    return settled(config.tracking)


if __name__ == "__main__":
    main("confirm", ConfirmConfig, confirm, study_by_name=True)
