"""No traceback, no hang and no gigabytes, whatever a source is or says it is."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources import OWN_KINDS, own_kind_of
from tests.raw_trees.pictures import save_xlsx
from tests.unit.tasks.sources.hostile import BODIES

IMAGES = np.random.default_rng(0).integers(0, 256, (2000, 8, 8)).astype(np.uint8)
LABELS = np.arange(2000) % 2


@pytest.mark.timeout(30)
@pytest.mark.parametrize("kind", OWN_KINDS)
@pytest.mark.parametrize("what", ["fifo", "socket", "device", "nowhere", "\0"])
def test_a_source_that_is_no_file_is_refused(prepare, tmp_path, kind, what):
    path = tmp_path / "x"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    path = {"device": Path("/dev/zero"), "\0": Path("a\0b")}.get(what, path)
    with pytest.raises(DataError, match=r"must be a folder or a plain file|must exist|must be readable"):
        prepare(kind, path)
    if what != "\0":
        assert own_kind_of(path) is None


@pytest.mark.parametrize("kind", OWN_KINDS)
@pytest.mark.parametrize(
    "body", [b"", b"hello\n", b"PK\x03\x04" + bytes(100), b"\x89HDF\r\n\x1a\n" + bytes(99)]
)
def test_a_file_that_is_something_else_is_refused(prepare, tmp_path, kind, body):
    for ending in ("", ".csv", ".xlsx", ".zip", ".tar", ".tar.gz", ".npz", ".h5", ".parquet"):
        path = tmp_path / f"secret{ending}"
        path.write_bytes(body)
        with pytest.raises(DataError) as caught:
            prepare(kind, path)
        assert "Traceback" not in str(caught.value)


class TestFolders:
    def test_unreadable_folders_are_refused_without_their_name(self, prepare, class_folder, monkeypatch):
        original = os.scandir

        def scandir(path):
            if str(path).endswith("cat"):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path)

        monkeypatch.setattr(os, "scandir", scandir)
        with pytest.raises(DataError, match=r"every folder of the raw download must be readable") as caught:
            prepare("folder", class_folder)
        assert "cat" not in str(caught.value)

    def test_unreadable_files_are_skipped_without_their_name(self, prepare, class_folder, monkeypatch):
        original = os.open

        def deny(path, *rest, **options):
            if str(path).endswith("3.png"):
                raise PermissionError(13, "Permission denied", str(path))
            return original(path, *rest, **options)

        monkeypatch.setattr(os, "open", deny)
        with pytest.raises(DataError, match=r"file is gone or unreadable: 1") as caught:
            prepare("folder", class_folder)
        assert "3.png" not in str(caught.value)

    def test_linked_folders_are_refused_and_a_linked_root_is_read(self, prepare, class_folder, tmp_path):
        os.symlink(class_folder, tmp_path / "linked")
        assert prepare("folder", tmp_path / "linked").num_images == 10
        os.symlink(class_folder / "dog", class_folder / "horse")
        with pytest.raises(DataError, match="a link to a folder or out of the raw folder"):
            prepare("folder", class_folder, name="b")


class TestTables:
    @pytest.mark.timeout(60)
    def test_a_sheet_with_a_cell_in_the_last_column(self, prepare, class_folder):
        import openpyxl

        book = openpyxl.Workbook()
        book.active.append(["path", "label"])
        for index in range(10):
            book.active.append([f"{'cat' if index < 5 else 'dog'}/{index}.png", str(index % 2)])
        book.active["XFD1048576"] = "x"
        book.save(class_folder / "manifest.xlsx")
        with pytest.raises(DataError, match=r"at most 1,000 columns; found: a cell further right"):
            prepare("csv", class_folder / "manifest.xlsx")
        book.active["XFD1048576"] = None
        book.active["C1048576"] = " "
        book.save(class_folder / "manifest.xlsx")
        assert prepare("csv", class_folder / "manifest.xlsx").num_images == 10

    def test_nan_cells_of_a_sheet_are_missing(self, prepare, class_folder):
        save_xlsx(class_folder / "t.xlsx", [["path", "label"], ["cat/0.png", float("nan")], ["cat/1.png", 1]])
        with pytest.raises(DataError, match=r"needs a label|xlsx workbook"):
            prepare("csv", class_folder / "t.xlsx")

    def test_a_name_longer_than_any_file(self, prepare, class_folder):
        (class_folder / "manifest.csv").write_text(f"path,label\ncat/0.png,1\n{'x' * 5000}.png,2\n")
        with pytest.raises(DataError, match="missing: 1: row 3"):
            prepare("csv", class_folder)


class TestNpz:
    @pytest.mark.parametrize("compress", [False, True])
    @pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
    def test_a_flipped_byte_is_refused(self, prepare, tmp_path, compress, place):
        path = tmp_path / "x.npz"
        (np.savez_compressed if compress else np.savez)(path, images=IMAGES, labels=LABELS)
        body = bytearray(path.read_bytes())
        body[int(place * len(body))] ^= 0x10
        path.write_bytes(body)
        with pytest.raises(DataError, match=r"damaged"):
            prepare("npz", path)

    def test_a_declared_200_gib_is_refused_at_once(self, prepare, tmp_path):
        path = tmp_path / "x.npz"
        shape = (200 << 20, 32, 32)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("images.npy", npy_header(shape) + bytes(1 << 20))
            archive.writestr("labels.npy", npy_header((200 << 20,)) + bytes(1 << 20))
        body = path.read_bytes()
        start = body.index(b"PK\x01\x02")
        size = struct.unpack_from("<I", body, start + 24)[0]
        for lie in (0xFFFFFFF0, size):
            forged = body[: start + 24] + struct.pack("<I", lie) + body[start + 28 :]
            path.write_bytes(forged)
            with pytest.raises(DataError, match="more"):
                prepare("npz", path)


def npy_header(shape: tuple[int, ...]) -> bytes:
    import io

    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


PROGRAM = """
import io, json, sys, zipfile
from tasks.sources.base import SkipItem
from tasks.sources.dicom import decode_dicom, frame_samples
from tasks.sources.pictures import decode_image
from tasks.sources.nifti import decode_nifti
from tasks.sources.pictures import to_prepared
from tasks.sources.raw import ZipArchive
from tests.unit.tasks.sources.hostile import BODIES

