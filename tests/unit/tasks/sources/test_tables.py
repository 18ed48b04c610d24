"""Tables of paths: every form of text, columns, paths, volumes, DICOM files and one column per
class."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search_spaces.errors import DataError
from tasks.sources.detect import detect_own_kind
from tasks.sources.locate import locate
from tasks.sources.own.listing import HIDDEN
from tasks.sources.pictures import to_prepared
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.own import FORMS, image_cells, save_parquet
from tests.raw_trees.pictures import save_image, save_nifti
from tests.unit.tasks.sources.conftest import check_verdict, picture, write_tree

NAMES = [f"cat/{index}.png" for index in range(5)] + [f"dog/{index}.png" for index in range(5, 10)]
HALVES = {"classes": ("0", "1"), "labels": [0] * 5 + [1] * 5}
TURNS = {"classes": ("cat", "dog"), "labels": [1, 0] * 5}


def rows(header: str, *cells: str) -> str:
    """A table of so many of the ten pictures; a cell may be several columns."""
    return "\n".join(
        [header, *(f"{name},{cell}" for name, cell in zip(NAMES, cells, strict=False)), ""]
    )


TEXT = rows("path,label", *(["0"] * 5 + ["1"] * 5))
OUT = r"in row 12 \(the header is row 1\) leads out of the folder of the table"
HEADER = r"\(the header is row "
ISIC = ("MEL", "NV", "BCC")
ONE_HOT = [",".join(f"{float(place == row % 3)}" for place in range(3)) for row in range(9)]


def one_hot(*more: str) -> str:
    """A table like ISIC 2018's ground truth: ``image`` and a column of ``0.0`` and ``1.0`` for each class."""
    return rows(f"image,{','.join(ISIC)}", *ONE_HOT, *more)


