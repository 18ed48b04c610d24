"""List a user's images in WebDataset tars, which are called shards.

The README of ``webdataset/webdataset`` describes the layout. A sample consists of all files
with the same name up to the first dot. The image is a picture, such as ``.jpg`` or ``.png``,
or a DICOM file. A ``.cls`` file contains the class as text. A ``.json`` file may contain the
class, a group and a split. The class is the value of ``label``, or of another name in
:data:`tasks.sources.tables.COLUMNS`.

``<raw>`` is one shard or a folder of shards. If the ``.json`` of a sample has no split, the
name of the shard or of its folder may contain a split. Examples are ``train-000000.tar`` and
``skin-test-0.tar``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain

from tasks.sources.base import Listing, RawRequest, SkipItem, Source
from tasks.sources.dicom import INTENSITY, is_single_image_name, single_reader
from tasks.sources.own.columns import find_columns
from tasks.sources.own.listing import count_hidden, own_listing
from tasks.sources.own.rows import Rows
from tasks.sources.own.splits import split_of_file
from tasks.sources.raw import MARK, TARS, Archive, open_archive, raw_content
from tasks.sources.tables import cell_text, read_json

MAX_LABEL_BYTES = 1 << 16
"""Largest size of a ``.cls`` or ``.json`` file in bytes."""
EXPECTED = "Use shards with <key>.jpg and <key>.cls (or <key>.json with label)"


@dataclass
class _Sample:
    """The files of a shard that share one key.

    Attributes:
        shard: Name of the shard.
        key: Name of the files up to the first dot.
        image: Name of the member with the image; empty if there is none.
        cls_label: Text of the ``.cls`` file; None if there is none.
        values: Values of the ``.json`` file as text, by key.
    """

    shard: str
    key: str
    image: str = ""
    cls_label: str | None = None
    values: dict[str, str] = field(default_factory=dict)

    @property
    def locator(self) -> str:
        """The locator of the image. If there is no image, the locator ends with the key."""
        return f"{self.shard}{MARK}{self.image or self.key}"


def list_samples(request: RawRequest) -> Listing:
    """List the samples of all shards in stored order.

    Raises:
        DataError: A shard is damaged or unsafe. Or a sample has two images or two labels. Or
            labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    root = request.root()
    content = raw_content(request)
    shards = [name for name in content.files if root.is_file() or _is_shard(name)]
    if not shards:
        raise request.error("the folder has no .tar shards", hint=EXPECTED)
    excluded = Counter(count_hidden(content.hidden, _is_shard))
    excluded["not a .tar by its extension"] = len(content.files) - len(shards)
    all_samples = []
    for shard in shards:
        shard_samples, hidden_members = _read_shard(shard, request)
        all_samples += shard_samples
        excluded.update(count_hidden(hidden_members, is_single_image_name))
    header = list(dict.fromkeys(chain.from_iterable(sample.values for sample in all_samples)))
    columns = find_columns(header, ("label", "group", "split"), request)
    label_column = columns.labels[0] if columns.labels else ""
    skipped = []
    samples = []
    for sample in all_samples:
        if sample.image:
            samples.append(sample)
        elif sample.cls_label or sample.values.get(label_column):
            skipped.append((sample.locator, "no image"))
        else:
            excluded["neither image nor label"] += 1
    if not samples:
        raise request.error("the shards have no samples", hint=EXPECTED)

    def cells_of(column: str) -> list[str]:
        return [sample.values.get(column, "") for sample in samples]

    cells = {role: cells_of(column) for role, column in columns.name_by_role.items()}
    cells["label"] = [_label(sample, label_column, request) for sample in samples]
    split_by_shard = {shard: split_of_file(shard, request) for shard in shards}
    rows = Rows(
        cells=cells,
        locator=lambda row: samples[row].locator,
        name=lambda row: request.hashed(samples[row].locator),
        numbering=lambda _: "",
        image_path=lambda row: samples[row].image,
        group_hint="add the key `group` to each .json",
        file_split=lambda row: split_by_shard[samples[row].shard],
        columns=columns,
        unused_cells={column: cells_of(column) for column in columns.unused},
    )
    base_listing = Listing(excluded=excluded, skipped=skipped, intensity=INTENSITY)
    return own_listing(rows, request, base_listing)


def _is_shard(name: str) -> bool:
    return name.lower().endswith(TARS)


webdataset = Source(list_samples, single_reader)


def _read_shard(shard: str, request: RawRequest) -> tuple[list[_Sample], Iterable[str]]:
    """Return the samples of a shard in stored order, and the names of its hidden members.

    Raises:
        DataError: The shard cannot be read, or a file in it has a wrong format.
    """
    samples: dict[str, _Sample] = {}
    member = ""
    try:
        archive = open_archive(request.base() / shard)
        for member in archive.members():
            folder, _, file = member.rpartition("/")
            stem, _, extension = file.partition(".")
            key = f"{folder}/{stem}"
            sample = samples.setdefault(key, _Sample(shard, key))
            _add_file(sample, archive, member, extension.lower(), request)
    except SkipItem as skip:
        raise request.error(
            f"shard {request.hashed(shard)} cannot be read: {skip.reason}",
            hint="Copy the shard again. Its file extension must match its format",
        ) from None
    except (ValueError, RecursionError):
        raise request.error(
            f"the file {request.hashed(f'{shard}{MARK}{member}')} is a .cls that is not UTF-8 "
            "text, or a .json that is not JSON or has a key twice",
            hint="Correct the file, and write the shard again",
        ) from None
    return list(samples.values()), archive.hidden


def _add_file(
    sample: _Sample, archive: Archive, member: str, extension: str, request: RawRequest
) -> None:
    """Add one member of a shard to its sample. Files with other extensions are ignored.

    Args:
        sample: The sample of the member.
        archive: The shard.
        member: Name of the member.
        extension: The part of the name after its first dot, in lower case.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: The sample has two images.
    """
    if extension == "cls":
        text = archive.read(member, MAX_LABEL_BYTES).decode("utf-8")
        sample.cls_label = text.strip("\r\n")  # spaces may be a part of the label
    elif extension == "json":
        values = read_json(archive.read(member, MAX_LABEL_BYTES).decode("utf-8"))
        if isinstance(values, dict):
            sample.values = {str(name): cell_text(value) for name, value in values.items()}
    elif is_single_image_name(f"x.{extension}"):
        if sample.image:
            raise request.error(
                f"the sample of {request.hashed(sample.locator)} has two images",
                hint="Rename one of the two images. All files whose names are equal up to "
                "the first dot form one sample",
            )
        sample.image = member


def _label(sample: _Sample, column: str, request: RawRequest) -> str:
    """Return the label of a sample, before ``label_map`` is applied.

    Args:
        sample: The sample.
        column: Key of the label in ``.json``.
        request: The request. It contains ``label_map`` and makes the errors.

    Raises:
        DataError: ``.cls`` and ``.json`` have labels of different classes.
    """
    json_label = sample.values.get(column, "")
    cls_label = sample.cls_label
    if cls_label is None or not json_label:
        return cls_label or json_label
    label_map = dict(request.dataset.label_map)
    if label_map.get(json_label, json_label) != label_map.get(cls_label, cls_label):
        raise request.error(
            f"the .cls and the .json of {request.hashed(sample.locator)} have different labels",
            hint="Correct one of the two files",
        )
    return cls_label
