"""Exact products of rows of bytes, ``a @ b.T`` in whole numbers, by the library that is fastest
here.

All ways give the same bits. Billions of multiply-adds a second on one core of an Intel Xeon with
AVX-512 VNNI (``benchmarks/measures.py products``; older instructions by switching newer ones off in
each library):

=================  ============  =========================  ==================
way                AVX-512 VNNI  AVX-512 and AVX2, without  what it costs
=================  ============  =========================  ==================
torch._int_mm      310           wrong: sums saturate       1.1 s to import
numkong            120 to 170    37                         nothing
float32 by BLAS    60            60 (AVX2: 33)              nothing
=================  ============  =========================  ==================

So a processor with 8-bit instructions (VNNI; AMX and SDOT, not timed) uses numkong, and torch
(``_int_mm`` is private) where the work pays for importing it; any other multiplies float32. Each
way is checked against products known to be right before it is used, and left aside where it is
missing or wrong.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import product as pairs_of
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import SetupError

logger = logging.getLogger(__name__)

Bytes = npt.NDArray[np.integer[Any] | np.bool_]
"""Rows of uint8, int8 or bool, ``(num_rows, num_features)``."""
SignedBytes = npt.NDArray[np.int8]
Product = Callable[[Bytes, Bytes], npt.NDArray[np.int32]]
"""``a @ b.T`` of rows of at most ``MAX_FEATURES`` bytes, shifted as `signed` does, which moves no
two rows apart. Of rows with themselves, ``a is b``, what is below the diagonal may be missing. """

# Sums of that many products of signed bytes stay below 2³¹, and below 2²⁴, to which float32 is
# exact.
MAX_FEATURES, FLOAT32_FEATURES = 131_071, 1_024
# What numkong multiplies fastest: pieces of rows, and columns of the product, that stay in the
# cache.
NUMKONG_FEATURES, NUMKONG_COLUMNS = 4_096, 64
# Columns of a product of rows with themselves that torch forms at a time, down to the diagonal.
TORCH_COLUMNS = 256
# Multiply-adds per thread from which on torch's products save more than its import takes, and its
# 190 MiB.
IMPORT_PAYS = 4e11
# numkong's names of what multiplies 8-bit integers in one step.
BYTE_INSTRUCTIONS = {
    "icelake",
    "alder",
    "sierra",
    "sapphireamx",
    "graniteamx",
    "neonsdot",
    "svesdot",
    "sme",
}
# Shapes of the products that are checked, odd and round, small and large, since they take other
# code paths.
CHECKED = [(1, 1, 1), (3, 5, 17), (2, 3, MAX_FEATURES), (133, 70, 9000)]


def num_threads() -> int:
    """Threads of one process: as OMP_NUM_THREADS says, which Ray sets for its workers, else all
    cores.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(int(asked), 1) if asked.isdecimal() else len(os.sched_getaffinity(0))


def signed(rows: Bytes, room: SignedBytes | None = None) -> SignedBytes:
    """A copy of rows of bytes as int8, those of uint8 less 128: their differences stay the same.
    Made in ``room`` of as many values, where that is given, since fresh memory costs as much as
    filling it.
    """
    copy = np.empty(rows.shape, np.int8) if room is None else room[: rows.size].reshape(rows.shape)
    if rows.dtype == np.uint8:
        np.bitwise_xor(rows, 128, out=copy.view(np.uint8))  # x - 128 in two's complement
    else:
        copy[...] = rows
    return copy


def blas_product(a: Bytes, b: Bytes) -> npt.NDArray[np.int32]:
    """The product by float32 products over at most ``FLOAT32_FEATURES`` features, each of them
    exact.
    """
    total = np.zeros((len(a), len(b)), np.int32)
    for start in range(0, a.shape[1], FLOAT32_FEATURES):
        part = slice(start, start + FLOAT32_FEATURES)
        left = signed(a[:, part]).astype(np.float32)
        right = left if a is b else signed(b[:, part]).astype(np.float32)
        total += np.matmul(left, right.T).astype(np.int32)
    return total


def wide_product(a: Bytes, b: Bytes) -> npt.NDArray[np.int32]:
    """The product in integers throughout: slow, for a machine where all else is wrong."""
    product: npt.NDArray[np.int32] = np.matmul(signed(a), signed(b).T, dtype=np.int32)
    return product


