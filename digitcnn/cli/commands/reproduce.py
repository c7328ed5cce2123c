"""Train a recorded run again and compare: `digitcnn reproduce run=RUN [KEY=VALUE ...]`."""

from digitcnn import evaluation
from digitcnn.cli import tables
from digitcnn.cli.command import settled, training_callbacks
from digitcnn.config import ReproduceConfig


def main(config: ReproduceConfig) -> int:
    """Train the run again and print the metrics side by side and the verdict; return 1 if it is DIFFERENT."""
    manifest = evaluation.find_manifest(config)
    with training_callbacks(manifest.config.training, manifest.config.backend) as (on_epoch, _):
        found = evaluation.reproduce(manifest, config.tracking, config.threads, on_epoch)
    tables.print_reproduction(found.metrics)
    print(f"weights {manifest.weights_sha256[:16]} recorded, {found.weights_sha256[:16]} repeated")
    for line in found.reasons:
        print(line)
    if found.epochs < len(manifest.epochs):
        print(f"stopped after epoch {found.epochs} of {len(manifest.epochs)}: it could not be equivalent any more")
    print(f"{found.verdict}: run {manifest.run_id} reproduced as run {found.run_id}")
    return 1 if found.verdict == "DIFFERENT" else settled(config.tracking)
