"""Images inside Parquet files and WebDataset tars: configs, shards, class names, damage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources.detect import detect_own_kind
from tasks.sources.own.listing import HIDDEN
from tests.raw_trees.own import image_cells, pictures, save_parquet, save_tar, write_webdataset
from tests.unit.tasks.sources.conftest import check_verdict, picture, png

IMAGES = pictures()
LABELS = [row % 2 for row in range(12)]
Parts = Mapping[str, slice]
"""Stem of a file's name -> its rows of the twelve images."""


def write_parts(kind: str, root: Path, parts: Parts, **columns: list[object]) -> Path:
    """Files of twelve images; columns are of all rows, and text in tars unless there are others."""
    columns = {"label": LABELS, **columns}
    if kind == "webdataset" and len(columns) == 1:
        columns = {"label": [str(label) for label in LABELS]}
    for stem, rows in parts.items():
        cells = {name: values[rows] for name, values in columns.items()}
        path = root / f"{stem}.{'parquet' if kind == 'table' else 'tar'}"
        if kind == "table":
            save_parquet(path, {"image": image_cells()[rows], **cells})
        else:
            write_webdataset(path.parent, cells, name=path.name, first=rows.indices(12)[0])
    return root


THREE = {"train": slice(0, 6), "test": slice(6, 10), "val": slice(10, 12)}
SIDES = {"splits": [2] * 4 + [1] * 6, "excluded": {"validation split": 2}}
WHOLE = {"images": slice(12)}
PATIENTS = [f"p{row // 3}" for row in range(12)]
ONE_CONFIG = "several configurations of a Hugging Face dataset, for example full and small"
DENIED = "the column 'split' contradicts the name of the folder or file for 12 images:"


def named(form: str) -> Parts:
    return {form.format(split): rows for split, rows in THREE.items()}


HUB = {"partial-train": slice(0, 6), "test": slice(6, 10), "validation": slice(10, 12)}
BOTH = ("table", "webdataset")
CASES: dict[
    str, tuple[tuple[str, ...], Parts, dict[str, list[object]], str | dict[str, object]]
] = {
    "one file": (BOTH, WHOLE, {}, {"labels": LABELS, "groups": 12, "flags": {}}),
    **{
        form: (BOTH, named(form), {}, SIDES)
        for form in ("skin-{}-000000", "{}_000000", "{}/000000", "{}-000000")
    },
    "as the Hub has a set": (("table",), named("data/{}-00000-of-00001"), {}, SIDES),
    **{
        f"{config} as the Hub converts a set": (
            ("table",),
            {f"{config}/{split}/0000": rows for split, rows in HUB.items()},
            {},
            SIDES | {"splits": [1] * 6 + [2] * 4},
        )
        for config in ("default", "data")
    },
    **{
        f"two configs, {form}": (
            ("table",),
            {form.format(config): slice(12) for config in ("full", "small")},
            {},
            ONE_CONFIG,
        )
        for form in ("{}/train/0000", "{}/train-00000-of-00001")
    },
    # Partitions of pandas and Spark, which were once dropped without a warning: so were the user's
    # split and patients.
    "folders of a column": (
        ("table",),
        named("year=2020/split={}/0"),
        {},
        SIDES | {"flags": {"columns not used: year": 12}},
    ),
    "folders of patients": (
        ("table",),
        {f"patient_id=p%20{n}/0": slice(3 * n, 3 * n + 3) for n in range(4)},
        {},
        {"groups": 4, "flags": {"column patient_id read as group": 12}},
    ),
    ("folders of a column that is in the files"): (
        ("table",),
        named("label={}/0"),
        {},
        "has several columns named label",
    ),
    "several shards of a split": (
        BOTH,
        {"test-0": slice(9, 12), "train-0": slice(0, 6), "train-1": slice(6, 9)},
        {"group": PATIENTS},
        {"splits": [2] * 3 + [1] * 9, "groups": 4},
    ),
    "two splits in a name": (
        BOTH,
        {"train-test": slice(12)},
        {},
        ("contains the names of several splits"),
    ),
    "a patient on both sides": (
        BOTH,
        {"train": slice(0, 7), "test": slice(7, 12)},
        {"group": PATIENTS},
        "training and test share 1 group, for example the group of",
    ),
    # A split in the .json of a sample: once dropped without a warning, so that a sweep trained on it.
    "the owner's test images": (
        BOTH,
        WHOLE,
        {"split": ["train", "test", "val"] * 4, "lesion": PATIENTS},
        {
            "splits": [1, 2] * 4,
            "excluded": {"validation split": 4},
            "flags": {"column lesion not used: do its images belong together? call it group": 12},
        },
    ),
    "hidden files": (
        BOTH,
        {"a": slice(12), ".b": slice(12)},
        {},
        {"images": 12, "excluded": {HIDDEN: 1}},
    ),
    ("a split that denies the file's"): (
        BOTH,
        {"train-0": slice(12)},
        {"split": ["test"] * 12},
        DENIED,
    ),
}


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, (kinds, *_) in CASES.items() for kind in kinds]
)
def test_shards_are_prepared_or_refused_as_stated(prepare, tmp_path, name, kind):
    _, parts, columns, verdict = CASES[name]
    raw = write_parts(kind, tmp_path / "raw", parts, **columns)
    assert detect_own_kind(raw) == kind
    check_verdict(verdict, lambda: prepare(kind, raw, for_training=False))


