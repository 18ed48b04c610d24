"""Slow, obvious versions of the measures, in plain NumPy loops and float64, to test fast code
against."""

from __future__ import annotations

import numpy as np

from search_spaces.errors import CorruptStoreError


def pairwise_distances(rows):
    """(n, n) L2 distances from differences, one row at a time."""
    flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    return np.stack([np.sqrt(((flat - row) ** 2).sum(axis=1)) for row in flat])


def whole_squared_distances(rows):
    """Squared distances of whole-numbered rows as a list of lists of Python integers."""
    flat = [[int(value) for value in np.ravel(row)] for row in rows]

    def squared_distance(first, second):
        return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))

    return [[squared_distance(first, second) for second in flat] for first in flat]


def whole_neighbors(squared, size, num_neighbors):
    """For each of the first ``size`` rows, ``(squared distance, row)`` of the nearest, ties by
    row."""
    return [
        sorted((squared[i][j], j) for j in range(size) if j != i)[:num_neighbors]
        for i in range(size)
    ]


def whole_opposite(squared, labels, members):
    """For each row of ``members``, ``(squared distance, row)`` of its nearest with another label,
    or None."""
    return {
        i: min(((squared[i][j], j) for j in members if labels[j] != labels[i]), default=None)
        for i in members
    }


def neighbor_distances(rows, num_neighbors):
    """(n, k) distances to the k nearest other rows, ascending."""
    distances = pairwise_distances(rows)
    np.fill_diagonal(distances, np.inf)
    return np.sort(distances, axis=1)[:, :num_neighbors]


def nearest_opposite(rows, labels):
    """(n,) distance to the nearest row with another label."""
    distances = pairwise_distances(rows)
    labels = np.asarray(labels)
    nearest = []
    for row_distances, label in zip(distances, labels, strict=True):
        opposite = row_distances[labels != label]
        nearest.append(opposite.min(initial=np.inf))
    return np.array(nearest)


def label_sharpness(rows, labels):
    """Maximum of 1/distance over all pairs with different labels."""
    return 1 / nearest_opposite(rows, labels).min()


def mle(rows, num_neighbors, subtract):
    """Levina-Bickel per point, MacKay-Ghahramani mean of inverses; divides by k - subtract."""
    inverses = []
    for line in neighbor_distances(rows, num_neighbors):
        total = sum(np.log(line[-1] / line[j]) for j in range(num_neighbors - 1))
        inverses.append(total / (num_neighbors - subtract))
    return 1 / np.mean(inverses)


def twonn(rows, discard_fraction):
    """Facco et al.: slope through the origin of -log(1-F) on log(r2/r1)."""
    ratios = sorted(line[1] / line[0] for line in neighbor_distances(rows, 2))
    num_kept = min(int(len(ratios) * (1 - discard_fraction)), len(ratios) - 1)
    x = np.log(ratios[:num_kept])
    y = -np.log(1 - np.arange(1, num_kept + 1) / len(ratios))
    return (x @ y) / (x @ x)


class Stream:
    """A source that reads rows block by block, and records the rows of each read."""

    def __init__(self, rows):
        self.rows, self.reads = rows, []
        self.num_rows, self.row_shape = len(rows), rows.shape[1:]

    def read(self, start, stop):
        self.reads.append(stop - start)
        return self.rows[start:stop].copy()


class CorruptFrom(Stream):
    """A source with a damaged shard: reading the row ``first`` or a later row fails."""

    def __init__(self, rows, first):
        super().__init__(rows)
        self.first = first

    def read(self, start, stop):
        if stop > self.first:
            raise CorruptStoreError(
                "Shard 3 does not match its checksum", hint="Prepare the dataset again"
            )
        return super().read(start, stop)
