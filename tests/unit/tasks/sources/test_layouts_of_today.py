"""Downloads as they come today: other folder names, renamed folders, archives. All give the images of the
original layout, in the same order with the same labels and groups.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.prepared.store import PreparedDataset
from tasks.sources import locate, own_kind_of
from tests.raw_trees import write_raw_tree
from tests.unit.tasks.sources.conftest import picture, png


def zip_folder(folder: Path, path: Path, *, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def tar_mode(name: str) -> str:
    packers = {".gz": "gz", ".tgz": "gz", ".bz2": "bz2", ".tbz2": "bz2", ".xz": "xz", ".txz": "xz"}
    return f"w:{packers.get(Path(name).suffix, '')}"


def tar_folder(folder: Path, path: Path) -> Path:
    with tarfile.open(path, tar_mode(path.name)) as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, file.name)
    return path


def assert_equal(found: PreparedDataset, expected: PreparedDataset) -> None:
    assert found.record.num_images == expected.record.num_images > 0
    assert found.record.num_groups == expected.record.num_groups
    np.testing.assert_array_equal(found.labels, expected.labels)
    rows = found.record.num_images
    np.testing.assert_array_equal(found.read(0, rows), expected.read(0, rows))


@pytest.fixture
def tree(tmp_path):
    return lambda name: write_raw_tree(name, tmp_path)


def by_batches(raw: Path) -> None:
    """As AIMI ships CheXpert: table and validation in batch 1, the train split's patients in 2 to 4."""
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
        zip_folder(folder, raw / f"{folder.name}.zip", prefix=f"{folder.name}/")
        shutil.rmtree(folder)


def descriptive(raw: Path) -> None:
    """All series of the prostate collection under descriptive names."""
    for study in sorted(raw.glob("manifest-1/*/*/*")):
        for series in sorted(study.iterdir()):
            series.rename(study / f"1.000000-TRUS-{series.name[-5:]}")


def idc_index(raw: Path) -> None:
    """``%collection/%patient/%study/%modality_%series/<uuid>.dcm`` as idc-index downloads."""
    for series in sorted(raw.glob("manifest-1/*/*/*/1.3.*")):
        (series / "1-1.dcm").rename(series / "0f1e2d3c-aaaa-bbbb-cccc-000000000000.dcm")
        series.rename(series.with_name(f"US_{series.name}"))


def renamed(raw: Path) -> None:
    """No name of the archive is left."""
    for number, path in enumerate(sorted(raw.rglob("*.dcm"))):
        target = raw / "data" / f"case{number % 7}" / f"{number}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for folder in raw.glob("manifest-*"):
        shutil.rmtree(folder)


def two_manifests(raw: Path) -> None:
    """A download in two goes lies in two manifest folders side by side."""
    (first,) = raw.glob("manifest-*")
    collection = next(first.iterdir())
    second = raw / "manifest-2222222222222" / collection.name
    second.mkdir(parents=True)
    for folder in sorted(collection.iterdir())[::2]:
        folder.rename(second / folder.name)


def zip_collection(raw: Path) -> None:
    (folder,) = raw.glob("manifest-*")
    zip_folder(folder, raw / f"{folder.name}.zip", prefix=f"{folder.name}/")
    shutil.rmtree(folder)


def rename_table(new: str):
    def change(raw: Path) -> None:
        next(raw.glob("Target*.xlsx")).rename(raw / new)

    return change


def slips(raw: Path) -> None:
    """``//``, backslashes and blanks in the mapping table's paths, all files under descriptive names."""
    from openpyxl import load_workbook

    path = next(raw.glob("Breast-*.xlsx"))
    book = load_workbook(path)
    for row in book.active.iter_rows(min_row=2):
        row[1].value = ""
        row[3].value = " " + str(row[3].value).replace("/3.000000", "//3.000000").replace("/01-01", "\\01-01")
        row[2].value = None
    book.save(path)
    for patient in sorted(raw.glob("manifest-*/*/Breast_MRI_*")):
        for file in sorted(patient.rglob("1-*.dcm")):
            number = int(patient.name[-3:])
            target = patient / f"01-01-1990-NA-MRI BREAST-9{number}538" / f"3.000000-ax dyn pre-9{number}883"
            target.mkdir(parents=True, exist_ok=True)
            file.rename(target / file.name)


