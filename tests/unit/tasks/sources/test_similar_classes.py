"""Class names of which one may be a misspelling of the other: they are noted, and never joined."""

from __future__ import annotations

import pytest

from tasks.sources.own.similar_classes import are_similar, similar_class_flags
from tests.raw_trees.own import FORMS
from tests.unit.tasks.sources.conftest import write_tree


@pytest.mark.parametrize(
    ("misspelled", "right"),
    [
        ("bening", "benign"),  # two letters swapped
        ("malignent", "malignant"),  # one letter replaced
        ("begnign", "benign"),  # one letter added
        ("melanma", "melanoma"),  # one letter missing
        ("normall", "normal"),
        ("cats", "cat"),  # the plural
        ("boxes", "box"),
    ],
)
def test_a_letter_or_the_plural_makes_words_similar(misspelled, right):
    assert are_similar(misspelled, right)
    assert are_similar(right, misspelled)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat", "bat"),  # short words
        ("stage1", "stage2"),
        ("grade1", "grade11"),
        ("typea", "typeb"),  # the last letter is replaced
        ("male", "female"),
        ("benign", "malignant"),
        ("abcd", "badc"),  # two swaps
    ],
)
def test_different_words_are_not_similar(first, second):
    assert not are_similar(first, second)


def test_names_of_several_words_are_similar_if_one_word_is():
    flags = similar_class_flags({"Bening mass": 2, "benign mass": 7, "type A": 1, "type B": 1})
    assert flags == {
        "similar class names 'Bening mass' (2 images) and 'benign mass' (7 images); if they are "
        "one class, set label_map (--label-map 'Bening mass=benign mass')": 9
    }


def test_camel_case_separates_words():
    assert similar_class_flags({"typeA": 1, "typeB": 1, "gradeI": 1, "gradeV": 1}) == {}


def test_a_few_pairs_are_named_and_the_others_counted():
    names = {f"word{chr(97 + number)}xyz": 1 for number in range(6)}
    flags = similar_class_flags(names)  # 15 pairs
    assert len(flags) == 11
    assert flags["other pairs of similar class names"] == 5


def test_class_folders_that_differ_by_a_letter_are_noted(prepare, tmp_path):
    raw = write_tree(tmp_path / "raw", "bening/", "benign/", "benign/more/")
    record = prepare("folder", raw, for_training=False).record
    note = (
        "similar class names 'bening' (3 images) and 'benign' (6 images); if they are one class, "
        "set label_map (--label-map bening=benign)"
    )
    assert record.flags[note] == 9
    assert record.label_names == ("benign", "bening")


@pytest.mark.parametrize("form", ["csv", "parquet", "webdataset", "npz"])
def test_similar_labels_are_noted_in_every_format(prepare, tmp_path, form):
    kind, write = FORMS[form]
    raw = write(tmp_path / "raw", {"label": ["bening", "benign"] * 6})
    flags = prepare(kind, raw, for_training=False).record.flags
    assert any(flag.startswith("similar class names 'benign'") for flag in flags)


def test_label_map_joins_similar_classes(prepare, tmp_path):
    raw = write_tree(tmp_path / "raw", "bening/", "benign/", "cyst/")
    record = prepare("folder", raw, for_training=False, label_map={"bening": "benign"}).record
    assert record.label_names == ("benign", "cyst")
    assert not any("similar" in flag for flag in record.flags)


BLANK_NOTE = (
    "class name 'cat ' with a blank at its start or end; to remove the blank, set label_map "
    "(--label-map cat=cat)"
)


@pytest.mark.parametrize("form", ["csv", "npz"])
def test_a_blank_at_the_end_of_a_label_is_noted(prepare, tmp_path, form):
    kind, write = FORMS[form]
    raw = write(tmp_path / "raw", {"label": ["cat ", "dog"] * 6})
    assert prepare(kind, raw, for_training=False).record.flags[BLANK_NOTE] == 6


def test_a_blank_at_the_end_of_a_class_folder_is_noted(prepare, tmp_path):
    raw = write_tree(tmp_path / "raw", "cat /", "dog/")
    assert prepare("folder", raw, for_training=False).record.flags[BLANK_NOTE] == 3


def test_label_map_removes_the_blank_at_the_end_of_a_class(prepare, tmp_path):
    raw = write_tree(tmp_path / "raw", "cat /", "dog/")
    data = prepare("folder", raw, for_training=False, label_map={"cat": "cat"})
    assert data.record.label_names == ("cat", "dog")
    assert BLANK_NOTE not in data.record.flags
