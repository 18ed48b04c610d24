"""Arrays in .npz and HDF5 files: keys, shapes, ranges of values, and files that declare a wrong
size."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import h5py
import numpy as np
import pytest

from search_spaces.errors import DataError
from search_spaces.sweeps import UserSourceSpec
from tasks.sources import source_for
from tests.raw_trees.own import save_arrays
from tests.raw_trees.pictures import save_image
from tests.unit.tasks.sources.conftest import check_verdict, request_for

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
LABELS = np.arange(12) % 2
FLOATS = np.random.default_rng(1).random((12, 8, 8))
SIGNED = np.random.default_rng(2).integers(-500, 500, (12, 8, 8)).astype(np.int16)
KINDS = ("npz", "hdf5")
BOTH = pytest.mark.parametrize("kind", KINDS)


def with_value(images: np.ndarray, value: float) -> np.ndarray:
    changed = images.copy()
    changed[3, 2, 2] = value
    return changed


def of(
    images: np.ndarray = IMAGES, labels: np.ndarray = LABELS, **more: np.ndarray
) -> dict[str, np.ndarray]:
    return {"images": images, "labels": labels, **more}


def parts(images: np.ndarray = IMAGES, **rows: slice) -> dict[str, np.ndarray]:
    """Return arrays with the keys, order and label shape of ``medmnist``'s files."""
    arrays = {}
    for split, places in rows.items():
        arrays |= {
            f"{split}_images": images[places],
            f"{split}_labels": LABELS[places, None].astype(np.uint8),
        }
    return arrays