def series_archives(raw: Path) -> None:
    """The S3 form of the OAI: one ``<barcode>.tar.gz`` per series."""
    for series in sorted((raw / "results" / "P001").glob("*/*/*/*")):
        tar_folder(series, series.with_name(series.name + ".tar.gz"))
        shutil.rmtree(series)


def zip_all(name: str):
    def change(raw: Path) -> None:
        made = zip_folder(raw, raw.parent / name)
        shutil.rmtree(raw)
        raw.mkdir()
        made.rename(raw / name)

    return change


def year_2020(raw: Path) -> None:
    """Kaggle's copy of BraTS 2020: no grades, ``.nii``, and case 355 with its odd segmentation."""
    root = raw / "BraTS2020_TrainingData" / "MICCAI_BraTS2020_TrainingData"
    cases = sorted(raw.glob("MICCAI_BraTS_2018_Data_Training/HGG/*")) + sorted(
        raw.glob("MICCAI_BraTS_2018_Data_Training/LGG/*")
    )
    for number, case in enumerate(cases, 350):
        new = root / f"BraTS20_Training_{number}"
        new.mkdir(parents=True)
        for file in case.iterdir():
            kind = file.name.removeprefix(case.name)
            name = "W39_1998.09.19_Segm.nii" if number == 352 and "_seg" in kind else new.name + kind
            file.rename(new / (name + (".gz" if name.endswith("Segm.nii") and kind.endswith(".gz") else "")))
    (root / "name_mapping.csv").write_text("Grade,BraTS_2020_subject_ID\n")
    shutil.rmtree(raw / "MICCAI_BraTS_2018_Data_Training")


def tar_of_tars(raw: Path) -> None:
    """``ILSVRC2012_img_train.tar`` as it comes."""
    train = raw / "ILSVRC" / "Data" / "CLS-LOC" / "train"
    with tarfile.open(raw / "ILSVRC2012_img_train.tar", "w") as outer:
        for folder in sorted(train.iterdir()):
            outer.add(tar_folder(folder, raw / f"{folder.name}.tar"), f"{folder.name}.tar")
            (raw / f"{folder.name}.tar").unlink()
    shutil.rmtree(raw / "ILSVRC")


def dotted(raw: Path) -> None:
    for path in sorted(raw.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))


def own_folders(raw: Path) -> None:
    import gzip

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
    """As an old unzip tool leaves names, folders and endings too."""
    for path in sorted(raw.rglob("*"), key=lambda path: -len(path.parts)):
        path.rename(path.with_name(path.name.upper()))


def wrapped(raw: Path) -> None:
    """In a folder of its own, called like the download a browser fetched a second time."""
    inner = raw / "my downloads" / "archive (1)"
    inner.mkdir(parents=True)
    for path in sorted(raw.iterdir()):
        if path.name != "my downloads":
            path.rename(inner / path.name)


def copies(raw: Path) -> None:
    """Every file under the name a browser gives a second download, beside the first."""
    for path in sorted(path for path in raw.iterdir() if path.is_file()):
        stem, dot, endings = path.name.partition(".")
        shutil.copy(path, path.with_name(f"{stem} (1){dot}{endings}"))
        path.rename(path.with_name(f"{stem} copy{dot}{endings}"))


def unpacked(folder: str):
    """``cifar-10-python.tar.gz`` unpacked and its folder renamed."""

    def change(raw: Path) -> None:
        with tarfile.open(raw / "cifar-10-python.tar.gz") as archive:
            archive.extractall(raw, filter="data")
        (raw / "cifar-10-python.tar.gz").unlink()
        (raw / folder).parent.mkdir(parents=True, exist_ok=True)
        (raw / "cifar-10-batches-py").rename(raw / folder)

    return change


def unpacked_by_a_browser(raw: Path) -> None:
    """Unpacked on the way, the ending left as it was."""
    import gzip

    for path in sorted(raw.glob("*.gz")):
        path.write_bytes(gzip.decompress(path.read_bytes()))


