"""Tables of paths: every form of text, columns, paths, volumes, DICOM files and one column per class."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from search_spaces.errors import ConfigError, DataError
from tasks.sources import own_kind_of
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.own import FORMS, image_cells, save_parquet
from tests.unit.tasks.sources.conftest import picture, png

LABELS = np.arange(12) % 2


def write_pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(1000 + number)))
    return folder


def write_table(folder: Path, labels: list[str], header: str = "path,label") -> Path:
    names = [f"{index}.png" for index in range(len(labels))]
    write_pictures(folder, *names)
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (folder / "manifest.csv").write_text("\n".join((header, *lines)) + "\n")
    return folder / "manifest.csv"


def write_manifest(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


NAMES = [f"cat/{index}.png" for index in range(5)] + [f"dog/{index}.png" for index in range(5, 10)]


def rows(**columns) -> str:
    """A manifest of the ten pictures; columns are functions of the row number."""
    header = ",".join(("path", *columns))
    lines = [",".join((name, *(str(make(i)) for make in columns.values()))) for i, name in enumerate(NAMES)]
    return "\n".join((header, *lines)) + "\n"


class TestText:
    def test_folder_with_manifest(self, prepare, class_folder):
        write_manifest(class_folder, rows(label=lambda i: i // 5))
        assert prepare("table", class_folder).num_images == 10

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "\ufeff" + text,
            lambda text: text.replace(",", ";"),
            lambda text: text.replace(",", "\t"),
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("path,label", "Path , LABEL"),
            lambda text: text.replace("cat/0.png", '"cat/0.png"') + "\n\n",
            lambda text: text.replace("cat/0.png", "./cat//0.png").replace("dog/5.png", "dog\\5.png"),
        ],
        ids=["bom", "semicolons", "tabs", "crlf", "header spelling", "quotes", "path spelling"],
    )
    def test_spellings_that_are_accepted(self, prepare, class_folder, change):
        text = change(rows(label=lambda i: i // 5))
        data = prepare("table", write_manifest(class_folder, text))
        assert data.labels.tolist() == [0] * 5 + [1] * 5

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "must be readable; found: empty file"),
            ("path,label\n", "must have rows"),
            ("file,label\ncat/0.png,1\n", "found: no path"),
            ("path,label,label\ncat/0.png,1,2\n", "label repeated"),
            ("path,label\ncat/0.png\n", "1 lines with another number of columns, first row 2"),
            ('path,label\n"cat/0.png,1\n', "broken quotes or a huge cell in the row after 1"),
            ("path,label\ncat/\xe9.png,1\n".encode("latin-1"), "must be UTF-8"),
            (b"path,label\ncat/0.png,\x001\n", "zero bytes"),
            (
                rows(label=lambda i: i % 2) + "cat/0.png,1\n",
                "repeated in 1: row 12; with different labels: 1",
            ),
            (rows(label=lambda i: i % 2) + "cat/none.png,1\n", "missing: 1: row 12"),
            (rows(label=lambda i: i % 2) + "../secret.png,1\n", "must stay inside"),
            (rows(label=lambda i: i % 2) + "/etc/passwd,1\n", "must stay inside"),
            (rows(label=lambda i: i % 2) + "C:\\x.png,1\n", "must stay inside"),
        ],
    )
    def test_bad_manifests_are_refused_without_quoting_cells(self, prepare, class_folder, text, message):
        with pytest.raises(DataError, match=message) as caught:
            prepare("table", write_manifest(class_folder, text))
        assert "none.png" not in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_files_without_a_row_are_counted(self, prepare, class_folder):
        (class_folder / "extra.png").write_bytes(png(picture(50)))
        record = prepare("table", write_manifest(class_folder, rows(label=lambda i: i % 2))).record
        assert record.excluded == {"image without a row in the table": 1}

    @pytest.mark.parametrize("inside", [True, False])
    def test_absolute_paths(self, prepare, class_folder, tmp_path, inside):
        table = (class_folder if inside else tmp_path / "tables") / "t.csv"
        table.parent.mkdir(exist_ok=True)
        lines = [f"{class_folder}/{'cat' if i < 5 else 'dog'}/{i}.png,{int(i < 5)}" for i in range(10)]
        table.write_text("\n".join(["path,label", *lines]))
        assert prepare("table", table).num_images == 10
        table.write_text("\n".join(["path,label", *lines, "/etc/passwd,1"]))
        with pytest.raises(DataError, match="not an image"):
            prepare("table", table, name="b")
        table.write_text("\n".join(["path,label", *lines, f"{class_folder}/../x.png,1"]))
        with pytest.raises(DataError, match="must not lead back up"):
            prepare("table", table, name="c")

    def test_dicom_files_are_recognised(self, prepare, tmp_path):
        lines = ["path,label"]
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
            data = make_dicom(values, patient=f"p{number // 2}", bits=12)
            save_dicom(tmp_path / "raw" / f"{number}.dcm", data)
            lines.append(f"{number}.dcm,{number % 2}")
        (tmp_path / "raw" / "manifest.csv").write_text("\n".join(lines))
        data = prepare("table", tmp_path / "raw")
        assert (data.num_images, data.record.num_groups) == (6, 3)
        assert own_kind_of(tmp_path / "raw") == "table"

    def test_two_spellings_of_a_path_are_one_file(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["a", "b"])
        table.write_text(table.read_text() + "./0.png,b\n")
        with pytest.raises(DataError, match="repeated in 1: row 4; with different labels: 1"):
            prepare("table", table)

    def test_a_map_turns_grades_into_classes(self, prepare, tmp_path):
        """Clinical Dementia Rating: 0, 0.5, 1."""
        grades = {"0": "normal", "0.5": "questionable", "1": "mild"}
        data = prepare("table", write_table(tmp_path / "raw", ["0", "0.5", "1"] * 2), label_map=grades)
        assert data.label_names == ("mild", "normal", "questionable")

    def test_paths_without_their_ending_say_so(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["a", "b"] * 3)
        table.write_text(table.read_text().replace(".png", ""))
        with pytest.raises(DataError, match=r"missing: 6: row 2, .*with their ending such as .jpg"):
            prepare("table", table)


def dicom_class_folder(folder: Path, **tags) -> Path:
    """Forty slices of twenty patients; ``tags`` are functions of (number, label)."""
    for number in range(40):
        label = number % 2
        values = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
        made = {name: make(number, label) for name, make in tags.items()}
        data = make_dicom(values, patient=f"p{number // 2}", bits=12, **made)
        save_dicom(folder / ("sick" if label else "well") / f"{number}.dcm", data)
    return folder


class TestShortcuts:
    @pytest.mark.parametrize(
        ("name", "tags"),
        [
            ("site", {"InstitutionName": lambda number, label: f"Hospital {label}"}),
            ("manufacturer", {"Manufacturer": lambda number, label: "AB"[label]}),
            ("scanner model", {"ManufacturerModelName": lambda number, label: "AB"[label]}),
            ("pixel spacing", {"spacing": lambda number, label: (0.5 + label, 0.5 + label)}),
            ("series description", {"SeriesDescription": lambda number, label: f"ax {label}"}),
            (
                "rescale slope",
                {
                    "RescaleSlope": lambda number, label: 1 + label,
                    "RescaleIntercept": lambda number, label: 0,
                },
            ),
        ],
    )
    def test_what_tells_the_label_is_flagged(self, prepare, tmp_path, name, tags):
        flags = prepare("folder", dicom_class_folder(tmp_path / "raw", **tags)).record.flags
        assert flags[f"{name} tells the label (100% by it alone, 1.00 of 1.00 bits)"] == 40

    def test_what_is_there_by_chance_is_not(self, prepare, tmp_path):
        tags = {
            "Manufacturer": lambda number, label: "AB"[number // 20],
            "StationName": lambda number, _: "x",
        }
        assert prepare("folder", dicom_class_folder(tmp_path / "raw", **tags)).record.flags == {}

    def test_sites_are_kept_as_hashes_only(self, prepare, tmp_path):
        raw = dicom_class_folder(tmp_path / "raw", InstitutionName=lambda number, label: f"CANARY{label}")
        prepare("folder", raw)
        for path in (tmp_path / "prepared").rglob("*"):
            assert not path.is_file() or b"CANARY" not in path.read_bytes()

    def test_localisers_and_mixed_series_are_flagged(self, prepare, tmp_path):
        tags = {
            "ImageType": lambda number, _: ["ORIGINAL", "PRIMARY", "LOCALIZER" if number < 4 else "AXIAL"],
            "SeriesDescription": lambda number, _: "scout" if number < 4 else "axial",
            "spacing": lambda number, _: (2.0, 2.0) if number < 4 else (0.5, 0.5),
        }
        flags = prepare("folder", dicom_class_folder(tmp_path / "raw", **tags)).record.flags
        assert flags == {
            "localiser": 4, "series description: 2 different": 4, "pixel spacing: 2 different": 4,
        }  # fmt: skip

    def test_columns_of_a_table_are_watched_too(self, prepare, tmp_path):
        labels = [f"{'ab'[i % 2]},{'east' if i % 2 else 'west'}" for i in range(24)]
        record = prepare("table", write_table(tmp_path / "raw", labels, "path,label,site")).record
        assert record.flags == {"site tells the label (100% by it alone, 1.00 of 1.00 bits)": 24}


Records = list[dict[str, object]]


def as_csv(records: Records) -> bytes:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, dict.fromkeys(key for record in records for key in record))
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().encode()


def as_jsonl(records: Records) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_parquet(records: Records) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), stream)
    return stream.getvalue()


FORMATS = {"csv": as_csv, "jsonl": as_jsonl, "parquet": as_parquet}


def write_images(folder: Path, count: int = 10) -> Records:
    folder.mkdir(parents=True)
    records: Records = []
    for number in range(count):
        (folder / f"{number}.png").write_bytes(png(picture(number)))
        records.append({"file_name": f"{number}.png", "label": "cat" if number % 2 else "dog"})
    return records


@pytest.mark.parametrize("ending", FORMATS)
class TestImageFolder:
    def test_metadata_in_the_folder(self, prepare, tmp_path, ending):
        records = [record | {"age": 3.5, "boxes": "x"} for record in write_images(tmp_path / "raw")]
        if ending != "csv":
            records = [record | {"boxes": [[1, 2], [3, 4]]} for record in records]
        (tmp_path / "raw" / f"metadata.{ending}").write_bytes(FORMATS[ending](records))
        assert own_kind_of(tmp_path / "raw") == "table"
        data = prepare("table", tmp_path / "raw")
        assert (data.label_names, data.labels.tolist()) == (("cat", "dog"), [1, 0] * 5)
        assert data.record.excluded == {}
        (tmp_path / "raw" / f"metadata.{ending}").rename(tmp_path / "raw" / f"mine.{ending}")
        assert own_kind_of(tmp_path / "raw" / f"mine.{ending}") == "table"
        assert prepare("table", tmp_path / "raw" / f"mine.{ending}", name="b").labels.tolist() == [1, 0] * 5

    def test_metadata_in_each_split(self, prepare, tmp_path, ending):
        for split, count in (("train", 6), ("validation", 2), ("test", 4)):
            records = write_images(tmp_path / "raw" / split, count)
            (tmp_path / "raw" / split / f"metadata.{ending}").write_bytes(FORMATS[ending](records))
        assert own_kind_of(tmp_path / "raw") == "table"
        data = prepare("table", tmp_path / "raw", max_skipped_share=0.5, for_training=False)
        # Folders in the order of their names.
        assert data.splits.tolist() == [2] * 4 + [1] * 6
        assert data.labels.tolist() == [1, 0] * 5
        assert data.record.excluded == {"validation split": 2}

    def test_damage_is_refused(self, prepare, tmp_path, ending):
        records = write_images(tmp_path / "raw")
        body = FORMATS[ending](records)
        path = tmp_path / "raw" / f"metadata.{ending}"
        path.write_bytes(body[: len(body) - 20] + b"\xff\xfe" * 4)
        with pytest.raises(DataError, match=r"must be UTF-8 text|one JSON object a line|whole Parquet file"):
            prepare("table", path)


class TestSplitsOfTables:
    def test_a_column_that_denies_its_folder_is_refused(self, prepare, tmp_path):
        for split in ("train", "test"):
            records = [record | {"split": "train"} for record in write_images(tmp_path / "raw" / split)]
            (tmp_path / "raw" / split / "metadata.csv").write_bytes(as_csv(records))
        with pytest.raises(
            DataError,
            match="must say what the folder or file says; found: another split in 10: test row 2",
        ):
            prepare("table", tmp_path / "raw")

    def test_tables_on_top_and_in_splits_are_refused(self, prepare, tmp_path):
        records = write_images(tmp_path / "raw" / "train")
        (tmp_path / "raw" / "train" / "metadata.csv").write_bytes(as_csv(records))
        (tmp_path / "raw" / "metadata.csv").write_bytes(as_csv(records))
        with pytest.raises(DataError, match=r"one table in each split; found: metadata\.csv, train/"):
            prepare("table", tmp_path / "raw")

    def test_a_split_without_a_table_is_counted(self, prepare, tmp_path):
        for split in ("train", "test"):
            records = write_images(tmp_path / "raw" / split)
            if split == "train":
                (tmp_path / "raw" / split / "metadata.csv").write_bytes(as_csv(records))
        record = prepare("table", tmp_path / "raw", for_training=False).record
        assert record.excluded == {"image without a row in the table": 10}

    def test_a_folder_called_as_another_class_is_flagged(self, prepare, class_folder):
        lines = ["path,label"] + [f"cat/{i}.png,{'dog' if i == 0 else 'cat'}" for i in range(5)]
        lines += [f"dog/{i}.png,dog" for i in range(5, 10)]
        (class_folder / "t.csv").write_text("\n".join(lines))
        assert prepare("table", class_folder / "t.csv").record.flags == {
            "row whose folder is called as another class": 1
        }


ISIC = ("MEL", "NV", "BCC")


def one_hot(folder: Path, cells: list[tuple[str, ...]]) -> Path:
    """As ISIC 2018's ground truth: ``image`` and a column of ``0.0`` and ``1.0`` for each class."""
    lines = [f"image,{','.join(ISIC)}"] + [f"{i}.png,{','.join(row)}" for i, row in enumerate(cells)]
    (folder / "GroundTruth.csv").write_text("\n".join(lines))
    return folder / "GroundTruth.csv"


