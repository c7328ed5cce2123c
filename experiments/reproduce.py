"""Trains a recorded run again and compares: `experiments/reproduce.py run=RUN [KEY=VALUE ...]`."""

from command import deferred_signals, main, settled

from digitcnn import display, printing, reproduction
from digitcnn.reproduction import ReproduceConfig
from digitcnn.training import Decision, EpochMetrics


def reproduce(config: ReproduceConfig) -> int:
    """Finds the run, trains it, and prints every metric side by side and the verdict."""
    frozen = reproduction.find(config, print)
    training = frozen.config.training
    with display.training(training) as shown, deferred_signals() as end_if_asked:

        def on_epoch(metrics: EpochMetrics) -> Decision:
            decision = shown.on_epoch(metrics)
            end_if_asked()
            return decision

        found = reproduction.reproduce(frozen, config.tracking, config.threads, on_epoch)
    printing.side_by_side(found.metrics)
    print(f"weights {frozen.weights_sha256[:16]} recorded, {found.weights_sha256[:16]} repeated")
    for line in (*found.reasons, *([found.code] if found.code else [])):
        print(line)
    print(f"{found.verdict}: run {frozen.run_id} reproduced as run {found.run_id}")
    return 1 if found.verdict == "DIFFERENT" else settled(config.tracking)


if __name__ == "__main__":
    main("reproduce", ReproduceConfig, reproduce, texts=("run",), study_by_name=True)
