"""The process that answers the questions of `pool`, one after the other."""

from __future__ import annotations

import importlib
import os

# Nothing is computed: threads would only wait.
os.environ["OMP_NUM_THREADS"] = "1"

from vitbench.process import answers


def warm() -> None:
    """Imports what the first prediction would."""
    for module in ("vitbench.memory.find", "torch.fx.experimental.symbolic_shapes"):
        importlib.import_module(module)


def main() -> None:
    say, asked = answers()
    for question in asked:
        say(question.ask())


if __name__ == "__main__":
    main()
