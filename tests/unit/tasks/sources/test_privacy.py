"""Names and ids of patients never leave the reading code, also if reading of a file fails."""

from __future__ import annotations

import io
import logging
import pickle
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search_spaces.datasets import dataset_spec, user_dataset_spec
from search_spaces.errors import DataError, SetupError
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tasks.sources.base import hash_key, hash_text, keyed_hash
from tasks.sources.locate import locate
from tasks.sources.manifest import list_table
from tasks.sources.tables import read_table
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.medical import _brain
from tests.raw_trees.own import save_arrays, save_parquet
from tests.raw_trees.pictures import save_nifti
from tests.unit.tasks.sources.archives import pack
from tests.unit.tasks.sources.conftest import picture, png, request_for, write_tree

CANARY = "CANARYzebra"


def dicom_set(folder: Path, *, broken: bool) -> Path:
    folder.mkdir()
    lines = ["path,label,group,comment"]
    for index in range(6):
        patient = f"{CANARY}{index // 2}"
        values = np.random.default_rng(index).integers(0, 4096, (16, 16)).astype(np.uint16)
        data = make_dicom(
            values, patient=patient, bits=12, InstitutionName=CANARY, StudyDescription=CANARY
        )
        block = data.private_block(0x0009, CANARY, create=True)
        block.add_new(1, "LO", CANARY)
        data.SpecificCharacterSet = "UNKNOWN_SET"
        if broken and index == 0:
            data.Rows = 9999
        name = f"{CANARY}/{CANARY}_{index}.dcm"
        save_dicom(folder / name, data)
        lines.append(f"{name},{index % 2},{patient},{CANARY}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


def image_set(folder: Path, *, broken: bool) -> Path:
    names = [
        f"{('well', 'sick')[row % 2]}/{CANARY}{row // 2}/{CANARY}_{row}.png" for row in range(6)
    ]
    write_tree(folder, *names)
    if broken:
        (folder / names[0]).write_bytes(b"junk")
    return folder


def brats_set(folder: Path, *, broken: bool) -> Path:
    for index in range(3):
        case = folder / "HGG" / f"{CANARY}_{index}"
        for kind, values in zip(
            ("flair", "t2", "seg"), _brain(np.random.default_rng(index)), strict=True
        ):
            path = case / f"{case.name}_{kind}.nii.gz"
            save_nifti(path, values, descrip=CANARY.encode(), aux_file=CANARY.encode())
            if broken and index == 0 and kind == "seg":
                path.write_bytes(path.read_bytes()[:100])
    return folder


SETS = {"dicom_csv": dicom_set, "folder": image_set, "brats": brats_set}


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("broken", [False, True], ids=["whole", "broken"])
@pytest.mark.parametrize("allowed", [0.0, 0.9], ids=["stop", "go on"])
def test_no_path_or_id_leaves_the_reading_code(kind, broken, allowed, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    raw = SETS[kind](tmp_path / CANARY, broken=broken)
    out = tmp_path / "out" / "mine"
    layout = "class/group" if kind == "folder" else None
    source = UserSourceSpec(kind=kind, path=str(raw), domain="medical", layout=layout)
    row = dataset_spec(kind) if kind == "brats" else user_dataset_spec("mine", source)
    spec = PreparedSpec(dataset=row.name, image_size=16, channels=1)
    printed, text = io.StringIO(), ""
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            record = prepare_dataset(
                spec,
                row,
                raw=raw,
                destination=out,
                executor=InlineExecutor(),
                max_skipped_share=allowed,
            )
            text = record.model_dump_json()
        except DataError as error:
            assert broken
            # Ray sends the pickled error and its formatted traceback.
            frames = traceback.format_exception_only(error)
            text = str(error) + "".join(frames) + repr(pickle.loads(pickle.dumps(error)))
    assert CANARY not in printed.getvalue()
    assert CANARY not in text
    assert CANARY not in caplog.text
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    for path in written:
        assert CANARY not in str(path.relative_to(tmp_path))
        assert CANARY.encode() not in path.read_bytes()
    if out.exists():
        assert CANARY not in PreparedDataset.open(out).record.model_dump_json()


NO_HEADER = "has no column 'path', 'label'; its first line is perhaps not a header"
HEADERS = {
    "file name,class,centre": ("has no column 'path', 'label' among file name, class, centre"),
    "path;diagnosis;"
    + "x" * 40: "has no column 'label' among path, diagnosis, xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
    "class,a,b,c,d,e,f,g,h,i,j,k": (
        "has no column 'path', 'label' among class, a, b, c, d, e, f, g,"
    ),
    # Without a header, the first line is data of a patient.
    f"{CANARY}/a.png,well,{CANARY}": NO_HEADER,
    f"{CANARY},1": NO_HEADER,
    f"{CANARY} Hans,benign,left": NO_HEADER,
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_message_shows_header_names_but_no_line_of_data(header, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(header + "\n" + header + "\n")
    with pytest.raises(DataError, match=HEADERS[header]) as caught:
        read_table(path, request_for("csv", path), ("path", "label"))
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "hint"),
    [
        ("Strat Slice,End Slice", "Add this column. Did you mean 'Strat Slice'? If it has another"),
        ("Patient ID,End Slice", "Add this column. If it has another name"),
    ],
)
def test_no_column_that_is_read_is_suggested_for_a_missing_one(header, hint, tmp_path):
    path = tmp_path / "manifest.csv"
    path.write_text(header + "\n1,2\n")
    with pytest.raises(DataError) as caught:
        read_table(path, request_for("csv", path), ("Start Slice", "End Slice"))
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (("Info", "Data"), "sheet 1 (Info)|The column 'class' is in sheet 2 (Data)"),
        ((CANARY, f"{CANARY} Hans"), "sheet 1|The column 'class' is in sheet 2"),
    ],
)
def test_a_message_says_which_sheet_has_the_labels_without_private_names(names, shown, tmp_path):
    path = tmp_path / "book.xlsx"
    notes = pd.DataFrame({f"{CANARY} note": [CANARY]})
    table = pd.DataFrame({"path": [f"{CANARY}.png"], "class": [CANARY]})
    with pd.ExcelWriter(path) as writer:
        notes.to_excel(writer, sheet_name=names[0], index=False)
        table.to_excel(writer, sheet_name=names[1], index=False)
    with pytest.raises(DataError, match="the table has no column 'label'; its first") as caught:
        list_table(request_for("table", path))
    read, labels = shown.split("|")
    assert f". isweep read only {read} of the workbook. {labels}. Make sheet 2" in str(caught.value)
    assert CANARY not in str(caught.value)
    with pytest.raises(DataError, match="Make sheet 2") as caught:
        read_table(path, request_for("csv", path), ("path",))
    assert CANARY not in str(caught.value)


