"""Downloads as they come today: other folder names, renamed folders, archives. All give the images
of the original layout, in the same order with the same labels and groups."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from search_spaces.specs import RELEASED_FAULTS
from tests.raw_trees import write_raw_tree
from tests.raw_trees.pictures import edit_xlsx
from tests.unit.tasks.sources.archives import pack
from tests.unit.tasks.sources.conftest import assert_equal

Change = Callable[[Path], object]


def move(folder: Path, archive: Path, prefix: str = "") -> None:
    """Replace a folder by its archive."""
    packed = pack(folder, folder.parent / f"packed {archive.name}", prefix)
    shutil.rmtree(folder)
    archive.parent.mkdir(exist_ok=True)
    packed.rename(archive)


def packed(name: str) -> Change:
    """Pack the whole download into one archive."""
    return lambda raw: move(raw, raw / name)


def by_batches(raw: Path) -> None:
    """Arrange CheXpert like AIMI: table and validation in batch 1, training patients in 2 to 4."""
    old = raw / "CheXpert-v1.0-small"
    first = raw / "CheXpert-v1.0 batch 1 (validate & csv)"
    first.mkdir()
    text = (old / "train.csv").read_text().replace("CheXpert-v1.0-small/", "CheXpert-v1.0/")
    (first / "train.csv").write_text(text)
    (first / "valid.csv").write_text(text.splitlines()[0] + "\n")
    for patient in sorted((old / "train").iterdir()):
        number = int(patient.name.removeprefix("patient")) % 3
        batch = raw / f"CheXpert-v1.0 batch {number + 2} (train {number + 1})"
        batch.mkdir(exist_ok=True)
        patient.rename(batch / patient.name)
    shutil.rmtree(old)


def zip_batches(raw: Path) -> None:
    by_batches(raw)
    for folder in sorted(raw.iterdir()):
        move(folder, raw / f"{folder.name}.zip", f"{folder.name}/")


def descriptive(raw: Path) -> None:
    """Give all series of the prostate collection descriptive names."""
    for study in sorted(raw.glob("manifest-1/*/*/*")):
        for series in sorted(study.iterdir()):
            series.rename(study / f"1.000000-TRUS-{series.name[-5:]}")


def idc_index(raw: Path) -> None:
    """``%collection/%patient/%study/%modality_%series/<uuid>.dcm`` as idc-index downloads."""
    for series in sorted(raw.glob("manifest-1/*/*/*/1.3.*")):
        (series / "1-1.dcm").rename(series / "0f1e2d3c-aaaa-bbbb-cccc-000000000000.dcm")
        series.rename(series.with_name(f"US_{series.name}"))


def renamed(raw: Path) -> None:
    """Rename all folders, so that no name of the archive remains."""
    for number, path in enumerate(sorted(raw.rglob("*.dcm"))):
        target = raw / "data" / f"case{number % 7}" / f"{number}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for folder in raw.glob("manifest-*"):
        shutil.rmtree(folder)


def two_manifests(raw: Path) -> None:
    """Split the download into two manifest folders, like two separate downloads."""
    (first,) = raw.glob("manifest-*")
    collection = next(first.iterdir())
    second = raw / "manifest-2222222222222" / collection.name
    second.mkdir(parents=True)
    for folder in sorted(collection.iterdir())[::2]:
        folder.rename(second / folder.name)


def rename_table(new: str) -> Change:
    return lambda raw: next(raw.glob("Target*.xlsx")).rename(raw / new)


def slips(raw: Path) -> None:
    """Write ``//``, backslashes and blanks into the mapping table's paths, and use descriptive
    names."""

    def change(sheet) -> None:
        for row in sheet.iter_rows(min_row=2):
            path = str(row[3].value).replace("/3.000000", "//3.000000").replace("/01-01", "\\01-01")
            row[1].value, row[2].value, row[3].value = "", None, f" {path}"

    edit_xlsx(next(raw.glob("Breast-*.xlsx")), change)
    for patient in sorted(raw.glob("manifest-*/*/Breast_MRI_*")):
        number = int(patient.name[-3:])
        folder = (
            patient / f"01-01-1990-NA-MRI BREAST-9{number}538" / f"3.000000-ax dyn pre-9{number}883"
        )
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(patient.rglob("1-*.dcm")):
            file.rename(folder / file.name)


def series_archives(raw: Path) -> None:
    """The S3 form of the OAI: one ``<barcode>.tar.gz`` per series."""
    for series in sorted((raw / "results" / "P001").glob("*/*/*/*")):
        move(series, series.with_name(f"{series.name}.tar.gz"))


def year_2020(raw: Path) -> None:
    """Kaggle's copy of BraTS 2020: no grades, ``.nii``, and case 355 with its odd segmentation."""
    root = raw / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    old = raw / "MICCAI_BraTS_2018_Data_Training"
    for number, case in enumerate(sorted(old.glob("HGG/*")) + sorted(old.glob("LGG/*")), 350):
        new = root / f"BraTS20_Training_{number}"
        new.mkdir(parents=True)
        for file in case.iterdir():
            kind = file.name.removeprefix(case.name)
            name = f"{new.name}{kind}"
            if number == 352 and "_seg" in kind:
                name = "W39_1998.09.19_Segm.nii" + (".gz" if kind.endswith(".gz") else "")
            file.rename(new / name)
    (root / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\n")
    shutil.rmtree(old)


def tar_of_tars(raw: Path) -> None:
    """``ILSVRC2012_img_train.tar`` as it comes."""
    train = raw / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    for folder in sorted(train.iterdir()):
        move(folder, train / f"{folder.name}.tar")
    pack(train, raw / "ILSVRC2012_img_train.tar")
    shutil.rmtree(raw / "ILSVRC")


def dotted(raw: Path) -> None:
    for path in sorted(raw.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))