MEDMNIST = {"train": slice(0, 6), "val": slice(6, 8), "test": slice(8, 12)}
OF_SPLITS = {
    "splits": [1] * 6 + [2] * 4,
    "labels": LABELS[np.r_[0:6, 8:12]].tolist(),
    "excluded": {"validation split": 2},
}
TRAIN_TEST = {"train": slice(0, 6), "test": slice(6, 12)}
GROUPED = {f"{split}_groups": np.arange(6) for split in ("train", "test")}
SHAPE = r"8\), which are not images\. Save numbers of shape \(n, height, width\)"
RANGE = "so it is unclear which value is white"
X_Y_UNUSED = {"column y not used, since there is label": 12, "columns not used: x": 12}
PLAIN = {"labels": LABELS.tolist(), "groups": 12, "flags": {}}
CASES: dict[str, tuple[dict[str, np.ndarray], dict[str, object], str | dict[str, object]]] = {
    # keys
    **{
        f"{x}, {y}": ({x: IMAGES, y: LABELS}, {}, PLAIN)
        for x, y in (("images", "labels"), ("x", "y"), ("X", "y"), ("data", "target"))
    },
    "groups": (of(groups=np.arange(12) // 3), {}, {"groups": 4}),
    "MedMNIST": (parts(**MEDMNIST), {}, OF_SPLITS),
    "MedMNIST in colour": (
        parts(np.stack([IMAGES] * 3, -1), **MEDMNIST),
        {"channels": 3},
        OF_SPLITS,
    ),
    "Keras": (
        {"x_train": IMAGES[:8], "y_train": LABELS[:8], "x_test": IMAGES[8:], "y_test": LABELS[8:]},
        {},
        {"splits": [1] * 8 + [2] * 4},
    ),
    "no labels": ({"images": IMAGES}, {}, "the file has no array labels, only images"),
    "no images": ({"labels": LABELS}, {}, "the file has no array images, only labels"),
    "empty": (
        {"images": IMAGES[:0], "labels": LABELS[:0]},
        {},
        r"images is empty: its shape is \(0",
    ),
    "no labels of a split": (
        {**parts(train=slice(12)), "test_images": IMAGES[:4]},
        {},
        "the file has the array 'test_images', but no array 'test_labels'",
    ),
    "two sets": (of(x=IMAGES, y=LABELS), {}, "the file has several sets of images: images, x"),
    "two sets, one with two arrays of labels": (
        of(data=IMAGES, target=LABELS),
        {},
        r"the file has several sets of images: images, data\.",
    ),
    **{
        f"{images} with {first} and {second}": (
            {images: IMAGES, first: LABELS, second: LABELS},
            {},
            f"the images in {images} have several arrays of labels: {first}, {second}",
        )
        for images, first, second in (("data", "target", "labels"), ("X", "y", "Y"))
    },
    "an array label beside the labels": (
        of(label=LABELS[::-1]),
        {},
        {"labels": LABELS.tolist(), "flags": {"columns not used: label": 12}},
    ),
    "an array label beside the labels of a split": (
        parts(**TRAIN_TEST) | {"train_Label": LABELS[:6]},
        {},
        {"labels": LABELS.tolist(), "flags": {"columns not used: train_Label": 12}},
    ),
    "a group on both sides": (
        {**parts(train=slice(6), test=slice(6, 12)), **GROUPED},
        {},
        "share 6 groups, for example the group of row train_images/0 and row test_images/0",
    ),
    "a class of one side": (
        {
            "train_images": IMAGES[:6],
            "train_labels": LABELS[:6],
            "test_images": IMAGES[6:],
            "test_labels": LABELS[6:] + 1,
        },
        {},
        {"flags": {"class only in the training split: 0": 1, "class only in the test split: 2": 1}},
    ),
    "columns x and y beside the images": (
        of(x=np.arange(12.0), y=np.arange(12.0)),
        {},
        {"labels": LABELS.tolist(), "flags": X_Y_UNUSED},
    ),
    "single numbers with names of validation arrays": (
        {"x_train": IMAGES, "y_train": LABELS, "x_val": np.float64(0.2), "y_val": np.float64(0.3)},
        {},
        {"labels": LABELS.tolist(), "excluded": {}},
    ),
    "class names of scikit-learn": (
        {"data": IMAGES, "target": LABELS, "target_names": np.array(["cat", "dog"])},
        {},
        {"classes": ("cat", "dog"), "flags": {}},
    ),
    "target_names beside labels are a column": (
        of(target_names=np.array(["cat", "dog"])[LABELS]),
        {},
        {"classes": ("0", "1"), "flags": {"columns not used: target_names": 12}},
    ),
    # labels
    "words": (of(labels=np.array(["b", "a"])[LABELS]), {}, {"classes": ("a", "b")}),
    "names": (of(label_names=np.array(["no", "yes"])), {}, {"classes": ("no", "yes")}),
    "a name without an image": (
        of(label_names=np.array(["no", "yes", "x"])),
        {},
        {"classes": ("no", "yes", "x"), "flags": {"class without a usable image: x": 1}},
    ),
    "a number without a name": (
        of(label_names=np.array(["a"])),
        {},
        ("not a class number from 0 to 0 for 6 images: row 1, row"),
    ),
    "several labels of an image": (
        of(labels=np.zeros((12, 14), np.uint8)),
        {},
        r"the array labels contains uint8 values of shape \(12, 14\), not one number",
    ),
    "labels of others": (
        of(IMAGES[:5]),
        {},
        r"contains int64 values of shape \(12,\), not one number or text for each of the 5 images",
    ),
    "images along the last axis": (
        of(np.moveaxis(IMAGES, 0, -1)),
        {},
        r"array images has the shape \(8, 8, 12\), and the array labels has 12 values, so the last "
        r"axis of images seems to count the images\. Make it the first axis",
    ),
    # shapes and values
    "one image": (of(IMAGES[0]), {}, SHAPE),
    "no image": (of(IMAGES[:0], LABELS[:0]), {}, r"images is empty: its shape is \(0, 8, 8\)"),
    "more than 8 bits": (
        of(IMAGES.astype(np.uint16) * 16),
        {},
        {"conversions": {"scaled by own maximum": 12}},
    ),
    "NaN in one": (
        of(with_value(FLOATS, np.nan)),
        {"max_skipped_share": 0.1},
        {"images": 11, "skipped": {"values not finite": 1}},
    ),
    "negative floats": (of(IMAGES - 100.0), {}, RANGE),
    "Hounsfield units": (
        of(with_value(FLOATS * 900, -1000)),
        {},
        (r"pixel_range: \[-1000, " r"89\d.*-1000 89"),
    ),
    "around 0": (
        of(FLOATS * 2 - 1),
        {},
        r"contains all values is `pixel_range: \[-1, 1\]` .for isweep measure: --pixel-range -1 1",
    ),
    "one value": (of(FLOATS * 0 + 2), {}, r"contains all values is `pixel_range: \[0, 2\]`"),
    "nearly all cut": (
        of(SIGNED * 1.0),
        {"pixel_range": (-1.0, 1.0)},
        r"99\.6% of the values lie outside pixel_range \[-1, 1\]; all values lie in \[-499, 499\]",
    ),
    "a window": (
        of(SIGNED * 1.0),
        {"pixel_range": (-160.0, 240.0)},
        {"flags": {"values outside pixel_range clipped": 12}},
    ),
    "a range of which they fill nothing": (
        of(FLOATS),
        {"pixel_range": (-1e300, 1e300)},
        r"0\.999025881\], which is less than 0\.01% of pixel_range \[-1e\+300, 1e\+300\]",
    ),
    ("train in [0, 1], test in [0, 255]"): (
        parts(np.r_[FLOATS[:6], FLOATS[6:] * 255], **TRAIN_TEST),
        {},
        r"test images seem to have different scales\. .* In both together, the values are in \[0\.00274714758,",
    ),
    "what was proposed": (
        of(SIGNED / 7),
        {"pixel_range": (-71.4285736, 71.2857132)},
        {"flags": {}},
    ),
    # Such values come from a resize with overshoot, a standardization or a network.
    **{
        f"floats up to {top}": (of(with_value(FLOATS, top)), {}, RANGE)
        for top in (1.0000001, 1.02, 2.0, 100.0)
    },
    "beyond pixel_range": (
        of(with_value(FLOATS, 1.5)),
        {"pixel_range": (0.0, 1.0)},
        {"flags": {"values outside pixel_range clipped": 1}},
    ),
    "negative numbers": (of(SIGNED), {}, {"flags": {"negative values clipped to 0": 12}}),
}


@BOTH
@pytest.mark.parametrize("name", CASES)
def test_arrays_are_prepared_or_refused_as_stated(prepare, tmp_path, name, kind):
    arrays, options, verdict = CASES[name]
    path = save_arrays(tmp_path / "a", kind, **arrays)
    check_verdict(verdict, lambda: prepare(kind, path, **options))


@BOTH
def test_a_folder_is_no_file_of_arrays(prepare, tmp_path, kind):
    check_verdict(r"the path is a folder, not a file of arrays\.", lambda: prepare(kind, tmp_path))


LAYOUTS = {
    "as they are": (IMAGES, None),
    "0..1": (IMAGES / 255, None),
    "float16": (IMAGES.astype(np.float16), None),
    "big-endian": (IMAGES.astype(">f8"), None),
    "fortran": (np.asfortranarray(IMAGES), None),
    "nchw1": (IMAGES[:, None], None),
    "nhwc1": (IMAGES[..., None], None),
    "nchw3": (np.repeat(IMAGES[:, None], 3, 1), None),
    "nhwc3": (np.repeat(IMAGES[..., None], 3, -1), None),
    "-1..1": (IMAGES / 127.5 - 1, (-1.0, 1.0)),
}


@BOTH
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_and_ranges_give_the_same_pixels(prepare, tmp_path, name, kind):
    images, pixel_range = LAYOUTS[name]
    data = prepare(kind, save_arrays(tmp_path / "x", kind, **of(images)), pixel_range=pixel_range)
    np.testing.assert_allclose(data.read(0, 12)[:, 0], IMAGES, atol=1e-3)
    assert data.record.flags == {}


def test_negative_values_of_files_are_flagged_too(prepare, tmp_path):
    for index in range(4):
        save_image(
            tmp_path / "raw" / "ab"[index % 2] / f"{index}.tiff", SIGNED[index].astype(np.float32)
        )
    assert prepare("folder", tmp_path / "raw").record.flags["negative values clipped to 0"] == 4


def test_a_pixel_range_must_rise():
    with pytest.raises(ValueError, match=r"\npixel_range\n.*two different numbers"):
        UserSourceSpec(kind="npz", path="x", domain="natural", pixel_range=(1.0, 0.0))


@BOTH
def test_a_block_travels_without_the_others(tmp_path, kind):
    path = save_arrays(tmp_path / "a", kind, **of(np.repeat(IMAGES, 100, 0), np.tile(LABELS, 100)))
    items = source_for(kind).list_items(request_for(kind, path)).items
    assert len(pickle.dumps(items[5:7])) < 1000
    assert pickle.loads(pickle.dumps(items[5:7])) == [items[5], items[6]]
    assert list(items[3:9:2]) == [items[3], items[5], items[7]]
    assert items[-1] == list(items)[-1]


@BOTH
def test_more_images_than_there_are_is_refused(prepare, tmp_path, kind, monkeypatch):
    """Five megabytes of zeros can be two hundred million images with labels of many gigabytes."""
    from tasks.sources.arrays import listing

    monkeypatch.setattr(listing, "MAX_IMAGES", 11)
    with pytest.raises(
        DataError, match=r"the file has 12 images, but isweep can read at most 11\. Save fewer"
    ):
        prepare(kind, save_arrays(tmp_path / "a", kind, **of()))


# Files that are damaged or inconsistent.


def header(*shape: int) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return stream.getvalue()


def zipped(members: dict[str, bytes], declared: int | None = None) -> bytes:
    """Return a compressed .npz. ``declared`` replaces the first member's size in the directory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, body in members.items():
            archive.writestr(f"{name}.npy", body)
    body = stream.getvalue()
    if declared is None:
        return body
    place = body.index(b"PK\x01\x02") + 24
    return body[:place] + struct.pack("<I", declared) + body[place + 4 :]


def saved(save=np.savez, count: int = 12, **arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    save(stream, **{**of(np.resize(IMAGES, (count, 8, 8)), np.arange(count) % 2), **arrays})
    return stream.getvalue()


def flipped(body: bytes, place: float) -> bytes:
    changed = bytearray(body)
    changed[int(place * len(body))] ^= 0x10
    return bytes(changed)


HUGE = {
    "images": header(200 << 20, 32, 32) + bytes(1 << 20),
    "labels": header(200 << 20) + bytes(1 << 20),
}
LIES = {
    "cut": (saved()[:-40], r"the \.npz file cannot be read: damaged archive"),
    "objects": (
        saved(images=IMAGES.astype(object)),
        "pickled Python objects, which isweep does not load",
    ),
    "a terabyte": (
        zipped({"images": header(10**12, 8, 8), "labels": b""}),
        (
            r"array 'images' has fewer values than the shape \(1000000000000, 8, 8\), which its header"
        ),
    ),
    "many members": (
        zipped({str(number): b"" for number in range(1200)}),
        "more than 1,000 members",
    ),
    "200 GiB": (zipped(HUGE), "fewer values than the shape"),
    "200 GiB, and so the directory": (
        zipped(HUGE, 0xFFFFFFF0),
        ("declares more than its packed size"),
    ),
    **{
        (f"a flipped byte at {place} of {save.__name__}"): (
            flipped(saved(save, 2000), place),
            "damaged",
        )
        for save in (np.savez, np.savez_compressed)
        for place in (0.1, 0.5, 0.9)
    },
}


@pytest.mark.parametrize("name", LIES)
def test_damaged_or_inconsistent_npz_files_are_refused(prepare, tmp_path, name):
    body, message = LIES[name]
    (tmp_path / "x.npz").write_bytes(body)
    with pytest.raises(DataError, match=message):
        prepare("npz", tmp_path / "x.npz")


def virtual() -> h5py.VirtualLayout:
    layout = h5py.VirtualLayout(shape=IMAGES.shape, dtype=IMAGES.dtype)
    layout[:] = h5py.VirtualSource("other.h5", "images", shape=IMAGES.shape)
    return layout


HDF5 = {
    "a link to another file": (
        lambda file: file.update({"images": h5py.ExternalLink("other.h5", "images")}),
        ("images' is a link, or a view of other files"),
    ),
    "a link through another file": (
        lambda file: file.update(
            {"x": h5py.ExternalLink("other.h5", "/"), "images": h5py.SoftLink("/x/images")}
        ),
        "images' is a link, or a view of other files",
    ),
    "a view of another file": (
        lambda file: file.create_virtual_dataset("images", virtual()),
        "images' is a link, or a view of other files",
    ),
    "terabytes that nobody wrote": (
        lambda file: file.create_dataset(
            "images", (10**7, 512, 512), chunks=(1, 512, 512), dtype="u1"
        ),
        "the array 'images' is empty: no values were written",
    ),
}


@pytest.mark.parametrize("name", HDF5)
def test_hdf5_files_that_lead_elsewhere_or_lie_are_refused(prepare, tmp_path, name):
    write, message = HDF5[name]
    save_arrays(tmp_path / "other", "hdf5", images=IMAGES)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        write(file)
        file["labels"] = LABELS
    with pytest.raises(DataError, match=message):
        prepare("hdf5", tmp_path / "x.h5")


def test_unused_hdf5_arrays_of_lists_and_references_are_flagged(prepare, tmp_path):
    path = save_arrays(tmp_path / "x", "hdf5", **of())
    with h5py.File(path, "a") as file:
        boxes = file.create_dataset("boxes", (12,), dtype=h5py.vlen_dtype(np.int32))
        references = file.create_dataset("references", (12,), dtype=h5py.ref_dtype)
        for row in range(12):
            boxes[row] = np.arange(row + 1)
            references[row] = file["images"].ref

    check_verdict(
        {"labels": LABELS.tolist(), "flags": {"columns not used: boxes, references": 12}},
        lambda: prepare("hdf5", path),
    )


def test_an_hdf5_group_array_of_lists_is_refused(prepare, tmp_path):
    path = save_arrays(tmp_path / "x", "hdf5", **of())
    with h5py.File(path, "a") as file:
        groups = file.create_dataset("group", (12,), dtype=h5py.vlen_dtype(np.int32))
        for row in range(12):
            groups[row] = np.arange(row + 1)

    with pytest.raises(DataError, match=r"the array group contains object values of shape"):
        prepare("hdf5", path)


def test_a_cut_hdf5_file_is_refused(prepare, tmp_path):
    path = save_arrays(tmp_path / "x", "hdf5", **of())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="the file is damaged, or not an HDF5 file"):
        prepare("hdf5", path)