IMAGES = np.stack([picture(row) for row in range(4)])
LABELS = np.arange(4) % 2
LOCATED = {
    "file": (lambda raw: write_tree(raw, "a/x.png"), "a/x.png"),
    "archive": (
        lambda raw: pack(write_tree(raw, "a/x.png"), raw / "a.zip").parent,
        "a.zip!/a/x.png",
    ),
    "npz": (lambda raw: save_arrays(raw / "a", "npz", images=IMAGES, labels=LABELS), "2"),
    "npz of splits": (
        lambda raw: save_arrays(raw / "a", "npz", train_images=IMAGES, train_labels=LABELS),
        "train_images/2",
    ),
    "hdf5": (lambda raw: save_arrays(raw / "a", "hdf5", images=IMAGES, labels=LABELS), "2"),
    "parquet": (
        lambda raw: save_parquet(
            raw / "a.parquet", {"image": list(map(png, IMAGES)), "label": LABELS}
        ),
        "a.parquet!/2",
    ),
}


@pytest.mark.parametrize("name", LOCATED)
def test_only_the_key_leads_from_a_hash_to_its_file(name, tmp_path):
    write, locator = LOCATED[name]
    path, hashed = (
        write(tmp_path / "raw"),
        hash_text(keyed_hash(hash_key(tmp_path / "prepared"), locator)),
    )
    assert locate(path, tmp_path / "prepared", hashed) == locator
    with pytest.raises(SetupError, match="with the key for hashes of patient ids is missing"):
        locate(path, tmp_path / "other", hashed)
    hash_key(tmp_path / "other")
    assert locate(path, tmp_path / "other", hashed) is None
    assert locate(path, tmp_path / "prepared", "row -3") is None
    assert (tmp_path / "prepared" / ".hash_key").stat().st_mode & 0o777 == 0o600


def test_a_hash_without_letters_is_no_row_number(tmp_path, monkeypatch):
    monkeypatch.setenv("ISWEEP_HASH_KEY", CANARY * 2)
    hashes = {
        hash_text(keyed_hash(CANARY * 2, name)): name for name in map("{}.png".format, range(9999))
    }
    hashed = next(filter(str.isdecimal, hashes))
    raw = write_tree(tmp_path / "raw", hashes[hashed])
    for text in (hashed, f"{hashed} 3"):
        assert locate(raw, tmp_path, text) == hashes[hashed]