CASES: dict[str, tuple[str | bytes, dict[str, object], str | dict[str, object]]] = {
    # how text may be written
    "plain": (TEXT, {}, HALVES),
    "bom": ("\ufeff" + TEXT, {}, HALVES),
    "semicolons": (TEXT.replace(",", ";"), {}, HALVES),
    "tabs": (TEXT.replace(",", "\t"), {}, HALVES),
    "bars": (TEXT.replace(",", "|"), {}, HALVES),
    "crlf": (TEXT.replace("\n", "\r\n"), {}, HALVES),
    "header spelling": (TEXT.replace("path,label", "Path , LABEL"), {}, HALVES),
    "quotes and blank lines": (TEXT.replace("cat/0.png", '"cat/0.png"') + "\n\n", {}, HALVES),
    "path spelling": (TEXT.replace("cat/0", "./cat//0").replace("dog/5", "dog\\5"), {}, HALVES),
    "blank lines on top": ("\n \n" + TEXT.replace(",", ";"), {}, HALVES),
    ("a comment with other marks on top"): (
        "# by X, 2024, v1\n#\n" + TEXT.replace(",", ";"),
        {},
        HALVES,
    ),
    "a column called #": (
        TEXT.replace("path", "#,path").replace("cat", "7,cat").replace("dog", "7,dog"),
        {},
        HALVES | {"flags": {"columns not used: #": 10}},
    ),
    "empty": (b"", {}, "cannot be read: empty file"),
    "only a header": ("path,label\n", {}, r"the table has a header, but no rows\."),
    "no path": (
        "file,label\ncat/0.png,1\n",
        {},
        "the table has no column 'path' among file, label. Add this column. Did you mean 'file'\\? "
        "If it has another name, rename it to 'path'. isweep looked for the column names path, "
        "filename, file_path, image, image_path, img_path",
    ),
    "no path, but a column of image names": (
        "age,img_name,label\n1,cat/0.png,1\n",
        {},
        "Add this column. Did you mean 'img_name'\\?",
    ),
    "no path, and no similar column": (
        "age,stage,label\n1,2,1\n",
        {},
        "Add this column. If it has another name",
    ),
    "no path, and a column that the user names": (
        "path,stage\ncat/0.png,2\n",
        {"label_columns": ("group",)},
        "the table has no column 'group' among path, stage. Add this column. If it has another name, "
        "rename it to 'group'\\.$",
    ),
    **{
        f"two columns {name}": (
            f"path,label,{name},{name}\ncat/0.png,1,2,2\n",
            {},
            f"has several columns named {name}",
        )
        for name in ("label", "Group", "split", "site")
    },
    "two columns class": (
        "path,class,class\ncat/0.png,1,2\n",
        {},
        "has several columns named class",
    ),
    "short lines": (
        "path,label\ncat/0.png\n",
        {},
        ("row with more or fewer cells than the header, which has 2 cells\\. The first"),
    ),
    "an open quote": (
        'path,label\n"cat/0.png,1\n',
        {},
        (
            "has an unclosed quote, or a cell of more than 1,048,576 characters, in the row after row 1"
        ),
    ),
    "latin-1": ("path,label\ncat/\xe9.png,1\n".encode("latin-1"), {}, "is not UTF-8 text"),
    "zero bytes": (b"path,label\ncat/0.png,\x001\n", {}, "bytes with the value 0"),
    # paths
    # rows that are not read are counted as in a spreadsheet
    "a repeat": (
        TEXT + "cat/0.png,1\n",
        {},
        (
            rf"repeats the path of an earlier row for 1 image: row 12 {HEADER}1\)\. In 1 of these rows, the label is different"
        ),
    ),
    ("a repeat, spelt otherwise"): (
        TEXT + "./cat/0.png,0\n",
        {},
        rf"repeats the path of an earlier row for 1 image: row 12 {HEADER}1\)\. In 0 of these",
    ),
    ("a repeat below a blank row"): (
        "path,label\n\ncat/0.png,0\ncat/0.png,1\n",
        {},
        rf"row 4 {HEADER}1\)",
    ),
    "a repeat below a comment": (
        ("# X\npath,label\ncat/0.png,0\ncat/0.png,1\n"),
        {},
        rf"row 4 {HEADER}2\)",
    ),
    "a repeat below a cell of two lines": (
        'a,path,label\n"x\ny",cat/0.png,0\n,cat/0.png,1\n',
        {},
        rf"row 3 {HEADER}1\)",
    ),
    "not there": (
        TEXT + "cat/secret.png,1\n",
        {},
        r"the file in the column 'path' does not exist for 1 image: row 12 \(the header is",
    ),
    "no endings": (
        TEXT.replace(".png", ""),
        {},
        ("the file in the column 'path' does not exist for 10 images: row 2, row 3, row"),
    ),
    "in other letters": (
        TEXT.replace("cat/0", "Cat/0") + "cat/é.png,1\n",
        {},
        r"the file in the column 'path' does not exist for 2 images: row 2, row 12 \(the header",
    ),
    "longer than any file": (
        TEXT + f"{'x' * 5000}.png,2\n",
        {},
        r"the file in the column 'path' does not exist for 1 image: row 12 \(the header is",
    ),
    "backslashes": (
        TEXT + "\\scans\\secret.png,1\n",
        {},
        r"row 12 .* contains backslashes and is an absolute path\. Write / instead of",
    ),
    "up": (TEXT + "../secret.png,1\n", {}, OUT),
    "absolute beside relative": (TEXT + "/etc/passwd,1\n", {}, OUT),
    "a drive": (TEXT + "C:\\secret.png,1\n", {}, OUT),
    "files without a row": (
        rows("path,label", *"ab" * 4),
        {},
        {"images": 8, "excluded": {"image without a row in the table": 2, HIDDEN: 1}},
    ),
    "a hidden file with a row": (TEXT + "cat/.x.png,1\n", {}, {"images": 11, "excluded": {}}),
    ("a folder called as another class"): (
        rows("path,label", "dog", *["cat"] * 4, *["dog"] * 5),
        {},
        {"flags": {"row whose folder has the name of another class": 1}},
    ),
    # labels
    "grades mapped": (
        rows("path,label", *["0", "0.5", "1"] * 3),  # Clinical Dementia Rating
        {"label_map": {"0": "normal", "0.5": "questionable", "1": "mild"}},
        {"classes": ("mild", "normal", "questionable")},
    ),
    "a column for each class": (
        one_hot(),
        {},
        "the table has no column 'label', but columns of 0 and 1: MEL, NV,",
    ),
    "a column for each class, as said": (
        one_hot(),
        {"label_columns": ISIC},
        {
            "classes": ("BCC", "MEL", "NV"),
            "labels": [1, 2, 0] * 3,
            "flags": {("column image read as path"): 9},
        },
    ),
    **{
        f"{fault}: {cells}": (one_hot(cells), {"label_columns": ISIC}, f"1 {fault}, first row 11")
        for cells, fault in (
            ("0.0,0.0,0.0", "of no class"),
            ("1.0,1.0,0.0", "of several classes"),
            ("1.0,0.3,0.0", "with text other than 0 and 1"),
            ("1.0,,0.0", "with text other than 0 and 1"),
        )
    },
    "a column for a class, listed twice": (
        one_hot(),
        {"label_columns": ("MEL", "NV", "MEL")},
        "label_columns has the same column twice: MEL, NV, MEL",
    ),
    "dx": (
        rows("path,dx", *["dog", "cat"] * 5),
        {},
        ("the table has no column 'label' among path, dx"),
    ),
    "dx, as said": (rows("path,dx", *["dog", "cat"] * 5), {"label_columns": ("dx",)}, TURNS),
    "a column that is not there": (
        TEXT,
        {"label_columns": ("age",)},
        "has no column 'age' among path, label",
    ),
    # groups
    "groups that are the classes": (
        rows("path,label,group", *["a,a", "b,b"] * 5),
        {},
        r"each of the 2 classes has only one group \(patient\)",
    ),
    "groups that are the classes, to measure": (
        rows("path,label,group", *["a,a", "b,b"] * 5),
        {"for_training": False},
        {"images": 10},
    ),
    "a class of one group": (
        rows(
            "path,label,group", *(f"{a},p{0 if a == 'c' else n}" for n, a in enumerate("abc" * 3))
        ),
        {},
        {"flags": {"class with only one group: c": 1}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_table_is_prepared_or_refused_as_stated(prepare, tmp_path, name):
    text, options, verdict = CASES[name]
    decomposed = ["cat/e\u0301.png"] if name == "in other letters" else []
    raw = write_tree(tmp_path / "raw", *NAMES, "cat/.x.png", ".DS_Store", *decomposed)
    table = raw / "manifest.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = check_verdict(verdict, lambda: prepare("table", table, **options))
    assert "secret" not in message


NUMBERED = {
    **dict.fromkeys(("csv", "tsv", "semicolons", "xlsx"), "row 13 (the header is row 1)"),
    "jsonl": "row 12 (the first row is 1)",
    **dict.fromkeys(("parquet of paths", "npz", "hdf5"), "row 11 (the first row is 0)"),
    "parquet": "row 11 of ",
    "webdataset": "",
}
FILES = {
    "parquet": "own.parquet!/11",
    "webdataset": "own.tar!/000011.png",
    "npz": "11",
    "hdf5": "11",
}


@pytest.mark.parametrize("form", NUMBERED)
def test_a_row_is_named_as_viewers_of_its_file_number_it_and_located_by_that(
    prepare, tmp_path, form
):
    kind, write = FORMS[form]
    raw = write(
        tmp_path / "raw", {"label": ["cat", "dog"] * 6, "split": [*["train"] * 11, "holdout"]}
    )
    message = check_verdict(
        "the column 'split' has an unknown word for 1 image:",
        lambda: prepare(kind, raw),
    )
    assert ("the first row is 0" in message) == (
        form in ("parquet of paths", "parquet", "npz", "hdf5")
    )
    assert locate(raw, tmp_path / "prepared", message) == FILES.get(form, "11.png")
    assert locate(raw, tmp_path / "prepared", "row 61") is None


@pytest.mark.parametrize("inside", [True, False])
def test_absolute_paths(prepare, class_folder, tmp_path, inside):
    table = (class_folder if inside else tmp_path / "tables") / "t.csv"
    table.parent.mkdir(exist_ok=True)
    lines = [
        "path,label",
        *(f"{class_folder}/{name},{number % 2}" for number, name in enumerate(NAMES)),
    ]
    for name, more, verdict in (
        ("a", (), {"images": 10}),
        ("b", ("/etc/passwd,1",), "not an image"),
        (
            "c",
            (f"{class_folder}/../x.png,1",),
            r"c: the path in row 12 \(the header is row 1\) contains \.\.",
        ),
    ):
        table.write_text("\n".join((*lines, *more)))
        check_verdict(verdict, lambda name=name: prepare("table", table, name=name))


# An imagefolder of datasets: one table, or one in each split.

FORMATS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    # Line separators of Unicode end no line of JSON.
    "jsonl": lambda table, path: table.assign(note="a\u2028b\x85").to_json(
        path, orient="records", lines=True, force_ascii=False
    ),
    "parquet": lambda table, path: table.to_parquet(path),
}


def test_links_out_of_the_folder_matter_only_if_a_row_uses_them(prepare, class_folder, tmp_path):
    (class_folder / "labels.csv").write_text(TEXT)
    (class_folder / "venv").mkdir()
    (class_folder / "venv" / "python").symlink_to("/usr")
    assert prepare("table", class_folder / "labels.csv").num_images == 10
    (class_folder / "linked").symlink_to(class_folder / "cat")
    (class_folder / "labels.csv").write_text(TEXT.replace("cat/0", "linked/0"))
    with pytest.raises(
        DataError, match="is a link to a folder, or to a file outside the raw folder"
    ):
        prepare("table", class_folder / "labels.csv", name="other")


def image_folder(folder: Path, count: int = 10, ending: str = "csv", **more: object) -> Path:
    """A folder of pictures with ``metadata``, whose labels take turns; no table where ``ending`` is
    blank."""
    write_tree(folder, *(f"{number}.png" for number in range(count)))
    records = [
        {"file_name": f"{n}.png", "label": ("dog", "cat")[n % 2], **more} for n in range(count)
    ]
    if ending:
        FORMATS[ending](pd.DataFrame(records), folder / f"metadata.{ending}")
    return folder


@pytest.mark.parametrize("ending", FORMATS)
class TestImageFolder:
    def test_metadata_in_the_folder(self, prepare, tmp_path, ending):
        boxes = "x" if ending == "csv" else [[1, 2], [3, 4]]
        raw = image_folder(tmp_path / "raw", ending=ending, age=3.5, boxes=boxes)
        assert detect_own_kind(raw) == "table"
        check_verdict({**TURNS, "excluded": {}}, lambda: prepare("table", raw))
        (raw / f"metadata.{ending}").rename(raw / f"mine.{ending}")
        assert detect_own_kind(raw / f"mine.{ending}") == "table"
        check_verdict(TURNS, lambda: prepare("table", raw / f"mine.{ending}", name="b"))

    def test_metadata_in_each_split(self, prepare, tmp_path, ending):
        for split, count in (("train", 6), ("validation", 2), ("test", 4)):
            image_folder(tmp_path / "raw" / split, count, ending)
        assert detect_own_kind(tmp_path / "raw") == "table"
        # Folders in the order of their names.
        verdict = {**TURNS, "splits": [2] * 4 + [1] * 6, "excluded": {"validation split": 2}}
        options = {"max_skipped_share": 0.5, "for_training": False}
        check_verdict(verdict, lambda: prepare("table", tmp_path / "raw", **options))


SPLITS = {
    "a column that denies its folder": (
        {"train": {"split": "train"}, "test": {"split": "train"}},
        "column 'split' contradicts the name of the folder or file for 10 images: test",
    ),
    "tables on top and in a split": (
        {"train": {}, ".": {}},
        r"there are several tables: metadata\.csv, train/metadata\.csv",
    ),
    "a split without a table": (
        {"train": {}, "test": {"ending": ""}},
        {"excluded": {"image without a row in the table": 10}},
    ),
}


@pytest.mark.parametrize("name", SPLITS)
def test_tables_of_splits(prepare, tmp_path, name):
    folders, verdict = SPLITS[name]
    for folder, more in folders.items():
        image_folder(tmp_path / "raw" / folder, **more)
    message = check_verdict(verdict, lambda: prepare("table", tmp_path / "raw", for_training=False))
    if "row" in message:
        assert locate(tmp_path / "raw", tmp_path, message) == "test/0.png"


def test_a_column_that_occurs_twice_is_refused_in_every_format(prepare, tmp_path):
    """Otherwise, one of the two values would be lost."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    write_tree(tmp_path / "raw", *NAMES)
    lines = [f'{{"path": "{name}", "label": "a", "label": "b"}}' for name in NAMES]
    (tmp_path / "raw" / "t.jsonl").write_text("\n".join(lines))
    columns = {"image": image_cells(), "path": NAMES}
    for name, column in columns.items():
        cells = pa.array(column), pa.array(["a", "b"] * (len(column) // 2))
        table = pa.Table.from_arrays([*cells, cells[1]], names=[name, "label", "label"])
        pq.write_table(table, tmp_path / "raw" / f"{name}.parquet")
    for file, message in {
        "t.jsonl": r"has a key twice in line 1\. Remove one",
        "image.parquet": "has several columns named label",
        "path.parquet": "has several columns named label",
    }.items():
        with pytest.raises(DataError, match=message):
            prepare("table", tmp_path / "raw" / file)


@pytest.mark.parametrize(
    "line", ['[{"path": "a", "label": "b"}]', '[["path", "a"], ["label", "b"]]', "[]", '""']
)
def test_a_line_that_is_no_json_object_is_refused(prepare, tmp_path, line):
    """A list of pairs could be read as an object with other names."""
    (tmp_path / "t.jsonl").write_text(f"{line}\n")
    with pytest.raises(DataError, match="has no JSON object in line 1"):
        prepare("table", tmp_path / "t.jsonl")


def test_label_columns_of_parquet_with_images(prepare, tmp_path):
    labels = [0, 1] * 6
    path = save_parquet(tmp_path / "a.parquet", {"image": image_cells(), "dx": labels})
    check_verdict(
        "has the columns image, dx, but needs image and label", lambda: prepare("table", path)
    )
    check_verdict({"labels": labels}, lambda: prepare("table", path, label_columns=("dx",)))
    columns = {
        name: [int(row % 3 == place) for row in range(12)] for place, name in enumerate(ISIC)
    }
    path = save_parquet(tmp_path / "b.parquet", {"image": image_cells(), **columns})
    check_verdict(
        {"labels": [1, 2, 0] * 4}, lambda: prepare("table", path, label_columns=ISIC, name="b")
    )


@pytest.mark.parametrize(
    ("option", "kind"),
    [({"label_columns": ("dx",)}, "table"), ({"layout": "group/class"}, "folder")],
)
def test_options_of_another_kind_are_refused(prepare, tmp_path, option, kind):
    path = FORMS["npz"][1](tmp_path, {"label": [0, 1] * 6})
    check_verdict(
        f"{next(iter(option))} applies only to data of kind {kind}, not to kind npz",
        lambda: prepare("npz", path, **option),
    )


# DICOM files and their headers.


def write_dicoms(
    folder: Path, patients: list[str], groups: list[str] | None = None, **tags
) -> Path:
    """Slices with a table of them, labels in turns; ``tags`` are functions of (number, label)."""
    lines = ["path,label" + (",group" if groups else "")]
    for number, patient in enumerate(patients):
        header = {name: make(number, number % 2) for name, make in tags.items()}
        pixels = picture(number, (16, 16)).astype(np.uint16) * 8
        save_dicom(folder / f"{number}.dcm", make_dicom(pixels, patient=patient, bits=12, **header))
        lines.append(f"{number}.dcm,{number % 2}" + (f",{groups[number]}" if groups else ""))
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


NO_ID = "no patient id in the header: the split cannot be by patient"
SEVERAL = "patient in the image header with several groups; check that each group is a patient"
PAIRS = ["P1", "P1", "P2", "P2", "P3", "P3"]
PATIENTS = {
    "told by headers": (PAIRS, None, {"images": 6, "groups": 3, "flags": {}}),
    "spelt in two ways": (["P1", "p1 ", "7", "007", "P2", "P3"], None, {"groups": 4}),
    "in two groups": (
        PAIRS,
        ["E1", "E2", "E3", "E3", "E4", "E4"],
        {"groups": 4, "flags": {SEVERAL: 2}},
    ),
    "one id for all": (
        ["hospital"] * 6,
        None,
        r"group \(patient\) has 6 of 6 images, so the images cannot be split into",
    ),
    "none": (["ANON"] * 6, None, {"groups": 6, "flags": {NO_ID: 6}}),
}


@pytest.mark.parametrize("name", PATIENTS)
def test_patients_of_headers(prepare, tmp_path, name):
    patients, groups, verdict = PATIENTS[name]
    raw = write_dicoms(tmp_path / "raw", patients, groups)
    assert detect_own_kind(raw) == "table"
    check_verdict(verdict, lambda: prepare("table", raw))


def test_a_patient_of_the_headers_on_both_sides_is_flagged(prepare, tmp_path):
    """Known only once the files are read; the split then leaves these test images out."""
    for number, patient in enumerate((0, 1, 2, 3, 4, 5, 0, 1, 6, 7, 8, 9)):
        folder = tmp_path / "raw" / ("train" if number < 6 else "test") / ("cat", "dog")[number % 2]
        save_dicom(
            folder / f"{number}.dcm", make_dicom(picture(number), bits=8, patient=f"P{patient}")
        )
    flags = prepare("folder", tmp_path / "raw").record.flags
    assert flags["test images that are not used, because their group is in training"] == 2


def tells(name: str) -> dict[str, int]:
    return {f"{name} predicts the label (right for 100%, 1.00 of 1.00 bits)": 40}


TRAITS = {
    "site": ({"InstitutionName": lambda number, label: f"CANARY{label}"}, tells("site")),
    "manufacturer": ({"Manufacturer": lambda number, label: "AB"[label]}, tells("manufacturer")),
    "model": ({"ManufacturerModelName": lambda number, label: "AB"[label]}, tells("scanner model")),
    "spacing": ({"spacing": lambda number, label: (1.5 + label,) * 2}, tells("pixel spacing")),
    "series": (
        {"SeriesDescription": lambda number, label: f"ax {label}"},
        tells("series description"),
    ),
    "slope": (
        {"RescaleSlope": lambda number, label: 1 + label, "RescaleIntercept": lambda *_: 0},
        tells("rescale slope"),
    ),
    "by chance": (
        {"Manufacturer": lambda number, _: "AB"[number // 20], "StationName": lambda *_: "x"},
        {},
    ),
    "mixed series": (
        {
            "ImageType": lambda number, _: [
                "ORIGINAL",
                "PRIMARY",
                "LOCALIZER" if number < 4 else "AXIAL",
            ],
            "SeriesDescription": lambda number, _: "scout" if number < 4 else "axial",
            "spacing": lambda number, _: (2.0, 2.0) if number < 4 else (0.5, 0.5),
        },
        {
            "localiser": 4,
            "series description has 2 different values": 4,
            "pixel spacing has 2 different values": 4,
        },
    ),
}


@pytest.mark.parametrize("name", TRAITS)
def test_what_headers_tell_of_the_label_is_flagged_and_kept_as_hashes_only(prepare, tmp_path, name):
    tags, flags = TRAITS[name]
    raw = write_dicoms(tmp_path / "raw", [f"p{number // 2}" for number in range(40)], **tags)
    assert flags.items() <= prepare("table", raw).record.flags.items()
    for path in (tmp_path / "prepared").rglob("*"):
        assert not path.is_file() or b"CANARY" not in path.read_bytes()


@pytest.mark.parametrize(
    ("form", "size", "name"),
    [("BMP", 12, "file format"), ("PNG", 14, "mode, size or conversion of the raw image")],
)
def test_a_file_format_that_predicts_the_label_is_flagged(prepare, tmp_path, form, size, name):
    for number in range(40):
        (file_format, side), label = (((form, size), "cat"), (("PNG", 12), "dog"))[number % 2]
        path = tmp_path / "raw" / label / f"{number}.{file_format.lower()}"
        save_image(path, picture(number, (side, 12)), file_format)
    assert prepare("folder", tmp_path / "raw").record.flags == tells(name)


# NIfTI volumes.

VOLUME = np.random.default_rng(0).integers(1, 1000, (8, 9, 40)).astype(np.int16)
EVERY = [f"{volume}.nii.gz,{volume % 2}" for volume in range(4)]
FOUR = [(volume, level) for volume in range(2) for level in range(2, 6)]
VOLUMES: dict[str, tuple[str, list[str], str | dict[str, object]]] = {
    "slices by the rule": (
        "path,label",
        EVERY,
        {"images": 40, "groups": 4, "labels": [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10},
    ),
    "named slices": (
        "path,label,slice",
        [f"{row},{level}" for row in EVERY for level in (3, 30)],
        {"images": 8, "groups": 4},
    ),
    "a word": (
        "path,label,slice",
        ["0.nii.gz,a,3", "1.nii.gz,b,x"],
        (r"whole number of 0 or more for 1 image: row 3 \(the header is row 1\)\."),
    ),
    "no number": (
        "path,label,slice",
        ["0.nii.gz,a,3", "1.nii.gz,b,3\u00b2"],
        (r"whole number of 0 or more for 1 image: row 3 \(the header is row 1\)\."),
    ),
    "one slice twice": (
        "path,label,slice",
        ["0.nii.gz,a,3", "0.nii.gz,b,3"],
        rf"repeats the path of an earlier row for 1 image: row 3 {HEADER}1\)\. In 1 of these rows, the label is different",
    ),
    "one slice twice, spelt otherwise": (
        "path,label,slice",
        ["0.nii.gz,a,3", "0.nii.gz,a,03", "1.nii.gz,b,3"],
        r"the table repeats the path of an earlier row for 1 image: row 3 \(the header is",
    ),
    "beyond the volume": (
        "path,label,slice",
        ["0.nii.gz,a,3", "1.nii.gz,b,40"],
        "slice beyond the volume: 1",
    ),
    "a volume on both sides": (
        "path,label,slice,split",
        [f"{v}.nii.gz,{v},{s},{('train', 'test')[s % 2]}" for v, s in FOUR],
        "training and test share 2 groups, for example the group of row 2",
    ),
    ("a volume in several groups"): (
        "path,label,slice,group",
        [f"{v}.nii.gz,{v},{s},g{s}" for v, s in FOUR],
        "the slices of 2 volumes are in several groups",
    ),
    "slices for some": (
        "path,label,slice",
        [f"{v}.nii.gz,{v},{'' if s == 2 else s}" for v, s in FOUR],
        "volumes, some rows have a slice and others have none. isweep might therefore use",
    ),
}


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(prepare, tmp_path, name):
    header, lines, verdict = VOLUMES[name]
    for number in range(4):
        save_nifti(tmp_path / "raw" / f"{number}.nii.gz", np.roll(VOLUME, number, axis=0))
    (tmp_path / "raw" / "manifest.csv").write_text("\n".join((header, *lines)))
    assert detect_own_kind(tmp_path / "raw") == "table"
    check_verdict(verdict, lambda: prepare("table", tmp_path / "raw"))


def test_a_slice_is_the_axial_plane_that_its_number_says(prepare, tmp_path):
    for number in range(2):
        save_nifti(tmp_path / "raw" / f"{number}.nii", np.roll(VOLUME, number, axis=0))
    (tmp_path / "raw" / "manifest.csv").write_text("path,label,slice\n0.nii,0,3\n1.nii,1,3\n")
    low, high = np.percentile(VOLUME.astype(np.float32), (0.1, 99.9))
    plane = np.clip(VOLUME[:, :, 3], low, high) - low
    expected = (plane * 255 / plane.max()).astype(np.uint8).T[::-1, ::-1]
    actual = prepare("table", tmp_path / "raw").read(0, 1)[0]
    np.testing.assert_array_equal(actual, to_prepared(expected, image_size=8, channels=1))


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("x", "y")
    return stream.getvalue()


def cut(body: bytes) -> bytes:
    return body[:-100]


DAMAGED: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "text called xlsx": ("csv", "a.xlsx", bytes, "cannot be read: damaged archive"),
    "text called parquet": ("csv", "a.parquet", bytes, "is not a complete Parquet file"),
    "a zip that is no workbook": ("csv", "a.xlsx", lambda _: zipped(), "is not an xlsx workbook"),
    "a cut workbook": ("xlsx", "a.xlsx", cut, "cannot be read: damaged archive"),
    "cut JSON lines": (
        "jsonl",
        "a.jsonl",
        cut,
        "has no JSON object in line 9",
    ),
    "a cut Parquet file": ("parquet of paths", "a.parquet", cut, "is not a complete Parquet file"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_tables_that_are_damaged_or_called_otherwise_are_refused(prepare, tmp_path, name):
    form, file, damage, message = DAMAGED[name]
    raw = FORMS[form][1](tmp_path, {"label": [0, 1] * 6})
    (tmp_path / file).write_bytes(damage(raw.read_bytes()))
    check_verdict(
        f"{message}.*Copy the table again, or save it as .csv" if form != "jsonl" else message,
        lambda: prepare("table", tmp_path / file),
    )
