"""List what an MLflow store did not take, or offer it again: `digitcnn records [retry | discard ID]`."""

from collections.abc import Sequence

from digitcnn import tracking
from digitcnn.config import RecordsConfig
from digitcnn.errors import ConfigError
from digitcnn.formatting import format_count, printable


def main(config: RecordsConfig) -> int:
    """Print a line for each record that waits or was refused; or offer the refused ones again, or discard some."""
    match config.action:
        case []:
            _print_queued(tracking.queued_records(config.tracking))
        case ["retry"]:
            tracking.retry_refused(config.tracking)
            _print_queued(tracking.queued_records(config.tracking))
        case ["discard", wanted]:
            number = tracking.discard_refused(config.tracking, "" if wanted == "all" else wanted)
            if number == 0:
                raise ConfigError(f"discard {wanted}: no record with that id, or of that run, was refused")
            print(f"discarded: {format_count(number, 'record')}")
        case _:
            raise ConfigError(f"action={' '.join(config.action)}: must be retry, or discard with an id or all")
    return 0


def _print_queued(queued: Sequence[tracking.Queued]) -> None:
    for each in queued:
        state = "waits" if each.refused is None else f"refused: {each.refused}"
        print(printable(f"{each.id}  run {each.run_id}  {each.kind}, {each.size:,} bytes, for {each.store}  {state}"))
    if not queued:
        print("nothing waits, and nothing was refused")
