"""What people are shown of a preparation."""

from __future__ import annotations

from tasks.prepared.parts import FORM, Part
from tasks.prepared.record import preparation_lines, telling_traits
from tests.unit.tasks.sources.conftest import picture, png, prepare  # noqa: F401


def test_everything_that_was_taken_is_shown(prepare, tmp_path):  # noqa: F811
    raw = tmp_path / "raw"
    for number in range(8):
        path = raw / ("cat", "dog")[number % 2] / f"p{number // 4}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk" if number == 7 else png(picture(number, (20, 30))))
    (raw / "cat" / "notes.txt").touch()
    (raw / "horse").mkdir()
    record = prepare("folder", raw, layout="class/group", max_skipped_share=0.5, for_training=False).record
    lines = preparation_lines(record)
    text = "\n".join(lines)
    assert lines[0] == "mine: 7 images, 2 classes, 2 groups"
    assert "  class cat: 4 images, 2 groups" in lines
    assert "  class dog: 3 images, 2 groups" in lines
    assert any(line.startswith("  made 8x8, 1 channel: 8 bits as stored") for line in lines)
    assert "  left out: not an image by its ending, 1" in lines
    assert "  skipped: not an image, 1" in lines
    assert "  doubtful: class folder without an image: horse, 1" in lines
    assert record.skipped_items[0][0] in text
    assert "isweep locate HASH --raw DIR" in text
    assert "7.png" not in text


def part(*traits: tuple[int, str, str, int]) -> Part:
    return Part(traits=list(traits))


def test_information_is_that_of_the_formula():
    """Two sites, 30 and 10 of class 0, 10 and 30 of class 1: I = 1 - H(1/4) bits."""
    found = telling_traits(
        [part((0, "site", "a", 30), (0, "site", "b", 10)), part((1, "site", "a", 10), (1, "site", "b", 30))]
    )
    assert found == {"site tells the label (75% by it alone, 0.19 of 1.00 bits)": 60}


def test_rare_values_and_weak_ties_are_left_alone():
    alone = [(row % 2, FORM, f"size {row}", 1) for row in range(40)]
    weak = [(0, "site", "a", 21), (0, "site", "b", 19), (1, "site", "a", 19), (1, "site", "b", 21)]
    assert telling_traits([part(*alone), part(*weak)]) == {}
    assert telling_traits([]) == {}
    assert telling_traits([part((0, "site", "a", 3), (1, "site", "b", 3))]) == {}
