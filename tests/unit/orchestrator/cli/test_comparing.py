"""Weighing sweeps from the command line: ``power`` and ``compare``, and what was taken of a folder."""

import json

import numpy as np
from PIL import Image

from orchestrator.cli import main


def test_power_says_what_a_design_settles(capsys, root):
    assert main(["power", "paper", "--num-tables", "20", "--json", "--root", root]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["num_datasets"] == 11
    assert found["num_tables"] == 20
    assert all(0 <= share <= 1 for share in found["adjusted"].values())
    assert all(found["adjusted"][name] <= found["alone"][name] for name in found["adjusted"])


def test_power_needs_three_datasets(capsys, root):
    assert main(["power", "smoke", "--num-tables", "20", "--root", root]) == 2
    assert "Power needs at least 3 datasets" in capsys.readouterr().err


def test_what_was_taken_of_a_folder_is_shown(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label).mkdir(parents=True)
        for place in range(30):
            pixels = rng.integers(0, 256, (12, 12), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / label / f"{place}.png")
    (tmp_path / "pets" / "cat" / "torn.png").write_bytes(b"no image")
    words = ["measure", str(tmp_path / "pets"), "--image-size", "12", "--max-skipped-share", "0.1"]
    assert main([*words, "--root", str(tmp_path / "root")]) == 0
    shown = capsys.readouterr().out
    assert "60 images, 2 classes" in shown
    assert "class dog: 30 images" in shown
    assert "skipped: not an image, 1" in shown
    assert "isweep locate HASH" in shown


def test_a_sweep_is_not_compared_with_itself(capsys, root):
    assert main(["compare", "smoke", "smoke", "--root", root]) == 2
    assert "compare needs two sweeps; found: smoke twice" in capsys.readouterr().err
