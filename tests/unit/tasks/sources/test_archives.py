"""Class folders in zips and tars: read like the folder, and refused if an archive is inconsistent."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.prepared import blocks
from tasks.sources.detect import detect_own_kind
from tasks.sources.own.listing import HIDDEN
from tasks.sources.raw import RawTree, TarArchive
from tests.unit.tasks.sources.archives import pack, tar_mode
from tests.unit.tasks.sources.conftest import (
    assert_equal,
    check_verdict,
    picture,
    png,
    request_for,
    write_tree,
)

EVERY = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"]
TARS = [".tar", ".tar.gz", ".tar.bz2", ".tar.xz"]


@pytest.mark.parametrize("ending", EVERY)
@pytest.mark.parametrize("wrapped", ["", "own/own/"])
def test_class_folders_in_an_archive(prepare, class_folder, tmp_path, ending, wrapped):
    write_tree(class_folder, "cat/.a.png", ".git/x.png", ".git/y.png", "__MACOSX/cat/._0.png")
    expected = prepare("folder", class_folder)
    actual = prepare("folder", pack(class_folder, tmp_path / f"own{ending}", wrapped), name="other")
    assert_equal(actual, expected)
    assert actual.record.excluded == expected.record.excluded == {HIDDEN: 2}
    assert actual.record.flags == ({"a wrapper folder was skipped": 1} if wrapped else {})


def add_to_zip(path: Path, inner: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(inner, name)
    return path


@pytest.mark.parametrize("is_nested", [False, True])
def test_an_archive_that_repeats_the_images_beside_it_is_left_out(
    prepare, class_folder, tmp_path, is_nested
):
    expected = prepare("folder", class_folder)
    inner = pack(class_folder / "cat", tmp_path / "inner.zip", "t/")
    path = add_to_zip(pack(class_folder, tmp_path / "own.zip"), inner, "cat/inner.zip")
    if is_nested:
        path = add_to_zip(tmp_path / "outer.zip", path, "own.zip")
    data = prepare("folder", path, name="other")
    assert_equal(data, expected)
    assert data.record.excluded == {"in an archive beside images": 5}


def test_an_archive_beside_an_image_of_another_name_is_read(prepare, class_folder, tmp_path):
    expected = prepare("folder", class_folder)
    (tmp_path / "other").mkdir()
    for image in sorted((class_folder / "cat").iterdir())[1:]:
        image.rename(tmp_path / "other" / image.name)
    inner = pack(tmp_path / "other", tmp_path / "inner.zip")
    path = add_to_zip(pack(class_folder, tmp_path / "own.zip"), inner, "cat/inner.zip")
    data = prepare("folder", path, name="other")
    assert_equal(data, expected)
    assert data.record.excluded == {}


def test_an_archive_that_repeats_only_some_images_beside_it_is_refused(
    prepare, class_folder, tmp_path
):
    inner = pack(class_folder, tmp_path / "inner.zip")
    path = add_to_zip(pack(class_folder, tmp_path / "own.zip"), inner, "cat/inner.zip")
    with pytest.raises(DataError, match=r"has 10 images\. By file name, only 5 of them"):
        prepare("folder", path)


def test_an_archive_with_two_images_of_one_name_beside_is_refused(prepare, class_folder, tmp_path):
    image = min((class_folder / "cat").iterdir())
    for folder in ("x", "y"):
        (tmp_path / "other" / folder).mkdir(parents=True)
        (tmp_path / "other" / folder / image.name).write_bytes(image.read_bytes())
    inner = pack(tmp_path / "other", tmp_path / "inner.zip")
    path = add_to_zip(pack(class_folder, tmp_path / "own.zip"), inner, "cat/inner.zip")

    with pytest.raises(DataError, match=r"has 2 images\. By file name, only 1 of them"):
        prepare("folder", path)


def test_a_folder_in_an_archive_may_end_with_an_exclamation_mark(prepare, class_folder, tmp_path):
    (class_folder / "cat").rename(class_folder / "wow!")

    data = prepare("folder", pack(class_folder, tmp_path / "own.zip"))

    assert data.label_names == ("dog", "wow!")


@pytest.mark.parametrize("is_stored_first", [True, False])
def test_an_archive_that_repeats_the_names_beside_it_is_no_part(
    prepare, class_folder, tmp_path, is_stored_first
):
    expected = prepare("folder", class_folder)
    inner = pack(class_folder / "cat", tmp_path / "inner.zip")
    files = [
        (file, file.relative_to(class_folder).as_posix()) for file in class_folder.rglob("*.png")
    ]
    position = 0 if is_stored_first else len(files)
    files.insert(position, (inner, "cat/inner.zip"))
    with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
        for file, name in files:
            archive.write(file, name)
    data = prepare("folder", tmp_path / "own.zip", name="other")
    assert_equal(data, expected)
    assert data.record.excluded == {"in an archive beside images": 5}


def test_equal_names_in_an_archive_and_one_in_it_are_refused(prepare, class_folder, tmp_path):
    inner, outer = (
        pack(class_folder, tmp_path / "inner.zip"),
        pack(class_folder, tmp_path / "outer.zip"),
    )
    with zipfile.ZipFile(outer, "a") as archive:
        archive.write(inner, "inner.zip")
    with pytest.raises(DataError, match="or in archives inside it, have the same path"):
        prepare("folder", outer)


def test_a_file_of_an_archive_comes_before_one_of_an_inner_archive(class_folder, tmp_path):
    inner = pack(class_folder / "cat", tmp_path / "inner.zip")
    raw = tmp_path / "downloads"
    raw.mkdir()
    with zipfile.ZipFile(raw / "a.zip", "w") as archive:
        archive.write(inner, "cat/inner.zip")
    pack(class_folder, raw / "b.zip")
    tree = RawTree(request_for("folder", raw), lambda name: True)
    assert tree.locator("cat/0.png") == "b.zip!/cat/0.png"


def test_an_inner_archive_that_is_not_opened_is_listed_as_a_file(class_folder, tmp_path):
    inner = pack(class_folder / "cat", tmp_path / "inner.zip")
    raw = tmp_path / "downloads"
    raw.mkdir()
    with zipfile.ZipFile(raw / "a.zip", "w") as archive:
        archive.write(inner, "cat/inner.zip")
    tree = RawTree(request_for("folder", raw), lambda name: name == "a.zip")
    assert list(tree) == ["a.zip", "cat/inner.zip"]


def test_a_table_in_an_archive_has_to_be_unpacked(prepare, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("manifest.csv", "path,label")
    with pytest.raises(
        DataError, match=r"set kind to table and use the path of the table, after you have unpacked"
    ):
        prepare("folder", tmp_path / "a.zip")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tbz2", ".txz"])
def test_the_stored_order_does_not_matter_and_is_read_forward(
    prepare, class_folder, tmp_path, ending, monkeypatch
):
    expected = prepare("folder", class_folder)
    path, files = tmp_path / f"own{ending}", sorted(class_folder.rglob("*.png"))
    with tarfile.open(path, tar_mode(path.name)) as archive:
        for index in np.random.default_rng(0).permutation(len(files)):
            archive.add(files[index], files[index].relative_to(class_folder).as_posix())
    reads, read = [], TarArchive.read
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 8 * 8 * 3)
    monkeypatch.setattr(
        TarArchive, "read", lambda self, name, most: reads.append(name) or read(self, name, most)
    )
    assert_equal(prepare("folder", path, name="other"), expected)
    with tarfile.open(path) as archive:
        assert (reads == archive.getnames()) == (ending != ".tar")


def test_an_archive_that_changes_is_noticed(prepare, class_folder, tmp_path):
    path = pack(class_folder, tmp_path / "own.zip")
    prepare("folder", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("cat/new.png", png(picture(70)))
    with pytest.raises(
        DataError, match="the files or label_map have changed since the dataset was prepared"
    ):
        prepare("folder", path)


# Entries that an archive must not contain.

Change = Callable[[zipfile.ZipFile], object]


def zip_entry(name: str, body: bytes = b"", *more: object) -> Change:
    return lambda archive: archive.writestr(name, body, *more)


def zip_link(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("a/link.png")
    info.external_attr = 0o120777 << 16
    archive.writestr(info, "/etc/passwd")


def zip_twice(archive: zipfile.ZipFile) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("a/0.png", png(picture(9)))


def zip_of(path: Path, change: Change) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(4):
            archive.writestr(f"{'ab'[number % 2]}/{number}.png", png(picture(number)))
        change(archive)
    return path


ELSEWHERE, REPEATED = "names that lead out of it", "repeated names"
ZIPS: dict[str, tuple[Change, str]] = {
    **{
        name: (zip_entry(name), ELSEWHERE)
        for name in ("../x.png", "/etc/x.png", "..\\x.png", "C:/x.png")
    },
    **{name: (zip_entry(name, png(picture(9))), REPEATED) for name in ("a//0.png", "a\\0.png")},
    "a/0.png": (zip_twice, REPEATED),
    "a link": (zip_link, "links or device files"),
    "bzip2": (zip_entry("a/x.png", b"x", zipfile.ZIP_BZIP2), "another method than"),
    "lzma": (zip_entry("a/x.png", b"x", zipfile.ZIP_LZMA), "another method than"),
}


@pytest.mark.parametrize("name", ZIPS)
def test_zips_are_refused(prepare, tmp_path, name):
    change, message = ZIPS[name]
    with pytest.raises(DataError, match=f"cannot be read: .*{message}"):
        prepare("folder", zip_of(tmp_path / "x.zip", change))


LINKS = "links, device files or sparse"
PAX = {"size": "-2048"}, {"GNU.sparse.map": "0,9", "GNU.sparse.size": "9"}
MEMBERS: dict[str, tuple[dict[str, object], str]] = {
    "up": ({"name": "../x.png"}, ELSEWHERE),
    "absolute": ({"name": "/etc/x.png"}, ELSEWHERE),
    "a link out": ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, LINKS),
    "a hard link": ({"type": tarfile.LNKTYPE, "linkname": "a/0.png"}, LINKS),
    "a device": ({"type": tarfile.CHRTYPE}, LINKS),
    "a FIFO": ({"type": tarfile.FIFOTYPE}, LINKS),
    "a repeat": ({"name": "a/0.png"}, REPEATED),
    "a negative size": ({"size": -1024}, "negative size"),
    "sparse": ({"type": tarfile.GNUTYPE_SPARSE}, "damaged|sparse"),
    **{f"extended {sorted(pax)}": ({"pax_headers": pax}, "(negative size|sparse)") for pax in PAX},
}


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("ending", TARS)
def test_tars_are_refused_at_every_request(prepare, tmp_path, name, ending):
    fields, message = MEMBERS[name]
    path, bad = tmp_path / f"x{ending}", tarfile.TarInfo("a/x.png")
    for field, value in fields.items():
        setattr(bad, field, value)
    form = tarfile.PAX_FORMAT if bad.pax_headers else tarfile.GNU_FORMAT
    with tarfile.open(path, tar_mode(path.name), format=form) as archive:
        for number in range(4):
            body = png(picture(number))
            info = tarfile.TarInfo(f"{'ab'[number % 2]}/{number}.png")
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
        archive.addfile(bad)
    detect_own_kind(path)  # opens the archive first, and must not make it look sound
    for _ in range(2):
        with pytest.raises(DataError, match=f"cannot be read: .*{message}"):
            prepare("folder", path)


def test_a_name_longer_than_a_file_system_allows(prepare, class_folder, tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(class_folder / "cat", "cat")
        for file in (class_folder / "dog").iterdir():
            archive.add(file, f"dog/{'x' * 6000}/{file.name}")
    assert prepare("folder", path).record.num_images == 10


# Archives that are damaged or declare a wrong size.


@pytest.mark.parametrize("ending", [".zip", *TARS])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_cut_archive_is_refused(prepare, class_folder, tmp_path, ending, share):
    path = pack(class_folder, tmp_path / f"x{ending}")
    body = path.read_bytes()
    path.write_bytes(body[: int(share * len(body))].rstrip(b"\0"))
    with pytest.raises(DataError, match="damaged"):
        prepare("folder", path)


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_tar_cut_between_two_members_is_refused(prepare, class_folder, tmp_path, kind):
    """A cut file was once read as a complete archive with fewer images, without a warning."""
    path = pack(class_folder, tmp_path / "x.tar")
    with tarfile.open(path) as archive:
        last = archive.getmembers()[-1].offset
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(DataError, match="cannot be read: a truncated archive, without its end"):
        prepare(kind, path)


def test_a_flipped_byte_is_one_damaged_member(prepare, class_folder, tmp_path):
    path = pack(class_folder, tmp_path / "x.zip")
    body = bytearray(path.read_bytes())
    body[body.index(b"0.png") + 60] ^= 0xFF
    path.write_bytes(body)
    verdict = {"skipped": {"damaged archive member": 1}}
    check_verdict(verdict, lambda: prepare("folder", path, max_skipped_share=0.2))


def test_overlapping_members_are_refused(prepare, tmp_path):
    """Two names refer to one place, like in David Fifield's zip bomb."""
    path = zip_of(tmp_path / "x.zip", zip_entry("a/big.png", bytes(9) * 3000))
    body = path.read_bytes()
    end = body.rindex(b"PK\x05\x06")
    start = int.from_bytes(body[end + 16 : end + 20], "little")
    last = body[body.rindex(b"PK\x01\x02", start, end) : end]
    copies = [last.replace(b"a/big.png", f"a/b{number:02d}.png".encode()) for number in range(9)]
    directory, tail = body[start:end] + b"".join(copies), bytearray(body[end:])
    tail[8:12] = (5 + 9).to_bytes(2, "little") * 2
    tail[12:16] = len(directory).to_bytes(4, "little")
    path.write_bytes(body[:start] + directory + tail)
    with pytest.raises(DataError, match="members overlap"):
        prepare("folder", path)


