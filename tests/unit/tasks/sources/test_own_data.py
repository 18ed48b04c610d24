"""Own data: folder per class, CSV manifest, .npz; good input in, bad input out with a message."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import ConfigError, DataError
from tasks.sources import source_for
from tests.unit.tasks.sources.conftest import picture, png


def test_unknown_source_names_the_known_ones():
    with pytest.raises(ConfigError, match="did you mean 'folder'"):
        source_for("foldr")


def test_registered_sources_are_found(monkeypatch):
    from importlib.metadata import EntryPoint

    import tasks.sources as registry
    from tasks.sources.demo import Digits

    point = EntryPoint("theirs", "tasks.sources.demo:Digits", "isweep.sources")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert isinstance(source_for("theirs"), Digits)


class TestFolder:
    def test_classes_labels_and_pixels(self, prepare, class_folder):
        data = prepare("folder", class_folder)
        assert data.label_names == ("cat", "dog")
        assert data.labels.tolist() == [0] * 5 + [1] * 5
        assert data.record.num_groups == 10

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
        with pytest.raises(DataError, match=r"must exist; found: no .*/none; expected"):
            prepare("folder", tmp_path / "none")


def write_manifest(folder: Path, text: str | bytes) -> Path:
    path = folder / "manifest.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


NAMES = [f"cat/{index}.png" for index in range(5)] + [f"dog/{index}.png" for index in range(5, 10)]


def rows(**columns) -> str:
    """A manifest of the ten pictures; columns are functions of the row number."""
    header = ",".join(("path", *columns))
    lines = [",".join((name, *(str(make(i)) for make in columns.values()))) for i, name in enumerate(NAMES)]
    return "\n".join((header, *lines)) + "\n"


class TestManifest:
    def test_reads_labels_groups_and_splits(self, prepare, class_folder):
        text = rows(
            label=lambda i: i % 3,
            group=lambda i: f"{i // 2:03d}",
            split=lambda i: "test" if i < 2 else "Train",
        )
        data = prepare("csv", write_manifest(class_folder, text))
        assert data.label_names == ("0", "1", "2")
        assert data.labels.tolist() == [i % 3 for i in range(10)]
        assert data.record.num_groups == 5
        assert data.splits.tolist() == [2, 2] + [1] * 8

    def test_folder_with_manifest(self, prepare, class_folder):
        write_manifest(class_folder, rows(label=lambda i: i // 5))
        assert prepare("csv", class_folder).num_images == 10

    @pytest.mark.parametrize(
        "change",
        [
            lambda text: "\ufeff" + text,
            lambda text: text.replace(",", ";"),
            lambda text: text.replace(",", "\t"),
            lambda text: text.replace("\n", "\r\n"),
            lambda text: text.replace("path,label", "Path , LABEL"),
            lambda text: text.replace("cat/0.png", '"cat/0.png"') + "\n\n",
            lambda text: text.replace("cat/0.png", "./cat//0.png").replace("dog/5.png", "dog\\5.png"),
        ],
        ids=["bom", "semicolons", "tabs", "crlf", "header spelling", "quotes", "path spelling"],
    )
    def test_spellings_that_are_accepted(self, prepare, class_folder, change):
        text = change(rows(label=lambda i: i // 5))
        data = prepare("csv", write_manifest(class_folder, text))
        assert data.labels.tolist() == [0] * 5 + [1] * 5

    def test_leading_zeros_are_text(self, prepare, class_folder):
        text = rows(label=lambda i: ["02", "01"][i % 2], group=lambda i: f"00{i}")
        data = prepare("csv", write_manifest(class_folder, text))
        assert data.label_names == ("01", "02")
        assert data.record.num_groups == 10

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"", "must be readable; found: empty file"),
            ("path,label\n", "must have rows"),
            ("file,label\ncat/0.png,1\n", "found: no path"),
            ("path,label,label\ncat/0.png,1,2\n", "label repeated"),
            ("path,label\ncat/0.png\n", "1 lines with another number of columns"),
            ('path,label\n"cat/0.png,1\n', "broken quotes"),
            ("path,label\ncat/\xe9.png,1\n".encode("latin-1"), "must be UTF-8"),
            (b"path,label\ncat/0.png,\x001\n", "zero bytes"),
            (rows(label=lambda i: ["", "a"][i % 2]), "needs a label; found: blank: 5, first"),
            (rows(label=lambda i: 1), "two classes"),
            (rows(label=lambda i: i % 2) + "cat/0.png,1\n", "1 repeated; with different labels: 1, first"),
            (rows(label=lambda i: i % 2) + "cat/none.png,1\n", "missing: 1, first"),
            (rows(label=lambda i: i % 2) + "../secret.png,1\n", "must stay inside"),
            (rows(label=lambda i: i % 2) + "/etc/passwd,1\n", "must stay inside"),
            (rows(label=lambda i: i % 2) + "C:\\x.png,1\n", "must stay inside"),
            (rows(label=lambda i: i % 2, split=lambda i: "dev"), "10 other cells"),
            (rows(label=lambda i: i % 2, group=lambda i: ""), "10 blank"),
            (rows(label=lambda i: i % 2, group=lambda i: "p1"), "one id for 10 of 10"),
            (rows(label=lambda i: i % 2, group=lambda i: "ANON" if i else "p"), "one id for 9 of 10"),
            (
                rows(label=lambda i: i % 2, group=lambda i: i // 2, split=lambda i: ["train", "test"][i % 2]),
                "no group may be in train and test",
            ),
        ],
    )
    def test_bad_manifests_are_refused_without_quoting_cells(self, prepare, class_folder, text, message):
        with pytest.raises(DataError, match=message) as caught:
            prepare("csv", write_manifest(class_folder, text))
        assert "none.png" not in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_files_without_a_row_are_counted(self, prepare, class_folder):
        (class_folder / "extra.png").write_bytes(png(picture(50)))
        record = prepare("csv", write_manifest(class_folder, rows(label=lambda i: i % 2))).record
        assert record.excluded == {"image without a row in the manifest": 1}


def save(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 8, 8)).astype(np.uint8)
LABELS = np.arange(12) % 2


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
            ({"images": IMAGES[:5], "labels": LABELS}, "labels must be 5 whole numbers"),
            ({"images": IMAGES[0], "labels": LABELS}, "images must be numbers of shape"),
            ({"images": IMAGES[:0], "labels": LABELS[:0]}, "images must be numbers of shape"),
            ({"images": IMAGES, "labels": LABELS.astype(float)}, "float64"),
            ({"images": IMAGES, "labels": LABELS - 1}, "must not be negative"),
            ({"images": IMAGES, "labels": LABELS * 0}, "two classes"),
            ({"images": IMAGES, "labels": np.array(["", "a"])[LABELS]}, "must not be empty"),
            ({"images": IMAGES.astype(object), "labels": LABELS}, "never unpickled"),
            ({"images": IMAGES - 100.0, "labels": LABELS}, r"must lie in \[0, 1\] or \[0, 255\]"),
            ({"images": IMAGES, "labels": LABELS, "groups": LABELS * 0}, "one id for all"),
            ({"images": IMAGES, "labels": LABELS, "splits": np.array(["dev"] * 12)}, "other values"),
            ({"images": IMAGES, "labels": LABELS, "label_names": np.array(["a"])}, "must name labels"),
        ],
    )
    def test_bad_archives_are_refused(self, prepare, tmp_path, arrays, message):
        with pytest.raises(DataError, match=message):
            prepare("npz", save(tmp_path / "x.npz", **arrays))

    def test_damage_and_lies_are_refused(self, prepare, tmp_path):
        path = save(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
        body = path.read_bytes()
        path.write_bytes(body[:-40])
        with pytest.raises(DataError, match="whole archive; found: damaged"):
            prepare("npz", path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images.npy", _header((10**12, 8, 8)))
            archive.writestr("labels.npy", b"")
        with pytest.raises(DataError, match="more than the member holds"):
            prepare("npz", path)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("../images.npy", b"")
        with pytest.raises(DataError, match="names that lead elsewhere"):
            prepare("npz", path)
        with zipfile.ZipFile(path, "w") as archive:
            for index in range(1200):
                archive.writestr(f"{index}.npy", b"")
        with pytest.raises(DataError, match="must unpack to less"):
            prepare("npz", path)


def _header(shape) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


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
