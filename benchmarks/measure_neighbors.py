"""Exact 20 nearest neighbours of 60,000 x 784 against faiss IndexFlatL2, and the memory it takes.

``--workers`` shares our side out over Ray workers of one thread each; memory is that of this process then.
Uses Fashion-MNIST where ``--images`` names its idx file, random bytes of that shape otherwise.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
from measure_common import parser, peak_memory_mib, report, take_turns, threads
from threadpoolctl import threadpool_limits

from tasks.measures.neighbors import nested_neighbors
from tasks.remote import Executor, InlineExecutor, RayExecutor

DEFAULT_IMAGES = Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--images", type=Path, default=DEFAULT_IMAGES)
    arguments.add_argument("--num-rows", type=int, default=60_000)
    arguments.add_argument("--with-torch", action="store_true", help="as where a process has loaded torch")
    arguments.add_argument("--workers", type=int, default=1)
    options = arguments.parse_args()
    images = load(options.images)[: options.num_rows]
    executor = connect(options.workers)
    nested_neighbors(images[:1024], None, [1024], 20, executor=executor)  # libraries, and workers
    if options.with_torch:
        import torch

        torch._int_mm(torch.ones((32, 32), dtype=torch.int8), torch.ones((32, 32), dtype=torch.int8))
    libraries = peak_memory_mib()
    results: dict[str, np.ndarray] = {}

    def ours() -> None:
        results["ours"] = (
            nested_neighbors(images, None, [len(images)], 20, executor=executor).tables[0].distances
        )
        results.setdefault("peak", np.array(peak_memory_mib()))  # before faiss is loaded

    def theirs() -> None:
        results["faiss"] = by_faiss(images, options.threads)

    with threads(options.threads) if options.with_torch else threadpool_limits(options.threads):
        timing = take_turns(ours, theirs, repeats=options.repeats, warm=True)
    found, expected, peak = results["ours"], results["faiss"], float(results["peak"])
    # Where the two differ most, and elsewhere: which of them is right?
    apart = np.abs(found / np.maximum(expected, 1e-9) - 1).max(axis=1)
    checked = np.unique(
        np.concatenate([np.argsort(apart)[-50:], np.arange(0, len(images), len(images) // 50)])
    )
    truth = by_differences(images, checked)
    report(
        options.json,
        f"20 exact neighbours of {images.shape}, {options.threads} threads, {options.workers} workers, s",
        timing.seconds(0),
        {"faiss IndexFlatL2": timing.seconds(1)},
        {"faiss IndexFlatL2": timing.ratio(0, 1)},
        ratio_of_cpu_time={"faiss IndexFlatL2": timing.ratio(0, 1, of="cpu")}
        if options.workers == 1
        else None,
        peak_memory_mib=peak,
        peak_memory_mib_with_libraries_and_images_only=libraries,
        largest_error_ours=float(np.abs(found[checked] / truth - 1).max()),
        largest_error_faiss=float(np.abs(expected[checked] / truth - 1).max()),
    )


def connect(num_workers: int) -> Executor:
    if num_workers == 1:
        return InlineExecutor()
    import ray

    ray.init(address="local", num_cpus=num_workers, include_dashboard=False, log_to_driver=False)
    return RayExecutor(num_workers)


def load(path: Path) -> np.ndarray:
    if not path.exists():
        return np.random.default_rng(0).integers(0, 256, (60_000, 784), dtype=np.uint8)
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)


def by_differences(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Exact: differences of bytes in whole numbers."""
    wide = images.astype(np.int32)
    squared = [np.sort(np.square(wide - wide[row]).sum(axis=1))[1:21] for row in rows]
    return np.sqrt(np.array(squared, np.float64))


def by_faiss(images: np.ndarray, num_threads: int) -> np.ndarray:
    import faiss

    faiss.omp_set_num_threads(num_threads)
    rows = images.astype(np.float32)
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)
    return np.sqrt(np.maximum(index.search(rows, 21)[0][:, 1:], 0))


if __name__ == "__main__":
    main()
