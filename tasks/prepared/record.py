"""What is known of a prepared dataset, as one record that goes into its marker, logs, MLflow and
reports.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from search_spaces.errors import plural
from tasks.prepared.parts import Part
from tasks.prepared.table import ImageTable, content_fingerprint
from tasks.sources.base import Listing, RawRequest, count_lines

OF_DATASET = ("source", "title", "modality", "domain", "origin", "label_rule")
MAX_LISTED = 50
MAX_SHOWN_SKIPS = 5
TELLING_GAIN, TELLING_CHANCE = 0.1, 1e-3
SHOULD_BE_ONE = ("modality", "series description", "pixel spacing", "rescale slope")
"""Traits that a set of comparable images has one value of."""


class PreparedRecord(BaseModel):
    """What a prepared dataset is and how it came to be; holds nothing that identifies a person.

    Attributes:
        fingerprint: SHA-256 of the content: pixels, labels, who shares a group, splits, label
            names, dtype. It does not depend on sharding, worker count, hash key or when and where
            it was made.
        raw_id: Hash of the raw listing with file sizes and times, to notice that your own data
            changed.
        excluded: Items left out by the dataset's own rules, by reason.
        skipped: Items that could not be used, by reason; ``skipped_items`` are the first of them,
            pairs (keyed hash of the locator, reason).
        conversions: What was done to pixels, and to how many images.
        flags: What is doubtful, and how often.
        num_duplicates: Images whose pixels equal an earlier image's; their groups were joined.
        num_conflicts: Images whose pixels equal those of an image with another label.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

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


def make_record(
    request: RawRequest,
    listing: Listing,
    dtype: str,
    images: ImageTable,
    parts: Sequence[Part],
    skipped: Sequence[tuple[str, str]],
    raw_id: str,
) -> PreparedRecord:
    """Put together what is known of a preparation; ``seconds`` is filled in when it is
    published.
    """
    spec, dataset = request.spec, request.dataset
    names = tuple(listing.label_names)
    shape = (len(images.labels), spec.channels, spec.image_size, spec.image_size)
    header: dict[str, object] = {"dtype": dtype, "shape": shape, "label_names": names}
    counts = [int((images.labels == label).sum()) for label in range(len(names))]
    groups_of = [np.unique(images.groups[images.labels == label]) for label in range(len(names))]
    return PreparedRecord(
        fingerprint=content_fingerprint(images, header),
        raw_id=raw_id,
        dataset=dataset.name,
        **{name: getattr(dataset, name) for name in OF_DATASET},
        **{name: getattr(spec, name) for name in ("prepared_id", "task", "data_mode", "faults")},
        label_names=names,
        num_images=shape[0],
        num_groups=len(np.unique(images.groups)),
        num_images_per_label=dict(zip(names, counts, strict=True)),
        num_groups_per_label={name: len(groups_of[label]) for label, name in enumerate(names)},
        num_listed=len(listing.items) + len(listing.skipped),
        num_skipped=len(skipped),
        excluded=dict(+Counter(listing.excluded)),
        skipped=dict(Counter(reason for _, reason in skipped)),
        skipped_items=tuple(skipped[:MAX_LISTED]),
        conversions=dict(sum((Counter(part.conversions) for part in parts), Counter())),
        flags=dict(+sum((Counter(part.flags) for part in parts), Counter(listing.flags)))
        | telling_traits(parts)
        | _doubts(images, parts, names, groups_of),
        num_duplicates=images.num_duplicates,
        num_conflicts=images.num_conflicts,
        intensity=listing.intensity,
        pixel_range=(0.0, 255.0),
        dtype=dtype,
        shape=shape,
        seconds=0.0,
    )


def _doubts(
    images: ImageTable,
    parts: Sequence[Part],
    names: Sequence[str],
    groups_of: Sequence[NDArray[np.int64]],
) -> dict[str, int]:
    """Flag what keeps groups and classes from being in training and test as they should be.

    Test images whose group (a header's patient, or an equal image) is in training, too; images
    whose patient, by the headers, is in several groups, which a split may tear apart; classes of
    one group, without any image, or on one side of a given split only, as when one side's labels
    start at 1.
    """
    train, test = images.splits == 1, images.splits == 2
    torn = int((np.isin(images.groups, images.groups[train]) & test).sum())
    known = [part.rows[part.rows["patient"] != 0] for part in parts]
    pairs = np.concatenate([np.stack([rows["patient"], rows["group"]], 1) for rows in known])
    found, count = np.unique(pairs, axis=0, return_counts=True)
    _, patient, num_groups = np.unique(found[:, 0], return_inverse=True, return_counts=True)
    spread = int(count[num_groups[patient] > 1].sum())
    flags = {
        "test images never used, since their group is in training": torn,
        "patient of the header in several groups: is the group a patient?": spread,
    }
    flags |= {
        f"class of one group: {names[k]}": 1
        for k, groups in enumerate(groups_of)
        if len(groups) == 1
    }
    if train.any() and test.any():
        sides = {
            "train": set(images.labels[train].tolist()),
            "test": set(images.labels[test].tolist()),
        }
        flags |= {
            f"class in {side} only: {names[label]}": 1
            for side, other in (("train", "test"), ("test", "train"))
            for label in sorted(sides[side] - sides[other])[:MAX_LISTED]
        }
    empty = [name for name, groups in zip(names, groups_of, strict=True) if not len(groups)]
    flags |= {f"class without a usable image: {name}": 1 for name in empty}
    return {flag: number for flag, number in flags.items() if number}