def repacked(name: str, ending: str):
    def change(raw: Path) -> None:
        made = tar_folder(raw, raw.parent / f"{name}{ending}")
        shutil.rmtree(raw)
        raw.mkdir()
        made.rename(raw / made.name)

    return change


CHANGES = {
    **{f"{name}: upper case": (name, upper_case) for name in ("cifar10", "mnist", "svhn", "rsna")},
    **{f"{name}: wrapped": (name, wrapped) for name in ("cifar10", "mnist", "fashion_mnist", "svhn", "rsna")},
    **{f"{name}: copies": (name, copies) for name in ("cifar10", "mnist", "svhn")},
    **{f"{name}: zip": (name, zip_all("archive.zip")) for name in ("cifar10", "mnist", "fashion_mnist")},
    "svhn: zip": ("svhn", zip_all("svhn (1).zip")),
    "mnist: tar.xz": ("mnist", repacked("mnist", ".tar.xz")),
    "mura: tar.bz2": ("mura", repacked("MURA-v1.1", ".tar.bz2")),
    "cifar10: unpacked": ("cifar10", unpacked("cifar-10-batches-py")),
    "cifar10: unpacked and renamed": ("cifar10", unpacked("CIFAR/train data")),
    "mnist: unpacked by a browser": ("mnist", unpacked_by_a_browser),
    "chexpert: AIMI's batches": ("chexpert", by_batches),
    "chexpert: AIMI's zips": ("chexpert", zip_batches),
    "mura: zip": ("mura", zip_all("MURA-v1.1.zip")),
    "rsna: zip": ("rsna", zip_all("rsna-intracranial-hemorrhage-detection.zip")),
    "prostate: descriptive": ("prostate", descriptive),
    "prostate: idc-index": ("prostate", idc_index),
    "prostate: renamed": ("prostate", renamed),
    "prostate: two manifests": ("prostate", two_manifests),
    "prostate: zip": ("prostate", zip_collection),
    "prostate: table of today": ("prostate", rename_table("Target-Data_2019-12-05-2.xlsx")),
    "prostate: table of a browser": ("prostate", rename_table("Target Data_2019-12-05 (2).xlsx")),
    "prostate: table renamed": ("prostate", rename_table("labels of mine.xlsx")),
    "dbc: slips": ("dbc", slips),
    "dbc: renamed": ("dbc", renamed),
    "dbc: two manifests": ("dbc", two_manifests),
    "dbc: zip": ("dbc", zip_collection),
    "oai: series archives": ("oai", series_archives),
    "brats: 2020": ("brats", year_2020),
    "brats: zip": ("brats", zip_all("MICCAI_BraTS_2018_Data_Training.zip")),
    "imagenet: tar of tars": ("imagenet", tar_of_tars),
    "imagenet: zip": ("imagenet", zip_all("imagenet-object-localization-challenge.zip")),
    "mnist: dots": ("mnist", dotted),
    "mnist: folders": ("mnist", own_folders),
    "svhn: MATLAB 7.3": ("svhn", matlab_7_3),
}


@pytest.mark.parametrize("case", CHANGES)
def test_another_layout_gives_the_same_images(tree, official, tmp_path, case):
    name, change = CHANGES[case]
    raw = tree(name)
    if case.startswith("brats: 2020"):
        expected = official("brats", raw, out=tmp_path / "before")
        change(raw)
        found = official("brats", raw, out=tmp_path / "after")
        assert found.record.num_images == expected.record.num_images
        assert found.record.num_groups == expected.record.num_groups
        return
    expected = official(name, raw, out=tmp_path / "before")
    change(raw)
    assert_equal(official(name, raw, out=tmp_path / "after"), expected)


@pytest.mark.parametrize(("name", "ending"), [("mura", ".zip"), ("chexpert", ".tar"), ("rsna", ".tar.gz")])
def test_the_archive_itself_is_a_source(tree, official, tmp_path, name, ending):
    raw = tree(name)
    expected = official(name, raw, out=tmp_path / "before")
    archive = tmp_path / f"download{ending}"
    zip_folder(raw, archive) if ending == ".zip" else tar_folder(raw, archive)
    assert_equal(official(name, archive, out=tmp_path / "after"), expected)


