"""How fast is a prepared dataset read into memory, checksums included, beside a plain file of the same bytes?

2,500 images of 3x224x224 uint8 (376 MB), warm page cache: "ours" is ``PreparedDataset.read``; "theirs" are
``numpy.load`` of one file without any checksum, and the same zarr array in shards of single-image chunks.

Usage: python benchmarks/prepare_read_rate.py [--json] [--repeats 5]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from search_spaces.datasets import own_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import OwnSourceSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor

NUM_IMAGES, SHAPE = 2500, (3, 224, 224)


def make(folder: Path) -> tuple[PreparedDataset, Path, Path]:
    import zarr

    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, *SHAPE)).astype(np.uint8)
    np.savez(folder / "raw.npz", images=images, labels=np.arange(NUM_IMAGES) % 2)
    np.save(folder / "plain.npy", images)
    own = OwnSourceSpec(kind="npz", path="raw.npz", domain="natural", channels=3)
    prepare_dataset(
        PreparedSpec(dataset="bench", image_size=224, channels=3),
        own_dataset_spec("bench", own),
        raw=folder / "raw.npz",
        destination=folder / "prepared",
        executor=InlineExecutor(),
    )
    single = zarr.create_array(
        str(folder / "single"), shape=images.shape, dtype="uint8", chunks=(1, *SHAPE), shards=(500, *SHAPE)
    )
    single[:] = images
    return PreparedDataset.open(folder / "prepared"), folder / "plain.npy", folder / "single"


def best_rate(read: Callable[[], object], repeats: int) -> float:
    """Return GB/s of the fastest of several reads."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - start)
    return NUM_IMAGES * int(np.prod(SHAPE)) / min(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    import zarr

    with tempfile.TemporaryDirectory() as name:
        data, plain, single = make(Path(name))
        order = np.random.default_rng(1).permutation(NUM_IMAGES)
        ours = best_rate(lambda: data.read(0, NUM_IMAGES), arguments.repeats)
        ours_rows = best_rate(lambda: data.read_rows(order), arguments.repeats)
        theirs = {
            "numpy_load_no_checksum": best_rate(lambda: np.load(plain), arguments.repeats),
            "zarr_single_image_chunks": best_rate(
                lambda: zarr.open_array(str(single), mode="r")[:], arguments.repeats
            ),
        }
    result = {
        "name": "prepare_read_rate",
        "ours": {"read_gb_per_s": ours, "read_rows_shuffled_gb_per_s": ours_rows},
        "theirs": theirs,
        "ratio": ours / theirs["numpy_load_no_checksum"],
        "environment": {
            "num_images": NUM_IMAGES, "num_cpus": os.cpu_count(), "load_average": os.getloadavg()[0],
            "python": platform.python_version(), "zarr": version("zarr"), "numpy": version("numpy"),
        },
    }  # fmt: skip
    if arguments.json:
        print(json.dumps(result))
    else:
        print(f"  prepared store, in order   {ours:6.2f} GB/s (target 1)")
        print(f"  prepared store, shuffled   {ours_rows:6.2f} GB/s")
        for peer, rate in theirs.items():
            print(f"  {peer:26s} {rate:6.2f} GB/s")


if __name__ == "__main__":
    main()
