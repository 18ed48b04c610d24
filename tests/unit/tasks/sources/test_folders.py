"""Class folders: which folders are classes, which are patients and splits, and what is no image."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import ConfigError, DataError
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.own import FORMS
from tests.unit.tasks.sources.conftest import picture, png


def write_pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(1000 + number)))
    return folder


class TestClasses:
    def test_subfolders_are_groups_across_classes(self, prepare, class_folder):
        for name in ("cat/p1/a.png", "cat/p1/b.png", "dog/p1/c.png"):
            path = class_folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(png(picture(sum(name.encode()))))
        assert prepare("folder", class_folder).record.num_groups == 11

    def test_train_and_test_folders_give_the_split(self, prepare, class_folder, tmp_path):
        root = tmp_path / "split"
        for name in ("train", "test", "val"):
            for kind in ("cat", "dog"):
                (root / name / kind).mkdir(parents=True)
                (root / name / kind / "x.png").write_bytes(
                    png(picture(len(name) * 10 + len(kind) * 7 + ord(kind[0])))
                )
        data = prepare("folder", root)
        assert sorted(data.splits.tolist()) == [1, 1, 2, 2]
        assert data.record.excluded == {"validation split": 2}

    def test_other_files_are_counted_not_read(self, prepare, class_folder):
        (class_folder / "cat" / "notes.txt").write_text("x")
        (class_folder / "README.png").write_bytes(png(picture(77)))
        (class_folder / "cat" / ".hidden.png").write_bytes(b"")
        record = prepare("folder", class_folder).record
        assert record.excluded == {"not an image by its ending": 1, "outside the class folders": 1}

    def test_one_class_is_refused(self, prepare, tmp_path):
        (tmp_path / "raw" / "cat").mkdir(parents=True)
        with pytest.raises(DataError, match="two at least; found: 0 with images"):
            prepare("folder", tmp_path / "raw")

    def test_changed_files_are_noticed(self, prepare, class_folder):
        assert prepare("folder", class_folder).num_images == prepare("folder", class_folder).num_images
        (class_folder / "cat" / "new.png").write_bytes(png(picture(99)))
        with pytest.raises(DataError, match="files changed since"):
            prepare("folder", class_folder)

    def test_a_mended_file_is_read_again(self, prepare, class_folder):
        good = (class_folder / "cat" / "0.png").read_bytes()
        (class_folder / "cat" / "0.png").write_bytes(good[:40])
        with pytest.raises(DataError, match="not an image"):
            prepare("folder", class_folder)
        (class_folder / "cat" / "0.png").write_bytes(good)
        assert prepare("folder", class_folder).num_images == 10

    def test_missing_folder(self, prepare, tmp_path):
        with pytest.raises(
            DataError, match=r"must exist; found: no .*/none; .* is there, and no none in it; expected"
        ):
            prepare("folder", tmp_path / "none")

    SPLITS = ("train/cat/a.png", "train/dog/b.png", "test/cat/c.png", "test/dog/d.png")

    @pytest.mark.parametrize("stray", ["README.md", "labels.csv", "preview.png"])
    def test_a_stray_file_does_not_make_the_splits_classes(self, prepare, tmp_path, stray):
        raw = write_pictures(
            tmp_path / "raw", *self.SPLITS, "preview.png" if stray == "preview.png" else "train/cat/x.png"
        )
        (raw / stray).touch() if stray != "preview.png" else None
        data = prepare("folder", raw)
        assert data.label_names == ("cat", "dog")
        assert set(data.splits.tolist()) == {1, 2}

    def test_the_spellings_of_splits(self, prepare, tmp_path):
        names = [name.replace("train", "Training").replace("test", "Testing") for name in self.SPLITS]
        data = prepare("folder", write_pictures(tmp_path / "raw", *names))
        assert data.label_names == ("cat", "dog")

    def test_a_folder_around_the_splits_is_no_class(self, prepare, tmp_path):
        raw = write_pictures(tmp_path / "raw", *(f"chest_xray/{name}" for name in self.SPLITS), "notes.png")
        with pytest.raises(DataError, match="1 with images"):
            prepare("folder", raw)
        (raw / "notes.png").unlink()
        data = prepare("folder", raw)
        assert data.label_names == ("cat", "dog")
        assert data.record.flags == {"the one top folder taken as the source": 1}

    @pytest.mark.parametrize("name", [b"\xe9", b" ", "a\u202eb".encode(), b"a\x1b[2J", b"x" * 240])
    def test_names_that_cannot_be_shown_are_refused(self, prepare, class_folder, name):
        import os

        os.rename(class_folder / "cat", os.path.join(os.fsencode(class_folder), name))
        with pytest.raises(
            DataError, match=r"must be printable.*; found: 1, first '|every row needs a label"
        ):
            prepare("folder", class_folder)

    def test_splits_beside_other_folders_are_refused(self, prepare, tmp_path):
        raw = write_pictures(tmp_path / "raw", *self.SPLITS, "extra/e.png")
        with pytest.raises(DataError, match="classes, or splits, not both; found: test, train beside extra"):
            prepare("folder", raw)

    def test_empty_class_folders_are_named(self, prepare, class_folder):
        (class_folder / "horse").mkdir()
        flags = prepare("folder", class_folder).record.flags
        assert flags == {"class folder without an image: horse": 1}

    def test_a_class_that_vanishes_is_named(self, prepare, class_folder):
        for number in range(3):
            (class_folder / "horse").mkdir(exist_ok=True)
            (class_folder / "horse" / f"{number}.png").write_bytes(b"junk")
        record = prepare("folder", class_folder, max_skipped_share=0.5).record
        assert record.flags == {"class without a usable image: horse": 1}
        assert record.num_images_per_label["horse"] == 0

    def test_folders_around_the_classes_in_an_archive(self, prepare, class_folder, tmp_path):
        with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
            for path in class_folder.rglob("*.png"):
                archive.write(path, f"own/own/{path.relative_to(class_folder)}")
            archive.writestr("__MACOSX/own/own/cat/._0.png", b"x")
        data = prepare("folder", tmp_path / "own.zip")
        assert data.label_names == ("cat", "dog")
        assert data.labels.tolist() == prepare("folder", class_folder, name="other").labels.tolist()

    def test_an_archive_beside_images_is_no_part_of_their_class(self, prepare, class_folder, tmp_path):
        expected = prepare("folder", class_folder)
        with (
            zipfile.ZipFile(tmp_path / "inner.zip", "w") as inner,
            zipfile.ZipFile(tmp_path / "own.zip", "w") as own,
        ):
            for path in class_folder.rglob("*.png"):
                inner.write(path, f"t/{path.relative_to(class_folder)}")
                own.write(path, path.relative_to(class_folder))
            inner.close()
            own.write(tmp_path / "inner.zip", "cat/inner.zip")
        data = prepare("folder", tmp_path / "own.zip", name="other")
        assert data.labels.tolist() == expected.labels.tolist()
        assert data.record.excluded == {"in an archive beside images": 10}

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("cats.zip", "there are archives: give one archive"),
            ("train/metadata.jsonl", r"with a table of labels beside it, give the table \(kind table\)"),
            ("train/data-00000-of-00001.arrow", "write what datasets' save_to_disk made with to_parquet"),
            ("train/metadata.csv", r"with a table of labels beside it, give the table \(kind table\)"),
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
        with pytest.raises(DataError, match=r"give the table \(kind table\), unpacked with its images"):
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


class TestLayouts:
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
        path = FORMS["npz"][1](tmp_path, {"label": [0, 1] * 6})
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


class TestHostileFolders:
    def test_links_out_are_refused(self, prepare, class_folder, tmp_path):
        (tmp_path / "outside.png").write_bytes(png(picture(60)))
        os.symlink(tmp_path / "outside.png", class_folder / "cat" / "link.png")
        with pytest.raises(DataError, match="out of the raw folder"):
            prepare("folder", class_folder)

    def test_links_inside_are_read(self, prepare, class_folder):
        os.symlink(class_folder / "cat" / "0.png", class_folder / "cat" / "link.png")
        record = prepare("folder", class_folder).record
        assert (record.num_images, record.num_duplicates) == (11, 1)

    @pytest.mark.parametrize("target", ["nowhere", "loop.png", "."])
    def test_other_links_are_refused(self, prepare, class_folder, target):
        os.symlink(target, class_folder / "cat" / "loop.png")
        with pytest.raises(DataError, match="link to"):
            prepare("folder", class_folder)

    def test_a_fifo_is_refused_and_never_opened(self, prepare, class_folder):
        os.mkfifo(class_folder / "cat" / "x.png")
        with pytest.raises(DataError, match="a FIFO, socket or device"):
            prepare("folder", class_folder)

    @pytest.mark.parametrize(
        "name",
        [
            b"a\nb.png",
            b"-rf.png",
            b"x" * 250 + b".png",
            b"caf\xe9.png",
            "\u202egnp.exe.png".encode(),
            b"A.png",
            b"=1+1.png",
        ],
    )
    def test_odd_names_are_read(self, prepare, class_folder, name):
        path = os.path.join(os.fsencode(class_folder), b"cat", name)
        with open(path, "wb") as file:
            file.write(png(picture(61)))
        assert prepare("folder", class_folder).num_images == 11