def test_sas_grades(tree, official, monkeypatch, tmp_path):
    """pandas reads the SAS form; no writer of it is at hand, so its reader is replaced by the same table."""
    import pandas as pd

    raw = tree("oai")
    expected = official("oai", raw, out=tmp_path / "before")
    frame = pd.read_csv(raw / "kxr_sq_bu00.txt", sep="|")
    frame["ID"] = frame["ID"].astype(float)
    frame["SIDE"] = frame["SIDE"].astype(str).str[0].astype(float)
    (raw / "kxr_sq_bu00.txt").unlink()
    (raw / "kxr_sq_bu00.sas7bdat").write_bytes(b"as if")
    monkeypatch.setattr(pd, "read_sas", lambda *_, **__: frame)
    assert_equal(official("oai", raw, out=tmp_path / "after"), expected)


def test_released_oai_is_the_half_that_the_study_read(tree, tmp_path):
    from search_spaces.datasets import dataset_spec
    from search_spaces.specs import RELEASED_FAULTS, PreparedSpec
    from tasks.sources import source_for
    from tasks.sources.base import RawRequest

    raw = tree("oai")
    corrected = PreparedSpec(dataset="oai", image_size=16, channels=1)
    released = corrected.model_copy(update={"data_mode": "as_released", "faults": RELEASED_FAULTS})
    counts = [
        len(source_for("oai").list_items(RawRequest(dataset_spec("oai"), spec, raw)).items)
        for spec in (corrected, released)
    ]
    assert counts == [12, 9]


def test_two_tables_that_differ_are_refused(tree, official):
    raw = tree("prostate")
    from openpyxl import load_workbook

    path = next(raw.glob("Target*.xlsx"))
    book = load_workbook(path)
    book.active.delete_rows(2)
    book.save(raw / "Target Data_2019-12-05 (2).xlsx")
    with pytest.raises(
        DataError, match=r"one table must have the columns of Target Data; found: 2 that differ"
    ):
        official("prostate", raw)


def test_brats_of_two_years_is_refused(tree, official, tmp_path):
    raw = tree("brats")
    shutil.copytree(raw, tmp_path / "other")
    year_2020(tmp_path / "other")
    shutil.move(tmp_path / "other" / "BraTS2020_TrainingData", raw)
    with pytest.raises(DataError, match=r"one year: later releases hold .* found: years 18, 20"):
        official("brats", raw)


