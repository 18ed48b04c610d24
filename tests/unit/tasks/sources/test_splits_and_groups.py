"""Splits and patients that own data name must be taken, or refused: never dropped without a word."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from search_spaces.errors import ConfigError, DataError
from tasks.sources import own_kind_of
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.unit.tasks.sources.conftest import picture, png
from tests.unit.tasks.sources.test_no_silent_wrong_label import save_arrays
from tests.unit.tasks.sources.test_own_formats import (
    BOTH,
    IMAGES,
    LABELS,
    image_rows,
    write_parquet,
    write_shard,
)

SHARDS = pytest.mark.parametrize("name", ["skin-{}-000000", "{}_000000", "{}/000000", "{}-000000"])


def half(rows: dict[str, list[object]], part: slice) -> dict[str, list[object]]:
    return {key: values[part] for key, values in rows.items()}


class TestShards:
    @SHARDS
    @pytest.mark.parametrize("kind", ["webdataset", "parquet"])
    def test_the_split_in_a_name_or_folder_is_taken(self, prepare, tmp_path, name, kind):
        root = tmp_path / "raw"
        for split, first, stop in (("train", 0, 6), ("test", 6, 10), ("val", 10, 12)):
            path = root / name.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "parquet":
                write_parquet(path.with_suffix(".parquet"), half(image_rows(), slice(first, stop)))
            else:
                write_shard(path.with_suffix(".tar"), range(first, stop))
        assert own_kind_of(root) == kind
        data = prepare(kind, root)
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.excluded == {"validation split": 2}

    def test_a_name_with_two_splits_is_refused(self, prepare, tmp_path):
        with pytest.raises(DataError, match="a file's name must say one split"):
            prepare("webdataset", write_shard(tmp_path / "train-test.tar", range(12)))

    def test_a_patient_on_both_sides_is_refused(self, prepare, tmp_path):
        for split in ("train", "test"):
            write_shard(tmp_path / "raw" / f"{split}.tar", range(6), "json")
        with pytest.raises(DataError, match="no group may be in train and test; found: 2, first"):
            prepare("webdataset", tmp_path / "raw")


class TestParquet:
    def test_a_patient_on_both_sides_is_refused(self, prepare, tmp_path):
        rows = image_rows(patient_id=["p0"] * 12, split=["train"] * 6 + ["test"] * 6)
        with pytest.raises(DataError, match="no group may be in train and test; found: 1, first"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    @pytest.mark.parametrize("blank", [None, "nan", "", float("nan")])
    def test_blank_patients_are_no_patient(self, prepare, tmp_path, blank):
        known: object = 1.0 if isinstance(blank, float) else "p1"
        rows = image_rows(patient_id=[known] * 9 + [blank] * 3)
        with pytest.raises(DataError, match="every image needs a group when there are any; found: 3"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    def test_a_column_gives_the_split(self, prepare, tmp_path):
        rows = image_rows(split=["train"] * 6 + ["val"] * 2 + ["test"] * 3 + [None])
        data = prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))
        assert data.splits.tolist() == [1] * 6 + [2] * 3 + [0]
        assert data.record.excluded == {"validation split": 2}

    def test_another_word_for_a_split_is_refused(self, prepare, tmp_path):
        rows = image_rows(split=["train"] * 6 + ["holdout"] * 6)
        with pytest.raises(DataError, match="split must be train, test, val or blank"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    @pytest.mark.parametrize("names", [None, ["yes", "no"]])
    def test_files_with_other_class_names_are_refused(self, prepare, tmp_path, names):
        """Else 0 and 1 of one file become classes beside the other's "no" and "yes"."""
        root = tmp_path / "raw"
        root.mkdir()
        write_parquet(root / "train.parquet", half(image_rows(), slice(0, 6)), ["no", "yes"])
        write_parquet(root / "test.parquet", half(image_rows(), slice(6, 12)), names)
        with pytest.raises(DataError, match="all files must give the labels the same names"):
            prepare("parquet", root)

    @pytest.mark.parametrize("config", ["default", "data"])
    def test_folders_as_the_hub_converts_a_set(self, prepare, tmp_path, config):
        for split, first, stop in (("partial-train", 0, 6), ("test", 6, 10), ("validation", 10, 12)):
            rows = half(image_rows(), slice(first, stop))
            write_parquet(tmp_path / "raw" / config / split / "0000.parquet", rows)
        assert own_kind_of(tmp_path / "raw") == "parquet"
        data = prepare("parquet", tmp_path / "raw")
        assert sorted(data.splits.tolist()) == [1] * 6 + [2] * 4
        assert data.record.excluded == {"validation split": 2}

    @pytest.mark.parametrize("name", ["{}/train/0000.parquet", "{}/train-00000-of-00001.parquet"])
    def test_of_two_configs_one_must_be_named(self, prepare, tmp_path, name):
        for config in ("full", "small"):
            write_parquet(tmp_path / "raw" / name.format(config), image_rows())
        with pytest.raises(DataError, match="must hold one config of a set with splits; found: full, small"):
            prepare("parquet", tmp_path / "raw")

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"target": [0] * 12}, "one column alone may be the label; found: label and target"),
            ({"img": image_rows()["image"]}, "one column alone may be the image; found: image and img"),
            (
                {"group": ["g"] * 12, "patient_id": ["p"] * 12},
                "one column alone may be the group; found: group and patient_id",
            ),
        ],
    )
    def test_of_two_columns_none_is_guessed(self, prepare, tmp_path, more, message):
        with pytest.raises(DataError, match=message):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", image_rows(**more)))

    @pytest.mark.parametrize(("one", "other"), [("p0", "P0"), ("007", "7"), ("7", "7.0"), ("p 0", "p  0 ")])
    def test_one_patient_spelt_in_two_ways_is_refused(self, prepare, tmp_path, one, other):
        rows = image_rows(patient_id=[one] * 6 + [other] * 3 + ["p1"] * 3)
        with pytest.raises(DataError, match=r"every group id must be spelt one way.*found: 2, first"):
            prepare("parquet", write_parquet(tmp_path / "a.parquet", rows))

    def test_long_numbers_are_told_apart(self, prepare, tmp_path):
        rows = image_rows(patient_id=[12345678901234567 + row for row in range(12)])
        assert prepare("parquet", write_parquet(tmp_path / "a.parquet", rows)).record.num_groups == 12


