"""Measure the drift and write drift.csv beside this file: `python -m experiments.drift`, half an hour on two cores."""

from experiments.drift.drift import PATH, largest_drift, measure

if __name__ == "__main__":
    rows = measure()
    rows.to_csv(PATH, index=False, lineterminator="\n")
    print(f"written: {PATH}")
    for name, drift in largest_drift(rows).items():
        print(f"largest drift of {name}: {', '.join(f'{each:.4f}' for each in drift)}")
