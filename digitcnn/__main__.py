"""`python -m digitcnn COMMAND [KEY=VALUE ...]`."""

import runpy
import sys

if __name__ == "__main__":
    name = sys.argv.pop(1)
    runpy.run_module(f"digitcnn.cli.commands.{name}", run_name="__main__", alter_sys=True)