@pytest.mark.parametrize(("kind", "ending"), [("table", "parquet"), ("webdataset", "tar")])
def test_other_files_are_counted(prepare, tmp_path, kind, ending):
    raw = write_parts(kind, tmp_path / "raw", WHOLE)
    (raw / f"b.{ending}.zst").write_bytes(b"x")
    assert prepare(kind, raw).record.excluded == {f"not a .{ending} by its extension": 1}


@pytest.mark.parametrize(
    "form", ["a.parquet", "train-0.parquet", "a.tar", "train-0.tar", "a.tar.gz"]
)
def test_pixels_of_one_file(prepare, tmp_path, form):
    if form.endswith(".parquet"):
        path = save_parquet(tmp_path / form, {"image": image_cells(), "label": LABELS})
    else:
        path = write_webdataset(tmp_path, {"label": list(map(str, LABELS))}, name=form)
    kind = detect_own_kind(path)
    assert kind == ("table" if form.endswith(".parquet") else "webdataset")
    data = prepare(kind, path)  # that can be split, whatever the file is called
    np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)


ROWS = {"image": image_cells(), "label": LABELS}
UNSURE = ROWS | {"label": [-1, *LABELS[1:]]}
NUMBERS = "not a class number from 0 to "
PARQUET: dict[
    str, tuple[dict[str, list[object]], list[str] | None, dict, str | dict[str, object]]
] = {
    "no label": (
        {"image": [b"x", b"y"]},
        None,
        {},
        ("has the columns image, but needs image and label"),
    ),
    "no image": ({"label": [0, 1]}, None, {}, "has no column 'path' among label"),
    "several images in a row": (
        ROWS | {"image": [[cell] for cell in image_cells()]},
        None,
        {},
        r"the path in row 0 \(the first row is 0\) is a list or bytes, not one text",
    ),
    "several labels": (
        {"image": [b"x"], "label": [[0, 1]]},
        None,
        {},
        ("the label is a list or bytes, not one text or number, for 1 image: row"),
    ),
    "named classes": (ROWS, ["no", "yes"], {}, {"classes": ("no", "yes"), "labels": LABELS}),
    # datasets writes -1 for a missing label.
    "-1 of named classes": (UNSURE, ["no", "yes"], {}, f"{NUMBERS}1 for 1 image: row 0 of"),
    "-1 on purpose": (
        UNSURE,
        ["no", "yes"],
        {"label_map": {"-1": "unsure"}},
        {"classes": ("no", "unsure", "yes")},
    ),
    "beyond the names": (ROWS, ["no"], {}, f"{NUMBERS}0 for 6 images: row 1"),
    "a class without an image": (
        ROWS,
        ["no", "yes", "x"],
        {},
        {"flags": {("class without an image: x"): 1}},
    ),
    "more classes without an image than are flagged by name": (
        ROWS,
        ["no", "yes", *(f"x{number:02}" for number in range(13))],
        {},
        {
            "flags": {
                **{f"class without an image: x{number:02}": 1 for number in range(10)},
                "other class without an image": 3,
            }
        },
    ),
    "images beside file names": (
        ROWS | {"filename": [f"{i}.png" for i in range(12)]},
        None,
        {},
        {"labels": LABELS},
    ),
}


