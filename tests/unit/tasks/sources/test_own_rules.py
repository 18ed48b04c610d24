"""Labels, groups and splits of own data: every content × every form of file, one verdict a row.

A verdict is what a user sees: the classes, groups and splits of the prepared set and what is
flagged, or the words of the refusal. Where a form cannot hold a content, or holds it otherwise, the
row contains the reason."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from orchestrator.measuring.labels import name_labels
from search_spaces.errors import DataError
from search_spaces.sweeps import UserSourceSpec
from tasks.sources.detect import detect_own_kind
from tests.raw_trees.own import COUNT, FORMS, Columns

OFTEN = ("csv", "parquet", "folder")
"""The forms of file that `make test` tries with every content; the others hold a table too."""

BLANK = ("cannot be a folder's name", ("folder",))
NO_COLUMNS = ("class folders have no columns", ("folder",))
NONE = ("None is a word there", ("folder",))
NO_PATIENTS = ("a subfolder need not be a patient; training refuses it", ("folder",))
PAIRED = (
    "the array of labels is the one that goes with the images",
    ("npz", "hdf5", "folder"),
)

CATS = ["cat", "dog"]
NUMBERS = [0, 1]


def fill(*values: object) -> list[object]:
    """Repeat values for all images."""
    return [values[row % len(values)] for row in range(COUNT)]


def each(width: int, stem: str = "p") -> list[object]:
    return [f"{stem}{row // width}" for row in range(COUNT)]


@dataclass(frozen=True)
class Case:
    """Columns of own data, and the verdict that is expected for every form of file.

    Attributes:
        refused: Regular expression of the refusal; None if the data are accepted.
        classes: The names of the classes.
        groups: Number of groups.
        splits: Split codes of the prepared images: 0 drawn by isweep, 1 train, 2 test.
        flags: Flags that must be recorded.
        unlike: Expected classes by form, if the form cannot represent the same classes.
        lacking: Forms that are left out, with the reason.
        only: Forms that can represent the content.
    """

    columns: Columns
    refused: str | None = None
    classes: Sequence[str] = ("cat", "dog")
    groups: int = COUNT
    splits: Sequence[int] = (0,) * COUNT
    flags: tuple[str, ...] = ()
    label_map: dict[str, str] = field(default_factory=dict)
    unlike: dict[str, Sequence[str]] = field(default_factory=dict)
    lacking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    only: Sequence[str] = tuple(FORMS)


def labels(*values: object, refused: str | None = None, **more) -> Case:
    return Case({"label": fill(*values)}, refused, **more)


def groups(values: list[object], refused: str | None = None, **more) -> Case:
    return Case({"label": fill(*CATS), "group": values}, refused, **more)


def splits(values: list[object], refused: str | None = None, **more) -> Case:
    return Case({"label": fill(*CATS), "split": values}, refused, **more)


NO_LABEL = "the label is missing for 4 images:"
UNKNOWN_CODE = "which often means unknown"
ONE_SPELLING = "these class names (differ only in spelling|look the same but differ)"
APART = "rows have the same group id"
EVERY_GROUP = (
    "the group id is blank, NaN, None, a word that means unknown, or more than one value, for"
)
ONE_WAY = r"group ids differ only in spelling \(such as p0 and P0, or 7, 07 and"
SIMILAR_IDS = (
    "group ids differ only in blanks, punctuation or zeros, such as p1 and p-1; check that they "
    "are different patients"
)
MAPPED = {"-1": "unsure"}

CASES: dict[str, Case] = {
    # labels
    "text": labels(*CATS),
    "whole numbers": labels(*NUMBERS, classes=("0", "1")),
    "numbers sort as numbers": labels(
        *range(12),
        classes=[str(n) for n in range(12)],
        unlike={"folder": sorted(map(str, range(12)))},
    ),  # as torchvision's ImageFolder
    "0.0 and 1.0": labels(0.0, 1.0, classes=("0.0", "1.0"), unlike={"xlsx": ("0", "1")}),
    "true and false": labels(False, True, classes=("False", "True")),
    "-1 and 1": labels(-1, 1, classes=("-1", "1")),
    "-1 beside others": labels(-1, 0, 1, refused=f"-1, {UNKNOWN_CODE}"),
    "-1 mapped": labels(-1, 0, 1, classes=("0", "1", "unsure"), label_map=MAPPED),
    "\u22121 as Word writes it": labels("\u22121", "0", "1", refused=f"-1, {UNKNOWN_CODE}"),
    "a map of no label": labels(
        *CATS,
        label_map={"x": "cat"},
        refused="label_map contains labels that do not occur in the data: 'x'",
    ),
    "-1 in a byte": labels(0, 1, 255, refused=f"255, {UNKNOWN_CODE}"),
    "measurements": labels(
        0.5,
        1.5,
        refused=r"measurements, not classes\. The labels are 2 different numbers, such as 0\.5",
    ),
    "no label": labels("cat", "dog", None, refused=NO_LABEL, lacking=(NONE,)),
    "a label of NaN": labels(0, 1, math.nan, refused=NO_LABEL, lacking=(BLANK,)),
    "a blank label": labels("cat", "dog", " ", refused=NO_LABEL),
    "none on purpose": labels("cat", "none", classes=("cat", "none"), label_map={"none": "none"}),
    "nothing on purpose": labels(
        "cat", "dog", "NA", classes=("cat", "dog", "no animal"), label_map={"NA": "no animal"}
    ),
    "unknown, quoted": labels(
        "cat", "dog", "not known", refused=("--label-map 'not known=not known' ")
    ),
    "unknown on purpose": labels(
        "cat", "unknown", classes=("cat", "unknown"), label_map={"unknown": "unknown"}
    ),
    "a blank behind it": labels("cat", "cat ", "dog", refused=ONE_SPELLING),
    "two spellings mapped": labels("Cat", "CAT", "dog", label_map={"Cat": "cat", "CAT": "cat"}),
    "one class": labels(
        "cat",
        refused=("(isweep needs images of two classes|but two classes are needed)"),
    ),
    "a list beside its parts": labels(
        "cat",
        "dog",
        "cat|dog",
        refused=(r"some labels list several classes \(1 label\): 'cat\|dog'"),
    ),
    "several in one": labels(
        "cat",
        "dog",
        ["cat", "dog"],
        refused=("the label is a list or bytes, not one text or number, for 4 images:"),
        only=("jsonl", "webdataset"),
    ),
    # columns
    "label beside class": Case(
        {"label": fill(*CATS), "class": fill("a", "b")},
        flags=("column class not used, since there is label",),
        lacking=(NO_COLUMNS,),
    ),
    "class alone": Case(
        {"class": fill(*CATS)}, flags=(("column class read as label"),), lacking=(PAIRED,)
    ),
    "class and target": Case(
        {"class": fill(*CATS), "target": fill(*CATS)},
        "several columns could contain the label: class, target",
        lacking=(PAIRED,),
    ),
    "a column nobody reads": Case(
        {"label": fill(*CATS), "lesion_id2": each(3)},
        flags=("column lesion_id2 not used: do its images belong together? call it group",),
        lacking=(NO_COLUMNS,),
    ),
    "a site that tells the label": Case(
        {"label": fill(*CATS), "site": fill("east", "west")},
        flags=(("site predicts the label (right for 100%, 1.00 of 1.00 bits)"),),
        lacking=(NO_COLUMNS,),
    ),
    # groups
    "group": groups(each(3), groups=4, lacking=(("layout says what is on top", ("folder",)),)),
    **{
        name: Case(
            {"label": fill(*CATS), name: each(3)},
            groups=4,
            flags=((f"column {name} read as group"),),
            lacking=(NO_COLUMNS,),
        )
        for name in ("PatientID", "SubjectID", "case id", "participant_id")
    },
    "group beside patient_id": Case(
        {"label": fill(*CATS), "group": each(4), "patient_id": each(2)},
        groups=3,
        flags=("column patient_id not used, since there is group",),
        lacking=(NO_COLUMNS,),
    ),
    "two patient columns": Case(
        {"label": fill(*CATS), "subject_id": each(2), "case_id": each(3)},
        "several columns could contain the group: case_id, subject_id",
        lacking=(NO_COLUMNS,),
    ),
    "numbers of 17 digits": groups(
        [12345678901234567 + row for row in range(COUNT)],
        lacking=(("Excel keeps 15 digits", ("xlsx",)),),
    ),
    "one id for all": groups(fill("p1"), f"12 of 12 {APART}", lacking=(NO_PATIENTS,)),
    "0 for most": groups(["p1", *["0"] * 11], (f"11 of 12 {APART}"), lacking=(NO_PATIENTS,)),
    **{
        f"a word for unknown: {word}": groups(
            [*each(1)[:9], *[word] * 3], f"{EVERY_GROUP} 3 images: ", lacking=(NO_PATIENTS,)
        )
        for word in ("unknown", "missing", "Anonymous", "-", "NA", "None", "null")
    },
    "blank for a few": groups(
        [*each(1)[:9], "", "", ""],
        f"{EVERY_GROUP} 3 images: ",
        lacking=(("an image without a subfolder is its own group", ("folder",)),),
    ),
    "None for a few": groups([*each(1)[:9], None, None, None], EVERY_GROUP, lacking=(NONE,)),
    "NaN beside numbers": groups(
        [*range(9), math.nan, math.nan, math.nan], EVERY_GROUP, lacking=(BLANK,)
    ),
    "p0 and P0": groups(["P0", *each(1)[:11]], ONE_WAY),
    "7 and 007": groups(["007", *map(str, range(1, 12))], ONE_WAY),
    "p7 and p07": groups(["p07", *(f"p{number}" for number in range(1, 12))], ONE_WAY),
    "an invisible character": groups(
        ["p7\u200b", *(f"p{number}" for number in range(1, 12))], ONE_WAY
    ),
    "3.5 and 3.05": groups(
        ["3.05", "3.11", "3.12", *(f"3.{number}" for number in range(1, 10))],
        flags=(SIMILAR_IDS,),
    ),
    "p7 and p-7": groups(["p-7", *(f"p{number}" for number in range(1, 12))], flags=(SIMILAR_IDS,)),
    # splits
    **{
        f"split called {name}": Case(
            {"label": fill(*CATS), name: fill("train", "train", "test", "val")},
            splits=(1, 1, 2) * 3,
            groups=9,
            lacking=(NO_COLUMNS,),
        )
        for name in ("set", "subset", "partition")
    },
    "split": splits(
        fill("train", "Training", "TEST", "val"),
        splits=(1, 1, 2) * 3,
        groups=9,
        lacking=(("the files are then in another order", ("folder",)),),
    ),
    "train and val only": splits(
        fill("train", "val"),
        splits=(1,) * 6,
        groups=6,
        classes=("cat",),
        refused=r"isweep needs images of two classes, but these images have only the class cat \(6 rows are in a validation split\)\.",
        lacking=(("its folders are then the classes'", ("folder",)),),
    ),
    "no test split": splits(
        [*["train"] * 6, *["val"] * 6],
        splits=(1,) * 6,
        groups=6,
        flags=(
            (
                "no test split beside train and val: call the validation split test, or give "
                "train "
                "alone"
            ),
        ),
    ),
    "blank splits are ours": splits(
        fill("train", "", "test"),
        splits=(1, 0, 2) * 4,
        flags=("row without a split: used for training or testing",),
        lacking=(("a folder without a split beside splits is asked about", ("folder",)),),
    ),
    "None is ours": splits(fill("train", None, "test"), splits=(1, 0, 2) * 4, lacking=(BLANK,)),
    "holdout": splits(
        fill("train", "holdout"),
        ("the column 'split' has an unknown word for"),
        lacking=(("its folders are then the classes'", ("folder",)),),
    ),
    "nan as a split": splits(
        fill("train", "nan"),
        "the column 'split' has an unknown word for",
        lacking=(BLANK,),
    ),
    "a patient on both sides": Case(
        {"label": fill(*CATS), "group": each(2), "split": fill("train", "test")},
        "training and test share 6 groups, for example the group of",
        lacking=(("cats are then all in training", ("folder",)),),
    ),
    "a patient of validation is no leak": Case(
        {"label": fill(*CATS), "group": each(4), "split": fill("train", "train", "val", "val")},
        splits=(1,) * 6,
        groups=3,
        lacking=(("another order", ("folder",)),),
    ),
}


NOT_A_FOLDER = (("no folder can be called so", ("folder",)),)
TWICE = (
    *(
        "Cat CAT dog",
        "0 0.0 1",
        "1 01 2",
        "1e0 1 2",
        "-0 0 1",
        "Y yes no",
        "+ positive negative",
        "True 0 1",
    ),
    *("no yes 0", "cat 'cat' dog", "pos positive negative", "caf\u00e9 cafe\u0301 dog"),
    *("no_tumour no-tumour tumour", "c\uff41t cat dog"),
)
"""Words of which two are one class."""
MISSING = ("NaN", "None", "NA", "n/a", "<NA>", "null", "", "inf", "?", "#REF!", ".")
CODES = {"-9 0 1": "-9", "0 1 99": "99", "0 1 9999.0": "9999.0"}
TAKEN = (
    *(
        "98 99 0",
        "0 255",
        "1099511627776 1099511627777",
        "no yes",
        "0 1 n t y f p",
        "TNF\u03b1 TNF\u03b2",
    ),
    "\u03b1-synuclein \u5317\u4eac \u043a\u043e\u0442",
)
CASES |= {
    f"one class twice: {words}": labels(*words.split(), refused=ONE_SPELLING) for words in TWICE
}
CASES |= {
    f"no label: {word!r}": labels(
        "cat",
        "dog",
        word,
        refused=NO_LABEL,
        lacking=NOT_A_FOLDER if word in ("", ".", "n/a") else (),
    )
    for word in MISSING
}
CASES |= {
    f"a code: {words}": labels(*words.split(), refused=f"{code}, {UNKNOWN_CODE}")
    for words, code in CODES.items()
}
CASES |= {
    f"a word for unknown: {word}": labels(
        "cat", "dog", word, refused="usually means that the class is unknown"
    )
    for word in ("Unknown", "unknown", "-", "uncertain")
}
CASES |= {
    f"classes: {words}": labels(
        *words.split(),
        classes=(
            sorted(words.split(), key=int)
            if words.replace(" ", "").isdigit()
            else sorted(words.split())
        ),
        unlike={"folder": sorted(words.split())},
    )
    for words in TAKEN
}
CASES["a comma for a point"] = labels(
    "0,5",
    "1,5",
    refused=r"measurements, not classes\. The labels are 2 different numbers, such as 0\.5",
)


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=() if form in OFTEN else pytest.mark.long) for form in FORMS]
)
@pytest.mark.parametrize("name", CASES)
def test_every_form_of_a_content_gets_its_verdict(prepare, tmp_path, name, form):
    case, (kind, write) = CASES[name], FORMS[form]
    without = {form: reason for reason, forms in case.lacking for form in forms}
    if form in without or form not in case.only:
        pytest.skip(without.get(form, "the form holds no such value"))
    raw = write(tmp_path / "raw", case.columns)
    assert detect_own_kind(raw) == kind

    def run():
        return prepare(kind, raw, label_map=case.label_map, for_training=False)

    if case.refused is not None:
        with pytest.raises(DataError, match=case.refused):
            run()
        return
    data = run()
    classes = case.unlike.get(form, case.classes)
    assert data.label_names == tuple(classes)
    written = [
        case.label_map.get(str(cell).strip(), str(cell))
        for cell in next(iter(case.columns.values()))
    ]
    if form != "folder" and form not in case.unlike and data.num_images == COUNT:
        assert [data.label_names[label] for label in data.classes] == written
    assert data.record.num_groups == case.groups
    assert data.splits.tolist() == list(case.splits)
    num_validation = COUNT - len(case.splits)
    expected = {"validation split": num_validation} if num_validation else {}
    assert data.record.excluded == expected
    assert set(case.flags) <= set(data.record.flags)


@pytest.mark.parametrize(
    "name", [name for name, case in CASES.items() if list(case.columns) == ["label"]]
)
def test_labels_from_python_get_the_same_verdict(name):
    case = CASES[name]
    source = UserSourceSpec(kind="npz", path="own", domain=None, label_map=case.label_map)
    cells = case.columns["label"]
    if case.refused is None:
        labels = name_labels(cells, source)
        names, codes = labels.names, labels.codes
        assert (names, len(codes)) == (tuple(case.classes), COUNT)
    elif name != "one class":  # arrays of one class have an intrinsic dimension, if no sharpness
        with pytest.raises(DataError, match=case.refused):
            name_labels(cells, source)
    if case.refused and not case.label_map and name != "one class":
        with pytest.raises(DataError, match="Correct these labels, or remove") as caught:
            name_labels(cells)
        assert "label_map" not in str(caught.value)
    text = [str(cell).encode() for cell in cells]
    assert case.refused or len(set(name_labels(text, source).codes.tolist())) == len(case.classes)
