"""Exact products of 8-bit rows, ``a @ b.T`` in whole numbers, by the library that is fastest here.

All ways give the same bits. Billions of multiply-adds a second on one core of an Intel Xeon with AVX-512 VNNI
(``benchmarks/measures.py products``; older instructions by switching newer ones off in each library):

=================  ============  =========================  ==================
way                AVX-512 VNNI  AVX-512 and AVX2, without  what it costs
=================  ============  =========================  ==================
torch._int_mm      290           wrong: sums saturate       1.4 s to import
numkong            130           38                         nothing
float32 by BLAS    50            55 (AVX2: 33)              nothing
=================  ============  =========================  ==================

So a processor with 8-bit instructions (VNNI, AMX, SDOT) uses numkong, and torch (``_int_mm`` is private)
where the work pays for importing it; any other multiplies float32. Each way is checked against products known
to be right before it is used, and left aside where it is missing or wrong.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import SetupError

logger = logging.getLogger(__name__)

SignedBytes = npt.NDArray[np.int8]
Product = Callable[[SignedBytes, SignedBytes], npt.NDArray[np.int32]]
"""``a @ b.T`` of ``(num_a, num_features)`` and ``(num_b, num_features)``, ``MAX_FEATURES`` at most."""

# Sums of that many products of signed bytes stay below 2³¹, and below 2²⁴, to which float32 is exact.
MAX_FEATURES, FLOAT32_FEATURES = 131_071, 1_024
# torch._int_mm (2.13, CPU) returns wrong products for rows of one feature; short rows gain nothing anyway.
MIN_FEATURES = 16
# Multiply-adds per thread from which on torch's products save more than its import takes, and its 190 MiB.
IMPORT_PAYS = 4e11
# numkong multiplies rows of this length fastest: a block of them stays in the cache.
NUMKONG_FEATURES = 4_096
# Less of a row, or fewer rows, are not worth a thread of their own.
LEAST_FEATURES, LEAST_ROWS = 1_024, 128
# numkong's names of what multiplies 8-bit integers in one step.
BYTE_INSTRUCTIONS = {"icelake", "alder", "sierra", "sapphireamx", "graniteamx", "neonsdot", "svesdot", "sme"}
# Shapes of the products that are checked, odd and round, small and large, since they take other code paths.
CHECKED = [(1, 1, MIN_FEATURES), (3, 5, 17), (70, 33, 1000), (2, 3, MAX_FEATURES), (512, 256, 4096)]


def num_threads() -> int:
    """Threads of one process: as OMP_NUM_THREADS says, which Ray sets for its workers, else all cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(asked), 1) if asked.isdecimal() else len(os.sched_getaffinity(0))


