"""Drawing rows: quotas per class, test rows by group, training order with the classes in proportion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError

TEST_GROUP_SHARE = 0.3
"""Share of the groups that test images are spread over (750 of 2,500 in the study), more if the test size
asks."""

CHUNK = 1 << 12
"""Values compared at a time."""


def distinct(values: NDArray[np.generic]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first row of each distinct value, and the number of each row's value, in sorted order.

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
    """Share ``size`` out over classes, equally or by largest remainder; earlier classes win ties."""
    weights = np.ones(len(available)) if balanced else available.astype(float)
    exact = size * weights / weights.sum()
    quotas: NDArray[np.int64] = np.floor(exact).astype(np.int64)
    quotas[np.argsort(quotas - exact, kind="stable")[: size - quotas.sum()]] += 1
    return quotas


def choose_test(
    targets: NDArray[np.int64],
    members: NDArray[np.int64],
    quotas: NDArray[np.int64],
    given: NDArray[np.int8],
    rng: np.random.Generator | None,
    names: tuple[str, ...],
) -> NDArray[np.int64]:
    """Draw the test rows: groups in a seeded order, one image of each group in turn, until quotas are met.

    The first 30 % of the groups are used, or as many as the quotas need, so that few big groups (volumes) do
    not make the whole test set. Groups that give no image stay free for training.
    """
    fixed = bool((given == 2).any())
    allowed = given == 2 if fixed else given != 1
    # A group with an image given for training is a training group.
    allowed &= ~np.isin(members, members[given == 1])
    num_groups = int(members.max()) + 1
    position = rng.permutation(num_groups) if rng else np.arange(num_groups)
    order = rng.permutation(len(targets)) if rng else np.arange(len(targets))
    order = order[np.argsort(position[members[order]], kind="stable")]
    order = order[allowed[order]]
    spread = num_groups if fixed else int(np.ceil(TEST_GROUP_SHARE * num_groups))
    chosen = []
    for label, quota in enumerate(quotas):
        rows = order[targets[order] == label]
        if len(rows) < quota:
            raise DataError(
                f"Class {names[label]} needs {quota} test images",
                f"{len(rows)} that may be used for testing",
                "lower test_size, or add images",
            )
        # How far into the group order this class must go: the spread, or where its quota is met.
        last = max(spread, int(position[members[rows[quota - 1]]]) + 1) if quota else 0
        rows = rows[position[members[rows]] < last]
        turn = occurrence(members[rows])
        chosen.append(rows[np.argsort(turn, kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen))


def occurrence(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each value how often it occurred before."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.arange(len(values)) - np.repeat(starts, np.diff(np.r_[starts, len(values)]))
    before = np.empty(len(values), dtype=np.int64)
    before[order] = counts
    return before


def stratified_order(
    targets: NDArray[np.int64], free: NDArray[np.int64], rng: np.random.Generator | None, *, balanced: bool
) -> NDArray[np.int64]:
    """Interleave the shuffled classes so that every prefix has them in proportion.

    Image j of a class with weight w stands at (j + 1/2) / w; equal weights alternate the classes.
    """
    shuffled = rng.permutation(free) if rng else free
    labels = targets[shuffled]
    counts = np.bincount(labels, minlength=int(targets.max()) + 1)
    turn = occurrence(labels)
    if balanced:
        keep = turn < counts.min()
        shuffled, labels, turn = shuffled[keep], labels[keep], turn[keep]
    weights = np.ones(len(counts)) if balanced else counts.astype(float)
    place = (turn + 0.5) / weights[labels]
    return shuffled[np.lexsort((labels, place))]
