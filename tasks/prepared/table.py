"""The images of a preparation as a table: gather from parts, keep so many per class, join,
fingerprint.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.fingerprint import canonical_json, derive_seed
from search_spaces.specs import PreparedSpec
from tasks.prepared.parts import Part

CHUNK = 1 << 12
"""Values compared at a time."""


def distinct(values: NDArray[np.generic]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first row of each distinct value, and the number of each row's value, in sorted
    order.

    As ``np.unique`` does, without its copies of the values: a preparation has millions of digests.
    """
    order = np.argsort(values, kind="stable")
    new = np.ones(len(order), bool)
    for start in range(1, len(order), CHUNK):
        rows = order[start - 1 : start + CHUNK]
        new[start : start + CHUNK] = values[rows[1:]] != values[rows[:-1]]
    numbers = np.empty(len(order), np.intp)
    numbers[order] = np.cumsum(new) - 1
    return order[new], numbers


def number_groups(groups: NDArray[np.generic]) -> NDArray[np.int64]:
    """Number groups by first appearance, so that a keyed hash's key cannot change the split."""
    first, inverse = distinct(groups)
    rank: NDArray[np.int64] = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    numbers: NDArray[np.int64] = rank[inverse]
    return numbers


def quotas_of(available: NDArray[np.int64], size: int, *, balanced: bool) -> NDArray[np.int64]:
    """Share ``size`` out over classes, equally or by largest remainder; earlier classes win
    ties.
    """
    weights = np.ones(len(available)) if balanced else available.astype(float)
    exact = size * weights / weights.sum()
    quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - quotas.sum()]] += 1
    return quotas


def occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each value how often it occurred before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    before = np.empty(len(values), dtype=np.int64)
    before[order] = counts
    return before


@dataclass
class ImageTable:
    """All images of all parts: where their pixels are, and what is known of them."""

    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]
    digests: NDArray[np.void]
    places: NDArray[np.int32]
    """``(num_images, 2)``: part and row in it."""
    num_duplicates: int = 0
    num_conflicts: int = 0

    def take(self, rows: NDArray[np.integer]) -> ImageTable:
        """Return the images of ``rows``."""
        return ImageTable(
            self.labels[rows],
            self.groups[rows],
            self.splits[rows],
            self.digests[rows],
            self.places[rows],
        )


def gather(parts: Sequence[Part]) -> ImageTable:
    """Put the images of all parts, in order, into one table, which the parts share from then on."""
    sizes = [len(part.rows) for part in parts]
    rows = np.concatenate([part.rows for part in parts])
    for part, own in zip(parts, np.split(rows, np.cumsum(sizes)[:-1]), strict=True):
        part.rows = own
    places = np.empty((len(rows), 2), np.int32)
    places[:, 0] = np.repeat(np.arange(len(parts)), sizes)
    places[:, 1] = np.arange(len(rows)) - np.repeat(np.cumsum([0, *sizes])[: len(parts)], sizes)
    return ImageTable(rows["label"], rows["group"], rows["split"], rows["digest"], places)


def keep_per_class(
    labels: NDArray[np.int64], groups: NDArray[np.int64], spec: PreparedSpec, limit: int
) -> NDArray[np.intp]:
    """Return rows (ascending) with at least ``limit`` images of each class, in whole groups.

    Groups are taken in a seeded order; with ``first_k_selection`` images are taken in stored order
    (F6).
    """
    if "first_k_selection" in spec.faults:
        return np.flatnonzero(occurrence(labels) < limit)
    rng = np.random.default_rng(derive_seed("max_images_per_class", spec.dataset, spec.task))
    order = np.argsort(groups, kind="stable")
    members_of = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)
    counts: Counter[int] = Counter()
    kept = []
    for group in rng.permutation(len(members_of)):
        members = members_of[group]
        if any(counts[int(label)] < limit for label in labels[members]):
            kept.append(members)
            counts.update(int(label) for label in labels[members])
    return np.sort(np.concatenate(kept))


def select(images: ImageTable, spec: PreparedSpec) -> ImageTable:
    """Keep ``max_images_per_class``, then join the groups of identical images and count them."""
    limit = spec.max_images_per_class
    if limit is not None and len(images.labels):
        images = images.take(
            keep_per_class(images.labels, number_groups(images.groups), spec, limit)
        )
    first, inverse = distinct(images.digests)
    counts = np.bincount(inverse)
    images.num_duplicates = int((counts - 1).sum())
    low, high = images.labels[first], images.labels[first]
    np.minimum.at(low, inverse, images.labels)
    np.maximum.at(high, inverse, images.labels)
    images.num_conflicts = int(counts[low < high].sum())
    del first, counts, low, high
    images.groups = join_groups(images.groups, inverse)
    return images


def join_groups(groups: NDArray[np.int64], same: NDArray[np.intp]) -> NDArray[np.int64]:
    """Give one id to all groups connected by identical images, which are those of one number in
    ``same``.
    """
    twins = np.flatnonzero(np.bincount(same)[same] > 1)
    if not len(twins):
        return groups
    ids, group = np.unique(groups[twins], return_inverse=True)
    image = np.unique(same[twins], return_inverse=True)[1]
    # A graph of groups and of images that occur again, with an edge where a group has that image.
    size = len(ids) + int(image.max()) + 1
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = coo_array((np.ones(len(group), np.int8), (group, len(ids) + image)), shape=(size, size))
    part = connected_components(edges, directed=False)[1][: len(ids)]
    _, first, number = np.unique(part, return_index=True, return_inverse=True)
    place = np.minimum(np.searchsorted(ids, groups), len(ids) - 1)
    joined: NDArray[np.int64] = np.where(ids[place] == groups, ids[first[number]][place], groups)
    return joined


def content_fingerprint(images: ImageTable, header: dict[str, object]) -> str:
    """Hash the content in order; groups enter by first appearance, so the hash key does not
    matter.
    """
    total = hashlib.sha256(canonical_json(header).encode())
    numbers = number_groups(images.groups).astype("<i8")
    for array in (images.labels.astype("<i8"), numbers, images.splits.astype("<i1")):
        total.update(array.tobytes())
    for start in range(0, len(images.digests), CHUNK):
        total.update(images.digests[start : start + CHUNK].tobytes().hex().encode())
    return total.hexdigest()