def blas_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` by float32 products over at most ``FLOAT32_FEATURES`` features, each of them exact."""
    total = np.zeros((len(a), len(b)), np.int32)
    for start in range(0, a.shape[1], FLOAT32_FEATURES):
        left = a[:, start : start + FLOAT32_FEATURES].astype(np.float32)
        right = left if a is b else b[:, start : start + FLOAT32_FEATURES].astype(np.float32)
        total += np.matmul(left, right.T).astype(np.int32)
    return total


def wide_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` in integers throughout: slow, for a machine where all else is wrong."""
    product: npt.NDArray[np.int32] = np.matmul(a, b.T, dtype=np.int32)
    return product


def numkong_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` by the 8-bit instructions of a processor, the features shared out over all threads."""
    import numkong

    def some(strip: slice, first: int) -> npt.NDArray[np.int32]:
        total = np.zeros((strip.stop - strip.start, len(b)), np.int32)
        for start in range(first * width, a.shape[1], by_features * width):
            part = slice(start, start + width)
            total += np.asarray(numkong.dots_packed(a[strip, part], numkong.dots_pack(b[:, part])))
        return total

    # Long rows are cut, which packs nothing twice; of short ones each thread takes some.
    by_features = max(min(num_threads(), a.shape[1] // LEAST_FEATURES), 1)
    by_rows = max(min(num_threads() // by_features, len(a) // LEAST_ROWS), 1)
    width = min(NUMKONG_FEATURES, -(-a.shape[1] // by_features))
    edges = [len(a) * strip // by_rows for strip in range(by_rows + 1)]
    shares = [(slice(*edge), first) for edge in pairwise(edges) for first in range(by_features)]
    if len(shares) == 1:
        return some(*shares[0])
    found = list(_threads(len(shares)).map(some, *zip(*shares, strict=True)))
    sums = [sum(found[at + 1 : at + by_features], found[at]) for at in range(0, len(found), by_features)]
    return np.concatenate(sums)


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="product")


def torch_product(a: SignedBytes, b: SignedBytes, device: str = "cpu") -> npt.NDArray[np.int32]:
    """``a @ b.T`` by the 8-bit instructions of a processor, in all of torch's threads, or of a GPU.

    ``"cuda"`` takes 17 rows at least and multiples of 8: zeros are added and cut off again.
    """
    import torch

    def padded(rows: torch.Tensor) -> torch.Tensor:
        num_rows, num_features = rows.shape
        return torch.nn.functional.pad(rows, (0, -num_features % 32, 0, -num_rows % 32))

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    if torch.device(device).type == "cpu":
        return torch._int_mm(left, right.T).numpy()
    left = padded(left.to(device))
    right = left if a is b else padded(right.to(device))
    product: npt.NDArray[np.int32] = torch._int_mm(left, right.T)[: len(a), : len(b)].cpu().numpy()
    return product


def choose_product(num_features: int, work: float, device: str = "cpu") -> Product:
    """The fastest exact product for rows of this length, see the table above; by torch only where it is
    loaded, or where ``work`` (multiply-adds of this process) is worth importing it.
    """
    ways: list[tuple[str, Product]] = [("BLAS", blas_product)]
    if num_features >= MIN_FEATURES and device != "cpu":
        ways.insert(0, (f"torch on {device}", partial(torch_product, device=device)))
    elif num_features >= MIN_FEATURES and has_byte_instructions():
        ways.insert(0, ("numkong", numkong_product))
        if "torch" in sys.modules or work / num_threads() >= IMPORT_PAYS:
            ways.insert(0, ("torch", torch_product))
    return next((product for name, product in ways if is_exact(name, product)), wide_product)


def check_device(device: str) -> None:
    """Refuse a device that torch does not have, before anything is computed.

    Raises:
        SetupError: If it has none.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1).to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts that it has it
        raise SetupError(
            "The device that measures run on must be there", f"{device}: {error}", "measure on the cpu"
        ) from None


@cache
def has_byte_instructions() -> bool:
    """Whether this processor multiplies 8-bit integers in one step, and faster than floats."""
    try:
        import numkong
    except ImportError:
        return False
    return any(there and name in BYTE_INSTRUCTIONS for name, there in numkong.get_capabilities().items())


_checked: dict[str, bool] = {}


def is_exact(name: str, product: Product) -> bool:
    """Whether a product exists here and is right where others were seen to fail, found out once per process:
    instructions before VNNI saturate at extremes of one sign, BLAS can be told to round to 16 bits.
    """
    if name not in _checked:
        rng = np.random.default_rng(0)
        _checked[name] = all(_is_right(name, product, rng, *shape) for shape in CHECKED)
    return _checked[name]


def _is_right(
    name: str, product: Product, rng: np.random.Generator, num_a: int, num_b: int, num_features: int
) -> bool:
    """Whether ``product(a, b)`` is ``a @ b.T``, by ``(a bᵀ) r = a (bᵀ r)`` with one long random number per
    row of ``b``: a wrong entry goes unseen once in 2²⁰ numbers (Freivalds 1977).
    """
    a: Any = rng.integers(-128, 128, (num_a, num_features), np.int8)
    b: Any = rng.integers(-128, 128, (num_b, num_features), np.int8)
    a[0], b[-1] = -128, rng.choice(np.array([-128, 127], np.int8))
    weights = rng.integers(1, 1 << 20, num_b)
    try:
        found = product(a, b).astype(np.int64) @ weights
    except Exception as error:  # whatever a library raises that is broken, or too old for this processor
        logger.info("8-bit products by %s are left aside: %s", name, error)
        return False
    if np.array_equal(found, a.astype(np.int64) @ (weights @ b.astype(np.int64))):
        return True
    logger.warning("products by %s are wrong on this machine and left aside; results do not change", name)
    return False
