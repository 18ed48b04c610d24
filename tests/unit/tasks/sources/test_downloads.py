"""The study's downloads: each is read, and data that could give a wrong label are refused or counted."""

from __future__ import annotations

import gzip
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from search_spaces.datasets import dataset_spec
from search_spaces.errors import DataError
from search_spaces.specs import RELEASED_FAULTS
from tasks.prepared.store import PreparedDataset
from tasks.sources.oai import find_centers
from tasks.sources.tcia import Box, slice_label
from tests.raw_trees import write_raw_tree
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.raw_trees.medical import _legs, _save_radiograph
from tests.raw_trees.natural import write_mnist
from tests.raw_trees.pictures import edit_xlsx, save_image, save_xlsx
from tests.unit.tasks.sources.test_layouts_of_today import year_2020

EXPECTED = {
    # name: (images, groups, excluded, conversions that must be there)
    "mnist": (400, 400, {}, {"scaled by own maximum"}),
    "fashion_mnist": (400, 400, {}, set()),
    "cifar10": (400, 400, {}, set()),
    "svhn": (300, 300, {}, {"scaled by own maximum"}),
    "imagenet": (123, 123, {}, {"mode CMYK converted"}),
    "brats": (None, 5, {"case without segmentation": 1}, {"orientation LAS to RAS"}),
    "dbc": (
        None,
        5,
        {"another series": 150, "nearer than 5 slices to the box": 50},
        {"MONOCHROME1 inverted"},
    ),
    "oai": (
        23,
        12,
        {"another reading project": 24, "knee without a grade": 1},
        {"knee: cropped by content"},
    ),
    "chexpert": (31, 23, {"explicitly negative": 14}, set()),
    "chexpert_edema": (45, 30, {}, set()),
    "mura": (48, 24, {"hidden file": 1}, {"scaled by own maximum"}),
    "rsna": (48, 16, {"repeated row": 3}, {"scaled by own maximum"}),
    "rsna_subarachnoid": (48, 16, {"repeated row": 3}, set()),
    "prostate": (
        48,
        8,
        {"no score": 1, "another target of the series has a higher score": 1},
        set(),
    ),
    "prostate_severe": (24, 4, {"no score": 1, "score below 2": 4}, set()),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_raw_tree_is_prepared_with_the_counts_it_was_drawn_with(untouched, name):
    images, groups, excluded, conversions = EXPECTED[name]
    data = untouched(name)
    record = data.record
    assert images in (None, record.num_images)
    assert record.num_groups == groups
    assert excluded.items() <= record.excluded.items()
    assert conversions <= set(record.conversions)
    assert min(record.num_images_per_label.values()) > 0
    assert record.label_names == dataset_spec(name).label_names
    data.verify()


def brightness(data: PreparedDataset, label: int) -> float:
    """Return the ratio of the center's brightest pixel to the mean pixel, in a class's median image."""
    images = data.read(0, data.num_images)[data.classes == label, 0].astype(float)
    return float(np.median(images[:, 4:12, 4:12].max((1, 2)) / (images.mean((1, 2)) + 1)))


@pytest.mark.parametrize("name", ["brats", "dbc", "rsna", "chexpert", "mura", "prostate"])
def test_labels_are_those_drawn(untouched, name):
    """Positive pictures were drawn with a bright spot."""
    data = untouched(name)
    assert brightness(data, 1) > brightness(data, 0)


def test_brats_keeps_the_slices_of_the_stated_rule(untouched):
    data = untouched("brats")
    for group in np.unique(data.groups):
        # Scanning upward: negatives below, tumour, negatives above. Mixed windows are removed.
        assert (np.diff(data.classes[data.groups == group]) != 0).sum() <= 2


def test_oai_takes_given_centres_and_ready_crops(tree, official):
    raw = tree("oai")
    (raw / "knee_centers.csv").write_text(
        "id,side,row,column\n9000007,R,300,220\n9000007,L,300,660\n"
    )
    crop = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    save_image(raw / "crops" / "9000000_R.png", crop)
    conversions = official("oai", raw).record.conversions
    num_knees = {name: count for name, count in conversions.items() if name.startswith("knee")}
    assert num_knees == {
        "knee: cropped by content": 20,
        "knee: given centre": 2,
        "knee: ready crop": 1,
    }


def test_oai_finds_drawn_joints_by_their_content():
    values = _legs(np.random.default_rng(3), [0, 3])
    pixels = (values / values.max() * 255).astype(np.uint8)
    for place, (row, column) in enumerate(find_centers(pixels)):
        assert abs(row - 350) < 90
        assert abs(column - (225 + 450 * place)) < 40


@pytest.mark.parametrize("name", ["mnist", "rsna", "dbc", "prostate"])
def test_as_released_data_are_float32_with_other_content(tree, official, untouched, name):
    released = {"data_mode": "as_released", "faults": RELEASED_FAULTS}
    data = official(name, tree(name), strict=False, **released)
    assert data.record.dtype == "float32"
    assert data.fingerprint != untouched(name).fingerprint
    if name == "rsna":
        assert data.record.conversions == {"negative values wrapped (F16)": 48}


NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


def write_idx(raw: Path, *bodies: bytes) -> None:
    for name, body in zip(NAMES, bodies, strict=True):
        (raw / f"{name}.gz").write_bytes(gzip.compress(body))


IDX = {
    "cut": (lambda images, labels: (images[:-5], labels), "has fewer bytes than its header"),
    "longer": (lambda images, labels: (images + b"0", labels), "has more bytes than its header"),
    r"train-images-idx3-ubyte is not an IDX file of bytes with 3 dimensions\.": (
        lambda images, labels: (b"\0\0\x09" + images[3:], labels),
        r"train-images-idx3-ubyte is not an IDX file of bytes with 3 dimensions\.",
    ),
    "billions": (
        lambda images, labels: (images[:4] + b"\xff" * 4 + images[8:], labels),
        "has fewer bytes than its header",
    ),
    "five labels": (
        lambda images, labels: (images, labels[:4] + b"\0\0\0\x05" + labels[8:13]),
        "there are 400 images, but 5 labels",
    ),
    "label 11": (
        lambda images, labels: (images, labels[:-1] + b"\x0b"),
        r"labels range from 0 to 11, but must be 0 to 9\.",
    ),
}


@pytest.mark.parametrize("name", IDX)
def test_damaged_idx_files_are_refused(tree, official, name):
    change, message = IDX[name]
    raw = tree("mnist")
    write_idx(raw, *change(*(gzip.decompress((raw / f"{name}.gz").read_bytes()) for name in NAMES)))
    with pytest.raises(DataError, match=message):
        official("mnist", raw)


def test_a_replaced_file_is_not_served_from_memory(official, tmp_path):
    fingerprints = []
    for seed in (1, 2):
        write_mnist(tmp_path, seed=seed)
        fingerprints.append(official("mnist", tmp_path, out=tmp_path / f"out{seed}").fingerprint)
    assert fingerprints[0] != fingerprints[1]


def test_a_doctored_cifar_batch_runs_no_code(official, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_bytes(
            pickle.dumps({b"data": Evil(), b"labels": [0]})
        )
    with pytest.raises(DataError, match="UnpicklingError"):
        official("cifar10", tmp_path / "cifar")
    assert not (tmp_path / "owned").exists()


# Changes of a download with their outcome: words of a refusal, or counts by reason.

Change = Callable[[Path], object]


def first(raw: Path, pattern: str, part: str = "") -> Path:
    return next(path for path in sorted(raw.rglob(pattern)) if part in str(path))


def lines_of(pattern: str, change: Callable[[list[str]], object]) -> Change:
    """Change the lines of a text table in place."""

    def changed(raw: Path) -> None:
        table = first(raw, pattern)
        lines = table.read_text().splitlines()
        change(lines)
        table.write_text("\n".join(lines) + "\n")

    return changed


def swap_label(lines: list[str], place: int) -> None:
    """Replace the label at the end of a line: 0 by 1, and 1 by 0."""
    lines[place] = lines[place][:-1] + str(1 - int(lines[place][-1]))


def other_views(described: bool) -> Change:
    def change(raw: Path) -> None:
        rng = np.random.default_rng(1)
        for number, view in enumerate(("AP Pelvis", "PA Right Hand", "Full Limb") * 3):
            patient = str(9000000 + 7 * number)
            path = (
                raw / "results" / "P001" / "0.E.1" / f"{patient}/20050411/0077{number:04d}" / "001"
            )
            _save_radiograph(
                path, _legs(rng, [1, 3]), patient, "MONOCHROME2", view if described else ""
            )

    return change


def only_other_views(raw: Path) -> None:
    for path in raw.rglob("001"):
        path.unlink()
    other_views(True)(raw)


def knee(patient: str, *view: str) -> Change:
    """Write another header into a radiograph of patient 9000007."""
    return lambda raw: _save_radiograph(
        first(raw / "results", "001", "/9000007/"),
        _legs(np.random.default_rng(2), [1, 3]),
        patient,
        "MONOCHROME2",
        *view,
    )


def centre(line: str) -> Change:
    text = f"id,side,row,column\n9000007,R,300,220\n{line}\n"
    return lambda raw: (raw / "knee_centers.csv").write_text(text)


def boxes(*extra: list[object]) -> Change:
    rows: list[list[object]] = [["Patient ID", "Start Slice", "End Slice"]]
    rows += [[f"Breast_MRI_{number:03d}", 10 + number, 16 + number] for number in range(1, 6)]
    return lambda raw: save_xlsx(raw / "Annotation_Boxes.xlsx", [*rows, *extra])


def of_another_patient(raw: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4000, (48, 48)).astype(np.uint16)
    data = make_dicom(values, patient="Breast_MRI_777", bits=12, SOPInstanceUID="1.3.6.1.4.1.1")
    save_dicom(first(raw, "1-01.dcm", "Breast_MRI_001"), data)


def without_patients(raw: Path) -> None:
    for number, path in enumerate(sorted(raw.rglob("*.dcm"))):
        data = pydicom.dcmread(path)
        data.PatientID = ("", "0", "ANON")[number % 3]
        data.save_as(path)


def move_segmentation(raw: Path) -> None:
    """Move a segmentation to another position in space than its volume."""
    path = first(raw, "*_seg.nii.gz")
    image = nibabel.load(path)
    affine = image.affine.copy()
    affine[2, 3] += 12
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), affine), path)


