"""Write every raw tree: ``python -m tests.raw_trees OUT [--seed N]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.raw_trees import WRITERS, write_raw_tree


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in WRITERS:
        print(write_raw_tree(name, arguments.out, arguments.seed))


if __name__ == "__main__":
    main()