@BOTH
class TestArrays:
    def test_images_of_a_split_without_labels_are_refused(self, prepare, tmp_path, kind):
        arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:4]}
        with pytest.raises(
            DataError, match="test_images and test_labels must both be in the file; found: no test_labels"
        ):
            prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))

    def test_arrays_that_nobody_reads_are_named(self, prepare, tmp_path, kind):
        arrays = {"images": IMAGES, "labels": LABELS, "patient_id": np.arange(12)}
        record = prepare(kind, save_arrays(tmp_path / "a", kind, **arrays)).record
        assert record.flags["array not used: patient_id"] == 1

    def test_a_patient_on_both_sides_of_splits_is_refused(self, prepare, tmp_path, kind):
        splits = np.array([b"train", b"test"] * 6)
        path = save_arrays(
            tmp_path / "a", kind, images=IMAGES, labels=LABELS, groups=np.arange(12) // 4, splits=splits
        )
        with pytest.raises(DataError, match="no group may be in train and test; found: 3"):
            prepare(kind, path)


def test_bids_participants_are_groups(prepare, class_folder):
    rows = [f"{'cat' if i < 5 else 'dog'}/{i}.png,{i // 5},sub-{i % 5}" for i in range(10)]
    (class_folder / "t.csv").write_text("\n".join(("filename,class,participant_id", *rows)))
    assert prepare("csv", class_folder / "t.csv").record.num_groups == 5


def test_a_patient_column_beside_group_is_named(prepare, class_folder):
    rows = [f"{'cat' if i < 5 else 'dog'}/{i}.png,{i // 5},ward{i % 3},p{i % 5}" for i in range(10)]
    (class_folder / "t.csv").write_text("\n".join(("path,label,group,patient_id", *rows)))
    flags = prepare("csv", class_folder / "t.csv").record.flags
    assert flags["column patient_id not used, since there is group"] == 10


