"""Own data in the formats people have; each written by its own library, read back pixel for pixel."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import nibabel
import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources import OWN_KINDS, SOURCES, own_kind_of
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.pictures import save_xlsx
from tests.unit.tasks.sources.conftest import picture, png
from tests.unit.tasks.sources.test_no_silent_wrong_label import save_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
LABELS = np.arange(12) % 2
MADE = ("digits_even_odd", "generated", "lesions", "manifold", "mri_lesion")
BOTH = pytest.mark.parametrize("kind", ["npz", "hdf5"])


def test_every_kind_has_a_source_and_a_row():
    assert set(OWN_KINDS) <= set(SOURCES)
    text = (Path(__file__).parents[4] / "docs" / "datasets.md").read_text()
    assert [kind for kind in OWN_KINDS if f"| `{kind}` |" not in text] == []


@pytest.mark.parametrize("name", [name for name in SOURCES if name not in MADE])
def test_every_reader_says_what_its_layout_was_taken_from(name):
    """A document, a public reader or a format's standard; or another module of ours that names it."""
    import re
    from importlib import import_module

    text = import_module(SOURCES[name].partition(":")[0]).__doc__
    assert re.search(r"Layout|Format", text)


@BOTH
class TestArrays:
    @pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target")])
    def test_usual_keys(self, prepare, tmp_path, kind, keys):
        path = save_arrays(tmp_path / "a", kind, **dict(zip(keys, (IMAGES, LABELS), strict=True)))
        data = prepare(kind, path)
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()

    @pytest.mark.parametrize("colour", [False, True])
    def test_medmnist(self, prepare, tmp_path, kind, colour):
        """Keys, order and label shape of ``medmnist``'s files."""
        images = np.stack([IMAGES] * 3, -1) if colour else IMAGES
        arrays = {}
        for split, rows in (("train", slice(0, 6)), ("val", slice(6, 8)), ("test", slice(8, 12))):
            arrays[f"{split}_images"] = images[rows]
            arrays[f"{split}_labels"] = LABELS[rows, None].astype(np.uint8)
        data = prepare(kind, save_arrays(tmp_path / "a", kind, **arrays), channels=3 if colour else 1)
        kept = np.r_[0:6, 8:12]
        np.testing.assert_array_equal(data.read(0, 10)[:, 0], IMAGES[kept])
        assert data.labels.tolist() == LABELS[kept].tolist()
        assert data.splits.tolist() == [1] * 6 + [2] * 4
        assert data.record.excluded == {"validation split": 2}

    def test_keras_keys(self, prepare, tmp_path, kind):
        arrays = {"x_train": IMAGES[:8], "y_train": LABELS[:8], "x_test": IMAGES[8:], "y_test": LABELS[8:]}
        data = prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))
        assert data.splits.tolist() == [1] * 8 + [2] * 4

    def test_several_labels_per_image_are_refused(self, prepare, tmp_path, kind):
        labels = np.zeros((12, 14), np.uint8)
        with pytest.raises(DataError, match="several labels per image are no classes"):
            prepare(kind, save_arrays(tmp_path / "a", kind, images=IMAGES, labels=labels))

    def test_a_block_travels_without_the_others(self, tmp_path, kind):
        import pickle

        from search_spaces.datasets import own_dataset_spec
        from search_spaces.specs import PreparedSpec
        from search_spaces.sweeps import OwnSourceSpec
        from tasks.sources import source_for
        from tasks.sources.base import RawRequest

        path = save_arrays(
            tmp_path / "a", kind, images=np.repeat(IMAGES, 100, 0), labels=np.tile(LABELS, 100)
        )
        row = own_dataset_spec("mine", OwnSourceSpec(kind=kind, path=str(path), domain="natural"))
        spec = PreparedSpec(dataset="mine", image_size=8, channels=1)
        items = source_for(kind).list_items(RawRequest(row, spec, path)).items
        assert len(pickle.dumps(items[5:7])) < 1000
        assert pickle.loads(pickle.dumps(items[5:7])) == [items[5], items[6]]
        assert list(items[3:9:2]) == [items[3], items[5], items[7]]
        assert items[-1] == list(items)[-1]

    def test_two_sets_in_one_file_are_refused(self, prepare, tmp_path, kind):
        arrays = {"images": IMAGES, "labels": LABELS, "x": IMAGES, "y": LABELS}
        with pytest.raises(DataError, match="one set of images must be in the file"):
            prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))

    def test_val_in_splits_is_left_out(self, prepare, tmp_path, kind):
        splits = np.array([b"train", b"val", b"test"] * 4)
        record = prepare(
            kind, save_arrays(tmp_path / "a", kind, images=IMAGES, labels=LABELS, splits=splits)
        ).record
        assert record.excluded == {"validation split": 4}
        assert record.num_images == 8

    def test_a_group_on_both_sides_is_refused(self, prepare, tmp_path, kind):
        arrays = {f"{split}_{name}": values for split in ("train", "test") for name, values in
                  (("images", IMAGES[:6] if split == "train" else IMAGES[6:]), ("labels", LABELS[:6]),
                   ("groups", np.arange(6)))}  # fmt: skip
        with pytest.raises(DataError, match="no group may be in train and test; found: 6, first"):
            prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))

    def test_more_images_than_there_are_is_refused(self, prepare, tmp_path, kind, monkeypatch):
        """Five megabytes of zeros can be two hundred million images with labels of many gigabytes."""
        from tasks.sources import arrays as array_sets

        monkeypatch.setattr(array_sets, "MAX_IMAGES", 11)
        with pytest.raises(DataError, match="at most 11 images; found: 12"):
            prepare(kind, save_arrays(tmp_path / "a", kind, images=IMAGES, labels=LABELS))


