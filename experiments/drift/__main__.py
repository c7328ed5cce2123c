"""Measure the drift and write drift.csv beside this file: `python -m experiments.drift [SEEDS]`, a minute a seed."""

import sys

from experiments.drift.drift import PATH, measure

if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 25).to_csv(PATH, index=False, lineterminator="\n")
    print(f"written: {PATH}")
