"""Arrays in .npz and HDF5 files: keys, shapes, ranges of values, and files that lie about their size."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search_spaces.errors import DataError
from search_spaces.sweeps import OwnSourceSpec
from tests.raw_trees.own import save_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
LABELS = np.arange(12) % 2
BOTH = pytest.mark.parametrize("kind", ["npz", "hdf5"])


@BOTH
class TestKeys:
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

    def test_a_group_on_both_sides_is_refused(self, prepare, tmp_path, kind):
        arrays = {f"{split}_{name}": values for split in ("train", "test") for name, values in
                  (("images", IMAGES[:6] if split == "train" else IMAGES[6:]), ("labels", LABELS[:6]),
                   ("groups", np.arange(6)))}  # fmt: skip
        with pytest.raises(DataError, match="no group may be in train and test; found: 6, first"):
            prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))

    def test_more_images_than_there_are_is_refused(self, prepare, tmp_path, kind, monkeypatch):
        """Five megabytes of zeros can be two hundred million images with labels of many gigabytes."""
        from tasks.sources import arrays

        monkeypatch.setattr(arrays, "MAX_IMAGES", 11)
        with pytest.raises(DataError, match="at most 11 images; found: 12"):
            prepare(kind, save_arrays(tmp_path / "a", kind, images=IMAGES, labels=LABELS))

    def test_images_of_a_split_without_labels_are_refused(self, prepare, tmp_path, kind):
        arrays = {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES[:4]}
        with pytest.raises(
            DataError, match="test_images and test_labels must both be in the file; found: no test_labels"
        ):
            prepare(kind, save_arrays(tmp_path / "a", kind, **arrays))


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


class TestNpz:
    @pytest.mark.parametrize("compress", [False, True])
    def test_round_trip(self, prepare, tmp_path, compress):
        write = np.savez_compressed if compress else np.savez
        write(tmp_path / "x.npz", images=IMAGES, labels=LABELS, groups=np.arange(12) // 3)
        data = prepare("npz", tmp_path / "x.npz")
        np.testing.assert_array_equal(data.read(0, 12)[:, 0], IMAGES)
        assert data.labels.tolist() == LABELS.tolist()
        assert data.record.num_groups == 4

    @pytest.mark.parametrize(
        ("images", "expected"),
        [
            (IMAGES / 255, IMAGES),
            (IMAGES.astype(np.float16), IMAGES),
            (IMAGES.astype(">f8"), IMAGES),
            (np.asfortranarray(IMAGES), IMAGES),
            (IMAGES[:, None], IMAGES),
            (IMAGES[..., None], IMAGES),
            (np.repeat(IMAGES[:, None], 3, 1), IMAGES),
            (np.repeat(IMAGES[..., None], 3, -1), IMAGES),
        ],
        ids=["0..1", "float16", "big-endian", "fortran", "nchw1", "nhwc1", "nchw3", "nhwc3"],
    )
    def test_layouts_and_ranges(self, prepare, tmp_path, images, expected):
        data = prepare("npz", save(tmp_path / "x.npz", images=images, labels=LABELS))
        np.testing.assert_allclose(data.read(0, 12)[:, 0], expected, atol=1e-3)

    def test_more_than_8_bits_are_scaled_by_the_own_maximum(self, prepare, tmp_path):
        images = IMAGES.astype(np.uint16) * 16
        record = prepare("npz", save(tmp_path / "x.npz", images=images, labels=LABELS)).record
        assert record.conversions == {"scaled by own maximum": 12}

    def test_text_labels_and_names(self, prepare, tmp_path):
        labels = np.array(["b", "a"])[LABELS]
        assert prepare("npz", save(tmp_path / "x.npz", images=IMAGES, labels=labels)).label_names == (
            "a",
            "b",
        )

    def test_label_names(self, prepare, tmp_path):
        path = save(tmp_path / "x.npz", images=IMAGES, labels=LABELS, label_names=np.array(["no", "yes"]))
        assert prepare("npz", path).label_names == ("no", "yes")

    def test_rows_with_nan_are_skipped(self, prepare, tmp_path):
        images = IMAGES / 255
        images[3, 2, 2] = np.nan
        record = prepare(
            "npz", save(tmp_path / "x.npz", images=images, labels=LABELS), max_skipped_share=0.1
        ).record
        assert record.skipped == {"values not finite": 1}

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": IMAGES}, "array labels must be in the .npz"),
            ({"labels": LABELS}, "array images must be in the .npz"),
            ({"images": IMAGES[:5], "labels": LABELS}, "labels must be 5 numbers or texts, one per image"),
            ({"images": IMAGES[0], "labels": LABELS}, "images must be numbers of shape"),
            ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must be numbers of shape"),
            ({"images": IMAGES.astype(object), "labels": LABELS}, "never unpickled"),
            ({"images": IMAGES - 100.0, "labels": LABELS}, r"must lie in \[0, 1\] or \[0, 255\]"),
            (
                {"images": IMAGES, "labels": LABELS, "label_names": np.array(["a"])},
                "names, 0 to 0; found: 6: row 1",
            ),
        ],
    )
    def test_bad_archives_are_refused(self, prepare, tmp_path, arrays, message):
        with pytest.raises(DataError, match=message):
            prepare("npz", save(tmp_path / "x.npz", **arrays))

    def test_damage_and_lies_are_refused(self, prepare, tmp_path):
        path = save(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
        body = path.read_bytes()
        path.write_bytes(body[:-40])
        with pytest.raises(DataError, match="must be whole, as numpy saves it; found: damaged"):
            prepare("npz", path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", _header((10**12, 8, 8)))
            archive.writestr("labels.npy", b"")
        with pytest.raises(DataError, match="more than the member holds"):
            prepare("npz", path)
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(1200):
                archive.writestr(f"{index}.npy", b"")
        with pytest.raises(DataError, match="more than 1,000 members"):
            prepare("npz", path)


def _header(shape) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


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


def test_own_source_spec_checks_the_range():
    with pytest.raises(ValueError, match="two rising numbers"):
        OwnSourceSpec(kind="npz", path="x", domain="natural", pixel_range=(1.0, 0.0))


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
