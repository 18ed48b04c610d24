"""Downloads of the study: what could give an image another label than its own is refused or counted."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources.tcia import slice_label
from tests.raw_trees import write_raw_tree
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.medical import _legs, _save_radiograph
from tests.raw_trees.pictures import save_image, save_xlsx


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
        with pytest.raises(DataError, match="a box of the patient starts after its end: 30"):
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
        with pytest.raises(DataError, match="another patient in the header than the table says: 1"):
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
        with pytest.raises(DataError, match="volumes that lie elsewhere in space: 1"):
            official("brats", tree)

    def test_prostate_takes_ultrasound_only(self, tmp_path, official):
        tree = write_raw_tree("prostate", tmp_path)
        path = sorted(tree.rglob("1-1.dcm"))[0]
        import pydicom

        data = pydicom.dcmread(path)
        data.Modality = "MR"
        data.save_as(path)
        with pytest.raises(DataError, match="not ultrasound: 1"):
            official("prostate", tree)


def test_the_medical_trees_have_no_flags_of_their_own(tmp_path, official):
    tree = write_raw_tree("chexpert", tmp_path)
    save_image(tree / "CheXpert-v1.0-small" / "valid" / "patient00001" / "study1" / "view1_frontal.jpg",
               np.zeros((9, 9), np.uint8), "JPEG")  # fmt: skip
    assert official("chexpert", tree).record.num_images == 31
