"""Print the simulations of the verdicts as a table: `python -m experiments.simulations [STUDIES]`."""

import sys

from experiments.simulations.simulation import table

if __name__ == "__main__":
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else 2000))
