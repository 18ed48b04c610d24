"""All six nested train sizes, MLE + TwoNN + label sharpness, against one matrix product and libraries.

The yardstick is one full float32 product of the data with itself, all N² entries, by torch and by numpy;
which of them is faster depends on the processor. Sides take turns; ratios are medians over turns, by the
clock and in processor time. ``--data`` says what the images are: ``uint8``, the same bytes as ``float32``, or
``floats`` that are no whole numbers. ``--faiss`` adds exact search by faiss for each size plus torch.cdist
for nearest opposites; ``--skdim`` adds scikit-dimension's MLE and TwoNN for each size (minutes).
"""

from __future__ import annotations

import numpy as np
from measure_common import parser, report, take_turns, threads

from tasks.measures.measure import measure_nested
from tasks.measures.records import MeasureSettings

SIZES = [500, 750, 1000, 1250, 1500, 1750]


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--side", type=int, default=224)
    arguments.add_argument("--data", choices=["uint8", "float32", "floats"], default="uint8")
    arguments.add_argument("--faiss", action="store_true")
    arguments.add_argument("--skdim", action="store_true")
    options = arguments.parse_args()

    images = images_of(options.data, (SIZES[-1], 3, options.side, options.side))
    labels = np.arange(SIZES[-1]) % 2
    flat = images.reshape(len(images), -1).astype(np.float32)
    settings = MeasureSettings()
    twin = flat.copy()  # numpy computes only half of an array's product with itself
    products = {
        "one full float32 product, torch": lambda: torch_product(flat, twin),
        "one full float32 product, numpy": lambda: flat @ twin.T,
    }
    libraries = {}
    if options.faiss:
        libraries["faiss exact search + torch.cdist, once"] = lambda: by_faiss(flat, labels)
    if options.skdim:
        libraries["scikit-dimension + torch.cdist, once"] = lambda: by_skdim(flat, labels)

    def ours() -> object:
        return measure_nested(images, labels, SIZES, settings=settings)

    theirs, ratio, cpu_ratio = {}, {}, {}
    with threads(options.threads):
        timing = take_turns(ours, *products.values(), repeats=options.repeats)
        for number, name in enumerate(products, 1):
            theirs[name] = timing.seconds(number)
            ratio[name], cpu_ratio[name] = timing.ratio(0, number), timing.ratio(0, number, of="cpu")
        for name, library in libraries.items():
            once = take_turns(ours, library, repeats=1, warm=True)
            theirs[name] = once.seconds(1)
            ratio[name], cpu_ratio[name] = once.ratio(0, 1), once.ratio(0, 1, of="cpu")
    report(
        options.json,
        f"nested measures, {flat.shape} {options.data}, {options.threads} threads, seconds",
        timing.seconds(0),
        theirs,
        ratio,
        ratio_of_cpu_time=cpu_ratio,
        precision=measure_nested(images[:200], labels[:200], [200], settings=settings).precision,
    )


def images_of(data: str, shape: tuple[int, ...]) -> np.ndarray:
    rng = np.random.default_rng(0)
    if data == "floats":
        return rng.random(shape, dtype=np.float32)
    return rng.integers(0, 256, shape, dtype=np.uint8).astype(data)


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
