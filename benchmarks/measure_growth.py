"""What measuring would cost at other sizes: two constants measured here, and the law of growth.

``seconds = N² / 2 · (2 D / rate + per_pair) / workers``: every pair of rows once, D multiply-adds for its
product and a fixed time to file it, in CPU time of one core, for rows of bytes (others: ``--data floats``).
Reading is ``N² · row bytes / (2 · rows held)``, given beside it. The table is a simulation from the
constants, not a measurement at those sizes.
"""

from __future__ import annotations

import time

import numpy as np
from measure_common import parser, report, threads

from tasks.measures.neighbors import BLOCK_ROWS, HELD_BYTES, nested_neighbors

CASES = [
    ("paper, one dataset", 1_750, 150_528),
    ("MNIST", 60_000, 784),
    ("CheXpert, grey", 190_000, 50_176),
    ("ImageNet", 1_281_167, 150_528),
]
NUM_ROWS, FEW, MANY = 12_288, 16, 8_208


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", choices=["uint8", "floats"], default="uint8")
    options = arguments.parse_args()
    rng = np.random.default_rng(0)
    if options.data == "uint8":
        rows = rng.integers(0, 256, (NUM_ROWS, MANY), np.uint8)
    else:
        rows = rng.random((NUM_ROWS, MANY), dtype=np.float32)
    labels = np.arange(NUM_ROWS) % 2
    few = np.ascontiguousarray(rows[:, :FEW])
    with threads(1):
        short, long = (min(cpu_seconds(part, labels) for _ in range(options.repeats)) for part in (few, rows))
    pairs = NUM_ROWS**2 / 2
    rate = 2 * pairs * (MANY - FEW) / (long - short)
    per_pair = short / pairs - 2 * FEW / rate
    table = [
        {
            "case": name,
            "num_rows": n,
            "num_features": d,
            "workers": workers,
            "seconds": seconds(n, d, rate, per_pair, workers),
            "bytes_read_if_uint8": n**2 * d // (2 * min(BLOCK_ROWS, HELD_BYTES // d)),
        }
        for name, n, d in CASES
        for workers in (1, 16, 256)
    ]
    if not options.json:
        print_table(table)
    constants = {"flop_per_s": rate, "seconds_per_pair": per_pair}
    more = {"table": table} if options.json else {}
    report(
        options.json, f"constants of growth, {options.data}, one worker = one core", constants, {}, {}, **more
    )


def cpu_seconds(rows: np.ndarray, labels: np.ndarray) -> float:
    start = time.process_time()
    nested_neighbors(rows, labels, [len(rows)], 20)
    return time.process_time() - start


def print_table(table: list[dict]) -> None:
    print("| case | N | D | workers | time | read |")
    print("|---|---|---|---|---|---|")
    for row in table:
        size = f"{row['num_rows']:,} | {row['num_features']:,} | {row['workers']}"
        read = f"{row['bytes_read_if_uint8'] / 1e12:.3g} TB"
        print(f"| {row['case']} | {size} | {readable(row['seconds'])} | {read} |")


def seconds(num_rows: int, num_features: int, rate: float, per_pair: float, workers: int) -> float:
    return num_rows**2 / 2 * (2 * num_features / rate + per_pair) / workers


def readable(value: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.1f} s"


if __name__ == "__main__":
    main()