ROWS = [tuple("1.0" if place == number % 3 else "0.0" for place in range(3)) for number in range(9)]


class TestOneHot:
    def test_they_are_proposed_and_taken_on_word(self, prepare, tmp_path):
        write_images(tmp_path / "raw", 9)
        table = one_hot(tmp_path / "raw", ROWS)
        with pytest.raises(DataError, match=r"0 and 1 in MEL, NV, BCC.*label_columns: \[MEL, NV, BCC\]"):
            prepare("table", table)
        data = prepare("table", table, label_columns=ISIC)
        assert data.label_names == ("BCC", "MEL", "NV")
        assert data.labels.tolist() == [1, 2, 0] * 3
        assert data.record.flags == {"column image read as path": 9}

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            (("0.0", "0.0", "0.0"), "1 of no class, first row 11"),
            (("1.0", "1.0", "0.0"), "1 of several classes, first row 11"),
            (("1.0", "0.3", "0.0"), "1 with other cells, first row 11"),
            (("1.0", "", "0.0"), "1 with other cells, first row 11"),
        ],
    )
    def test_no_class_or_several_are_refused(self, prepare, tmp_path, cells, message):
        write_images(tmp_path / "raw", 10)
        table = one_hot(tmp_path / "raw", [*ROWS, cells])
        with pytest.raises(DataError, match=message):
            prepare("table", table, label_columns=ISIC)

    def test_a_column_of_another_name_is_the_label_on_word(self, prepare, tmp_path):
        records = [{"file_name": r["file_name"], "dx": r["label"]} for r in write_images(tmp_path / "raw")]
        (tmp_path / "raw" / "t.csv").write_bytes(as_csv(records))
        with pytest.raises(DataError, match="no label among file_name, dx; call it label, or name it"):
            prepare("table", tmp_path / "raw" / "t.csv")
        data = prepare("table", tmp_path / "raw" / "t.csv", label_columns=("dx",))
        assert data.label_names == ("cat", "dog")
        with pytest.raises(DataError, match="must have the columns file_name, age; found: no age"):
            prepare("table", tmp_path / "raw" / "t.csv", label_columns=("age",), name="b")

    def test_of_parquet_with_images(self, prepare, tmp_path):
        path = save_parquet(tmp_path / "a.parquet", {"image": image_cells(), "dx": LABELS.tolist()})
        with pytest.raises(DataError, match=r"must have columns image and label.*label_columns"):
            prepare("table", path)
        assert prepare("table", path, label_columns=("dx",)).labels.tolist() == LABELS.tolist()
        columns = {name: [int(row % 3 == place) for row in range(12)] for place, name in enumerate(ISIC)}
        path = save_parquet(tmp_path / "b.parquet", {"image": image_cells(), **columns})
        assert prepare("table", path, label_columns=ISIC, name="b").labels.tolist() == [1, 2, 0] * 4

    def test_other_kinds_do_not_ask(self, prepare, tmp_path):
        path = FORMS["npz"][1](tmp_path, {"label": LABELS.tolist()})
        with pytest.raises(ConfigError, match="label_columns is for kind table; found: kind npz"):
            prepare("npz", path, label_columns=("dx",))