def memory(name):
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines[name].split()[0]) / 1024

def read(case, body):
    if case.startswith("zip"):
        return len(ZipArchive(io.BytesIO(body)).read("x", 1 << 30))
    if case.startswith("NIfTI"):
        return decode_nifti(body).values.shape
    if "DICOM" in case:
        samples = frame_samples(decode_dicom(body))
        return [to_prepared(sample.pixels, image_size=8, channels=1).shape for sample in samples][:1]
    return to_prepared(decode_image(body).pixels, image_size=8, channels=1).shape

for case, make in BODIES.items():
    body = make()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak so far: making a body is no part of reading it
    idle = memory("VmRSS")
    try:
        said = str(read(case, body))
    except SkipItem as skip:
        said = skip.reason
    except ValueError as error:
        said = str(error)
    print(json.dumps([case, memory("VmHWM") - idle, said]), flush=True)
"""
LIMIT_MIB = 1024
READ = {
    "good DICOM", "good PNG", "DICOM RLE 62 MiB", "DICOM plain 250 MiB",
    "NIfTI 250 MiB of float64", "NIfTI bomb",
    "60 megapixels of RGBA", "88 megapixels of RGB", "88 megapixels of 16 bits",
}  # fmt: skip
"""Large but honest, or a bomb behind an honest volume; all others are skipped."""


@pytest.fixture(scope="module")
def used() -> dict[str, tuple[float, str]]:
    """Memory above idle in MiB, and what came of it, for every body, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return {case: (mib, said) for case, mib, said in map(json.loads, done.stdout.splitlines())}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of its memory")
@pytest.mark.parametrize("case", BODIES)
def test_memory_stays_below_a_gib_above_idle(used, case):
    mib, said = used[case]
    assert mib <= LIMIT_MIB
    assert ("8, 8" in said or "(64, 64, 64)" in said or "(512, 500" in said) == (case in READ), said