def test_what_is_missing_names_the_archives_that_were_searched(official, tmp_path):
    (tmp_path / "raw").mkdir()
    with zipfile.ZipFile(tmp_path / "raw" / "x.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(DataError, match="it is not there, nor in 1 archives"):
        official("mura", tmp_path / "raw")


def test_a_member_is_located_by_its_hash(tree, official, tmp_path):
    raw = tree("mura")
    victim = next(raw.rglob("image2.png"))
    victim.write_bytes(b"junk")
    zip_all("MURA-v1.1.zip")(raw)
    record = official("mura", raw, max_skipped_share=0.1).record
    ((hashed, reason),) = record.skipped_items
    assert reason == "not an image"
    member = victim.relative_to(raw).as_posix()
    assert locate(raw, tmp_path / "prepared", hashed) == f"MURA-v1.1.zip!/{member}"


class TestOwnArchives:
    @pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"])
    @pytest.mark.parametrize("wrapped", [False, True])
    def test_class_folders_in_an_archive(self, prepare, class_folder, tmp_path, ending, wrapped):
        expected = prepare("folder", class_folder)
        if wrapped:
            class_folder = class_folder.rename(tmp_path / "inner").parent
            (class_folder / "outer").mkdir()
            (class_folder / "inner").rename(class_folder / "outer" / "inner")
            class_folder = class_folder / "outer"
        path = tmp_path / f"own{ending}"
        zip_folder(class_folder, path) if ending == ".zip" else tar_folder(class_folder, path)
        found = prepare("folder", path, name="other")
        assert_equal(found, expected)
        flags = {"the one top folder taken as the source": 1} if wrapped else {}
        assert found.record.flags == flags

    @pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tbz2", ".txz"])
    def test_the_stored_order_does_not_matter_and_is_read_forward(
        self, prepare, class_folder, tmp_path, ending, monkeypatch
    ):
        from tasks.prepared import prepare as blocks

        expected = prepare("folder", class_folder)
        path = tmp_path / f"own{ending}"
        files = sorted(class_folder.rglob("*.png"))
        with tarfile.open(path, tar_mode(path.name)) as archive:
            for index in np.random.default_rng(0).permutation(len(files)):
                archive.add(files[index], files[index].relative_to(class_folder).as_posix())
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 8 * 3)
        from tasks.sources import raw

        reads: list[str] = []
        original = raw.TarArchive.read

        def read(self, member, max_bytes):
            reads.append(member)
            return original(self, member, max_bytes)

        monkeypatch.setattr(raw.TarArchive, "read", read)
        assert_equal(prepare("folder", path, name="other"), expected)
        with tarfile.open(path) as archive:
            assert (reads == archive.getnames()) == (ending != ".tar")

    def test_an_archive_that_changes_is_noticed(self, prepare, class_folder, tmp_path):
        path = zip_folder(class_folder, tmp_path / "own.zip")
        prepare("folder", path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("cat/new.png", png(picture(70)))
        with pytest.raises(DataError, match="files changed since"):
            prepare("folder", path)

    def test_a_killed_preparation_repeats_no_block(self, class_folder, tmp_path, monkeypatch):
        import tasks.prepared.parts as parts
        from search_spaces.datasets import own_dataset_spec
        from search_spaces.specs import PreparedSpec
        from search_spaces.sweeps import OwnSourceSpec
        from tasks.prepared import prepare as blocks
        from tasks.prepared import prepare as module
        from tasks.remote import InlineExecutor

        path = tar_folder(class_folder, tmp_path / "own.tar.gz")
        own = OwnSourceSpec(kind="folder", path=str(path), domain="natural")
        spec = PreparedSpec(dataset="mine", image_size=8, channels=1)
        monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 8 * 3)
        seen: list[str] = []
        original = parts._read_item

        def read(reader, item, *rest):
            seen.append(item.locator)
            if len(seen) == 5:
                raise KeyboardInterrupt
            return original(reader, item, *rest)

        monkeypatch.setattr(parts, "_read_item", read)

        def run() -> None:
            module.prepare_dataset(
                spec, own_dataset_spec("mine", own), raw=path, destination=tmp_path / "out",
                executor=InlineExecutor(),
            )  # fmt: skip

        with pytest.raises(KeyboardInterrupt):
            run()
        run()
        # Blocks of three: the fourth item was read in the block that did not finish, and so again.
        assert len(seen) == 5 + 7
        assert len(set(seen[5:])) == 7


def hostile_zip(path: Path, change) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", png(picture(number)))
        change(archive)
    return path


