"""Your own images in WebDataset tars.

Layout: README of ``webdataset/webdataset``: files of one sample lie beside each other and share their name up
to the first dot; ``.cls`` holds the class as text, or ``.json`` does under ``label`` or another usual name,
where it may give group and split, too; the image is ``.jpg``, ``.png`` and the like. ``<raw>`` is one tar or
a folder of shards; the split of a sample without its own is a word of the shard's name (``train-000000.tar``,
``skin-test-0.tar``) or its folder's.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from search_spaces.errors import DataError
from tasks.sources.base import Listing, RawRequest, Reader, SkipItem
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.own import TRAITS, Rows, find_columns, own_listing, split_of_file
from tasks.sources.raw import MARK, PACKED_TARS, RefusedArchive, open_archive, walk
from tasks.sources.tables import cell_text

ENDINGS = (".tar", *PACKED_TARS)
MAX_LABEL_BYTES = 1 << 16


@dataclass
class _Sample:
    """What lies under one key: the image's member, its ``.cls``, and the values of its ``.json``."""

    shard: str
    image: str = ""
    written: str | None = None
    values: dict[str, str] = field(default_factory=dict)


class WebDataset:
    """Samples in the order of shards and of their place in them."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per sample; labels are read, images are not.

        Raises:
            DataError: for damaged shards, two labels in one sample, and what
                :func:`tasks.sources.own.own_listing` refuses.
        """
        excluded: Counter[str] = Counter()
        skipped: list[tuple[str, str]] = []
        found: list[_Sample] = []
        samples = {key: sample for shard in _shards(request) for key, sample in _samples(shard, request)}
        header = list(dict.fromkeys(name for sample in samples.values() for name in sample.values))
        columns = find_columns(header, ("label", "group", "split"), request)
        label = columns.labels[0] if columns.labels else None
        for key, sample in samples.items():
            if sample.image:
                found.append(sample)
            elif sample.written or (label and sample.values.get(label)):
                skipped.append((key, "no image"))
            else:
                excluded["neither image nor label"] += 1
        cells = {
            ours: [sample.values.get(theirs, "") for sample in found] for ours, theirs in columns.of.items()
        }
        rows = Rows(
            labels=[_label(sample, label, request) for sample in found],
            locator=lambda row: f"{found[row].shard}{MARK}{found[row].image}",
            name=lambda row: request.hashed(f"{found[row].shard}{MARK}{found[row].image}"),
            groups=cells.get("group"),
            splits=cells.get("split"),
            side=lambda row: side(found[row].shard),
            traits={trait: cells[trait] for trait in TRAITS if trait in cells},
        )
        side = cache(lambda shard: split_of_file(shard, request))
        if not found:
            expected = "expected: shards with <key>.jpg and <key>.cls (or <key>.json with label)"
            raise DataError(f"{request.dataset.name}: the shards must hold samples", "none", expected)
        return own_listing(
            rows, request, excluded=dict(excluded), skipped=skipped, flags=columns.flags, intensity=INTENSITY
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of images."""
        return single_reader(request)


def _shards(request: RawRequest) -> list[str]:
    root = request.root()
    if root.is_file():
        return [root.name]
    names = [name for name in walk(root, request) if name.lower().endswith(ENDINGS)]
    if not names:
        raise DataError(f"{request.dataset.name}: the folder must hold .tar shards", "none")
    return names


def _samples(shard: str, request: RawRequest) -> list[tuple[str, _Sample]]:
    """Return the samples of a shard with their locators, in stored order."""
    where = f"{request.dataset.name}: shard {request.hashed(shard)} must be whole and safe"
    samples: dict[str, _Sample] = {}
    try:
        archive = open_archive(request.base() / shard)
        for member in archive.members():
            folder, _, file = member.rpartition("/")
            key, _, ending = file.partition(".")
            ending = ending.lower()
            sample = samples.setdefault(f"{folder}/{key}", _Sample(shard))
            if ending == "cls":
                sample.written = _text(archive.read(member, MAX_LABEL_BYTES), request).strip("\r\n")
            elif ending == "json":
                sample.values = _values(_text(archive.read(member, MAX_LABEL_BYTES), request), request)
            elif is_single_image_name("x." + ending):
                if sample.image:
                    raise DataError(where, "a sample with two images", "one image per key")
                sample.image = member
    except RefusedArchive as refused:
        raise DataError(where, refused.reason) from None
    except SkipItem as skip:
        raise DataError(where, skip.reason) from None
    return [(f"{shard}{MARK}{sample.image or key}", sample) for key, sample in samples.items()]


def _text(body: bytes, request: RawRequest) -> str:
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise DataError(f"{request.dataset.name}: .cls and .json must be UTF-8 text", "other bytes") from None


def _values(text: str, request: RawRequest) -> dict[str, str]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{request.dataset.name}: .json must hold JSON", "other text") from None
    return {str(key): cell_text(value) for key, value in values.items()} if isinstance(values, dict) else {}


def _label(sample: _Sample, column: str | None, request: RawRequest) -> str:
    """Return the label of a sample as written; ``.cls`` and ``.json`` may not contradict each other."""
    value = sample.values.get(column, "") if column else ""
    if sample.written is None or not value:
        return sample.written or value
    mapping = dict(request.dataset.label_map)
    if mapping.get(value, value) != mapping.get(sample.written, sample.written):
        rule = f"{request.dataset.name}: .cls and .json must give one label"
        raise DataError(rule, f"two in {request.hashed(f'{sample.shard}{MARK}{sample.image}')}")
    return sample.written