def own_folders(raw: Path) -> None:
    for path in sorted(raw.iterdir()):
        folder = raw / path.name.removesuffix(".gz")
        folder.mkdir()
        (folder / folder.name).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def matlab_7_3(raw: Path) -> None:
    import h5py
    from scipy.io import loadmat

    content = loadmat(raw / "train_32x32.mat")
    with h5py.File(raw / "train_32x32.mat", "w", userblock_size=512) as file:
        file["X"], file["y"] = content["X"].transpose(), content["y"].transpose()


def upper_case(raw: Path) -> None:
    """Change all names to upper case, like an old unzip tool."""
    for path in sorted(raw.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.upper()))


def wrapped(raw: Path) -> None:
    """Move everything into a folder with the name that a browser gives a second download."""
    inner = raw / "my downloads" / "archive (1)"
    inner.mkdir(parents=True)
    for path in sorted(raw.iterdir()):
        if path.name != "my downloads":
            path.rename(inner / path.name)


def copies(raw: Path) -> None:
    """Copy every file to the name that a browser gives a second download."""
    for path in sorted(path for path in raw.iterdir() if path.is_file()):
        stem, dot, endings = path.name.partition(".")
        shutil.copy(path, path.with_name(f"{stem} (1){dot}{endings}"))
        path.rename(path.with_name(f"{stem} copy{dot}{endings}"))


def unpacked(folder: str) -> Change:
    """``cifar-10-python.tar.gz`` unpacked and its folder renamed."""

    def change(raw: Path) -> None:
        with tarfile.open(raw / "cifar-10-python.tar.gz") as archive:
            archive.extractall(raw, filter="data")
        (raw / "cifar-10-python.tar.gz").unlink()
        (raw / folder).parent.mkdir(parents=True, exist_ok=True)
        (raw / "cifar-10-batches-py").rename(raw / folder)

    return change


def unpacked_by_a_browser(raw: Path) -> None:
    """Unpack a file without a change of its ending, like some browsers."""
    for path in sorted(raw.glob("*.gz")):
        path.write_bytes(gzip.decompress(path.read_bytes()))


CHANGES = {
    **{f"{name}: upper case": (name, upper_case) for name in ("cifar10", "mnist", "svhn", "rsna")},
    **{
        f"{name}: wrapped": (name, wrapped)
        for name in ("cifar10", "mnist", "fashion_mnist", "svhn", "rsna")
    },
    **{f"{name}: copies": (name, copies) for name in ("cifar10", "mnist", "svhn")},
    **{
        f"{name}: zip": (name, packed("archive.zip"))
        for name in ("cifar10", "mnist", "fashion_mnist")
    },
    "svhn: zip": ("svhn", packed("svhn (1).zip")),
    "mnist: tar.xz": ("mnist", packed("mnist.tar.xz")),
    "cifar10: unpacked": ("cifar10", unpacked("cifar-10-batches-py")),
    "cifar10: unpacked and renamed": ("cifar10", unpacked("CIFAR/train data")),
    "mnist: unpacked by a browser": ("mnist", unpacked_by_a_browser),
    "chexpert: AIMI's batches": ("chexpert", by_batches),
    "chexpert: AIMI's zips": ("chexpert", zip_batches),
    "mura: zip": ("mura", packed("MURA-v1.1.zip")),
    "prostate: descriptive": ("prostate", descriptive),
    "prostate: idc-index": ("prostate", idc_index),
    "prostate: renamed": ("prostate", renamed),
    "prostate: two manifests": ("prostate", two_manifests),
    "prostate: table of today": ("prostate", rename_table("Target-Data_2019-12-05-2.xlsx")),
    "prostate: table of a browser": ("prostate", rename_table("Target Data_2019-12-05 (2).xlsx")),
    "prostate: table renamed": ("prostate", rename_table("labels of mine.xlsx")),
    "dbc: slips": ("dbc", slips),
    "dbc: renamed": ("dbc", renamed),
    "dbc: two manifests": ("dbc", two_manifests),
    "oai: series archives": ("oai", series_archives),
    "brats: 2020": ("brats", year_2020),
    "brats: zip": ("brats", packed("MICCAI_BraTS_2018_Data_Training.zip")),
    "imagenet: tar of tars": ("imagenet", tar_of_tars),
    "imagenet: zip": ("imagenet", packed("imagenet-object-localization-challenge.zip")),
    "mnist: dots": ("mnist", dotted),
    "mnist: folders": ("mnist", own_folders),
    "svhn: MATLAB 7.3": ("svhn", matlab_7_3),
}