def telling_traits(parts: Sequence[Part]) -> dict[str, int]:
    """Flag what predicts the label besides the picture, and what should be one and is several.

    A network may learn how the images were saved, or where, instead of what they show. A trait is
    flagged when guessing by it alone is right for a tenth of the images more than guessing the
    largest class, and when that is no chance (G-test, p < 0.001; traits with fewer than five images
    per value are left alone). Counted are images guessed right, or unlike the commonest value.
    """
    from scipy.special import chdtrc, entr, rel_entr

    tables: defaultdict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for part in parts:
        for label, name, value, count in part.traits:
            tables[name][label, value] += count
    flags: dict[str, int] = {}
    for name, counts in tables.items():
        labels, values = (
            sorted({label for label, _ in counts}),
            sorted({value for _, value in counts}),
        )
        table = np.array([[counts[label, value] for value in values] for label in labels])
        if name in SHOULD_BE_ONE and len(values) > 1:
            flags[f"{name}: {len(values)} different"] = int(table.sum() - table.sum(0).max())
        total, right = int(table.sum()), int(table.max(0).sum())
        gain = right - table.sum(1).max()
        if min(table.shape) < 2 or 5 * len(values) > total or gain <= TELLING_GAIN * total:
            continue
        shares = table / total
        information = float(rel_entr(shares, np.outer(shares.sum(1), shares.sum(0))).sum())
        freedom = (len(labels) - 1) * (len(values) - 1)
        if chdtrc(freedom, 2 * total * information) < TELLING_CHANCE:
            bits = (
                f"{information / math.log(2):.2f} of "
                f"{entr(shares.sum(1)).sum() / math.log(2):.2f} bits"
            )
            flags[f"{name} tells the label ({right / total:.0%} by it alone, {bits})"] = right
    return flags


def doubt_lines(record: PreparedRecord) -> list[str]:
    """Return what was left out, could not be used or is doubtful, as lines."""
    return count_lines(left_out=record.excluded, skipped=record.skipped, doubtful=record.flags)


def set_lines(images_of: Mapping[str, int], groups_of: Iterable[int], num_groups: int) -> list[str]:
    """Return how many images, classes and groups there are, and how many of each class, as
    lines.
    """
    whole = {"image": sum(images_of.values()), "class": len(images_of), "group": num_groups}
    return [", ".join(plural(count, noun) for noun, count in whole.items())] + [
        f"  class {name}: {plural(count, 'image')}, {plural(groups, 'group')}"
        for (name, count), groups in zip(images_of.items(), groups_of, strict=True)
    ]


def preparation_lines(record: PreparedRecord) -> list[str]:
    """Return what people should see of a preparation: what was taken, left out, changed, and is
    doubtful.
    """
    groups_of = record.num_groups_per_label.values()
    whole, *classes = set_lines(record.num_images_per_label, groups_of, record.num_groups)
    alone = ", every image its own (docs/datasets.md says how to name patients)"
    lines = [f"{record.title}: {whole}{alone if record.num_groups == record.num_images else ''}"]
    if record.origin != "real":
        lines.append(f"  {record.origin}; label: {record.label_rule or 'as made'}")
    channels, height, width = record.shape[1:]
    lines += [
        *classes,
        f"  made {height}x{width}, {plural(channels, 'channel')}: {record.intensity}",
    ]
    lines += [*count_lines(converted=record.conversions), *doubt_lines(record)]
    if record.num_duplicates:
        twins = f"  equal to an earlier image: {record.num_duplicates:,}"
        lines.append(f"{twins} (kept, on one side of the split)")
    if record.num_conflicts:
        lines.append(f"  equal to an image with another label: {record.num_conflicts:,}")
    if record.skipped_items:
        shown = ", ".join(hashed for hashed, _ in record.skipped_items[:MAX_SHOWN_SKIPS])
        lines.append(f"  skipped files, first (hashed): {shown}")
        lines.append("  find one with: isweep locate HASH --raw DIR")
    return lines
