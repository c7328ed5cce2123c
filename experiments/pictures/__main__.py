"""Print how a recorded model reads pictures, as a table: `python -m experiments.pictures RUN [COUNT] [RECORDS]`."""

import sys

from digitcnn.config import TrackingConfig
from experiments.pictures.measurement import measure

if __name__ == "__main__":
    run, count, root = (*sys.argv[1:], *("champion", "50", "mlruns")[len(sys.argv) - 1 :])
    for row in measure(TrackingConfig(root=root), run, int(count)):
        print("| " + " | ".join(row) + " |", flush=True)