def numkong_product(a: Bytes, b: Bytes) -> npt.NDArray[np.int32]:
    """The product by the 8-bit instructions of a processor, features and columns shared out over
    threads.
    """
    import numkong

    features, columns = a.shape[1], -(-len(b) // NUMKONG_COLUMNS)
    by_features = max(min(num_threads(), features // NUMKONG_FEATURES), 1)
    by_columns = max(min(num_threads() // by_features, columns), 1)
    rounds = -(-features // (by_features * NUMKONG_FEATURES))
    width = -(-features // (by_features * rounds * 64)) * 64
    totals = np.zeros((by_features, len(a), len(b)), np.int32)

    def add(share: tuple[int, int]) -> None:
        total, first = totals[share[0]], share[1]
        room_a, room_b = (
            np.empty(len(rows) * width, np.int8) for rows in (a, b)
        )  # of b may stay unused
        for start in range(share[0] * width, features, by_features * width):
            left = signed(a[:, start : start + width], room_a)
            right = left if a is b else signed(b[:, start : start + width], room_b)
            for column in range(first * NUMKONG_COLUMNS, len(b), by_columns * NUMKONG_COLUMNS):
                some = slice(column, column + NUMKONG_COLUMNS)
                above = left[: some.stop] if a is b else left
                found = numkong.dots_packed(above, numkong.dots_pack(right[some]))
                total[: len(above), some] += np.asarray(found)

    in_threads(add, list(pairs_of(range(by_features), range(by_columns))))
    product: npt.NDArray[np.int32] = (
        totals[0] if by_features == 1 else totals.sum(axis=0, dtype=np.int32)
    )
    return product


def in_threads(function: Callable[[Any], None], shares: Sequence[Any]) -> None:
    """Call a function for every share, side by side in as many threads as this process may use."""
    count = min(num_threads(), len(shares))
    list((map if count == 1 else _threads(count).map)(function, shares))


@cache
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="measures")


os.register_at_fork(
    after_in_child=_threads.cache_clear
)  # of a parent's threads a forked process has none


def torch_product(a: Bytes, b: Bytes, device: str = "cpu") -> npt.NDArray[np.int32]:
    """The product by the 8-bit instructions of a processor, in all of torch's threads, or of a GPU.

    A GPU takes 17 rows at least, and both want multiples of 8: zeros are added, and cut off again.
    Of one feature torch 2.13 multiplies the wrong pairs on a processor.
    """
    import torch

    on_cpu = torch.device(device).type == "cpu"

    def there(rows: Bytes) -> torch.Tensor:
        more = 0, -rows.shape[1] % 32, 0, 0 if on_cpu else -len(rows) % 32
        found = torch.from_numpy(signed(rows)).to(device)
        return torch.nn.functional.pad(found, more) if any(more) else found

    left = there(a)
    right = left if a is b else there(b)
    if not on_cpu or a is not b:
        product: npt.NDArray[np.int32] = (
            torch._int_mm(left, right.T)[: len(a), : len(b)].cpu().numpy()
        )
        return product
    total = np.zeros((len(a), len(a)), np.int32)
    for column in range(0, len(a), TORCH_COLUMNS):
        some = slice(column, column + TORCH_COLUMNS)
        total[: some.stop, some] = torch._int_mm(left[: some.stop], left[some].T).numpy()
    return total


def choose_product(work: float, device: str = "cpu") -> Product:
    """The fastest exact product, see the table above; by torch only where it is loaded, or where
    ``work`` (multiply-adds of this process) is worth importing it.
    """
    ways: list[tuple[str, Product]] = [("BLAS", blas_product)]
    if device != "cpu":
        ways.insert(0, (f"torch on {device}", partial(torch_product, device=device)))
    elif has_byte_instructions():
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
        torch.zeros(1, device=device).item()
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # torch built without CUDA asserts that it has it
        rule, found = "The device that measures run on must be there", str(error).splitlines()[0]
        raise SetupError(rule, f"{device}: {found}", "measure on the cpu") from None


@cache
def has_byte_instructions() -> bool:
    """Whether this processor multiplies 8-bit integers in one step, and faster than floats."""
    try:
        import numkong
    except ImportError:
        return False
    return any(
        there and name in BYTE_INSTRUCTIONS for name, there in numkong.get_capabilities().items()
    )


_checked: dict[str, bool] = {}


def is_exact(name: str, product: Product) -> bool:
    """Whether a product exists here and is right where others were seen to fail, found out once per
    process: instructions before VNNI saturate at extremes of one sign, BLAS can be told to round to
    16 bits.
    """
    if name not in _checked:
        rng = np.random.default_rng(0)
        _checked[name] = all(_is_right(name, product, rng, *shape) for shape in CHECKED)
    return _checked[name]


def _is_right(
    name: str, product: Product, rng: np.random.Generator, num_a: int, num_b: int, num_features: int
) -> bool:
    """Whether ``product(a, b)`` is ``a @ b.T``, by ``(a bᵀ) r = a (bᵀ r)`` with one long random
    number per row of ``b``: a wrong entry goes unseen once in 2²⁰ numbers (Freivalds 1977).
    """
    a: Any = rng.integers(-128, 128, (num_a, num_features), np.int8)
    b: Any = rng.integers(-128, 128, (num_b, num_features), np.int8)
    a[0], b[-1] = -128, rng.choice(np.array([-128, 127], np.int8))
    weights = rng.integers(1, 1 << 20, num_b)
    try:
        found = product(a, b).astype(np.int64) @ weights
    except (
        Exception
    ) as error:  # whatever a library raises that is broken, or too old for this processor
        logger.info("8-bit products by %s are left aside: %s", name, error)
        return False
    if np.array_equal(found, np.einsum("ij,j->i", a, np.einsum("i,ij->j", weights, b))):
        return True
    logger.warning(
        "products by %s are wrong on this machine and left aside; results do not change", name
    )
    return False