class TestTables:
    @pytest.mark.parametrize("form", ["csv", "tsv", "xlsx", "semicolons"])
    def test_forms(self, prepare, class_folder, form):
        names = [f"{'cat' if i < 5 else 'dog'}/{i}.png" for i in range(10)]
        rows = [["path", "label"], *[[name, name[:3]] for name in names]]
        if form == "xlsx":
            save_xlsx(class_folder / "t.xlsx", rows)
        else:
            mark = {"csv": ",", "tsv": "\t", "semicolons": ";"}[form]
            text = "\n".join(mark.join(row) for row in rows)
            (class_folder / f"t.{'csv' if form == 'semicolons' else form}").write_text(text)
        table = next(class_folder.glob("t.*"))
        assert own_kind_of(table) == "csv"
        assert prepare("csv", table).labels.tolist() == [0] * 5 + [1] * 5

    def test_usual_column_names(self, prepare, class_folder):
        lines = ["filename,class,patient_id,split"]
        for i in range(10):
            kind = "cat" if i < 5 else "dog"
            lines.append(f"{kind}/{i}.png,{kind},P{i // 2},{'test' if i > 7 else 'train'}")
        (class_folder / "t.csv").write_text("\n".join(lines))
        data = prepare("csv", class_folder / "t.csv")
        assert data.record.num_groups == 5
        assert data.splits.tolist() == [1] * 8 + [2] * 2
        assert data.record.flags == {
            "column filename read as path": 10,
            "column class read as label": 10,
            "column patient_id read as group": 10,
            "class in train only: cat": 1,
        }

    def test_columns_that_nobody_reads_are_named(self, prepare, class_folder):
        """A lesion with several images, or a split in other words, must not be lost without a word."""
        names = sorted(path.relative_to(class_folder).as_posix() for path in class_folder.rglob("*.png"))
        lines = [f"{index},{name},{name[0]},{index},1" for index, name in enumerate(names)]
        header = ",path,label,lesion_id,is_train"
        (class_folder / "manifest.csv").write_text("\n".join([header, *lines]))
        flags = prepare("csv", class_folder / "manifest.csv").record.flags
        assert flags == {"columns not used: lesion id, is train": 10}

    def test_a_column_of_its_own_name_goes_first(self, prepare, class_folder):
        lines = ["path,label,class,patient"] + [f"cat/{i}.png,{i % 2},x,p{i}" for i in range(5)]
        (class_folder / "t.csv").write_text("\n".join(lines))
        record = prepare("csv", class_folder / "t.csv").record
        assert record.label_names == ("0", "1")
        assert record.flags == {
            "column patient read as group": 5,
            "column class not used, since there is label": 5,
        }

    def test_two_columns_that_could_be_one_are_refused(self, prepare, class_folder):
        (class_folder / "t.csv").write_text("path,class,target\ncat/0.png,1,2\n")
        with pytest.raises(DataError, match="one column must be the label; found: class, target"):
            prepare("csv", class_folder / "t.csv")

    @pytest.mark.parametrize("inside", [True, False])
    def test_absolute_paths(self, prepare, class_folder, tmp_path, inside):
        table = (class_folder if inside else tmp_path / "tables") / "t.csv"
        table.parent.mkdir(exist_ok=True)
        lines = [f"{class_folder}/{'cat' if i < 5 else 'dog'}/{i}.png,{int(i < 5)}" for i in range(10)]
        table.write_text("\n".join(["path,label", *lines]))
        assert prepare("csv", table).num_images == 10
        table.write_text("\n".join(["path,label", *lines, "/etc/passwd,1"]))
        with pytest.raises(DataError, match="not an image"):
            prepare("csv", table, name="b")
        table.write_text("\n".join(["path,label", *lines, f"{class_folder}/../x.png,1"]))
        with pytest.raises(DataError, match="must not lead back up"):
            prepare("csv", table, name="c")

    def test_dicom_files_are_recognised(self, prepare, tmp_path):
        lines = ["path,label"]
        for number in range(6):
            values = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
            data = make_dicom(values, patient=f"p{number // 2}", bits=12)
            save_dicom(tmp_path / "raw" / f"{number}.dcm", data)
            lines.append(f"{number}.dcm,{number % 2}")
        (tmp_path / "raw" / "manifest.csv").write_text("\n".join(lines))
        data = prepare("csv", tmp_path / "raw")
        assert (data.num_images, data.record.num_groups) == (6, 3)
        assert own_kind_of(tmp_path / "raw") == "csv"


