"""Make the table of all images: join parts, limit classes, join groups, hash the content."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from search_spaces.fingerprint import canonical_json, derive_seed
from search_spaces.specs import PreparedSpec
from tasks.array_types import AnyArray, Int8Array, Int64Array, IntArray
from tasks.prepared.parts import PartMetadata

Rows = NDArray[np.intp]
"""Indices of the rows of an array."""
CHUNK = 1 << 12
"""Number of values that are processed at a time, so that millions of digests are never copied
at once."""


def distinct(values: AnyArray) -> tuple[Rows, Rows]:
    """Assign a number to each distinct value, in sorted order.

    The result is the same as with ``np.unique``, but the values are not copied.

    Args:
        values: ``(num_values,)`` values of any type that can be sorted.

    Returns:
        ``(num_distinct,)`` first row of each distinct value, and ``(num_values,)`` number that
        is assigned to the value of each row.
    """
    order = np.argsort(values, kind="stable")
    is_new = np.ones(len(order), bool)
    for start in range(1, len(order), CHUNK):
        stop = start + CHUNK
        rows = order[start - 1 : stop]
        is_new[start:stop] = values[rows[1:]] != values[rows[:-1]]
    numbers = np.empty(len(order), np.intp)
    numbers[order] = np.cumsum(is_new) - 1
    return order[is_new], numbers


def number_groups(groups: AnyArray) -> Int64Array:
    """Return the number of each row's group.

    Groups are numbered in the order of their first rows.

    Group ids are keyed hashes. Splits use these numbers instead of the ids, because splits
    must not depend on the key.
    """
    first_rows, sorted_numbers = distinct(groups)
    rank: Int64Array = np.empty(len(first_rows), dtype=np.int64)
    rank[np.argsort(first_rows)] = np.arange(len(first_rows))
    numbers: Int64Array = rank[sorted_numbers]
    return numbers


def class_counts_for(available: Int64Array, size: int, *, balanced: bool) -> Int64Array:
    """Return the number of images of each class in a set of ``size`` images.

    The numbers are rounded by the method of the largest remainder. If two classes have equal
    remainders, the first of them gets the additional image.

    Args:
        available: ``(num_classes,)`` number of images of each class in the dataset.
        size: Number of images in the set.
        balanced: True for equal numbers of images of all classes; False for numbers in
            proportion to ``available``.

    Returns:
        ``(num_classes,)`` number of images of each class. The sum is ``size``.
    """
    weights = np.ones(len(available)) if balanced else available.astype(float)
    exact = size * weights / weights.sum()
    quotas: Int64Array = np.floor(exact).astype(np.int64)
    num_left = size - quotas.sum()
    largest_remainders = np.argsort(quotas - exact, kind="stable")[:num_left]
    quotas[largest_remainders] += 1
    return quotas


def count_earlier(values: Int64Array) -> Int64Array:
    """Return, for each value, its number of occurrences at earlier positions,
    ``(num_values,)``.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_first = np.r_[True, ordered[1:] != ordered[:-1]]
    starts = np.flatnonzero(is_first)
    lengths = np.diff(np.r_[starts, len(values)])
    before = np.empty(len(values), dtype=np.int64)
    before[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return before


def count_groups(labels: Int64Array, groups: Int64Array, num_labels: int) -> Int64Array:
    """Return the number of groups that contain an image of each label, ``(num_labels,)``.

    Args:
        labels: ``(num_images,)`` label of each image.
        groups: ``(num_images,)`` group id of each image.
        num_labels: Number of labels. All labels are smaller than this number.
    """
    counts = np.zeros(num_labels, np.int64)
    for label in range(num_labels):
        counts[label] = len(np.unique(groups[labels == label]))
    return counts


@dataclass
class ImageTable:
    """The metadata of all images of a preparation, as one array per field.

    Attributes:
        labels: ``(num_images,)`` class indices.
        groups: ``(num_images,)`` keyed hashes of groups.
        splits: ``(num_images,)`` given split of each image, see
            :class:`~tasks.sources.own.splits.GivenSplit`.
        digests: ``(num_images,)`` SHA-256 of each image.
        part_rows: ``(num_images, 2)`` index of the part that contains each image, and row of
            the image in this part.
        num_duplicates: Number of images that equal an earlier image.
        num_conflicts: Number of images that equal an image with another label.
    """

    labels: Int64Array
    groups: Int64Array
    splits: Int8Array
    digests: NDArray[np.void]
    part_rows: NDArray[np.int32]
    num_duplicates: int = 0
    num_conflicts: int = 0

    def take(self, rows: IntArray) -> ImageTable:
        """Return a table of the images in ``rows``, in this order."""
        return ImageTable(
            self.labels[rows],
            self.groups[rows],
            self.splits[rows],
            self.digests[rows],
            self.part_rows[rows],
        )


def join_parts(parts: Sequence[PartMetadata]) -> ImageTable:
    """Return one table of the images of all parts, in the order of the parts.

    The attribute ``rows`` of each part becomes a view of this table. So the metadata of
    millions of images are in memory only once.
    """
    table = np.concatenate([part.rows for part in parts])
    part_rows = np.empty((len(table), 2), np.int32)
    start = 0
    for number, part in enumerate(parts):
        stop = start + len(part.rows)
        part.rows = table[start:stop]
        part_rows[start:stop, 0] = number
        part_rows[start:stop, 1] = np.arange(stop - start)
        start = stop
    return ImageTable(
        labels=table["label"],
        groups=table["group"],
        splits=table["split"],
        digests=table["digest"],
        part_rows=part_rows,
    )


def keep_per_class(
    labels: Int64Array,
    groups: Int64Array,
    spec: PreparedSpec,
    limit: int,
) -> Rows:
    """Choose whole groups of images until each class has ``limit`` images.

    Groups are chosen in a random order with a seed. With the fault ``first_k_selection`` (F6
    in ``docs/faults.md``), single images are chosen in stored order instead.

    Args:
        labels: ``(num_images,)`` class indices.
        groups: ``(num_images,)`` group numbers.
        spec: The spec of the preparation. Its dataset and task determine the seed.
        limit: Number of images of each class. The last chosen group may increase the number
            beyond this limit.

    Returns:
        The chosen rows in ascending order.
    """
    if "first_k_selection" in spec.faults:
        return np.flatnonzero(count_earlier(labels) < limit)
    rng = np.random.default_rng(derive_seed("max_images_per_class", spec.dataset, spec.task))
    order = np.argsort(groups, kind="stable")
    ends = np.flatnonzero(np.diff(groups[order])) + 1
    members_by_group = np.split(order, ends)
    counts: Counter[int] = Counter()
    chosen = []
    for group in rng.permutation(len(members_by_group)):
        members = members_by_group[group]
        member_labels = labels[members].tolist()
        if any(counts[label] < limit for label in member_labels):
            chosen.append(members)
            counts.update(member_labels)
    return np.sort(np.concatenate(chosen))


def choose_images(images: ImageTable, spec: PreparedSpec) -> ImageTable:
    """Apply ``max_images_per_class``, join groups that contain equal images, and count equal
    images.

    The function returns a new table. The old and the new table share the arrays that do not
    change.
    """
    limit = spec.max_images_per_class
    if limit is not None and len(images.labels):
        groups = number_groups(images.groups)
        images = images.take(keep_per_class(images.labels, groups, spec, limit))
    first_rows, image_numbers = distinct(images.digests)
    copies = np.bincount(image_numbers)
    num_duplicates = int((copies - 1).sum())
    lowest_label = images.labels[first_rows]
    highest_label = images.labels[first_rows]
    np.minimum.at(lowest_label, image_numbers, images.labels)
    np.maximum.at(highest_label, image_numbers, images.labels)
    num_conflicts = int(copies[lowest_label < highest_label].sum())
    del first_rows, copies, lowest_label, highest_label  # to free their memory
    return replace(
        images,
        groups=join_groups(images.groups, image_numbers),
        num_duplicates=num_duplicates,
        num_conflicts=num_conflicts,
    )


def join_groups(groups: Int64Array, image_numbers: Rows) -> Int64Array:
    """Join groups that contain equal images, and return the new group ids.

    Args:
        groups: ``(num_images,)`` group id of each image.
        image_numbers: ``(num_images,)`` number of each image. Only equal images have equal
            numbers.

    Returns:
        ``(num_images,)`` group ids. Joined groups get the smallest of their ids.
    """
    is_repeated = np.bincount(image_numbers)[image_numbers] > 1
    repeated = np.flatnonzero(is_repeated)
    if not len(repeated):
        return groups
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group_ids, group_nodes = np.unique(groups[repeated], return_inverse=True)
    _, image_nodes = np.unique(image_numbers[repeated], return_inverse=True)
    # In the graph, the first nodes are groups, and the other nodes are repeated images. Each
    # edge connects a group with one of its images.
    num_nodes = len(group_ids) + int(image_nodes.max()) + 1
    edges = (np.ones(len(repeated), np.int8), (group_nodes, len(group_ids) + image_nodes))
    graph = coo_array(edges, shape=(num_nodes, num_nodes))
    _, components = connected_components(graph, directed=False)
    # The ids are sorted, so the first id of a component is the smallest.
    first_nodes, component_numbers = distinct(components[: len(group_ids)])
    joined_ids = group_ids[first_nodes[component_numbers]]
    # `group_ids` contains only groups with repeated images. The ids of all other groups do not
    # change.
    nearest = np.minimum(np.searchsorted(group_ids, groups), len(group_ids) - 1)
    joined: Int64Array = np.where(group_ids[nearest] == groups, joined_ids[nearest], groups)
    return joined


def content_fingerprint(images: ImageTable, header: dict[str, object]) -> str:
    """Return the SHA-256 of the content of a dataset, in stored order.

    Groups are numbered in the order of their first images. So the fingerprint does not depend
    on the hash key.

    Args:
        images: The table of all images.
        header: JSON values that describe the whole dataset.
    """
    total = hashlib.sha256(canonical_json(header).encode())
    total.update(images.labels.astype("<i8").tobytes())
    group_numbers = number_groups(images.groups)
    total.update(group_numbers.astype("<i8").tobytes())
    total.update(images.splits.astype("<i1").tobytes())
    for start in range(0, len(images.digests), CHUNK):
        digests = images.digests[start : start + CHUNK].tobytes()
        total.update(digests.hex().encode())
    return total.hexdigest()