@pytest.mark.parametrize(
    ("ending", "compress"),
    [(".tar.gz", gzip.compress), (".tar.bz2", bz2.compress), (".tar.xz", lzma.compress)],
)
def test_several_streams_one_after_another_are_one(
    prepare, class_folder, tmp_path, ending, compress
):
    """``pigz``, ``pbzip2`` and ``xz -T`` write several streams."""
    body = pack(class_folder, tmp_path / "own.tar").read_bytes()
    parts = [body[start : start + 5000] for start in range(0, len(body), 5000)]
    (tmp_path / f"own{ending}").write_bytes(b"".join(map(compress, parts)))
    actual = prepare("folder", tmp_path / f"own{ending}", name="other")
    assert_equal(actual, prepare("folder", class_folder))


def test_xz_that_asks_for_a_gigabyte_is_refused(prepare, class_folder, tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    plain = pack(class_folder, tmp_path / "own.tar").read_bytes()
    (tmp_path / "own.tar.xz").write_bytes(lzma.compress(plain, filters=filters))
    with pytest.raises(DataError, match="cannot be read: damaged archive"):
        prepare("folder", tmp_path / "own.tar.xz")


@pytest.mark.parametrize("ending", [".tar.bz2", ".tar.xz"])
def test_more_than_packed_bytes_can_hold_is_refused(prepare, tmp_path, ending):
    """bzip2 packs zeros ten thousand to one; a few kilobytes would be read for hours."""
    raw = write_tree(tmp_path / "raw", *(f"cat/{number}.png" for number in range(3)))
    for path in raw.rglob("*.png"):
        path.write_bytes(bytes(8 << 20))
    path = pack(raw, tmp_path / f"own{ending}")
    with pytest.raises(DataError, match="declares more than its packed size can hold"):
        prepare("folder", path)
