"""No source causes a traceback, a hang or gigabytes of memory, whatever its content is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from search_spaces.errors import DataError
from tasks.sources import OWN_KINDS
from tasks.sources.detect import detect_own_kind
from tests.raw_trees.pictures import edit_xlsx, save_xlsx
from tests.unit.tasks.sources.conftest import check_verdict
from tests.unit.tasks.sources.hostile import BODIES


@pytest.mark.parametrize("kind", OWN_KINDS)
@pytest.mark.parametrize("kind_of_path", ["fifo", "socket", "device", "nowhere", "\0"])
def test_a_source_that_is_no_file_is_refused(prepare, tmp_path, kind, kind_of_path):
    path = tmp_path / "x"
    if kind_of_path == "fifo":
        os.mkfifo(path)
    elif kind_of_path == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    path = {"device": Path("/dev/zero"), "\0": Path("a\0b")}.get(kind_of_path, path)
    with pytest.raises(
        DataError, match=r"The raw download .*(is a FIFO|cannot be read|was not found)"
    ):
        prepare(kind, path)
    if kind_of_path != "\0":
        assert detect_own_kind(path) is None


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


@pytest.mark.parametrize(
    ("function", "ending", "message"),
    [
        ("scandir", "cat", "cannot be read: Permission denied"),
        ("open", "3.png", "file is gone or unreadable: 1"),
    ],
)
def test_a_message_about_an_unreadable_file_has_no_name(
    prepare, class_folder, monkeypatch, function, ending, message
):
    original = getattr(os, function)

    def deny(path, *arguments, **options):
        if str(path).endswith(ending):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *arguments, **options)

    monkeypatch.setattr(os, function, deny)
    with pytest.raises(DataError, match=message) as caught:
        prepare("folder", class_folder)
    assert ending not in str(caught.value).replace("isweep locate", "")


@pytest.fixture
def workbook(class_folder) -> Path:
    cells = [
        [f"{'cat' if index < 5 else 'dog'}/{index}.png", str(index % 2)] for index in range(10)
    ]
    save_xlsx(class_folder / "manifest.xlsx", [["path", "label"], *cells])
    return class_folder / "manifest.xlsx"


@pytest.mark.parametrize(
    ("cell", "flags"), [(" ", {}), ("x", {"sheet of the workbook that is not read": 1})]
)
def test_sheets_that_are_not_read_are_counted(prepare, workbook, cell, flags):
    edit_xlsx(workbook, lambda sheet: sheet.parent.create_sheet().append(["", cell]))
    check_verdict({"images": 10, "flags": flags}, lambda: prepare("table", workbook))


@pytest.mark.parametrize(
    ("cells", "verdict"),
    [
        ({"XFD1048576": "x"}, "has more than 1,000 columns"),
        ({"C1048576": " "}, {"images": 10}),
        ({"B2": float("nan")}, r"the label is missing for 1 image: row 2 \(the header is row 1\)"),
    ],
)
def test_sheets_with_odd_cells(prepare, workbook, cells, verdict):
    def change(sheet) -> None:
        for place, value in cells.items():
            sheet[place] = value

    edit_xlsx(workbook, change)
    check_verdict(verdict, lambda: prepare("table", workbook))


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
    "good DICOM",
    "good PNG",
    "DICOM RLE 62 MiB",
    "DICOM plain 250 MiB",
    "NIfTI 250 MiB of float64",
    "NIfTI bomb",
    "60 megapixels of RGBA",
    "88 megapixels of RGB",
    "88 megapixels of 16 bits",
}
"""Large but honest, or a bomb behind an honest volume; all others are skipped."""


@pytest.fixture(scope="module")
def memory_use() -> dict[str, tuple[float, str]]:
    """Read every body in another process; return its memory above idle in MiB and its outcome."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return {
        case: (mib, outcome) for case, mib, outcome in map(json.loads, process.stdout.splitlines())
    }


@pytest.mark.long
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of its memory"
)
@pytest.mark.parametrize("case", BODIES)
def test_memory_stays_below_a_gib_above_idle(memory_use, case):
    mib, outcome = memory_use[case]
    assert mib <= LIMIT_MIB
    assert ("8, 8" in outcome or "(64, 64, 64)" in outcome or "(512, 500" in outcome) == (
        case in READ
    ), outcome