def link_entry(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def duplicate(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/0.png", png(picture(9)))


def tar_entry(**fields):
    def change(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(fields.get("name", "a/x.png"))
        for name, value in fields.items():
            setattr(info, name, value)
        archive.addfile(info)

    return change


def hostile_tar(path: Path, change) -> Path:
    with tarfile.open(path, tar_mode(path.name), format=tarfile.GNU_FORMAT) as archive:
        for number in range(4):
            body = png(picture(number))
            info = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        change(archive)
    return path


class TestHostileArchives:
    def test_overlapping_members_are_refused(self, prepare, tmp_path):
        """Two names for one place, as in David Fifield's zip bomb."""
        path = hostile_zip(tmp_path / "x.zip", lambda archive: archive.writestr("a/big.png", bytes(9) * 3000))
        body = path.read_bytes()
        end = body.rindex(b"PK\x05\x06")
        start = int.from_bytes(body[end + 16 : end + 20], "little")
        last = body[body.rindex(b"PK\x01\x02", start, end) : end]
        copies = [last.replace(b"a/big.png", f"a/b{number:02d}.png".encode()) for number in range(9)]
        directory = body[start:end] + b"".join(copies)
        tail = bytearray(body[end:])
        tail[8:12] = (5 + 9).to_bytes(2, "little") * 2
        tail[12:16] = len(directory).to_bytes(4, "little")
        path.write_bytes(body[:start] + directory + tail)
        with pytest.raises(DataError, match="members overlap"):
            prepare("folder", path)

    @pytest.mark.parametrize(
        ("name", "kind", "message"),
        [
            ("../x.png", tarfile.REGTYPE, "names that lead elsewhere"),
            ("cat/link.png", tarfile.SYMTYPE, "links, devices or sparse files"),
            ("cat/tty.png", tarfile.CHRTYPE, "links, devices or sparse files"),
            ("cat/0.png", tarfile.REGTYPE, "repeated names"),
        ],
    )
    def test_what_a_tar_must_not_hold_is_refused_however_often_it_is_asked(
        self, prepare, class_folder, tmp_path, name, kind, message
    ):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(class_folder, "")
            info = tarfile.TarInfo(name)
            info.type = kind
            archive.addfile(info)
        assert own_kind_of(path) == "folder"  # opens the archive first, and must not make it look sound
        for _ in range(2):
            with pytest.raises(DataError, match=message):
                prepare("folder", path)

    def test_a_name_longer_than_a_file_system_allows(self, prepare, class_folder, tmp_path):
        path = tmp_path / "x.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(class_folder / "cat", "cat")
            for file in (class_folder / "dog").iterdir():
                archive.add(file, f"dog/{'x' * 6000}/{file.name}")
        assert prepare("folder", path).record.num_images == 10

    def test_equal_names_in_an_archive_and_one_in_it_are_refused(self, prepare, class_folder, tmp_path):
        inner, outer = tmp_path / "inner.zip", tmp_path / "outer.zip"
        for path in (inner, outer):
            with zipfile.ZipFile(path, "w") as archive:
                for file in class_folder.rglob("*.png"):
                    archive.write(file, file.relative_to(class_folder))
        with zipfile.ZipFile(outer, "a") as archive:
            archive.write(inner, "inner.zip")
        with pytest.raises(DataError, match="a name must be once in an archive and those in it"):
            prepare("folder", outer)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda archive: archive.writestr("../x.png", b""), "names that lead elsewhere"),
            (lambda archive: archive.writestr("/etc/x.png", b""), "names that lead elsewhere"),
            (lambda archive: archive.writestr("..\\x.png", b""), "names that lead elsewhere"),
            (lambda archive: archive.writestr("C:/x.png", b""), "names that lead elsewhere"),
            (link_entry, "links or devices"),
            (duplicate, "repeated names"),
            (lambda archive: archive.writestr("a//0.png", png(picture(9))), "repeated names"),
            (lambda archive: archive.writestr("a\\0.png", png(picture(9))), "repeated names"),
            (lambda archive: archive.writestr("a/x.png", b"x", zipfile.ZIP_BZIP2), "another method than"),
            (lambda archive: archive.writestr("a/x.png", b"x", zipfile.ZIP_LZMA), "another method than"),
        ],
    )
    def test_zips_are_refused(self, prepare, tmp_path, change, message):
        with pytest.raises(DataError, match=f"whole and safe; found: .*{message}"):
            prepare("folder", hostile_zip(tmp_path / "x.zip", change))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (tar_entry(name="../x.png"), "names that lead elsewhere"),
            (tar_entry(name="/etc/x.png"), "names that lead elsewhere"),
            (tar_entry(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "links, devices or sparse"),
            (tar_entry(type=tarfile.LNKTYPE, linkname="a/0.png"), "links, devices or sparse"),
            (tar_entry(type=tarfile.CHRTYPE), "links, devices or sparse"),
            (tar_entry(type=tarfile.FIFOTYPE), "links, devices or sparse"),
            (tar_entry(name="a/0.png"), "repeated names"),
            (tar_entry(name="a/x.png", size=-1024), "negative size"),
            (tar_entry(type=tarfile.GNUTYPE_SPARSE), "damaged|sparse"),
        ],
    )
    @pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
    def test_tars_are_refused(self, prepare, tmp_path, change, message, ending):
        with pytest.raises(DataError, match=f"whole and safe; found: .*{message}"):
            prepare("folder", hostile_tar(tmp_path / f"x{ending}", change))

    @pytest.mark.parametrize(
        "records", [{"size": "-2048"}, {"GNU.sparse.map": "0,9", "GNU.sparse.size": "9"}]
    )
    def test_extended_headers_are_no_way_around(self, prepare, tmp_path, records):
        with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            for number in range(4):
                info = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
                body = png(picture(number))
                info.size, info.pax_headers = len(body), records if number == 2 else {}
                archive.addfile(info, io.BytesIO(body))
        with pytest.raises(DataError, match=r"whole and safe; found: .*(negative size|sparse)"):
            prepare("folder", tmp_path / "x.tar")

    @pytest.mark.parametrize("ending", [".zip", ".tar", ".tar.gz", ".tar.bz2", ".tar.xz"])
    @pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
    def test_a_cut_archive_is_refused(self, prepare, class_folder, tmp_path, ending, share):
        path = tmp_path / f"x{ending}"
        zip_folder(class_folder, path) if ending == ".zip" else tar_folder(class_folder, path)
        body = path.read_bytes()
        path.write_bytes(body[: int(share * len(body))].rstrip(b"\0"))
        with pytest.raises(DataError, match="damaged"):
            prepare("folder", path)

    def test_a_flipped_byte_is_one_damaged_member(self, prepare, class_folder, tmp_path):
        path = zip_folder(class_folder, tmp_path / "x.zip")
        body = bytearray(path.read_bytes())
        body[body.index(b"0.png") + 60] ^= 0xFF
        path.write_bytes(body)
        record = prepare("folder", path, max_skipped_share=0.2).record
        assert record.skipped == {"damaged archive member": 1}

    def test_a_member_that_declares_gigabytes_is_never_unpacked(self, prepare, tmp_path):
        path = hostile_zip(tmp_path / "x.zip", lambda archive: archive.writestr("a/bomb.png", b"x" * 50))
        body = path.read_bytes()
        size = (50).to_bytes(4, "little")
        place = body.rindex(size, body.index(b"PK\x01\x02"))
        path.write_bytes(body[:place] + (200 << 20).to_bytes(4, "little") + body[place + 4 :])
        with pytest.raises(DataError, match="declares more than its packed size can hold"):
            prepare("folder", path)