def image_rows(**more) -> dict[str, list[object]]:
    images = [{"bytes": png(IMAGES[row]), "path": f"{row}.png"} for row in range(12)]
    return {"image": images, "label": LABELS.tolist(), **more}


def write_parquet(path: Path, rows: dict[str, list[object]], names: list[str] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(rows)
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=5)
    return path


class TestParquet:
    def test_one_file(self, prepare, tmp_path):
        path = write_parquet(tmp_path / "a.parquet", image_rows())
        assert own_kind_of(path) == "parquet"
        data = prepare("parquet", path)
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()

    def test_folder_of_the_hub(self, prepare, tmp_path):
        rows = image_rows(patient_id=[f"p{row // 2}" for row in range(12)])
        for split, part in (("train", slice(0, 6)), ("test", slice(6, 10)), ("validation", slice(10, 12))):
            name = f"data/{split}-00000-of-00001.parquet"
            write_parquet(
                tmp_path / "hub" / name, {key: values[part] for key, values in rows.items()}, ["no", "yes"]
            )
        assert own_kind_of(tmp_path / "hub") == "parquet"
        data = prepare("parquet", tmp_path / "hub")
        assert data.label_names == ("no", "yes")
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.num_groups == 5
        assert data.record.excluded == {"validation split": 2}

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ({"label": [0, 1]}, "must have columns image and label; found: it has label"),
            ({"image": [b"x"], "label": [None]}, "every row needs a label"),
            ({"image": [b"x"], "label": ["NaN"]}, "every row needs a label"),
            ({"image": [b"x"], "label": [[0, 1]]}, "one per image; found: list"),
            ({"image": [b"x"], "label": [0.5]}, "one per image; found: float"),
            ({"image": [b"x", b"y", b"z"], "label": ["Cat", "CAT", "dog"]}, "spelt one way"),
        ],
    )
    def test_bad_labels_are_refused(self, prepare, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    def test_a_label_beyond_the_names_is_refused(self, prepare, tmp_path):
        with pytest.raises(DataError, match="numbers of the class names; found: 1 of 1"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", image_rows(), ["no"]))

    @pytest.mark.parametrize("place", [0, 300, -30])
    def test_damage_is_refused_or_skipped(self, prepare, tmp_path, place):
        path = write_parquet(tmp_path / "a.parquet", image_rows())
        body = bytearray(path.read_bytes())
        body[place] ^= 0xFF
        path.write_bytes(body)
        # A data page carries no checksum by default, so only what cannot be decoded is noticed.
        try:
            num_images = prepare("parquet", path, max_skipped_share=0.9).num_images
        except DataError as error:
            num_images, message = 0, str(error)
        assert num_images > 6 or "whole" in message or "unusable" in message


def write_shard(path: Path, rows: range, label: str = "cls", **more) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for row in rows:
            text = (
                str(LABELS[row])
                if label == "cls"
                else json.dumps({"label": int(LABELS[row]), "group": f"p{row // 3}"})
            )
            for ending, body in ((label, text.encode()), ("png", png(IMAGES[row]))):
                info = tarfile.TarInfo(f"{row:06d}.{ending}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
    return path


class TestWebDataset:
    @pytest.mark.parametrize("ending", [".tar", ".tar.gz"])
    def test_one_shard(self, prepare, tmp_path, ending):
        path = write_shard(tmp_path / f"a{ending}", range(12))
        assert own_kind_of(path) == "webdataset"
        data = prepare("webdataset", path)
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()

    def test_shards_with_splits_and_groups(self, prepare, tmp_path):
        for name, rows in (
            ("train-000000", range(6)),
            ("train-000001", range(6, 9)),
            ("test-000000", range(9, 12)),
        ):
            write_shard(tmp_path / "shards" / f"{name}.tar", rows, "json")
        assert own_kind_of(tmp_path / "shards") == "webdataset"
        data = prepare("webdataset", tmp_path / "shards")
        assert sorted(data.splits.tolist()) == [1] * 9 + [2] * 3
        assert data.record.num_groups == 4

    def test_samples_without_label_or_image_are_counted(self, prepare, tmp_path):
        path = write_shard(tmp_path / "a.tar", range(12))
        with tarfile.open(path, "a") as archive:
            for name, body in (
                ("x.png", png(picture(3))),
                ("y.cls", b"1"),
                ("z.cls", b"None"),
                ("z.png", b""),
                ("about.json", b"{}"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        record = prepare("webdataset", path, max_skipped_share=0.5).record
        assert record.skipped == {"no label": 2, "no image": 1}
        assert record.excluded == {"neither image nor label": 1}
        with pytest.raises(DataError, match="may be unusable; found: 3 of 15"):
            prepare("webdataset", path, max_skipped_share=0.19, name="b")

    def test_two_labels_for_one_sample_are_refused(self, prepare, tmp_path):
        path = write_shard(tmp_path / "a.tar", range(12))
        with tarfile.open(path, "a") as archive:
            body = json.dumps({"label": 1}).encode()
            info = tarfile.TarInfo("000000.json")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        with pytest.raises(DataError, match="must give one label; found: two"):
            prepare("webdataset", path)


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
        assert own_kind_of(raw) == "nifti_csv"
        data = prepare("nifti_csv", raw)
        assert data.num_images == 40
        assert data.record.num_groups == 4
        assert data.labels.tolist() == [0] * 10 + [1] * 10 + [0] * 10 + [1] * 10

    def test_a_slice_column_is_the_oracle_of_the_plane(self, prepare, tmp_path):
        rows = [f"{n}.nii.gz,{n % 2},{level}" for n in range(4) for level in (3, 30)]
        raw = self.write(tmp_path / "raw", "path,label,slice", *rows)
        data = prepare("nifti_csv", raw, image_size=8)
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
            (("0.nii.gz,a,3", "0.nii.gz,b,3"), "1 repeated; with different labels: 1"),
            (("0.nii.gz,a,3", "1.nii.gz,b,40"), "slice beyond the volume': 1"),
        ],
    )
    def test_bad_slices(self, prepare, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            prepare("nifti_csv", self.write(tmp_path / "raw", "path,label,slice", *rows))


class TestHdf5:
    def test_what_leads_elsewhere_is_refused(self, prepare, tmp_path):
        import h5py

        with h5py.File(tmp_path / "other.h5", "w") as file:
            file["images"] = IMAGES
        with h5py.File(tmp_path / "x.h5", "w") as file:
            file["images"] = h5py.ExternalLink("other.h5", "images")
            file["labels"] = LABELS
        with pytest.raises(DataError, match="array images must be in"):
            prepare("hdf5", tmp_path / "x.h5")
        with h5py.File(tmp_path / "y.h5", "w") as file:
            layout = h5py.VirtualLayout(shape=IMAGES.shape, dtype=IMAGES.dtype)
            layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "images", shape=IMAGES.shape)
            file.create_virtual_dataset("images", layout)
            file["labels"] = LABELS
        with pytest.raises(DataError, match="must lie in the file itself"):
            prepare("hdf5", tmp_path / "y.h5")

    def test_lies_about_size_are_refused(self, prepare, tmp_path):
        import h5py

        with h5py.File(tmp_path / "x.h5", "w") as file:
            file.create_dataset("images", shape=(10**7, 512, 512), chunks=(1, 512, 512), dtype="u1")
            file["labels"] = LABELS
        with pytest.raises(DataError, match="must hold values; found: none were written"):
            prepare("hdf5", tmp_path / "x.h5")
        (tmp_path / "y.h5").write_bytes((tmp_path / "x.h5").read_bytes()[:300])
        with pytest.raises(DataError, match="whole HDF5 file"):
            prepare("hdf5", tmp_path / "y.h5")
