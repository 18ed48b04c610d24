"""DICOM headers without pixels: who, which series, which slice; and files found by these instead of by name.

Format: DICOM PS3.6 (tags) and PS3.10 (file format), as read by pydicom.

The index of a tree is kept beside the prepared datasets, keyed hashes only, so that a large tree of renamed
files is opened once.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.atomic import write_atomic
from tasks.sources.base import RawRequest, SkipItem
from tasks.sources.privacy import keyed_hash
from tasks.sources.raw import RawTree, read_head, split_locator

logger = logging.getLogger(__name__)
TAGS = (
    *("SOPInstanceUID", "SeriesInstanceUID", "PatientID", "Modality", "SeriesDescription"),
    *("Rows", "Columns"),
)
PART_OF_FILE = 1 << 20
"""Headers end long before; what lies behind is pixels."""
LOG_EVERY = 10_000


@dataclass(frozen=True)
class DicomHeader:
    """What a file says of itself; texts are raw, so never logged."""

    instance: str
    series: str
    patient: str
    modality: str
    description: str
    sides: tuple[int, int]


def read_header(base: Path, locator: str) -> DicomHeader | None:
    """Return the header of a file or archive member; None for what is no readable DICOM file."""
    try:
        body = read_head(base, locator, PART_OF_FILE)
    except SkipItem:
        return None
    if body[128:132] != b"DICM":
        return None
    import pydicom

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            data = pydicom.dcmread(io.BytesIO(body), stop_before_pixels=True, specific_tags=list(TAGS))
            texts = [str(data.get(name) or "").strip() for name in TAGS[:5]]
            sides = int(data.get("Rows") or 0), int(data.get("Columns") or 0)
            instance, series, patient, modality, description = texts
            return DicomHeader(instance, series, patient, modality, description, sides)
        except Exception:  # pydicom raises almost anything on damaged files
            return None


class HeaderIndex:
    """Files by SOP instance and series instance UID, read from their headers.

    Args:
        request: Whose key hashes, and where the index is kept.
        tree: The raw tree.
        names: Files of it to open.
    """

    def __init__(self, request: RawRequest, tree: RawTree, names: Iterable[str]) -> None:
        self._request = request
        self._by_instance: dict[int, str] = {}
        self._by_series: defaultdict[int, list[str]] = defaultdict(list)
        known, base = self._load(), request.base()
        opened = 0
        for name in names:
            locator = tree.locator(name)
            stamp = str(keyed_hash(request.key, f"{locator}\0{_stamp(base, locator)}"))
            if stamp not in known:
                header = read_header(base, locator)
                known[stamp] = (
                    [keyed_hash(request.key, uid) for uid in (header.instance, header.series)]
                    if header
                    else []
                )
                opened += 1
                if opened % LOG_EVERY == 0:
                    logger.info("%s: %d headers read", request.dataset.name, opened)
            if known[stamp]:
                instance, series = known[stamp]
                self._by_instance.setdefault(instance, name)
                self._by_series[series].append(name)
        if opened:
            self._save(known)

    def instance(self, uid: str) -> str | None:
        """Return the name of the file with that SOP instance UID."""
        return self._by_instance.get(keyed_hash(self._request.key, uid))

    def series(self, uid: str) -> list[str]:
        """Return the names of all files of a series."""
        return self._by_series.get(keyed_hash(self._request.key, uid), [])

    def _path(self) -> Path | None:
        folder = self._request.cache
        tree = keyed_hash(self._request.key, str(self._request.root().resolve()))
        return None if folder is None else folder / f".headers-{tree:016x}.json"

    def _load(self) -> dict[str, list[int]]:
        path = self._path()
        try:
            found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
        except (OSError, ValueError):
            return {}
        whole = isinstance(found, dict) and all(isinstance(value, list) for value in found.values())
        return found if whole else {}

    def _save(self, known: dict[str, list[int]]) -> None:
        path = self._path()
        if path is None:
            return
        with suppress(OSError):  # a cache that cannot be written costs time only
            write_atomic(path, json.dumps(known).encode())


def _stamp(base: Path, locator: str) -> str:
    try:
        status = (base / split_locator(locator)[0]).stat()
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"