def of_magnetic_resonance(raw: Path) -> None:
    path = first(raw, "1-1.dcm")
    data = pydicom.dcmread(path)
    data.Modality = "MR"
    data.save_as(path)


def second_table(raw: Path) -> None:
    path = shutil.copy(first(raw, "Target*.xlsx"), raw / "Target Data_2019-12-05 (2).xlsx")
    edit_xlsx(Path(path), lambda sheet: sheet.delete_rows(2))


def second_year(raw: Path) -> None:
    copy_of_raw = Path(shutil.copytree(raw, raw.parent / "other"))
    year_2020(copy_of_raw)
    shutil.move(copy_of_raw / "BraTS2020_TrainingData", raw)


def only_an_archive(raw: Path) -> None:
    shutil.rmtree(raw)
    raw.mkdir()
    with zipfile.ZipFile(raw / "x.zip", "w") as archive:
        archive.writestr("a.txt", "x")


def labels_of_fashion(raw: Path) -> None:
    """The first labels of the official files equal those on both datasets' pages and in torchvision."""
    labels = np.tile(np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], np.uint8), 6_000)
    shape = np.array([60_000, 1, 1], ">u4").tobytes()
    images = bytes((0, 0, 8, 3)) + shape + bytes(60_000)
    write_idx(raw, images, bytes((0, 0, 8, 1)) + shape[:4] + labels.tobytes())