class TestFolders:
    def write(self, root: Path, *folders: str) -> Path:
        for number, folder in enumerate(folders):
            (root / folder).mkdir(parents=True)
            for image in range(3):
                (root / folder / f"{image}.png").write_bytes(png(picture(10 * number + image)))
        return root

    @pytest.mark.parametrize("others", [("eval",), ("val", "holdout"), ("test1",)])
    def test_splits_by_other_names_do_not_become_classes(self, prepare, tmp_path, others):
        folders = [f"{top}/{name}" for top in ("train", *others) for name in ("cat", "dog")]
        with pytest.raises(DataError, match="top folders must be classes, or splits, not both"):
            prepare("folder", self.write(tmp_path / "raw", *folders))

    def test_a_class_may_be_called_like_a_split(self, prepare, tmp_path):
        assert prepare("folder", self.write(tmp_path / "raw", "test", "other")).label_names == (
            "other",
            "test",
        )

    def test_splits_below_the_classes_are_no_patients(self, prepare, tmp_path):
        root = self.write(tmp_path / "raw", "cat/train", "cat/test", "dog/train", "dog/test")
        with pytest.raises(DataError, match="splits must be above the classes"):
            prepare("folder", root)

    def test_masks_are_no_images_of_the_class(self, prepare, tmp_path):
        """COVID-19 Radiography Database: ``COVID/images`` beside ``COVID/masks``."""
        root = self.write(tmp_path / "raw", "COVID/images", "COVID/masks", "Normal/images", "Normal/masks")
        data = prepare("folder", root)
        assert data.num_images == data.record.num_groups == 6
        assert data.record.excluded == {"in a folder of masks": 6}

    def test_a_folder_called_images_is_no_patient(self, prepare, tmp_path):
        """Tiny ImageNet: ``train/n01443537/images``."""
        data = prepare("folder", self.write(tmp_path / "raw", "cat/images", "dog/images"))
        assert data.record.num_groups == 6

    def test_a_patient_on_both_sides_is_refused(self, prepare, tmp_path):
        root = self.write(tmp_path / "raw", "train/cat/p1", "train/dog/p2", "test/cat/p1", "test/dog/p3")
        with pytest.raises(DataError, match="no group may be in train and test; found: 1"):
            prepare("folder", root)

    @pytest.mark.parametrize("tops", [("site1", "site2"), ("p1", "p2", "p3")])
    def test_patients_above_the_classes_are_asked_about(self, prepare, tmp_path, tops):
        root = self.write(tmp_path / "raw", *(f"{top}/{kind}" for top in tops for kind in ("cat", "dog")))
        with pytest.raises(DataError, match=r"plain which folders are the classes.*--layout"):
            prepare("folder", root)
        data = prepare("folder", root, layout="group/class")
        assert data.label_names == ("cat", "dog")
        assert data.record.num_groups == len(tops)
        data = prepare("folder", root, layout="class/group", name="b")
        assert data.label_names == tops
        assert data.record.num_groups == 2

    @pytest.mark.parametrize("on_top", [True, False])
    def test_headers_tell_which_folders_are_patients(self, prepare, tmp_path, on_top):
        for number in range(12):
            top, below = f"f{number % 2}", f"g{number // 2 % 2}"
            values = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
            data = make_dicom(values, patient=f"X{top if on_top else below}", bits=12)
            save_dicom(tmp_path / "raw" / top / below / f"{number}.dcm", data)
        record = prepare("folder", tmp_path / "raw", for_training=False).record
        assert record.label_names == (("g0", "g1") if on_top else ("f0", "f1"))
        layout = "group/class" if on_top else "class/group"
        assert record.flags[f"layout {layout}, by the patients in the headers"] == 12

    def test_headers_that_tell_nothing_decide_nothing(self, prepare, tmp_path):
        for number in range(12):
            values = np.random.default_rng(number).integers(0, 4000, (16, 16)).astype(np.uint16)
            path = tmp_path / "raw" / f"f{number % 2}" / f"g{number // 2 % 2}" / f"{number}.dcm"
            save_dicom(path, make_dicom(values, patient=f"X{number}", bits=12))
        with pytest.raises(DataError, match="plain which folders are the classes"):
            prepare("folder", tmp_path / "raw")

    def test_an_image_without_a_class_folder_is_left_out_and_counted(self, prepare, tmp_path):
        root = self.write(tmp_path / "raw", "p1/cat", "p1/dog", "p2/cat", "p2/dog", "p3")
        (root / "Smith").mkdir()
        record = prepare("folder", root, layout="group/class").record
        assert record.excluded == {"outside the class folders": 3}
        assert record.flags == {"folder without an image": 2}

    def test_layout_is_for_folders(self, prepare, tmp_path):
        path = save_arrays(tmp_path / "a", "npz", images=IMAGES, labels=LABELS)
        with pytest.raises(ConfigError, match="layout is for kind folder; found: kind npz"):
            prepare("npz", path, layout="group/class")

    @pytest.mark.parametrize("more", [("Smith/cat", "Jones/dog"), ("Smith/cat", "Smith/dog")])
    def test_patients_above_the_classes_are_refused_without_their_names(self, prepare, tmp_path, more):
        root = self.write(tmp_path / "raw", "Adams/cat", "Adams/dog", "Brown/cat", "Brown/dog", *more)
        with pytest.raises(
            DataError, match=r"plain which folders are the classes; found: \d folders on top share 2"
        ) as told:
            prepare("folder", root)
        assert not any(name in str(told.value) for name in ("Adams", "Brown", "Smith", "Jones"))

    @pytest.mark.parametrize(
        ("train", "test"),
        [
            ("seg_train/seg_train", "seg_test/seg_test"),  # Kaggle's Intel image classification
            ("training_set", "test_set"),
            ("trainA", "testA"),
            ("my train", "my-validation"),
        ],
    )
    def test_splits_by_another_name_are_no_classes(self, prepare, tmp_path, train, test):
        root = self.write(tmp_path / "raw", f"{train}/cat", f"{train}/dog", f"{test}/cat", f"{test}/dog")
        with pytest.raises(DataError, match="must be classes, or splits called train, test and val"):
            prepare("folder", root)

    @pytest.mark.parametrize(
        "names", [("train station", "castle"), ("test tube", "valley"), ("trains", "tests")]
    )
    def test_classes_called_a_little_like_splits(self, prepare, tmp_path, names):
        root = self.write(tmp_path / "raw", *names)
        assert set(prepare("folder", root).label_names) == set(names)

    @pytest.mark.parametrize(
        "mask", ["cat/0_mask.png", "cat/0-mask_1.PNG", "cat_masks/0.png", "cat/0 seg.png"]
    )
    def test_masks_beside_their_images_are_left_out(self, prepare, class_folder, mask):
        path = class_folder / mask
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((class_folder / "dog/5.png").read_bytes())
        record = prepare("folder", class_folder).record
        assert record.excluded == {"a mask beside its image": 1}
        assert record.label_names == ("cat", "dog")

    @pytest.mark.parametrize("ending", ["", ".1.2.840.113"])
    def test_dicom_files_without_an_ending(self, prepare, class_folder, ending):
        for index, path in enumerate(sorted(class_folder.rglob("*.png"))):
            save_dicom(path.with_suffix(ending), make_dicom(picture(index), bits=8, patient=f"P{index}"))
            path.unlink()
        (class_folder / "cat/LICENSE").write_text("no image " * 30)
        record = prepare("folder", class_folder).record
        assert record.num_images == record.num_groups == 10
        assert record.excluded == {"not an image by its ending": 1}

    def test_a_class_that_only_one_side_has_is_flagged(self, prepare, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
        labels = np.arange(12) % 2
        path = tmp_path / "x.npz"
        np.savez(
            path,
            train_images=images[:6],
            train_labels=labels[:6],
            test_images=images[6:],
            test_labels=labels[6:] + 1,
        )
        flags = prepare("npz", path).record.flags
        assert flags == {"class in train only: 0": 1, "class in test only: 2": 1}

    def test_a_patient_in_two_classes_is_no_class(self, prepare, tmp_path):
        root = self.write(tmp_path / "raw", "cat/p1", "cat/p2", "dog/p1", "dog/p3")
        assert (
            "classes share all their subfolders: are these the classes?"
            not in prepare("folder", root).record.flags
        )


class TestVolumes:
    @pytest.mark.parametrize(
        ("header", "row", "message"),
        [
            ("path,label,slice,split", "{v}.nii.gz,{v},{s},{split}", "no group may be in train and test"),
            ("path,label,slice,group", "{v}.nii.gz,{v},{s},g{s}", "slices of a volume must be in one group"),
            ("path,label,slice", "{v}.nii.gz,{v},{blank}", "must all name a slice, or none"),
            ("path,label,slice", "{v}.nii.gz,{v},{zeros}5", "every path must be in the manifest once"),
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
            prepare("nifti_csv", tmp_path)


def test_a_patient_of_the_headers_on_both_sides_is_flagged(prepare, tmp_path):
    """Known only once the files are read; the split then leaves these test images out."""
    values = np.random.default_rng(0).integers(1, 1000, (12, 8, 8)).astype(np.uint16)
    for number, patient in enumerate((0, 1, 2, 3, 4, 5, 0, 1, 6, 7, 8, 9)):
        folder = tmp_path / "raw" / ("train" if number < 6 else "test") / ("cat", "dog")[number % 2]
        save_dicom(folder / f"{number}.dcm", make_dicom(values[number], patient=f"P{patient}"))
    flags = prepare("folder", tmp_path / "raw").record.flags
    assert flags["test images never used, since their group is in training"] == 2
