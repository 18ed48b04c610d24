"""Your own images in WebDataset tars.

Layout: README of ``webdataset/webdataset``: files of one sample lie beside each other and share
their name up to the first dot; ``.cls`` holds the class as text, or ``.json`` does under ``label``
or another usual name, where it may give group and split, too; the image is ``.jpg``, ``.png`` and
the like. ``<raw>`` is one tar or a folder of shards; the split of a sample without its own is a
word of the shard's name (``train-000000.tar``, ``skin-test-0.tar``) or its folder's.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from tasks.sources.base import Listing, RawRequest, SkipItem, Source
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.own import Rows, find_columns, hidden_count, own_listing, split_of_file
from tasks.sources.raw import MARK, TARS, open_archive, walk
from tasks.sources.tables import cell_text, read_json

MAX_LABEL_BYTES = 1 << 16


@dataclass
class _Sample:
    """What lies under one key: the image's member, its ``.cls``, and the values of its
    ``.json``.
    """

    shard: str
    image: str = ""
    written: str | None = None
    values: dict[str, str] = field(default_factory=dict)

    @property
    def locator(self) -> str:
        return f"{self.shard}{MARK}{self.image}"


def list_samples(request: RawRequest) -> Listing:
    """Return one item per sample, in the order of shards and of their place in them."""
    root, hidden = request.root(), list[str]()
    names = list(walk(root, request, hidden=hidden)) if root.is_dir() else [root.name]
    shards = [name for name in names if root.is_file() or _is_shard(name)]
    if not shards:
        raise request.error("the folder must hold .tar shards", "none")
    members = list[str]()
    samples = {key: sample for shard in shards for key, sample in _samples(shard, request, members)}
    header = list(dict.fromkeys(name for sample in samples.values() for name in sample.values))
    columns = find_columns(header, ("label", "group", "split"), request)
    label = columns.labels[0] if columns.labels else ""
    excluded = Counter(hidden_count(hidden, _is_shard))
    excluded.update(hidden_count(members, is_single_image_name))
    excluded["not a .tar by its ending"] = len(names) - len(shards)
    skipped: list[tuple[str, str]] = []
    found: list[_Sample] = []
    for key, sample in samples.items():
        if sample.image:
            found.append(sample)
        elif sample.written or sample.values.get(label):
            skipped.append((key, "no image"))
        else:
            excluded["neither image nor label"] += 1
    if not found:
        expected = "expected: shards with <key>.jpg and <key>.cls (or <key>.json with label)"
        raise request.error("the shards must hold samples", "none", expected)
    cells = {
        ours: [sample.values.get(theirs, "") for sample in found]
        for ours, theirs in columns.of.items()
    }
    side = cache(lambda shard: split_of_file(shard, request))
    rows = Rows(
        cells=cells | {"label": [_label(sample, label, request) for sample in found]},
        locator=lambda row: found[row].locator,
        name=lambda row: request.hashed(found[row].locator),
        counting=lambda _: "",
        side=lambda row: side(found[row].shard),
    )
    return own_listing(
        rows, request, excluded=excluded, skipped=skipped, flags=columns.flags, intensity=INTENSITY
    )


def _is_shard(name: str) -> bool:
    return name.lower().endswith(TARS)


webdataset = Source(list_samples, single_reader)


def _samples(shard: str, request: RawRequest, hidden: list[str]) -> list[tuple[str, _Sample]]:
    """Return the samples of a shard with their locators, in stored order; ``hidden`` gets what
    is.
    """
    samples: dict[str, _Sample] = {}
    member = ""
    try:
        archive = open_archive(request.base() / shard)
        for member in archive.members():
            folder, _, file = member.rpartition("/")
            key, _, ending = file.partition(".")
            ending = ending.lower()
            sample = samples.setdefault(f"{folder}/{key}", _Sample(shard))
            if ending in ("cls", "json"):
                text = archive.read(member, MAX_LABEL_BYTES).decode("utf-8")
                if ending == "cls":
                    sample.written = text.strip("\r\n")
                    continue
                values = read_json(text)
                if isinstance(values, dict):
                    sample.values = {str(name): cell_text(value) for name, value in values.items()}
            elif is_single_image_name("x." + ending):
                if sample.image:
                    found = f"two in {request.hashed(sample.locator)}"
                    way_out = "files are one sample up to the first dot of their names"
                    raise request.error("a sample must have one image", found, way_out)
                sample.image = member
        hidden += archive.hidden
    except SkipItem as skip:
        rule = f"shard {request.hashed(shard)} must be whole and safe"
        raise request.error(
            rule, skip.reason, "copy it again; its name must end as its format does"
        ) from None
    except (ValueError, RecursionError):
        rule = ".cls must be UTF-8 text, and .json hold JSON, each key once"
        raise request.error(
            rule, f"other bytes in {request.hashed(f'{shard}{MARK}{member}')}"
        ) from None
    return [(f"{shard}{MARK}{sample.image or key}", sample) for key, sample in samples.items()]


def _label(sample: _Sample, column: str, request: RawRequest) -> str:
    """Return the label of a sample as written; ``.cls`` and ``.json`` may not contradict each
    other.
    """
    value = sample.values.get(column, "")
    if sample.written is None or not value:
        return sample.written or value
    mapping = dict(request.dataset.label_map)
    if mapping.get(value, value) != mapping.get(sample.written, sample.written):
        rule = ".cls and .json must give one label"
        raise request.error(rule, f"two in {request.hashed(sample.locator)}")
    return sample.written