def write_dicoms(folder: Path, patients: list[str], groups: list[str] | None = None) -> Path:
    lines = ["path,label" + (",group" if groups else "")]
    for number, patient in enumerate(patients):
        pixels = picture(number, (16, 16)).astype(np.uint16) * 8
        save_dicom(folder / f"{number}.dcm", make_dicom(pixels, patient=patient, bits=12))
        lines.append(f"{number}.dcm,{number % 2}" + (f",{groups[number]}" if groups else ""))
    (folder / "t.csv").write_text("\n".join(lines))
    return folder / "t.csv"


class TestPatients:
    def test_groups_that_are_the_classes_are_refused(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", [f"{label},{label}" for label in "ab" * 3], "path,label,group")
        with pytest.raises(
            DataError, match=r"images of several groups .*; found: one group for each of the 2"
        ):
            prepare("table", table)
        assert prepare("table", table, for_training=False).num_images == 6

    def test_a_class_of_one_group_is_named(self, prepare, tmp_path):
        rows = [f"{label},p{0 if label == 'c' else row}" for row, label in enumerate("abc" * 3)]
        flags = prepare("table", write_table(tmp_path / "raw", rows, "path,label,group")).record.flags
        assert flags == {"class of one group: c": 1}

    def test_one_patient_of_the_headers_under_two_spellings_is_one(self, prepare, tmp_path):
        patients = ["P1", "p1 ", "7", "007", "P2", "P3"]
        assert prepare("table", write_dicoms(tmp_path / "raw", patients)).record.num_groups == 4

    def test_a_patient_of_the_headers_in_two_groups_is_flagged(self, prepare, tmp_path):
        patients = ["P1", "P1", "P2", "P2", "P3", "P3"]
        table = write_dicoms(tmp_path / "raw", patients, groups=["E1", "E2", "E3", "E3", "E4", "E4"])
        record = prepare("table", table).record
        assert record.num_groups == 4
        assert record.flags["patient of the header in several groups: is the group a patient?"] == 2


def test_a_patient_of_the_headers_on_both_sides_is_flagged(prepare, tmp_path):
    """Known only once the files are read; the split then leaves these test images out."""
    values = np.random.default_rng(0).integers(1, 1000, (12, 8, 8)).astype(np.uint16)
    for number, patient in enumerate((0, 1, 2, 3, 4, 5, 0, 1, 6, 7, 8, 9)):
        folder = tmp_path / "raw" / ("train" if number < 6 else "test") / ("cat", "dog")[number % 2]
        save_dicom(folder / f"{number}.dcm", make_dicom(values[number], patient=f"P{patient}"))
    flags = prepare("folder", tmp_path / "raw").record.flags
    assert flags["test images never used, since their group is in training"] == 2


VOLUME = np.random.default_rng(0).integers(1, 1000, (8, 9, 40)).astype(np.int16)


class TestNiftiTable:
    def write(self, folder: Path, header: str, *rows: str) -> Path:
        folder.mkdir()
        for number in range(4):
            values = np.roll(VOLUME, number, axis=0)
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{number}.nii.gz")
        (folder / "manifest.csv").write_text("\n".join((header, *rows)))
        return folder

    def test_slices_by_rule(self, prepare, tmp_path):
        raw = self.write(tmp_path / "raw", "path,label", *(f"{n}.nii.gz,{n % 2}" for n in range(4)))
        assert own_kind_of(raw) == "table"
        data = prepare("table", raw)
        assert data.num_images == 40
        assert data.record.num_groups == 4
        assert data.labels.tolist() == [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10

    def test_a_slice_column_is_the_oracle_of_the_plane(self, prepare, tmp_path):
        rows = [f"{n}.nii.gz,{n % 2},{level}" for n in range(4) for level in (3, 30)]
        raw = self.write(tmp_path / "raw", "path,label,slice", *rows)
        data = prepare("table", raw, image_size=8)
        assert data.num_images == 8
        assert data.record.num_groups == 4
        low, high = np.percentile(VOLUME.astype(np.float32), (0.1, 99.9))
        plane = np.clip(VOLUME[:, :, 3], low, high) - low
        expected = (plane * 255 / plane.max()).astype(np.uint8).T[::-1, ::-1]
        from tasks.sources.pictures import to_prepared

        np.testing.assert_array_equal(data.read(0, 1)[0], to_prepared(expected, image_size=8, channels=1))

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (("0.nii.gz,a,3", "1.nii.gz,b,x"), "slice must be a whole number"),
            (("0.nii.gz,a,3", "0.nii.gz,b,3"), "repeated in 1: row 3; with different labels: 1"),
            (("0.nii.gz,a,3", "1.nii.gz,b,40"), "slice beyond the volume: 1"),
        ],
    )
    def test_bad_slices(self, prepare, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            prepare("table", self.write(tmp_path / "raw", "path,label,slice", *rows))


class TestVolumes:
    @pytest.mark.parametrize(
        ("header", "row", "message"),
        [
            ("path,label,slice,split", "{v}.nii.gz,{v},{s},{split}", "no group may be in train and test"),
            (
                "path,label,slice,group",
                "{v}.nii.gz,{v},{s},g{s}",
                "slices of a volume must be in one group",
            ),
            ("path,label,slice", "{v}.nii.gz,{v},{blank}", "must all name a slice, or none"),
            ("path,label,slice", "{v}.nii.gz,{v},{zeros}5", "every path must be in the table once"),
            ("path,label,slice", "{v}.nii.gz,{v},{s}\u00b2", "slice must be a whole number"),
        ],
    )
    def test_rows_of_one_volume_must_agree(self, prepare, tmp_path, header, row, message):
        values = np.random.default_rng(0).integers(1, 1000, (8, 9, 12)).astype(np.int16)
        for volume in (0, 1):
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{volume}.nii.gz")
        rows = [
            row.format(v=v, s=s, split=("train", "test")[s % 2], blank="" if s == 2 else s, zeros="0" * s)
            for v in (0, 1)
            for s in range(2, 6)
        ]
        (tmp_path / "manifest.csv").write_text("\n".join((header, *rows)))
        with pytest.raises(DataError, match=message):
            prepare("table", tmp_path)
