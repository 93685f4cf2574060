"""The process that answers the questions of `pool`, one after the other."""

from __future__ import annotations

import os

# Nothing is computed: threads would only wait.
os.environ["OMP_NUM_THREADS"] = "1"

from vitbench.process import answers


def main() -> None:
    say, asked = answers()
    for question in asked:
        say(question.ask())


if __name__ == "__main__":
    main()
