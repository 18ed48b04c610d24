"""The record of a preparation: counts, skips, conversions, and what is doubtful."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np

from tasks.preparation.image_table import ImageTable, content_fingerprint
from tasks.preparation.parts import Part
from tasks.prepared.record import PreparedRecord
from tasks.sources.base import Listing, RawRequest

MAX_LISTED_SKIPS = 50
TELLING_GAIN = 0.1


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
        task=spec.task,
        data_mode=spec.data_mode,
        faults=tuple(spec.faults),
        label_names=names,
        num_images=shape[0],
        num_groups=len(np.unique(images.groups)),
        num_images_per_label={name: int((images.labels == label).sum()) for label, name in enumerate(names)},
        num_groups_per_label={name: len(groups_of[label]) for label, name in enumerate(names)},
        num_listed=len(listing.items) + len(listing.skipped),
        num_skipped=len(skipped),
        excluded=dict(listing.excluded),
        skipped=dict(Counter(reason for _, reason in skipped)),
        skipped_items=tuple(skipped[:MAX_LISTED_SKIPS]),
        conversions=dict(sum((Counter(part.conversions) for part in parts), Counter())),
        flags=dict(sum((Counter(part.flags) for part in parts), Counter(listing.flags)))
        | telling_forms(parts),
        num_duplicates=images.num_duplicates,
        num_conflicts=images.num_conflicts,
        intensity=listing.intensity,
        pixel_range=(0.0, 255.0),
        dtype=dtype,
        shape=shape,
        seconds=0.0,
    )


def telling_forms(parts: Sequence[Part]) -> dict[str, int]:
    """Flag a set in which mode, size or conversion of the raw image predicts the label.

    A network may then learn how the images were saved instead of what they show.
    """
    counts: Counter[tuple[int, str]] = Counter()
    for part in parts:
        counts.update({(label, form): count for label, form, count in part.forms})
    labels: Counter[int] = Counter()
    best: defaultdict[str, int] = defaultdict(int)
    for (label, form), count in counts.items():
        labels[label] += count
        best[form] = max(best[form], count)
    total, by_chance = sum(labels.values()), max(labels.values(), default=0)
    gain = sum(best.values()) - by_chance
    # Rare forms always fit by chance; a real betrayal gains more than that.
    if total and len(best) < total / 10 and gain > TELLING_GAIN * total:
        return {"mode, size or conversion of the raw image tells the label": sum(best.values())}
    return {}
