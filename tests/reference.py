"""Slow, obvious versions of the measures in plain NumPy loops and float64, as oracles of tests."""

from __future__ import annotations

import numpy as np

from search_spaces.errors import CorruptStoreError


def pairwise_distances(rows):
    """Return the L2 distances of all rows, ``(n, n)``, computed one row at a time."""
    flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    return np.stack([np.sqrt(((flat - row) ** 2).sum(axis=1)) for row in flat])


def whole_squared_distances(rows):
    """Return the squared distances of rows of whole numbers as lists of Python integers."""
    flat = [[int(value) for value in np.ravel(row)] for row in rows]

    def squared_distance(first, second):
        return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))

    return [[squared_distance(first, second) for second in flat] for first in flat]


def whole_neighbors(squared, size, num_neighbors):
    """Return ``(squared distance, row)`` of the nearest rows of each of the first ``size`` rows.

    Rows at equal distances are ordered by their numbers.
    """
    neighbors = []
    for row in range(size):
        others = [(squared[row][other], other) for other in range(size) if other != row]
        neighbors.append(sorted(others)[:num_neighbors])
    return neighbors


def whole_opposite(squared, labels, members):
    """Return ``(squared distance, row)`` of each member's nearest member with another label.

    The value is None if all members have one label.
    """
    opposite = {}
    for row in members:
        unlike = [other for other in members if labels[other] != labels[row]]
        opposite[row] = min(((squared[row][other], other) for other in unlike), default=None)
    return opposite


def neighbor_distances(rows, num_neighbors):
    """Return the distances to the k nearest other rows, ``(n, k)``, ascending."""
    distances = pairwise_distances(rows)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :num_neighbors]


def nearest_opposite(rows, labels):
    """Return the distance to the nearest row with another label, ``(n,)``."""
    distances = pairwise_distances(rows)
    labels = np.asarray(labels)
    nearest = []
    for row_distances, label in zip(distances, labels, strict=True):
        opposite = row_distances[labels != label]
        nearest.append(opposite.min(initial=np.inf))
    return np.array(nearest)


def label_sharpness(rows, labels):
    """Return the maximum of 1/distance over all pairs with different labels."""
    return 1 / nearest_opposite(rows, labels).min()


def mle(rows, num_neighbors, subtract):
    """Return the mean of Levina and Bickel's estimates by MacKay and Ghahramani's inverse mean.

    The sum of logarithms is divided by k - subtract.
    """
    inverses = []
    for line in neighbor_distances(rows, num_neighbors):
        total = sum(np.log(line[-1] / line[j]) for j in range(num_neighbors - 1))
        inverses.append(total / (num_neighbors - subtract))
    return 1 / np.mean(inverses)


def twonn(rows, discard_fraction):
    """Return the estimate of Facco et al.: the slope through 0 of -log(1-F) on log(r2/r1)."""
    ratios = sorted(line[1] / line[0] for line in neighbor_distances(rows, 2))
    num_kept = min(int(len(ratios) * (1 - discard_fraction)), len(ratios) - 1)
    x = np.log(ratios[:num_kept])
    y = -np.log(1 - np.arange(1, num_kept + 1) / len(ratios))
    return (x @ y) / (x @ x)


class Stream:
    """A source that reads rows block by block, and records how many rows each read has."""

    def __init__(self, rows):
        self.rows = rows
        self.reads = []
        self.num_rows = len(rows)
        self.row_shape = rows.shape[1:]

    def read(self, start, stop):
        self.reads.append(stop - start)
        return self.rows[start:stop].copy()


class CorruptFrom(Stream):
    """A source with a damaged shard: every read of row ``first`` or a later row fails."""

    def __init__(self, rows, first):
        super().__init__(rows)
        self.first = first

    def read(self, start, stop):
        if stop > self.first:
            raise CorruptStoreError(
                "Shard 3 does not match its checksum", hint="Prepare the dataset again"
            )
        return super().read(start, stop)