@pytest.mark.parametrize("name", PARQUET)
def test_one_parquet_file(prepare, tmp_path, name):
    rows, names, options, verdict = PARQUET[name]
    path = save_parquet(tmp_path / "a.parquet", rows, names)
    assert detect_own_kind(path) == "table"
    check_verdict(verdict, lambda: prepare("table", path, **options))


@pytest.mark.parametrize("names", [None, ["yes", "no"]])
def test_files_with_other_class_names_are_refused(prepare, tmp_path, names):
    """Otherwise, "no" and "yes" of one file and 0 and 1 of another would be four classes."""
    half = {name: values[:6] for name, values in ROWS.items()}
    save_parquet(tmp_path / "raw" / "train.parquet", half, ["no", "yes"])
    save_parquet(tmp_path / "raw" / "test.parquet", half, names)
    with pytest.raises(DataError, match="are missing, or differ from those in the first file"):
        prepare("table", tmp_path / "raw")


@pytest.mark.parametrize("place", [0, 300, -30])
def test_damage_is_refused_or_skipped(prepare, tmp_path, place):
    path = save_parquet(tmp_path / "a.parquet", ROWS)
    body = bytearray(path.read_bytes())
    body[place] ^= 0xFF
    path.write_bytes(body)
    # A data page carries no checksum by default, so only what cannot be decoded is noticed.
    try:
        num_images, message = prepare("table", path, max_skipped_share=0.9).num_images, ""
    except DataError as error:
        num_images, message = 0, str(error)
    assert num_images > 6 or "cannot be read" in message or "cannot be used" in message


GOOD = [
    (f"{row:06d}.{ending}", body)
    for row in range(12)
    for ending, body in (("png", png(IMAGES[row])), ("cls", str(row % 2).encode()))
]
TARS = {
    "a label without an image": (
        [("y.cls", b"1"), ("about.json", b"{}"), ("README", b"x")],
        {"skipped": {"no image": 1}, "excluded": {"neither image nor label": 2}},
    ),
    "an image without a label": (
        [("x.png", png(picture(3)))],
        ("the label is missing for 1 image:"),
    ),
    "hidden members": (
        [
            (name, b"x")
            for name in (
                ".x.png",
                ".x.cls",
                "a/._y.JPG",
                ".git/z.png",
                ".git/0.png",
                "__MACOSX/._0.png",
            )
        ],
        {"images": 12, "excluded": {HIDDEN: 3}},
    ),
    "two labels of a sample": (
        [("000000.json", b'{"label": 1}')],
        r"the \.cls and the \.json of [0-9a-f]{16} have different labels",
    ),
    "two images of a sample": (
        [("000000.seg.jpg", b"x")],
        r"the sample of [0-9a-f]{16} has two images",
    ),
    "one key twice": (
        [("000000.json", b'{"group": 1, "group": 2}')],
        r"is a \.cls that is not UTF-8 text, or a \.json that is not JSON or has a key twice",
    ),
}


@pytest.mark.parametrize("name", TARS)
def test_samples_of_a_tar(prepare, tmp_path, name):
    more, verdict = TARS[name]
    path = save_tar(tmp_path / "a.tar", [*GOOD, *more])
    check_verdict(verdict, lambda: prepare("webdataset", path, max_skipped_share=0.5))
