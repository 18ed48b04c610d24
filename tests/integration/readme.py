"""README's commands and Python, with the small sweep in place of the sweeps it names."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.test_docs import ROOT, blocks, commands

README = ROOT / "README.md"
NOT_RUN = {
    "isweep run demo --set recipe.epochs=3": "trains for minutes",
    "isweep run paper --address auto --device gpu": "needs a cluster",
}
STANDS_FOR = {
    "demo": "small",
    "smoke": "small",
    "mine": "small",
    "mine.yaml": "small.yaml",
    "mnist5k": "images.npz",
    "resnet18": "small_mlp",
    "medical": "natural",
    "500": "20",
    "1000": "40",
}


def readme_commands() -> list[list[str]]:
    """Return the words of every command that is run here, without ``isweep``."""
    lines = [line for line in commands(README) if line not in NOT_RUN]
    assert len(lines) + len(NOT_RUN) == len(commands(README)), (
        "a command that is not run is not there any more"
    )
    return [[STANDS_FOR.get(word, word) for word in shlex.split(line)[1:]] for line in lines]


def readme_python(root: Path) -> list[str]:
    """Return the Python blocks."""
    texts = [text for language, text in blocks(README) if language == "python"]
    for old, new in {
        '"smoke"': '"small"',
        "isweep/demo": "isweep/small",
        "'mnist5k'": "'manifold_d4'",
        '"small_cnn"': '"small_mlp"',
        "/absolute/path/to/isweep-root": str(root),
    }.items():
        assert any(old in text for text in texts)
        texts = [text.replace(old, new) for text in texts]
    return texts


def write_own_files(folder: Path) -> None:
    """Write what the commands take for a user's own: images of two classes, ``3`` and ``8``."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16), dtype=np.uint8)
    labels = np.where(np.arange(60) % 2, 3, 8)
    np.savez(folder / "images.npz", images=images, labels=labels)
    rows = ["path,label"]
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "my-images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        rows.append(f"{path.relative_to(folder)},{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
