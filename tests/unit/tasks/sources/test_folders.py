"""Class folders: which folders are classes, which are patients and splits, and what is no image."""

from __future__ import annotations

import os

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources.own.listing import HIDDEN
from tests.raw_trees.dicoms import make_dicom, save_dicom
from tests.unit.tasks.sources.conftest import check_verdict, picture, png, write_tree

CATS = ("cat/", "dog/")
TWO = {"classes": ("cat", "dog")}
BOTH = [2] * 6 + [1] * 6
ASKED = "so it is unclear whether the top folders or the subfolders are the classes"
NOT_BOTH = "some top folders are splits"
OTHER_NAME = "the top folders are neither classes nor splits called train, test and val:"
NO_CLASSES = r"two classes are needed\..* "
TABLE = r"If the table in this folder lists the images, set kind to table"
PATIENT_NAMES = ("Adams", "Brown", "Smith", "Jones")


def case(
    *names: str, refused: str = "", files=None, layout=None, may_skip=0.0, label_map=None, **summary
):
    """Return names of files, options, bytes of special files, and the verdict."""
    options = {"layout": layout, "max_skipped_share": may_skip, "label_map": label_map or {}}
    return names, options, files or {}, refused or summary


def left_out(name: str) -> dict[str, int]:
    """Return the flag of a folder that is left out although it lies beside the classes."""
    return {f"folder left out; to use it as a class: --label-map {name}={name}": 1}


def cross(tops: tuple[str, ...], inner: tuple[str, ...] = ("cat", "dog")) -> tuple[str, ...]:
    return tuple(f"{top}/{name}/" for top in tops for name in inner)