SLOW = (
    *("dbc: slips", "dbc: two manifests", "dbc: renamed"),
    *("oai: series archives", "prostate: two manifests"),
    *("brats: zip", "imagenet: zip", "cifar10: unpacked"),
    *(f"{name}: zip" for name in ("cifar10", "fashion_mnist", "svhn")),
    *(f"{name}: upper case" for name in ("cifar10", "svhn", "rsna")),
    *(f"{name}: wrapped" for name in ("cifar10", "fashion_mnist", "svhn")),
    *(f"{name}: copies" for name in ("cifar10", "svhn")),
    *("prostate: table of today", "prostate: table of a browser"),
)
"""Changes of which each is slow, or is made to the files of another dataset too."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.long if case in SLOW else ()) for case in CHANGES],
)
def test_another_layout_gives_the_same_images(tree, official, untouched, case):
    name, change = CHANGES[case]
    raw, expected = tree(name), untouched(name)
    change(raw)
    actual = official(name, raw)
    if case == "brats: 2020":  # numbered otherwise, so in another order
        assert actual.record.num_images == expected.record.num_images
        assert actual.record.num_groups == expected.record.num_groups
    else:
        assert_equal(actual, expected)


@pytest.mark.parametrize(
    ("name", "ending"), [("mura", ".zip"), ("chexpert", ".tar"), ("rsna", ".tar.gz")]
)
def test_an_archive_given_as_the_raw_download_is_read(
    tree, official, untouched, tmp_path, name, ending
):
    archive = pack(tree(name), tmp_path / f"download{ending}")
    assert_equal(official(name, archive), untouched(name))


@pytest.mark.long
def test_grades_in_a_sas_table_are_those_of_the_text_table(tree, official, untouched, monkeypatch):
    """pandas reads the SAS form; no writer of it is at hand, so its reader is replaced by the same
    table."""
    import pandas as pd

    raw, expected = tree("oai"), untouched("oai")
    frame = pd.read_csv(raw / "kxr_sq_bu00.txt", sep="|")
    frame["ID"] = frame["ID"].astype(float)
    frame["SIDE"] = frame["SIDE"].astype(str).str[0].astype(float)
    (raw / "kxr_sq_bu00.txt").unlink()
    (raw / "kxr_sq_bu00.sas7bdat").write_bytes(b"as if")
    monkeypatch.setattr(pd, "read_sas", lambda *_, **__: frame)
    assert_equal(official("oai", raw), expected)


def test_released_oai_is_the_half_that_the_study_read(tree, official, untouched):
    released = official("oai", tree("oai"), data_mode="as_released", faults=RELEASED_FAULTS)
    assert (untouched("oai").record.num_listed, released.record.num_listed) == (12, 9)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_two_datasets_with_equal_file_names_are_distinguished_by_their_folders(
    official, tmp_path, name
):
    """torchvision keeps ``MNIST/raw`` and ``FashionMNIST/raw`` side by side, with the same file
    names."""
    folders = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
    for seed, (set_name, folder) in enumerate(folders.items()):
        raw_tree = write_raw_tree(set_name, tmp_path / str(seed), seed)
        (tmp_path / "both" / folder).mkdir(parents=True)
        raw_tree.rename(tmp_path / "both" / folder / "raw")
    expected = official(name, tmp_path / "both" / folders[name], out=tmp_path / "alone")
    assert_equal(official(name, tmp_path / "both"), expected)
