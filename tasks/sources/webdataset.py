"""Your own images in WebDataset tars.

Layout: README of ``webdataset/webdataset``: files of one sample lie beside each other and share their name
up to the first dot; ``.cls`` holds the class as text, or ``.json`` does under ``label`` or ``cls``; the
image is ``.jpg``, ``.png`` and the like. ``<raw>`` is one tar or a folder of shards; the split is a
word of a shard's name (``train-000000.tar``, ``skin-test-0.tar``) or its folder's. ``.json`` may give a
``group``, ``patient_id`` and the like; of several values under such names none is taken for another.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, SkipItem, Split
from tasks.sources.labels import check_spellings, is_missing, mapped_label, sort_labels
from tasks.sources.manifest import ALIASES, INTENSITY, is_single_image_name, single_reader
from tasks.sources.own import VALIDATION_LEFT_OUT, check_group_sides, check_whole_groups, split_of_file
from tasks.sources.raw import MARK, PACKED_TARS, RefusedArchive, open_archive, walk

ENDINGS = (".tar", *PACKED_TARS)
MAX_LABEL_BYTES = 1 << 16
LABEL_KEYS = ("label", "cls", "class")
GROUP_KEYS = ("group", *ALIASES["group"])


@dataclass
class _Sample:
    image: str = ""
    label: str = ""
    group: str = ""


class WebDataset:
    """Samples in the order of shards and of their place in them."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per sample; labels are read, images are not.

        Raises:
            DataError: for damaged shards, no labels, or a class spelt in two ways.
        """
        excluded: Counter[str] = Counter()
        skipped: list[tuple[str, str]] = []
        found: list[tuple[str, _Sample, Split]] = []
        for shard in _shards(request):
            split = split_of_file(shard, request)
            for key, sample in _samples(shard, request).items():
                place = f"{shard}{MARK}{sample.image or key}"
                if not sample.image and is_missing(sample.label):
                    excluded["neither image nor label"] += 1
                elif not sample.image or is_missing(sample.label):
                    skipped.append((place, "no label" if sample.image else "no image"))
                elif split is None:
                    excluded[VALIDATION_LEFT_OUT] += 1
                else:
                    found.append((place, sample, split))
        check_whole_groups((sample.group for _, sample, _ in found), request)
        check_group_sides(((sample.group, split) for _, sample, split in found), request)
        names = sort_labels(sample.label for _, sample, _ in found)
        check_spellings(names, request)
        if len(names) < 2:
            raise DataError(
                f"{request.dataset.name}: labels need two classes", f"{len(names)}",
                "expected: shards with <key>.jpg and <key>.cls (or <key>.json with label)",
            )  # fmt: skip
        index = {name: label for label, name in enumerate(names)}
        return Listing(
            [Item(place, index[sample.label], sample.group, split) for place, sample, split in found],
            names,
            excluded=dict(excluded),
            skipped=skipped,
            intensity=INTENSITY,
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


def _samples(shard: str, request: RawRequest) -> dict[str, _Sample]:
    where = f"{request.dataset.name}: shard {request.hashed(shard)} must be whole and safe"
    samples: dict[str, _Sample] = {}
    try:
        archive = open_archive(request.base() / shard)
        for member in archive.members():
            folder, _, file = member.rpartition("/")
            key, _, ending = file.partition(".")
            ending = ending.lower()
            sample = samples.setdefault(f"{folder}/{key}", _Sample())
            if ending in ("cls", "json"):
                body = archive.read(member, MAX_LABEL_BYTES)
                _add_label(sample, ending, body, request)
            elif is_single_image_name("x." + ending):
                if sample.image:
                    raise DataError(where, "a sample with two images", "one image per key")
                sample.image = member
    except RefusedArchive as refused:
        raise DataError(where, refused.reason) from None
    except SkipItem as skip:
        raise DataError(where, skip.reason) from None
    return samples


def _add_label(sample: _Sample, ending: str, body: bytes, request: RawRequest) -> None:
    try:
        text = body.decode("utf-8")
        values = json.loads(text) if ending == "json" else {"label": text.strip()}
    except (UnicodeDecodeError, ValueError, RecursionError):
        raise DataError(f"{request.dataset.name}: .cls and .json must be UTF-8 text", "other bytes") from None
    if not isinstance(values, dict):
        return
    label, group = (_one_value(values, keys, request) for keys in (LABEL_KEYS, GROUP_KEYS))
    if isinstance(label, str | int):
        found = mapped_label(str(label), request)
        if sample.label and sample.label != found:
            raise DataError(f"{request.dataset.name}: .cls and .json must give one label", "two")
        sample.label = found
    sample.group = str(group) if isinstance(group, str | int) else sample.group


def _one_value(values: dict[str, object], keys: tuple[str, ...], request: RawRequest) -> object:
    """Return what stands under one of several keys, None when nothing does.

    Raises:
        DataError: when two keys say different things; which one is meant is not for us to guess.
    """
    found = [key for key in keys if key in values]
    if len({str(values[key]) for key in found}) > 1:
        rule = f"{request.dataset.name}: a .json must give one {keys[0]}"
        raise DataError(rule, " and ".join(found), f"keep the right one as {keys[0]}")
    return values[found[0]] if found else None
