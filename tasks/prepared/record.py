"""What is known of a prepared dataset, as one record that goes into its marker, logs, MLflow and reports."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tasks.prepared.parts import Part
from tasks.prepared.table import ImageTable, content_fingerprint
from tasks.sources.base import Listing, RawRequest


@dataclass(frozen=True)
class PreparedRecord:
    """What a prepared dataset is and how it came to be; holds nothing that identifies a person.

    Attributes:
        fingerprint: SHA-256 of the content: pixels, labels, who shares a group, splits, label names, dtype.
            It does not depend on sharding, worker count, hash key or when and where it was made.
        prepared_id: Identity of the spec it was made from.
        raw_id: Hash of the raw listing with file sizes and times, to notice that your own data changed.
        origin: ``real``, ``derived``, ``semi-synthetic`` or ``generated``.
        label_rule: How labels were made where nobody gave them.
        num_images_per_label: Label name to number of images.
        num_groups_per_label: Label name to number of groups with such an image.
        num_listed: Items found in the raw download.
        excluded: Items left out by the dataset's own rules, by reason.
        skipped: Items that could not be used, by reason.
        skipped_items: First pairs (keyed hash of the locator, reason) of those.
        conversions: What was done to pixels, and to how many images.
        flags: What is doubtful, and how often.
        num_duplicates: Images whose pixels equal an earlier image's; their groups were joined.
        num_conflicts: Images whose pixels equal those of an image with another label.
        intensity: How raw values became pixels.
        seconds: Time of the preparation that published it.
    """

    fingerprint: str
    prepared_id: str
    raw_id: str
    dataset: str
    source: str
    title: str
    modality: str
    domain: str | None
    task: str
    data_mode: str
    faults: tuple[str, ...]
    label_names: tuple[str, ...]
    num_images: int
    num_groups: int
    num_images_per_label: dict[str, int]
    num_groups_per_label: dict[str, int]
    num_listed: int
    num_skipped: int
    excluded: dict[str, int]
    skipped: dict[str, int]
    skipped_items: tuple[tuple[str, str], ...]
    conversions: dict[str, int]
    flags: dict[str, int]
    num_duplicates: int
    num_conflicts: int
    intensity: str
    pixel_range: tuple[float, float]
    dtype: str
    shape: tuple[int, ...]
    seconds: float
    origin: str = "real"
    label_rule: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild a record.

        Raises:
            KeyError: when a field without a default is missing, or one is unknown.
        """
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(values) <= names:
            raise KeyError(f"fields {sorted((needed - set(values)) | (set(values) - names))}")
        return cls(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


# The record of a preparation: counts, skips, conversions, and what is doubtful.

MAX_LISTED_SKIPS = 50
MAX_SHOWN_SKIPS = 5
TELLING_GAIN, TELLING_CHANCE = 0.1, 1e-3
SHOULD_BE_ONE = ("modality", "series description", "pixel spacing", "rescale slope")
"""Traits that a set of comparable images has one value of."""


def stored_dtype(request: RawRequest, listing: Listing) -> Literal["uint8", "float32"]:
    """Return the dtype of the prepared images; the released code does not round after its resize."""
    return "float32" if request.has_fault("resize_without_antialias") else listing.dtype


def make_record(
    request: RawRequest,
    listing: Listing,
    images: ImageTable,
    parts: Sequence[Part],
    skipped: Sequence[tuple[str, str]],
    raw_id: str,
) -> PreparedRecord:
    """Put together what is known of a preparation; ``seconds`` is filled in when it is published."""
    spec, dataset = request.spec, request.dataset
    dtype = stored_dtype(request, listing)
    names = tuple(listing.label_names)
    shape = (len(images.labels), spec.channels, spec.image_size, spec.image_size)
    header: dict[str, object] = {"dtype": dtype, "shape": shape, "label_names": names}
    counts = [int((images.labels == label).sum()) for label in range(len(names))]
    groups_of = [np.unique(images.groups[images.labels == label]) for label in range(len(names))]
    return PreparedRecord(
        fingerprint=content_fingerprint(images, header),
        prepared_id=spec.prepared_id,
        raw_id=raw_id,
        dataset=dataset.name,
        source=dataset.source,
        title=dataset.title,
        modality=dataset.modality,
        domain=dataset.domain,
        origin=dataset.origin,
        label_rule=dataset.label_rule,
        task=spec.task,
        data_mode=spec.data_mode,
        faults=tuple(spec.faults),
        label_names=names,
        num_images=shape[0],
        num_groups=len(np.unique(images.groups)),
        num_images_per_label=dict(zip(names, counts, strict=True)),
        num_groups_per_label={name: len(groups_of[label]) for label, name in enumerate(names)},
        num_listed=len(listing.items) + len(listing.skipped),
        num_skipped=len(skipped),
        excluded=dict(listing.excluded),
        skipped=dict(Counter(reason for _, reason in skipped)),
        skipped_items=tuple(skipped[:MAX_LISTED_SKIPS]),
        conversions=dict(sum((Counter(part.conversions) for part in parts), Counter())),
        flags=dict(sum((Counter(part.flags) for part in parts), Counter(listing.flags)))
        | telling_traits(parts)
        | _torn_groups(images)
        | _torn_patients(parts)
        | _lone_groups(names, groups_of)
        | _one_sided(names, images)
        | {
            f"class without a usable image: {name}": 1
            for label, name in enumerate(names)
            if not counts[label]
        },
        num_duplicates=images.num_duplicates,
        num_conflicts=images.num_conflicts,
        intensity=listing.intensity,
        pixel_range=(0.0, 255.0),
        dtype=dtype,
        shape=shape,
        seconds=0.0,
    )


def _torn_groups(images: ImageTable) -> dict[str, int]:
    """Count test images whose group (a header's patient, or an equal image) is in training, too."""
    seen = np.isin(images.groups, images.groups[images.splits == 1]) & (images.splits == 2)
    count = int(seen.sum())
    return {"test images never used, since their group is in training": count} if count else {}


def _torn_patients(parts: Sequence[Part]) -> dict[str, int]:
    """Count images whose patient, by the headers, is in several groups, which a split may tear apart."""
    pairs = [np.stack([part.patients, part.groups], 1)[part.patients != 0] for part in parts]
    found, images = np.unique(np.concatenate(pairs), axis=0, return_counts=True)
    _, patient, num_groups = np.unique(found[:, 0], return_inverse=True, return_counts=True)
    count = int(images[num_groups[patient] > 1].sum())
    return {"patient of the header in several groups: is the group a patient?": count} if count else {}


def _lone_groups(names: Sequence[str], groups_of: Sequence[NDArray[np.int64]]) -> dict[str, int]:
    """Name classes that cannot be in training and test, since one group has all their images."""
    lone = [name for name, groups in zip(names, groups_of, strict=True) if len(groups) == 1]
    return dict.fromkeys((f"class of one group: {name}" for name in lone), 1)


def _one_sided(names: Sequence[str], images: ImageTable) -> dict[str, int]:
    """Name classes that only one side of a given split has, as when one side's labels start at 1."""
    sides = {"train": images.splits == 1, "test": images.splits == 2}
    if not all(rows.any() for rows in sides.values()):
        return {}
    found = {side: set(images.labels[rows].tolist()) for side, rows in sides.items()}
    return {
        f"class in {side} only: {names[label]}": 1
        for side, other in (("train", "test"), ("test", "train"))
        for label in sorted(found[side] - found[other])[:MAX_LISTED_SKIPS]
    }


def telling_traits(parts: Sequence[Part]) -> dict[str, int]:
    """Flag what predicts the label besides the picture, and what should be one and is several.

    A network may learn how the images were saved, or where, instead of what they show. A trait is flagged
    when guessing by it alone is right for a tenth of the images more than guessing the largest class, and
    when that is no chance (G-test, p < 0.001; traits with fewer than five images per value are left alone).

    Returns:
        Flag to number of images: those guessed right, or those unlike the commonest value.
    """
    tables: defaultdict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for part in parts:
        for label, name, value, count in part.traits:
            tables[name][label, value] += count
    flags: dict[str, int] = {}
    for name, counts in tables.items():
        flags |= _telling(name, counts)
        values: Counter[str] = Counter()
        for (_, value), count in counts.items():
            values[value] += count
        if name in SHOULD_BE_ONE and len(values) > 1:
            flags[f"{name}: {len(values)} different"] = values.total() - max(values.values())
    return flags


def _telling(name: str, counts: Counter[tuple[int, str]]) -> dict[str, int]:
    from scipy.special import chdtrc

    labels: Counter[int] = Counter()
    values: Counter[str] = Counter()
    best: defaultdict[str, int] = defaultdict(int)
    for (label, value), count in counts.items():
        labels[label] += count
        values[value] += count
        best[value] = max(best[value], count)
    total, right = counts.total(), sum(best.values())
    if len(values) < 2 or len(labels) < 2 or 5 * len(values) > total:
        return {}
    information = sum(
        count / total * math.log2(count * total / (labels[label] * values[value]))
        for (label, value), count in counts.items()
    )
    entropy = -sum(count / total * math.log2(count / total) for count in labels.values())
    freedom = (len(values) - 1) * (len(labels) - 1)
    by_chance = float(chdtrc(freedom, 2 * total * math.log(2) * information))
    if right - max(labels.values()) <= TELLING_GAIN * total or by_chance >= TELLING_CHANCE:
        return {}
    shown = f"{right / total:.0%} by it alone, {information:.2f} of {entropy:.2f} bits"
    return {f"{name} tells the label ({shown})": right}


def preparation_lines(record: PreparedRecord) -> list[str]:
    """Return what people should see of a preparation: what was taken, left out, changed, and is doubtful.

    Args:
        record: Of a prepared dataset; ``PreparedRecord.from_json`` makes one of a stored record.
    """
    lines = [
        f"{record.title}: {record.num_images:,} images, {len(record.label_names)} classes, "
        f"{record.num_groups:,} groups"
    ]
    if record.origin != "real":
        lines.append(f"  {record.origin}; label: {record.label_rule or 'as made'}")
    for name, count in record.num_images_per_label.items():
        lines.append(f"  class {name}: {count:,} images, {record.num_groups_per_label[name]:,} groups")
    channels, height, width = record.shape[1:]
    lines.append(
        f"  made {height}x{width}, {channels} channel{'s' if channels > 1 else ''}: {record.intensity}"
    )
    for title, counts in (
        ("converted", record.conversions),
        ("left out", record.excluded),
        ("skipped", record.skipped),
        ("doubtful", record.flags),
    ):
        lines += [f"  {title}: {reason}, {count:,}" for reason, count in counts.items()]
    if record.num_duplicates:
        lines.append(
            f"  equal to an earlier image: {record.num_duplicates:,} (kept, on one side of the split)"
        )
    if record.num_conflicts:
        lines.append(f"  equal to an image with another label: {record.num_conflicts:,}")
    if record.skipped_items:
        shown = ", ".join(hashed for hashed, _ in record.skipped_items[:MAX_SHOWN_SKIPS])
        lines.append(f"  skipped files, first (hashed): {shown}")
        lines.append("  find one with: isweep locate HASH --raw DIR")
    return lines