def in_another_class(raw: Path) -> None:
    file = first(raw, "n01440764_0.JPEG")
    shutil.move(file, file.parents[1] / "n01443537" / file.name)


def without_volumes(raw: Path) -> None:
    for path in sorted(raw.rglob("*_t2.nii*"))[:2]:
        path.unlink()


OTHER_VIEW = "another view or body part"
BOX = "Breast_MRI_001"
CHANGED: dict[str, tuple[str, Change, str | dict[str, int]]] = {
    # Only the bilateral fixed-flexion knees carry the grades.
    "other parts": ("oai", other_views(True), {OTHER_VIEW: 9, "images": 23}),
    "other parts, not described": (
        "oai",
        other_views(False),
        {"view not described anywhere": 9, "images": 23},
    ),
    "no knees": (
        "oai",
        only_other_views,
        rf"no image of the raw files can be used .*{OTHER_VIEW}: 9",
    ),
    "a header against the table": ("oai", knee("9000007", "PA Hand"), {OTHER_VIEW: 1}),
    "another patient": (
        "oai",
        knee("9999999"),
        {("another patient in the header than in the folder"): 1},
    ),
    **{
        f"centre {line}": (
            "oai",
            centre(line),
            r"knee_centers\.csv \(\d+\), the side is not R or L, the center lies outside the image,",
        )
        for line in (
            "9000014,R,nan,220",
            "9000014,R,300,inf",
            "9000014,X,300,220",
            "9000014,,300,220",
            "9000014,R,5000,220",
            "9000014,R,-1,220",
            "9000014,R,300,900",
            "9000007,R,1,1",
        )
    },
    "a box that ends before it starts": (
        "dbc",
        boxes([BOX, 20, 10]),
        "a box of the patient starts after its end: 30",
    ),
    "two boxes": (
        "dbc",
        boxes([BOX, 25, 28]),
        {("patient with several boxes: a slice in any is positive"): 1},
    ),
    **{
        f"a box from {cell}": (
            "dbc",
            boxes([BOX, cell, 28]),
            "an annotation box",
        )
        for cell in ("nan", "x", None, 1.5)
    },
    "a slice of another patient": (
        "dbc",
        of_another_patient,
        "another patient in the header than in the table: 1",
    ),
    "no uids": (
        "dbc",
        lambda raw: edit_xlsx(first(raw, "*mapping.xlsx"), lambda sheet: sheet.delete_cols(3)),
        {"slices found by file names only: the table has no SOP instance UIDs": 100, "groups": 5},
    ),
    "no patients": (
        "rsna",
        without_patients,
        {"no patient id in the header: the split cannot be by patient": 48, "groups": 48},
    ),
    "any below a subtype": (
        "rsna",
        lines_of(
            "stage_2_train.csv",
            lambda lines: swap_label(
                lines,
                next(place for place, line in enumerate(lines[30:], 30) if line.endswith("_any,1")),
            ),
        ),
        r"'any' is not the largest label of the subtypes\. Number of these slices: 1 \(hashes",
    ),
    "tables that disagree": (
        "mura",
        lines_of("train_labeled_studies.csv", lambda lines: swap_label(lines, 0)),
        r"train_labeled_studies\.csv contradicts the names of the study folders\. Number of lines",
    ),
    "a file of another class": (
        "imagenet",
        in_another_class,
        "for 1 file, the class in the file name differs from the class of the folder",
    ),
    "a segmentation elsewhere": (
        "brats",
        move_segmentation,
        "volumes at different positions in space: 1",
    ),
    "no volumes": (
        "brats",
        without_volumes,
        (r"items cannot be used \(a volume of the case is missing: 2\), but at most"),
    ),
    "two years": (
        "brats",
        second_year,
        r"the years 18, 20\. Later releases repeat cases of earlier releases",
    ),
    "not ultrasound": ("prostate", of_magnetic_resonance, "not ultrasound: 1"),
    "two tables that differ": (
        "prostate",
        second_table,
        "2 different tables have the columns of Target Data:",
    ),
    "only an archive": (
        "mura",
        only_an_archive,
        r"Missing from the download of mura and its 1 archive: train_image_paths\.csv",
    ),
    "labels of the other set": (
        "mnist",
        labels_of_fashion,
        "the files belong to fashion_mnist",
    ),
    "two downloads": (
        "svhn",
        lambda raw: write_raw_tree("svhn", raw.parent / "b", 1).rename(raw / "second"),
        "the raw folder contains 2 different downloads",
    ),
    "a file that no row names": (
        "chexpert",
        lambda raw: save_image(
            raw / "CheXpert-v1.0-small" / "valid" / "patient00001" / "study1" / "view1_frontal.jpg",
            np.zeros((9, 9), np.uint8),
            "JPEG",
        ),
        {"images": 31},
    ),
}


