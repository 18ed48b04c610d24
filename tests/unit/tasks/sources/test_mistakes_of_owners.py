"""What owners of data get wrong without knowing it: columns, codes, groups and layouts of another meaning."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.unit.tasks.sources.conftest import picture, png
from tests.unit.tasks.sources.test_no_silent_wrong_label import write_table
from tests.unit.tasks.sources.test_own_formats import IMAGES, LABELS, image_rows, write_parquet


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["0.5", "1.5", "2"], "classes, not measurements; found: 3 numbers, such as 0.5"),
            (["0,5", "1,5"], "classes, not measurements"),
            (["-9", "0", "1"], "labels must not be negative beside others; found: -9, which often"),
            (["0", "1", "99"], "must not hold a code for unknown; found: 99, which often"),
            (["0", "1", "9999.0"], "must not hold a code for unknown; found: 9999.0, which often"),
            (["True", "0", "1"], "must be spelt one way; found: '1' / 'True'"),
            (["no", "yes", "0"], "must be spelt one way; found: '0' / 'no'"),
            (["cat", "'cat'", "dog"], "must be spelt one way; found: \"'cat'\" / 'cat'"),
            (["pos", "positive", "negative"], "must be spelt one way; found: 'pos' / 'positive'"),
            (["cat", "dog", "Unknown"], "a word for unknown must be a class on purpose; found: 'Unknown'"),
            (["cat", "dog", "-"], "a word for unknown must be a class on purpose; found: '-'"),
            (
                ["cat", "dog", "uncertain"],
                "a word for unknown must be a class on purpose; found: 'uncertain'",
            ),
            (["inf", "0", "1"], "every row needs a label; found: blank: 2"),
            (["?", "a", "b"], "every row needs a label; found: blank: 2"),
            (["#REF!", "a", "b"], "every row needs a label; found: blank: 2"),
            (["cat", "c\u0430t", "dog"], "each word in one alphabet; found: 1 others"),
        ],
    )
    def test_what_is_no_class_is_refused(self, prepare, tmp_path, labels, message):
        table = write_table(tmp_path / "raw", [f'"{label}"' for label in labels] * 2)
        with pytest.raises(DataError, match=message):
            prepare("csv", table)

    @pytest.mark.parametrize(
        "labels",
        [
            ["-1", "1"],
            ["0.0", "1.0"],
            ["0", "255"],
            ["98", "99", "0"],
            ["1099511627776", "1099511627777"],
            ["no", "yes"],
            ["0", "1", "n", "t", "y", "f", "p"],
            ["TNF\u03b1", "TNF\u03b2"],
            ["\u03b1-synuclein", "\u5317\u4eac", "\u043a\u043e\u0442"],
        ],
    )
    def test_what_is_a_class_is_taken(self, prepare, tmp_path, labels):
        data = prepare("csv", write_table(tmp_path / "raw", labels * 2))
        assert [data.label_names[label] for label in data.labels] == labels * 2

    def test_a_map_turns_grades_into_classes(self, prepare, tmp_path):
        """Clinical Dementia Rating: 0, 0.5, 1."""
        grades = {"0": "normal", "0.5": "questionable", "1": "mild"}
        data = prepare("csv", write_table(tmp_path / "raw", ["0", "0.5", "1"] * 2), label_map=grades)
        assert data.label_names == ("mild", "normal", "questionable")

    def test_255_in_bytes_is_minus_1(self, prepare, tmp_path):
        labels = np.where(np.arange(12) % 3 == 2, -1, np.arange(12) % 3).astype(np.uint8)
        np.savez(tmp_path / "a.npz", images=IMAGES, labels=labels)
        with pytest.raises(DataError, match="must not hold a code for unknown; found: 255"):
            prepare("npz", tmp_path / "a.npz")

    def test_images_without_their_labels_name_the_missing_array(self, prepare, tmp_path):
        np.savez(tmp_path / "a.npz", x=IMAGES)
        with pytest.raises(DataError, match="x and y must both be in the file; found: no y"):
            prepare("npz", tmp_path / "a.npz")

    def test_paths_without_their_ending_say_so(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["a", "b"] * 3)
        table.write_text(table.read_text().replace(".png", ""))
        with pytest.raises(DataError, match=r"missing: 6, .*with their ending such as .jpg"):
            prepare("csv", table)


class TestPatients:
    def test_groups_that_are_the_classes_are_refused(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", [f"{label},{label}" for label in "ab" * 3], "path,label,group")
        with pytest.raises(
            DataError, match=r"images of several groups .*; found: one group for each of the 2"
        ):
            prepare("csv", table)
        assert prepare("csv", table, for_training=False).num_images == 6

    def test_a_class_of_one_group_is_named(self, prepare, tmp_path):
        rows = [f"{label},p{0 if label == 'c' else row}" for row, label in enumerate("abc" * 3)]
        flags = prepare("csv", write_table(tmp_path / "raw", rows, "path,label,group")).record.flags
        assert flags == {"class of one group: c": 1}

    @pytest.mark.parametrize("column", ["subject_id", "Patient", "PatientID", "participant_id"])
    def test_patients_in_parquet_by_their_usual_names(self, prepare, tmp_path, column):
        rows = image_rows(**{column: [f"p{row // 3}" for row in range(12)], "site": ["x"] * 12})
        record = prepare("parquet", write_parquet(tmp_path / "a.parquet", rows)).record
        assert record.num_groups == 4
        assert record.flags == {f"column {column} read as group": 12, "column not used: site": 12}

    def test_two_patient_columns_in_parquet_are_refused(self, prepare, tmp_path):
        rows = image_rows(subject_id=["a", "b"] * 6, case_id=["c", "d"] * 6)
        with pytest.raises(DataError, match="one column alone may be the group; found: subject_id and case"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    def test_patients_in_shards_by_their_usual_names(self, prepare, tmp_path):
        values = [{"label": int(LABELS[row]), "subject_id": f"p{row // 3}"} for row in range(12)]
        assert prepare("webdataset", write_json_shard(tmp_path / "a.tar", values)).record.num_groups == 4

    def test_two_labels_in_shards_are_refused(self, prepare, tmp_path):
        values = [{"label": row % 2, "class": 1 - row % 2} for row in range(12)]
        with pytest.raises(DataError, match="must give one label; found: label and class"):
            prepare("webdataset", write_json_shard(tmp_path / "a.tar", values))

    def test_one_patient_of_the_headers_under_two_spellings_is_one(self, prepare, tmp_path):
        patients = ["P1", "p1 ", "7", "007", "P2", "P3"]
        assert prepare("csv", write_dicoms(tmp_path / "raw", patients)).record.num_groups == 4

    def test_a_patient_of_the_headers_in_two_groups_is_flagged(self, prepare, tmp_path):
        patients = ["P1", "P1", "P2", "P2", "P3", "P3"]
        table = write_dicoms(tmp_path / "raw", patients, groups=["E1", "E2", "E3", "E3", "E4", "E4"])
        record = prepare("csv", table).record
        assert record.num_groups == 4
        assert record.flags["patient of the header in several groups: is the group a patient?"] == 2


def write_json_shard(path: Path, values: list[dict[str, object]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for row, fields in enumerate(values):
            for ending, body in (("json", json.dumps(fields).encode()), ("png", png(IMAGES[row]))):
                info = tarfile.TarInfo(f"{row:06d}.{ending}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    return path


def write_dicoms(folder: Path, patients: list[str], groups: list[str] | None = None) -> Path:
    lines = ["path,label" + (",group" if groups else "")]
    for number, patient in enumerate(patients):
        pixels = picture(number, (16, 16)).astype(np.uint16) * 8
        save_dicom(folder / f"{number}.dcm", make_dicom(pixels, patient=patient, bits=12))
        lines.append(f"{number}.dcm,{number % 2}" + (f",{groups[number]}" if groups else ""))
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


class TestFolders:
    def test_folders_around_the_classes_in_an_archive(self, prepare, class_folder, tmp_path):
        with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
            for path in class_folder.rglob("*.png"):
                archive.write(path, f"own/own/{path.relative_to(class_folder)}")
            archive.writestr("__MACOSX/own/own/cat/._0.png", b"x")
        data = prepare("folder", tmp_path / "own.zip")
        assert data.label_names == ("cat", "dog")
        assert data.labels.tolist() == prepare("folder", class_folder, name="other").labels.tolist()

    def test_folds_are_no_classes(self, prepare, tmp_path):
        for number, fold in enumerate(("fold1", "fold_2")):
            for label in ("cat", "dog"):
                (tmp_path / "raw" / fold / label).mkdir(parents=True)
                for image in range(3):
                    pixels = picture(100 * number + 10 * (label == "cat") + image)
                    (tmp_path / "raw" / fold / label / f"{image}.png").write_bytes(png(pixels))
        with pytest.raises(DataError, match="classes, or train and test; found: fold1, fold_2, each with"):
            prepare("folder", tmp_path / "raw")

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("cats.zip", "there are archives: give one archive"),
            ("train/metadata.jsonl", r"with a table of labels beside it, give the table \(kind csv\)"),
            ("train/data-00000-of-00001.arrow", "write what datasets' save_to_disk made with to_parquet"),
            ("train/metadata.csv", r"with a table of labels beside it, give the table \(kind csv\)"),
            ("a/x.h5", "give the array file itself"),
            ("a/IM0001", "files without an ending are looked at on a disk, and taken when they are DICOM"),
        ],
    )
    def test_a_folder_of_something_else_says_the_way_out(self, prepare, tmp_path, name, hint):
        path = tmp_path / "raw" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        with pytest.raises(DataError, match=f"one subfolder of images per class.*; {hint}"):
            prepare("folder", tmp_path / "raw")

    def test_a_table_in_an_archive_has_to_be_unpacked(self, prepare, tmp_path):
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("manifest.csv", "path,label")
        with pytest.raises(DataError, match=r"give the table \(kind csv\), unpacked with its images"):
            prepare("folder", tmp_path / "a.zip")

    def test_a_file_format_that_tells_the_label_is_flagged(self, prepare, class_folder):
        from PIL import Image

        for path in [*(class_folder / "cat").iterdir(), *(class_folder / "dog").iterdir()]:
            with Image.open(path) as image:
                for copy in range(2):
                    turned = image.rotate(90 * copy, expand=False)
                    form = "BMP" if path.parent.name == "cat" else "PNG"
                    turned.save(path.with_name(f"{copy}-{path.stem}.{form.lower()}"), form)
            path.unlink()
        flags = prepare("folder", class_folder).record.flags
        assert flags["file format tells the label (100% by it alone, 1.00 of 1.00 bits)"] == 20
