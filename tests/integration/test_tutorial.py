"""The tutorial's cells run one after another, from a folder of images to the methods paragraph."""

import subprocess
import sys

import pytest

from tests.integration.readme import tutorial_python

pytestmark = pytest.mark.ray


def test_the_tutorial_ends_in_a_paragraph_with_its_own_numbers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", tutorial_python()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    paragraph = done.stdout.strip().splitlines()[-1]
    assert "on all 719 images at 8 x 8 pixels" in paragraph
    assert (
        "for 2 epochs on nested, stratified subsets of 60, 240, 480 images with 2 seeds"
        in paragraph
    )
    assert "results of all 12 trainings" in paragraph
    assert (tmp_path / "isweep-root/sweeps/my-images/report/report.html").exists()