SPLIT = cross(("train", "test"))
FOUR = cross(("Adams", "Brown"))
UNCLEAR_SPLIT = "it is unclear whether the folder train is a split or a class"
CASES = {
    "a split beside a folder of other pictures": case(
        "train/cat/", "train/dog/", "docs/", refused=UNCLEAR_SPLIT
    ),
    "a split beside a folder with other subfolders": case(
        "train/cat/", "train/dog/", "docs/a/", "docs/b/", refused=UNCLEAR_SPLIT
    ),
    "a class called train with patients": case(
        "train/p1/",
        "train/p2/",
        "car/p3/",
        label_map={"train": "train"},
        classes=("car", "train"),
        groups=3,
    ),
    "classes called train and test beside other classes": case(
        *("train/", "test/", "bus/", "car/", "ship/"),
        label_map={"train": "train", "test": "crash test"},
        classes=("bus", "car", "crash test", "ship", "train"),
    ),
    "splits with a class called train and one called test": case(
        *cross(("train", "test", "extra"), ("train", "test")),
        label_map={"train": "train", "test": "test"},
        refused=NOT_BOTH,
    ),
    "archives and a compressed table": case(
        "a.tar.gz", "labels.csv.gz", refused=r"(?s)^(?!.*NIfTI).*The folder contains archives"
    ),
    "a class called train without patients": case("train/", "car/", classes=("car", "train")),
    "classes": case(*CATS, images=6, groups=6, flags={}, excluded={}, **TWO),
    "one patient in both classes": case(*CATS, "cat/p1/", "dog/p1/", groups=7),
    "other files": case(
        *CATS,
        "cat/notes.txt",
        "README.png",
        excluded={"not an image by its extension": 1, "outside the class folders": 1},
    ),
    "hidden files": case(
        *CATS,
        "cat/.a.png",
        "dog/._a.png",
        ".git/x.png",
        ".DS_Store",
        "cat/Thumbs.db",
        images=6,
        excluded={HIDDEN: 3},
    ),
    "a class in place of the folder of classes": case(
        "a.png",
        "b.png",
        refused="folders with images and 2 images outside class folders, but two classes are needed",
    ),
    "no image": case(
        "cat/notes.txt",
        refused="folders with images and 0 images outside class folders, but two classes are needed",
    ),
    "an empty class": case(
        *CATS, "horse/notes.txt", flags={("class folder without an image: horse"): 1}
    ),
    "more empty classes than are flagged by name": case(
        *CATS,
        *(f"empty{number:02}/notes.txt" for number in range(31)),
        flags={
            **{f"class folder without an image: empty{number:02}": 1 for number in range(20)},
            "other class folder without an image": 11,
        },
    ),
    "an empty class in a split": case(
        *SPLIT, "train/horse/notes.txt", flags={("class folder without an image: train/horse"): 1}
    ),
    "an empty class in a split in a folder around splits": case(
        *cross(("x/train", "x/test")),
        "x/train/horse/notes.txt",
        "x/val/cow/notes.txt",
        "train/other/notes.txt",
        flags={
            "class folder without an image: x/train/horse": 1,
            "a wrapper folder was skipped": 1,
        },
    ),
    "a class that vanishes": case(
        *CATS,
        files={"horse/a.png": b"junk"},
        may_skip=0.5,
        flags={"class without a usable image: horse": 1},
        skipped={"not an image": 1},
    ),
    # what images are
    "images of one value": case(
        *CATS,
        may_skip=0.5,
        skipped={"constant image": 2},
        files={
            f"cat/{name}.png": png(np.full((9, 9), value, np.uint8))
            for name, value in (("a", 0), ("b", 255))
        },
    ),
    "one image in two classes": case(
        *CATS,
        files={f"{name}/x.png": png(picture(99)) for name in ("cat", "dog")},
        refused=(
            r"2 of 8 images are equal to an image with another label, but the limit is 0\.00%"
        ),
    ),
    ("one image twice in a class"): case(
        *CATS,
        files={f"cat/{n}x.png": png(picture(99)) for n in range(2)},
        duplicates=1,
        images=8,
        groups=7,
    ),
    # splits
    "splits": case(
        *cross(("train", "test", "val")), splits=BOTH, excluded={"validation split": 6}, **TWO
    ),
    "Training and Testing": case(*cross(("Training", "Testing")), splits=BOTH, **TWO),
    **{
        f"splits beside {stray}": case(*SPLIT, stray, splits=BOTH, **TWO)
        for stray in ("README.md", "labels.csv", "preview.png")
    },
    "a folder around splits": case(
        *cross(("chest_xray/train", "chest_xray/test")),
        splits=BOTH,
        flags={"a wrapper folder was skipped": 1},
        **TWO,
    ),
    "a folder around splits, beside a picture": case(
        *cross(("x/train", "x/test")),
        "notes.png",
        refused="folder with images and 1 images outside class folders, but two classes are needed",
    ),
    "splits beside a class": case(
        *SPLIT, "extra/", refused=rf"{NOT_BOTH} \(test, train\), and others are not \(extra\)"
    ),
    **{
        f"train beside {classes}": case(*cross(("train", *classes)), refused=NOT_BOTH)
        for classes in (("eval",), ("val", "holdout"), ("test1",))
    },
    **{
        f"{train} and {test}": case(*cross((train, test)), refused=OTHER_NAME)
        for train, test in (
            ("seg_train/seg_train", "seg_test/seg_test"),  # Kaggle's Intel image classification
            ("training_set", "test_set"),
            ("trainA", "testA"),
            ("my train", "my-validation"),
        )
    },
    **{
        f"classes {a} and {b}": case(f"{a}/", f"{b}/", classes=tuple(sorted((a, b))))
        for a, b in (
            ("train station", "castle"),
            ("test tube", "valley"),
            ("trains", "tests"),
            ("test", "other"),
        )
    },
    "splits below the classes": case(
        *cross(("cat", "dog"), ("train", "test")),
        refused="the splits test, train are inside the class folders, but should be above them",
    ),
    "a patient on both sides": case(
        "train/cat/p1/",
        "train/dog/p2/",
        "test/cat/p1/",
        "test/dog/p3/",
        refused="training and test share 1 group, for example the group of",
    ),
    # Visits were once separate groups: a patient was on both sides, without a warning.
    "visits of patients": case(
        *cross(("cat/p1", "cat/p2", "dog/p2", "dog/p3"), ("v1", "v2")),
        groups=3,
        flags={"in a deeper folder, counted to its group": 24},
        **TWO,
    ),
    "a visit on each side": case(
        "train/cat/p1/v1/",
        "train/dog/p2/",
        "test/cat/p1/v2/",
        "test/dog/p3/",
        refused="training and test share 1 group, for example the group of",
    ),
    ("visits in patients' classes"): case(
        *cross(("p1/cat", "p1/dog", "p2/cat", "p2/dog"), ("v1", "v2")),
        layout="group/class",
        groups=2,
        **TWO,
    ),
    # masks
    "folders of masks": case(
        *cross(("cat", "dog"), ("images", "masks")),
        images=6,
        groups=6,
        excluded={"in a folder of masks": 6},
        **TWO,
    ),  # COVID-19 Radiography Database
    "folders called images": case("cat/images/", "dog/images/", groups=6),  # Tiny ImageNet
    **{
        f"mask {mask}": case(*CATS, mask, excluded={"a mask beside its image": 1}, flags={}, **TWO)
        for mask in (
            "cat/0_mask.png",
            "cat/0-mask_1.PNG",
            "cat/0 seg.png",
        )
    },
    **{
        f"mask {mask}": case(
            *CATS,
            mask,
            excluded={"a mask beside its image": 1},
            flags=left_out(mask.partition("/")[0]),
            **TWO,
        )
        for mask in ("cat_masks/0.png", "cat_masks/images/0.png", "Cat_Masks/p1/visit/0.png")
    },
    "a class with the name of another class's masks, as said": case(
        *CATS,
        "cat_mask/",
        label_map={"cat_mask": "cat_mask"},
        classes=("cat", "cat_mask", "dog"),
        excluded={},
    ),
    "a class of masks in a split": case(
        *SPLIT,
        "train/cat_masks/p1/0.png",
        excluded={"a mask beside its image": 1},
        flags=left_out("cat_masks"),
        **TWO,
    ),
    "a class with the name of a mask": case(
        "cat_masks/images/", "dog/images/", classes=("cat_masks", "dog"), excluded={}
    ),
    # masks where class folders lie
    **{
        f"masks beside the classes, in {masks}": case(
            *CATS,
            f"{masks}/",
            images=6,
            excluded={"in a folder of masks": 3},
            flags=left_out(masks),
            **TWO,
        )
        for masks in ("masks", "Segmentations")
    },
    "masks beside the classes of a split": case(
        *SPLIT,
        "train/masks/",
        images=12,
        excluded={"in a folder of masks": 3},
        flags=left_out("masks"),
        **TWO,
    ),
    "masks beside the splits": case(
        *SPLIT, "masks/cat/", "masks/dog/", images=12, excluded={"in a folder of masks": 6}, **TWO
    ),
    "a class called masks, as said": case(
        "cat/", "masks/", label_map={"masks": "masks"}, classes=("cat", "masks"), excluded={}
    ),
    "a class called mask": case("mask/", "no_mask/", classes=("mask", "no_mask"), excluded={}),
    **{
        f"{masks} beside images": case(
            "images/",
            f"{masks}/",
            refused=f"has 1 class folder.*The folder '{masks}' was left out",
        )
        for masks in ("mask", "masks")
    },
    **{
        f"{masks} with the same subfolders as images": case(
            *cross(("images", masks)),
            refused="If the classes are the subfolders of 'images', use the path of 'images'",
        )
        for masks in ("mask", "masks")
    },
    "splits of images and of masks": case(
        *cross(("images/train", "images/test", "masks/train", "masks/test")),
        images=12,
        excluded={"in a folder of masks": 12},
        **TWO,
    ),
    **{
        f"a class called {name} below patients": case(
            *cross(("p1", "p2"), (name, "other")),
            layout="group/class",
            refused=f"The folder '{name}' was left out.*add --label-map {name}={name} ",
        )
        for name in ("mask", "masks", "images")
    },
    **{
        f"a class called {name} below patients, as said": case(
            *cross(("p1", "p2"), (name, "other")),
            layout="group/class",
            label_map={name: name},
            classes=tuple(sorted((name, "other"))),
            images=12,
            groups=2,
            excluded={},
            flags={},
        )
        for name in ("mask", "masks", "images")
    },
    "masks beside two classes below patients": case(
        *cross(("p1", "p2"), ("cat", "dog", "mask")),
        layout="group/class",
        excluded={"in a folder of masks": 6},
        flags=left_out("mask"),
        **TWO,
    ),
    # patients on top
    **{
        f"{tops} on top": case(*cross(tops), refused=f"{ASKED}.*--layout")
        for tops in (("site1", "site2"), ("p1", "p2", "p3"))
    },
    "patients on top, as said": case(*cross(("p1", "p2")), layout="group/class", groups=2, **TWO),
    "classes on top, as said": case(
        *cross(("p1", "p2")), layout="class/group", classes=("p1", "p2"), groups=2
    ),
    **{
        f"names on top, {a} and {b}": case(
            *FOUR,
            a,
            b,
            refused=rf"the same 2 subfolder names occur in \d top folders, {ASKED}",
        )
        for a, b in (("Smith/cat/", "Jones/dog/"), ("Smith/cat/", "Smith/dog/"))
    },
    "an image without a class": case(
        *cross(("p1", "p2")),
        "p3/",
        "Smith/notes.txt",
        layout="group/class",
        excluded={"outside the class folders": 3, "not an image by its extension": 1},
        flags={"folder without an image": 2},
    ),
    # something else
    **{
        f"a folder of {name}": case(name, refused=NO_CLASSES + hint)
        for name, hint in {
            "cats.zip": "The folder contains archives: use the path of one",
            "train/metadata.jsonl": TABLE,
            "train/metadata.csv": TABLE,
            "a/x.h5": "The folder contains a file of arrays: use its path",
            "train/data-00000-of-00001.arrow": (
                "Convert the output of `datasets.save_to_disk` with `to_parquet`"
            ),
            "a/x.nii.gz": "The folder contains NIfTI volumes: list",
            "a/IM0001": "Add an extension to the files: only DICOM files outside archives may have none",
        }.items()
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_is_prepared_or_refused_as_stated(prepare, tmp_path, name):
    names, options, files, verdict = CASES[name]
    raw = write_tree(tmp_path / "raw", *names, *files)
    for path, body in files.items():
        (raw / path).write_bytes(body)
    message = check_verdict(verdict, lambda: prepare("folder", raw, **options))
    assert not any(patient in message for patient in PATIENT_NAMES)


LINKS_AND_FILES_ELSEWHERE = {
    "a link out": (lambda cat: os.symlink(__file__, cat / "x.png"), "outside the raw folder"),
    "a link to nothing": (lambda cat: os.symlink("nowhere", cat / "x.png"), "link to"),
    "a link to itself": (lambda cat: os.symlink("x.png", cat / "x.png"), "link to"),
    "a link to its folder": (lambda cat: os.symlink(".", cat / "x.png"), "link to"),
    "a linked class": (
        lambda cat: os.symlink(cat, cat.parent / "horse"),
        "a link to a folder, or to a file outside the",
    ),
    "a FIFO": (lambda cat: os.mkfifo(cat / "x.png"), "a FIFO, socket or device"),
}


@pytest.mark.parametrize("name", LINKS_AND_FILES_ELSEWHERE)
def test_a_folder_that_leads_elsewhere_is_refused(prepare, class_folder, name):
    change, message = LINKS_AND_FILES_ELSEWHERE[name]
    change(class_folder / "cat")
    with pytest.raises(DataError, match=message):
        prepare("folder", class_folder)


def test_a_linked_root_and_links_inside_are_read(prepare, class_folder, tmp_path):
    os.symlink(class_folder / "cat" / "0.png", class_folder / "cat" / "link.png")
    os.symlink(class_folder, tmp_path / "linked")
    check_verdict({"images": 11, "duplicates": 1}, lambda: prepare("folder", tmp_path / "linked"))


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
def test_files_with_odd_names_are_read(prepare, class_folder, name):
    with open(os.path.join(os.fsencode(class_folder), b"cat", name), "wb") as file:
        file.write(png(picture(61)))
    assert prepare("folder", class_folder).num_images == 11


@pytest.mark.parametrize("name", [b"\xe9", b" ", "a\u202eb".encode(), b"a\x1b[2J", b"x" * 240])
def test_classes_that_cannot_be_shown_are_refused(prepare, class_folder, name):
    os.rename(class_folder / "cat", os.path.join(os.fsencode(class_folder), name))
    with pytest.raises(DataError, match="blank"):
        prepare("folder", class_folder)


def test_a_missing_source_is_refused_with_the_nearest_name(prepare, tmp_path):
    with pytest.raises(
        DataError, match=r"none of mine was not found\. The folder .* has no none\. The"
    ):
        prepare("folder", tmp_path / "none")


def test_changed_files_are_noticed_and_a_repaired_one_is_read_again(prepare, class_folder):
    good = (class_folder / "cat" / "0.png").read_bytes()
    (class_folder / "cat" / "0.png").write_bytes(good[:40])
    with pytest.raises(DataError, match="not an image"):
        prepare("folder", class_folder)
    (class_folder / "cat" / "0.png").write_bytes(good)
    assert (
        prepare("folder", class_folder).num_images
        == prepare("folder", class_folder).num_images
        == 10
    )
    (class_folder / "cat" / "new.png").write_bytes(png(picture(99)))
    with pytest.raises(
        DataError,
        match=r"the files or label_map have changed since the dataset was prepared "
        r"\(1 new or changed image, the first in [0-9a-f]{16}\)",
    ):
        prepare("folder", class_folder)


def test_new_times_of_equal_files_are_accepted_and_stored(prepare, class_folder, monkeypatch):
    before = prepare("folder", class_folder).record
    os.utime(class_folder / "cat" / "0.png", (1, 1))
    after = prepare("folder", class_folder).record
    assert after == before.model_copy(update={"raw_id": after.raw_id})
    assert after.raw_id != before.raw_id
    monkeypatch.setattr("tasks.prepared.prepare.read_again", None)  # nothing is read again
    assert prepare("folder", class_folder).record == after


def test_other_pixels_of_the_same_size_are_refused(prepare, class_folder):
    prepare("folder", class_folder)
    (class_folder / "cat" / "0.png").write_bytes(png(picture(99)))
    with pytest.raises(
        DataError,
        match=r"1 new or changed image, the first in \w{16}; 1 prepared image not found",
    ):
        prepare("folder", class_folder)


@pytest.mark.parametrize("extension", [".dcm", ""])
@pytest.mark.parametrize(
    ("patient", "layout", "classes"),
    [
        (lambda top, below, number: f"X{top}", "group/class", ("g0", "g1")),
        (lambda top, below, number: f"X{below}", "class/group", ("f0", "f1")),
        (lambda top, below, number: f"X{number}", None, ()),
    ],
    ids=["on top", "below", "neither"],
)
def test_headers_show_which_folders_are_patients(
    prepare, tmp_path, patient, layout, classes, extension
):
    for number in range(12):
        top, below = f"f{number % 2}", f"g{number // 2 % 2}"
        data = make_dicom(picture(number, (16, 16)), patient=patient(top, below, number), bits=8)
        save_dicom(tmp_path / "raw" / top / below / f"{number}{extension}", data)
    verdict = {
        "classes": classes,
        "flags": {f"layout {layout}, by the patient ids in DICOM headers": 12},
    }
    check_verdict(
        verdict if layout else ASKED,
        lambda: prepare("folder", tmp_path / "raw", for_training=False),
    )


@pytest.mark.parametrize("ending", ["", ".1.2.840.113"])
def test_dicom_files_without_an_ending(prepare, class_folder, ending):
    for index, path in enumerate(sorted(class_folder.rglob("*.png"))):
        save_dicom(
            path.with_suffix(ending), make_dicom(picture(index), bits=8, patient=f"P{index}")
        )
        path.unlink()
    (class_folder / "cat/LICENSE").write_text("no image " * 30)
    verdict = {"images": 10, "groups": 10, "excluded": {"not an image by its extension": 1}}
    check_verdict(verdict, lambda: prepare("folder", class_folder))


def test_masks_of_dicom_files_without_extensions_are_left_out(prepare, tmp_path):
    names = ("cat/IM1", "cat/IM1_mask", "wow!/IM2", "wow!/1.2.3", "wow!/IM2_mask")
    for number, name in enumerate(names):
        data = make_dicom(picture(number, (16, 16)), patient=f"P{number}", bits=8)
        save_dicom(tmp_path / "raw" / name, data)

    check_verdict(
        {
            "classes": ("cat", "wow!"),
            "images": 3,
            "excluded": {"a mask beside its image": 2},
        },
        lambda: prepare("folder", tmp_path / "raw"),
    )
