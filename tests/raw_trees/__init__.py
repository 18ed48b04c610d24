"""Small raw downloads with the real layout and file formats of each dataset, generated from a seed.

``python -m tests.raw_trees OUT`` writes ``OUT/<dataset>/``. All pictures are drawn, so they show no
real patient. Each tree has some irregularities of the real download; the docstring of its writer
lists them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
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
    return Path(shutil.copytree(_drawn(name, seed), out / name))


@cache
def _drawn(name: str, seed: int) -> Path:
    """Return the folder of a tree, which is drawn once per process.

    Copying a hundred DICOM files takes a twentieth of the time that drawing them takes.
    """
    folder = Path(_drawings().name) / f"{name}-{seed}"
    folder.mkdir()
    WRITERS[name](folder, seed)
    return folder


@cache
def _drawings() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="raw-trees-")
