"""Exact neighbours and nearest opposites of rows that are read from a store: time, rate, and memory.

Random bytes are written as a prepared dataset writes them (zarr shards, checksums), then searched in one
process that never holds more than a few blocks. The memory reported is what the process grew by.
"""

from __future__ import annotations

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measure_common import parser, peak_memory_mib, report, threads

from tasks.measures.neighbors import nested_neighbors
from tasks.prepared.store import ShardedRows, create_store, rows_per_shard, write_rows

CASES = {"cifar10": (60_000, (3, 32, 32)), "chexpert": (20_000, (1, 224, 224))}


@dataclass(frozen=True)
class Stored:
    """Rows of a store, read and checked block by block."""

    rows: ShardedRows

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.rows.num_rows

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.rows.row_shape

    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``."""
        block = np.empty((stop - start, *self.row_shape), np.uint8)
        self.rows.read_into(block, start)
        return block


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--case", choices=list(CASES), default="cifar10")
    arguments.add_argument("--num-rows", type=int, help="fewer rows than the case has")
    options = arguments.parse_args()
    num_rows, shape = CASES[options.case]
    num_rows = options.num_rows or num_rows
    with tempfile.TemporaryDirectory() as folder, threads(options.threads):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as writer:  # its memory is not ours
            source = Stored(writer.submit(write, Path(folder) / "store", num_rows, shape).result())
        labels = np.arange(num_rows) % 10
        nested_neighbors(source.read(0, 256), labels[:256], [256], 20)  # libraries and first calls
        before = peak_memory_mib()
        start, start_cpu = time.perf_counter(), time.process_time()
        search = nested_neighbors(source, labels, [num_rows // 10, num_rows], 20)
        wall, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    num_features = int(np.prod(shape))
    report(
        options.json,
        f"streaming {num_rows} rows of {num_features} bytes from a store, {options.threads} threads",
        {"wall": wall, "cpu": cpu},
        {},
        {},
        precision=search.precision,
        pairs_per_cpu_second=num_rows**2 / 2 / cpu,
        data_mib=num_rows * num_features / 2**20,
        memory_grown_mib=peak_memory_mib() - before,
        peak_memory_mib=peak_memory_mib(),
    )


def write(folder: Path, num_rows: int, shape: tuple[int, ...]) -> ShardedRows:
    step = create_store(folder, num_images=num_rows, image_shape=shape, dtype="uint8")
    rng = np.random.default_rng(0)
    for start in range(0, num_rows, step):
        size = (min(step, num_rows - start), *shape)
        write_rows(folder, "images", start, rng.integers(0, 256, size, np.uint8))
    chunk, shard = rows_per_shard(int(np.prod(shape)), num_rows)
    return ShardedRows(folder / "images" / "c", num_rows, shape, np.dtype(np.uint8), chunk, shard)


if __name__ == "__main__":
    main()
