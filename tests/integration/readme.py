"""README's commands and Python with the small sweep in place of README's sweeps."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from tests.unit.test_docs import ROOT, blocks, cells, commands

README = ROOT / "README.md"
NOT_RUN = {
    "isweep ui demo": "serves until it is stopped, as a test of its own sees",
    "isweep tune ./mine.yaml": "trains for minutes",
    "isweep predict my-images": "needs a sweep of one dataset, unlike small",
    "isweep run paper --address auto --device gpu": "needs a cluster",
}
REPLACEMENTS = {
    "demo": "small",
    "mine": "small",
    "my-images": "small",
    "./mine.yaml": "small.yaml",
    "./my-images.yaml": "small.yaml",
    "small_cnn": "small_mlp",
}


def readme_commands() -> list[list[str]]:
    """Return the arguments of every command that tests run."""
    lines = [line for line in commands(README) if line not in NOT_RUN]
    assert len(lines) + len(NOT_RUN) == len(commands(README)), (
        "a command that is not run is not there any more"
    )
    return [[REPLACEMENTS.get(word, word) for word in shlex.split(line)[1:]] for line in lines]


def readme_python() -> list[str]:
    """Return the Python blocks."""
    texts = [text for language, text in blocks(README) if language == "python"]
    return [text.replace('"smoke"', '"small"') for text in texts]


def tutorial_python() -> str:
    """Return the code of all cells of the tutorial, with shorter trainings."""
    text = "\n".join(cells(ROOT / "docs" / "tutorial.md"))
    for original, replacement in (
        ("[60, 120, 240, 480]", "[60, 240, 480]"),
        ('"epochs": 15', '"epochs": 2'),
    ):
        assert text.count(original) == 1
        text = text.replace(original, replacement)
    return text


def write_own_files(folder: Path) -> None:
    """Write files that the commands use as a user's: images of two classes, and results."""
    curve = "train_size,accuracy\n50,0.7\n100,0.78\n200,0.83\n"
    (folder / "results.csv").write_text(curve, encoding="utf-8")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (60, 16, 16), dtype=np.uint8)
    labels = np.where(np.arange(60) % 2, 3, 8)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "my-images" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