@pytest.mark.parametrize("name", CHANGED)
def test_data_that_could_give_a_wrong_label_are_refused_or_counted(tree, official, name):
    dataset, change, verdict = CHANGED[name]
    raw = tree(dataset)
    change(raw)
    if isinstance(verdict, str):
        with pytest.raises(DataError, match=verdict):
            official(dataset, raw)
        return
    record = official(dataset, raw).record
    counts = {"images": record.num_images, "groups": record.num_groups}
    assert verdict.items() <= {**counts, **record.excluded, **record.flags}.items()


def test_slices_in_any_of_two_boxes_are_positive():
    labels = [slice_label(level, [Box(10, 15), Box(30, 35)]) for level in (12, 32, 27, 22)]
    assert labels == [1, 1, None, 0]


def test_files_numbered_the_other_way_round_keep_their_labels(tree, official, untouched):
    raw, original = tree("dbc"), untouched("dbc")
    files = sorted(first(raw, "*.9", BOX).iterdir())
    for path in files:
        path.rename(path.with_suffix(".tmp"))
    for old, new in zip(files, files[::-1], strict=True):
        old.with_suffix(".tmp").rename(new)
    renumbered = official("dbc", raw)
    np.testing.assert_array_equal(renumbered.classes, original.classes)
    np.testing.assert_array_equal(renumbered.read(0, 50), original.read(0, 50))
