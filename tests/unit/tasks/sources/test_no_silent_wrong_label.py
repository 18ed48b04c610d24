"""What could give an image another label than its own: refused, or resolved and counted, never silent."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import DataError
from search_spaces.sweeps import OwnSourceSpec
from tasks.sources.tcia import slice_label
from tests.raw_trees import write_raw_tree
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.medical import _legs, _save_radiograph
from tests.raw_trees.pictures import save_image, save_xlsx
from tests.unit.tasks.sources.conftest import picture, png

LABELS = np.arange(12) % 2


def write_pictures(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(1000 + number)))
    return folder


class TestFolders:
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
        with pytest.raises(DataError, match="class names must be printable"):
            prepare("folder", class_folder)

    def test_splits_beside_other_folders_are_refused(self, prepare, tmp_path):
        raw = write_pictures(tmp_path / "raw", *self.SPLITS, "extra/e.png")
        with pytest.raises(DataError, match="classes, or splits, not both; found: test, train beside extra"):
            prepare("folder", raw)

    @pytest.mark.parametrize("other", ["Cat", "CAT", "cat ", "ｃat"])
    def test_one_class_in_two_spellings_is_refused(self, prepare, tmp_path, other):
        raw = write_pictures(tmp_path / "raw", "cat/a.png", "dog/b.png", f"{other}/c.png")
        with pytest.raises(DataError, match="every class must be spelt one way"):
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


def write_table(folder: Path, labels: list[str], header: str = "path,label") -> Path:
    names = [f"{index}.png" for index in range(len(labels))]
    write_pictures(folder, *names)
    lines = [f"{name},{label}" for name, label in zip(names, labels, strict=True)]
    (folder / "manifest.csv").write_text("\n".join((header, *lines)) + "\n")
    return folder / "manifest.csv"


class TestTables:
    @pytest.mark.parametrize("missing", ["NaN", "nan", "NA", "None", "n/a", "<NA>", "null", " ", ""])
    def test_missing_labels_are_no_class(self, prepare, tmp_path, missing):
        table = write_table(tmp_path / "raw", ["a", "b", missing, "a", "b", missing])
        with pytest.raises(DataError, match=r"needs a label; found: blank: 2, first"):
            prepare("csv", table)

    @pytest.mark.parametrize(
        "labels",
        [
            ["Cat", "CAT", "dog"],
            ["0", "0.0", "1"],
            ["1", "01", "2"],
            ["cat", "cat ", "dog"],
            ["caf\u00e9", "cafe\u0301", "dog"],
            ["1e0", "1", "2"],
            ["old cat", "old  cat", "dog"],
            ["-0", "0", "1"],
            ["no_tumour", "no tumour", "tumour"],
            ["non-tumour", "non tumour", "tumour"],
            ["Y", "yes", "no"],
            ["+", "positive", "negative"],
            ["c\u03b1t", "cat", "dog"],
            ["\u0130stanbul", "istanbul", "dog"],
        ],
    )
    def test_one_class_in_two_spellings_is_refused(self, prepare, tmp_path, labels):
        with pytest.raises(DataError, match="every class must be spelt one way; found: '"):
            prepare("csv", write_table(tmp_path / "raw", labels * 2))

    def test_unknown_spelt_minus_one_is_no_class(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["-1", "0", "1"] * 2)
        with pytest.raises(DataError, match="-1, which often means unknown"):
            prepare("csv", table)
        assert prepare("csv", table, label_map={"-1": "unsure"}).label_names == ("0", "1", "unsure")

    def test_a_map_says_what_the_spellings_mean(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["Cat", "CAT", "dog", "NA"] * 2)
        mapping = {"CAT": "cat", "Cat": "cat", "NA": "no animal"}
        data = prepare("csv", table, label_map=mapping)
        assert data.label_names == ("cat", "dog", "no animal")
        assert data.labels.tolist() == [0, 0, 1, 2] * 2

    def test_two_spellings_of_a_path_are_one_file(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["a", "b"])
        table.write_text(table.read_text() + "./0.png,b\n")
        with pytest.raises(DataError, match="1 repeated; with different labels: 1, first"):
            prepare("csv", table)

    def test_validation_rows_are_left_out_and_counted(self, prepare, tmp_path):
        table = write_table(tmp_path / "raw", ["a,train", "b,train", "a,val", "b,test"], "path,label,split")
        record = prepare("csv", table).record
        assert record.excluded == {"validation split": 1}
        assert record.num_images == 3


class TestFloats:
    """Values as they come out of a resize with overshoot, a standardisation, or a network."""

    @pytest.mark.parametrize("top", [1.0000001, 1.02, 2.0, 100.0])
    @pytest.mark.parametrize("kind", ["npz", "hdf5"])
    def test_an_ambiguous_range_is_refused(self, prepare, tmp_path, top, kind):
        images = np.random.default_rng(0).random((12, 8, 8))
        images[0, 0, 0] = top
        with pytest.raises(DataError, match=r"pixel_range"):
            prepare(kind, save_arrays(tmp_path / "x", kind, images=images, labels=LABELS))

    def test_pixel_range_says_what_is_black_and_white(self, prepare, tmp_path):
        images = np.random.default_rng(0).random((12, 8, 8)) * 2 - 1
        path = save_arrays(tmp_path / "x", "npz", images=images, labels=LABELS)
        data = prepare("npz", path, pixel_range=(-1.0, 1.0))
        np.testing.assert_allclose(data.read(0, 12)[:, 0], (images + 1) * 127.5, atol=1e-3)
        assert data.record.flags == {}

    def test_values_outside_pixel_range_are_flagged(self, prepare, tmp_path):
        images = np.random.default_rng(0).random((12, 8, 8))
        images[3, 0, 0] = 1.5
        path = save_arrays(tmp_path / "x", "npz", images=images, labels=LABELS)
        data = prepare("npz", path, pixel_range=(0.0, 1.0))
        assert data.record.flags == {"values outside pixel_range cut": 1}

    def test_signed_values_are_not_cut_without_a_flag(self, prepare, tmp_path):
        images = np.random.default_rng(0).integers(-500, 500, (12, 8, 8)).astype(np.int16)
        path = save_arrays(tmp_path / "x", "npz", images=images, labels=LABELS)
        assert prepare("npz", path).record.flags == {"negative values cut at 0": 12}
        for index in range(4):
            target = tmp_path / "raw" / "ab"[index % 2] / f"{index}.tiff"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index].astype(np.float32)).save(target)
        assert prepare("folder", tmp_path / "raw").record.flags["negative values cut at 0"] == 4


def save_arrays(stem: Path, kind: str, **arrays) -> Path:
    path = stem.with_suffix(".npz" if kind == "npz" else ".h5")
    if kind == "npz":
        np.savez(path, **arrays)
        return path
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path


class TestOai:
    """Only the bilateral fixed-flexion knees carry the grades."""

    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        return write_raw_tree("oai", tmp_path)

    def add_others(self, tree: Path, *, described: bool = True) -> None:
        rng = np.random.default_rng(1)
        for number, view in enumerate(("AP Pelvis", "PA Right Hand", "Full Limb") * 3):
            patient = str(9000000 + 7 * number)
            place = f"{patient}/20050411/0077{number:04d}"
            path = tree / "results" / "P001" / "0.E.1" / place / "001"
            _save_radiograph(path, _legs(rng, [1, 3]), patient, "MONOCHROME2", view if described else "")

    @pytest.mark.parametrize("described", [True, False])
    def test_other_body_parts_are_never_taken(self, tree, official, described):
        self.add_others(tree, described=described)
        record = official("oai", tree).record
        assert record.num_images == 23
        reason = "another view or body part" if described else "view not described anywhere"
        assert record.excluded[reason] == 9

    def test_without_knees_there_is_no_image(self, tree, official):
        for path in tree.rglob("001"):
            path.unlink()
        self.add_others(tree)
        with pytest.raises(DataError, match=r"found: none \(.*another view or body part: 9"):
            official("oai", tree)

    def test_a_header_that_contradicts_the_table_wins(self, tree, official):
        path = next((tree / "results").rglob("9000007/*/*/001"))
        _save_radiograph(path, _legs(np.random.default_rng(2), [1, 3]), "9000007", "MONOCHROME2", "PA Hand")
        assert official("oai", tree).record.excluded["another view or body part"] == 1

    def test_another_patient_in_the_header_is_left_out(self, tree, official):
        path = next((tree / "results").rglob("9000007/*/*/001"))
        _save_radiograph(path, _legs(np.random.default_rng(2), [1, 3]), "9999999", "MONOCHROME2")
        excluded = official("oai", tree).record.excluded
        assert excluded["another patient in the header than in the folder"] == 1

    @pytest.mark.parametrize(
        "line",
        ["9000014,R,nan,220", "9000014,R,300,inf", "9000014,X,300,220", "9000014,,300,220",
         "9000014,R,5000,220", "9000014,R,-1,220", "9000014,R,300,900", "9000007,R,1,1"],
    )  # fmt: skip
    def test_centres_that_cannot_be_are_refused_by_row(self, tree, official, line):
        (tree / "knee_centers.csv").write_text(f"id,side,row,column\n9000007,R,300,220\n{line}\n")
        with pytest.raises(DataError, match="1 other rows: 3; rows are counted with the header"):
            official("oai", tree)


class TestDuke:
    MAPPING = "Breast-Cancer-MRI-filepath_filename-mapping.xlsx"

    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        return write_raw_tree("dbc", tmp_path)

    def boxes(self, tree: Path, *extra: list[object]) -> None:
        rows: list[list[object]] = [["Patient ID", "Start Slice", "End Slice"]]
        rows += [[f"Breast_MRI_{number:03d}", 10 + number, 16 + number] for number in range(1, 6)]
        save_xlsx(tree / "Annotation_Boxes.xlsx", [*rows, *extra])

    def test_files_numbered_the_other_way_round_keep_their_labels(self, tree, official, tmp_path):
        straight = official("dbc", tree)
        folder = next(path for path in tree.rglob("*.9") if "Breast_MRI_001" in str(path))
        files = sorted(folder.iterdir())
        for path in files:
            path.rename(path.with_suffix(".tmp"))
        for old, new in zip(files, files[::-1], strict=True):
            old.with_suffix(".tmp").rename(new)
        turned = official("dbc", tree, out=tmp_path / "turned")
        np.testing.assert_array_equal(turned.labels, straight.labels)
        np.testing.assert_array_equal(turned.read(0, 50), straight.read(0, 50))

    def test_a_box_that_ends_before_it_starts_is_refused_and_counted(self, tree, official):
        self.boxes(tree, ["Breast_MRI_001", 20, 10])
        with pytest.raises(DataError, match="a box of the patient starts after its end': 30"):
            official("dbc", tree)

    def test_two_boxes_count_both(self, tree, official):
        assert slice_label(12, (10, 15), (30, 35)) == 1
        assert slice_label(32, (10, 15), (30, 35)) == 1
        assert slice_label(27, (10, 15), (30, 35)) is None
        assert slice_label(22, (10, 15), (30, 35)) == 0
        self.boxes(tree, ["Breast_MRI_001", 25, 28])
        flags = official("dbc", tree).record.flags
        assert flags["patient with several boxes: a slice in any is positive"] == 1

    @pytest.mark.parametrize("cell", ["nan", "x", None, 1.5])
    def test_cells_that_are_no_slices_are_refused(self, tree, official, cell):
        self.boxes(tree, ["Breast_MRI_001", cell, 28])
        with pytest.raises(DataError, match=r"two slices|whole numbers"):
            official("dbc", tree)

    def test_another_patient_in_the_header_is_refused_and_counted(self, tree, official):
        path = next(path for path in tree.rglob("1-01.dcm") if "Breast_MRI_001" in str(path))
        values = np.random.default_rng(0).integers(0, 4000, (48, 48)).astype(np.uint16)
        data = make_dicom(values, patient="Breast_MRI_777", bits=12, SOPInstanceUID="1.3.6.1.4.1.1")
        save_dicom(path, data)
        with pytest.raises(DataError, match="another patient in the header than the table says': 1"):
            official("dbc", tree)

    def test_without_uids_the_record_says_so(self, tree, official):
        from openpyxl import load_workbook

        book = load_workbook(tree / self.MAPPING)
        book.active.delete_cols(3)
        book.save(tree / self.MAPPING)
        flags = official("dbc", tree).record.flags
        assert any(name.startswith("slices found by file names only") for name in flags)


class TestOtherDownloads:
    def test_rsna_without_patients_makes_no_groups(self, tmp_path, official):
        tree = write_raw_tree("rsna", tmp_path)
        for number, path in enumerate(sorted(tree.rglob("*.dcm"))):
            values = np.random.default_rng(number).integers(0, 3000, (20, 20)).astype(np.uint16)
            patient = ("", "0", "ANON")[number % 3]
            data = make_dicom(
                values, modality="CT", patient=patient, bits=12, RescaleSlope=1, RescaleIntercept=-1024
            )
            save_dicom(path, data)
        record = official("rsna", tree).record
        assert record.num_groups == 48
        assert record.flags["no patient id in the header: the split cannot be by patient"] == 48

    def test_rsna_any_must_be_the_largest_subtype(self, tmp_path, official):
        tree = write_raw_tree("rsna", tmp_path)
        table = tree / "stage_2_train.csv"
        lines = table.read_text().splitlines()
        place = next(i for i, line in enumerate(lines[30:], 30) if line.endswith("_any,1"))
        lines[place] = lines[place][:-1] + "0"
        table.write_text("\n".join(lines))
        with pytest.raises(
            DataError, match="any must be the largest of a slice's subtypes; found: unlike: 1"
        ):
            official("rsna", tree)

    def test_muras_two_tables_are_compared(self, tmp_path, official):
        tree = write_raw_tree("mura", tmp_path)
        assert official("mura", tree).record.flags == {}
        table = tree / "MURA-v1.1" / "train_labeled_studies.csv"
        lines = table.read_text().splitlines()
        lines[0] = lines[0][:-1] + ("0" if lines[0].endswith("1") else "1")
        table.write_text("\n".join(lines) + "\n")
        with pytest.raises(DataError, match=r"must agree; found: 0 odd lines; unlike or absent: 1, first"):
            official("mura", tree, out=tmp_path / "again")

    def test_an_imagenet_file_in_another_class_is_refused(self, tmp_path, official):
        tree = write_raw_tree("imagenet", tmp_path)
        train = tree / "ILSVRC" / "Data" / "CLS-LOC" / "train"
        shutil.move(train / "n01440764" / "n01440764_0.JPEG", train / "n01443537" / "n01440764_0.JPEG")
        with pytest.raises(DataError, match="that their names say; found: 1 elsewhere"):
            official("imagenet", tree)

    def test_a_segmentation_that_lies_elsewhere_is_skipped(self, tmp_path, official):
        import nibabel

        tree = write_raw_tree("brats", tmp_path)
        path = next(tree.rglob("*_seg.nii.gz"))
        image = nibabel.load(path)
        affine = image.affine.copy()
        affine[2, 3] += 12
        nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)
        with pytest.raises(DataError, match="volumes that lie elsewhere in space': 1"):
            official("brats", tree)

    def test_prostate_takes_ultrasound_only(self, tmp_path, official):
        tree = write_raw_tree("prostate", tmp_path)
        path = sorted(tree.rglob("1-1.dcm"))[0]
        import pydicom

        data = pydicom.dcmread(path)
        data.Modality = "MR"
        data.save_as(path)
        with pytest.raises(DataError, match="not ultrasound': 1"):
            official("prostate", tree)


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
        record = prepare("csv", write_table(tmp_path / "raw", labels, "path,label,site")).record
        assert record.flags == {"site tells the label (100% by it alone, 1.00 of 1.00 bits)": 24}


def test_own_source_spec_checks_the_range():
    with pytest.raises(ValueError, match="two rising numbers"):
        OwnSourceSpec(kind="npz", path="x", domain="natural", pixel_range=(1.0, 0.0))


def test_the_medical_trees_have_no_flags_of_their_own(tmp_path, official):
    tree = write_raw_tree("chexpert", tmp_path)
    save_image(tree / "CheXpert-v1.0-small" / "valid" / "patient00001" / "study1" / "view1_frontal.jpg",
               np.zeros((9, 9), np.uint8), "JPEG")  # fmt: skip
    assert official("chexpert", tree).record.num_images == 31
