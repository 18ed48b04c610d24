"""Write every raw tree: ``python -m tests.raw_trees OUT``."""

import sys
from pathlib import Path

from tests.raw_trees import WRITERS, write_raw_tree

for name in WRITERS:
    print(write_raw_tree(name, Path(sys.argv[1])))
