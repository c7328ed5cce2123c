"""Train what parts.csv lacks of the first PARTS (all) with SEEDS seeds (5), and print its table.

`python -m experiments.parts [SEEDS [PARTS]]`: a run takes about a minute of a quiet core. Whatever ends the command
costs the two runs that are at work, and the same command goes on.
"""

import sys

from experiments.parts.parts import PARTS, measure, table

if __name__ == "__main__":
    seeds, parts = [int(word) for word in sys.argv[1:]] + [5, len(PARTS)][len(sys.argv) - 1 :]
    measure(list(PARTS)[:parts], range(1, 1 + seeds))
    print(table())
