"""The tutorial's cells run in order, from a folder of images to the methods paragraph."""

import pytest

from tests.integration.readme import tutorial_python

pytestmark = [
    pytest.mark.usefixtures("in_process"),  # how a sweep runs on Ray is test_small_sweep's
    pytest.mark.long,  # trains 12 networks; `make docs` runs the same cells
]


def test_the_tutorial_ends_in_a_paragraph_with_its_own_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(tutorial_python(), "docs/tutorial.md", "exec"), {"__name__": "tutorial"})
    paragraph = capsys.readouterr().out.strip().splitlines()[-1]
    assert "on all 719 images at 8 x 8 pixels" in paragraph
    assert (
        "for 2 epochs on nested, stratified subsets of 60, 240, 480 images with 2 seeds"
        in paragraph
    )
    assert "results of all 12 trainings" in paragraph
    assert (tmp_path / "isweep-root/sweeps/my-images/report/report.html").exists()
