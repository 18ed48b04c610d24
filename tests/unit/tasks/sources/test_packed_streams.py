"""Packed streams against the standard library's own files."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import numpy as np
import pytest

from search_spaces.errors import DataError
from tasks.sources.raw import unpacked
from tests.unit.tasks.sources.test_layouts_of_today import tar_folder

BODY = np.random.default_rng(0).integers(0, 40, 400_000).astype(np.uint8).tobytes()
PACK = {".tar.gz": gzip.compress, ".tar.bz2": bz2.compress, ".tar.xz": lzma.compress}


@pytest.mark.parametrize("ending", PACK)
class TestStreams:
    @pytest.mark.parametrize("parts", [1, 3])
    def test_any_places_in_any_order(self, ending, parts):
        """Several streams one after another are one, as ``pbzip2`` and ``xz -T`` write them."""
        step = len(BODY) // parts + 1
        body = b"".join(PACK[ending](BODY[start : start + step]) for start in range(0, len(BODY), step))
        stream, oracle = unpacked(io.BytesIO(body), f"x{ending}"), io.BytesIO(BODY)
        rng = np.random.default_rng(1)
        for place, size in zip(rng.integers(0, len(BODY) + 99, 40), rng.integers(0, 99_999, 40), strict=True):
            assert stream.seek(int(place)) == min(int(place), len(BODY))
            oracle.seek(int(place))
            assert stream.read(int(size)) == oracle.read(int(size))

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
    def test_a_cut_stream_never_ends_well(self, ending, share):
        body = PACK[ending](BODY)
        stream = unpacked(io.BytesIO(body[: int(share * len(body))]), f"x{ending}")
        if share == 0 and ending == ".tar.gz":
            assert stream.read() == b""  # as of an empty file; no tar is
            return
        with pytest.raises((EOFError, OSError, lzma.LZMAError)):
            stream.read()


def test_xz_that_asks_for_a_gigabyte_is_refused(prepare, class_folder, tmp_path):
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    plain = tar_folder(class_folder, tmp_path / "own.tar").read_bytes()
    (tmp_path / "own.tar.xz").write_bytes(lzma.compress(plain, filters=filters))
    with pytest.raises(DataError, match=r"must be whole and safe; .*damaged archive"):
        prepare("folder", tmp_path / "own.tar.xz")


@pytest.mark.parametrize("ending", [".tar.bz2", ".tar.xz"])
def test_more_than_packed_bytes_can_hold_is_refused(prepare, tmp_path, ending):
    """bzip2 packs zeros ten thousand to one; a few kilobytes would be read for hours."""
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"cat/{number}.png")
            info.size = 8 << 20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    path = tmp_path / f"own{ending}"
    path.write_bytes(PACK[ending](stream.getvalue()))
    with pytest.raises(DataError, match="declares more than its packed size can hold"):
        prepare("folder", path)