class TestTwoSetsOfOneName:
    """torchvision keeps ``MNIST/raw`` and ``FashionMNIST/raw`` side by side, with the same file names."""

    @pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
    def test_the_folder_tells_which_is_meant(self, official, tmp_path, name):
        folders = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
        for seed, (one, folder) in enumerate(folders.items()):
            made = write_raw_tree(one, tmp_path / str(seed), seed)
            (tmp_path / "both" / folder).mkdir(parents=True)
            made.rename(tmp_path / "both" / folder / "raw")
        expected = official(name, tmp_path / "both" / folders[name], out=tmp_path / "alone")
        assert_equal(official(name, tmp_path / "both"), expected)

    def test_the_first_labels_of_the_other_set_are_refused(self, official, tmp_path):
        """Those of the official files, as both sets' pages and torchvision show them."""
        import gzip

        labels = np.tile(np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], np.uint8), 6_000)
        (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes((0, 0, 8, 1)) + np.array([60_000], ">u4").tobytes() + labels.tobytes())
        )
        shape = np.array([60_000, 1, 1], ">u4").tobytes()
        (tmp_path / "train-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3)) + shape + bytes(60_000))
        with pytest.raises(DataError, match="the files must be those of mnist; found: fashion_mnist"):
            official("mnist", tmp_path)

    def test_two_downloads_that_differ_are_refused(self, tree, official, tmp_path):
        raw = tree("svhn")
        write_raw_tree("svhn", tmp_path / "other", 1).rename(raw / "second")
        with pytest.raises(DataError, match="raw folder must hold one such download; found: 2 that differ"):
            official("svhn", raw)
