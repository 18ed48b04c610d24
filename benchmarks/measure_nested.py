"""All six nested train sizes, MLE + TwoNN + label sharpness, against one matrix product and libraries.

The yardstick is one full float32 product of the data with itself, all N² entries, by numpy's BLAS (OpenBLAS)
and by torch's (MKL); which of them is faster depends on the processor. ``--faiss`` adds exact search by faiss
for each size plus torch.cdist for nearest opposites; ``--skdim`` adds scikit-dimension's MLE and TwoNN for
each size (minutes).
"""

from __future__ import annotations

import numpy as np
from measure_common import fastest, parser, report

from tasks.measures.measure import MeasureSettings, measure_nested

SIZES = [500, 750, 1000, 1250, 1500, 1750]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--side", type=int, default=224)
    arguments.add_argument("--faiss", action="store_true")
    arguments.add_argument("--skdim", action="store_true")
    options = arguments.parse_args()

    images = np.random.default_rng(0).random((SIZES[-1], 3, options.side, options.side), dtype=np.float32)
    labels = np.arange(SIZES[-1]) % 2
    flat = images.reshape(len(images), -1)
    settings = MeasureSettings(estimators=("mle", "mle_k_minus_1", "twonn"))

    def ours() -> object:
        return measure_nested(images, labels, SIZES, settings=settings)

    # numpy computes only half of an array's product with itself; a copy makes it compute all of it.
    twin = flat.copy()
    times = fastest(ours, lambda: flat @ twin.T, lambda: torch_product(flat, twin), repeats=options.repeats)
    theirs = {"one full float32 product, numpy": times[1], "one full float32 product, torch": times[2]}
    if options.faiss:
        theirs["faiss exact search + torch.cdist"] = fastest(lambda: by_faiss(flat, labels), repeats=1)[0]
    if options.skdim:
        theirs["scikit-dimension + torch.cdist"] = fastest(lambda: by_skdim(flat, labels), repeats=1)[0]
    ratio = {peer: times[0] / seconds for peer, seconds in theirs.items()}
    report(options.json, f"nested measures, {flat.shape}, seconds", times[0], theirs, ratio)


def torch_product(a: np.ndarray, b: np.ndarray) -> None:
    import torch

    torch.from_numpy(a) @ torch.from_numpy(b).T


def sharpness_by_torch(flat: np.ndarray, labels: np.ndarray, size: int) -> float:
    import torch

    a, b = (torch.from_numpy(flat[:size][labels[:size] == label]) for label in (0, 1))
    return float(1 / torch.cdist(a, b).min())


def by_faiss(flat: np.ndarray, labels: np.ndarray) -> None:
    import faiss

    for size in SIZES:
        index = faiss.IndexFlatL2(flat.shape[1])
        index.add(flat[:size])
        index.search(flat[:size], 21)
        sharpness_by_torch(flat, labels, size)


def by_skdim(flat: np.ndarray, labels: np.ndarray) -> None:
    import skdim

    for size in SIZES:
        skdim.id.MLE(neighborhood_based=True).fit(flat[:size], n_neighbors=20, comb="mle")
        skdim.id.TwoNN().fit(flat[:size])
        sharpness_by_torch(flat, labels, size)


if __name__ == "__main__":
    main()
