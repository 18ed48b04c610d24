"""Small raw downloads in the true layout and file formats of each dataset, generated with a seed.

``python -m tests.raw_trees OUT`` writes ``OUT/<dataset>/``. Pictures are drawn, no real patient is in them;
each tree has some of the oddities of the real download, listed in the docstring of its writer.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.raw_trees import medical, natural

WRITERS: dict[str, Callable[[Path, int], None]] = {
    "mnist": natural.write_mnist,
    "fashion_mnist": natural.write_mnist,
    "cifar10": natural.write_cifar10,
    "svhn": natural.write_svhn,
    "imagenet": natural.write_imagenet,
    "brats": medical.write_brats,
    "dbc": medical.write_dbc,
    "oai": medical.write_oai,
    "chexpert": medical.write_chexpert,
    "mura": medical.write_mura,
    "rsna": medical.write_rsna,
    "prostate": medical.write_prostate,
}


def write_raw_tree(name: str, out: Path, seed: int = 0) -> Path:
    """Write the raw tree of dataset ``name`` to ``out/name`` and return that folder."""
    folder = out / name
    folder.mkdir(parents=True)
    WRITERS[name](folder, seed)
    return folder
