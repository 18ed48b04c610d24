"""Exact products of 8-bit rows: ``a @ b.T`` in whole numbers, by whichever instructions do it fastest here.

Three ways, same bits. Processors and graphics cards multiply 8-bit integers several times faster than floats.
numkong reaches those instructions of a processor (AMX, VNNI, SDOT and others), takes 3 MiB and one thread;
torch, which takes 190 MiB, does so with all threads and on graphics cards, through ``torch._int_mm``, a
private function. Both are called here only, checked at first use against products known to be right, and left
aside where they are missing, wrong or slow. The third way is float32 by numpy's BLAS over so few features at
a time that every partial sum is a whole number that float32 holds: it needs nothing but numpy.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.errors import SetupError

logger = logging.getLogger(__name__)

SignedBytes = npt.NDArray[np.int8]
Product = Callable[[SignedBytes, SignedBytes], npt.NDArray[np.int32]]

# Products of signed bytes reach 128². Sums of that many stay below 2³¹, whatever the signs.
MAX_FEATURES = 131_071
# Sums of that many stay at or below 2²⁴, up to which float32 holds every whole number.
FLOAT32_FEATURES = 1_024
# torch._int_mm (2.13, CPU) returns wrong products for rows of one feature; short rows gain nothing anyway.
MIN_FEATURES = 16
# Importing torch takes about a second and 190 MiB. In multiply-adds, a core does about 1e11 a second in
# float32 and 5e11 by numkong's 8-bit products.
IMPORT_PAYS = 2e11
IMPORT_PAYS_BESIDE_NUMKONG = 1e13
# numkong multiplies rows of this length fastest: a block of them stays in the cache.
NUMKONG_FEATURES = 4_096
# Below this many multiply-adds the choice cannot be noticed.
CHOICE_PAYS = 1e8


def blas_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` by float32 products over at most ``FLOAT32_FEATURES`` features, each of them exact.

    Args:
        a: ``(num_a, num_features)``, at most ``MAX_FEATURES`` features.
        b: ``(num_b, num_features)``; numpy saves half of the work when it is ``a`` itself.

    Returns:
        ``(num_a, num_b)``.
    """
    total: npt.NDArray[np.int32] | None = None
    for start in range(0, a.shape[1], FLOAT32_FEATURES):
        left = a[:, start : start + FLOAT32_FEATURES].astype(np.float32)
        right = left if a is b else b[:, start : start + FLOAT32_FEATURES].astype(np.float32)
        part = np.matmul(left, right.T).astype(np.int32)
        total = part if total is None else np.add(total, part, out=total)
    return np.zeros((len(a), len(b)), np.int32) if total is None else total


def wide_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` in integers throughout: slow, and needs no library. For a machine where all else is wrong.

    Args:
        a: ``(num_a, num_features)``, at most ``MAX_FEATURES`` features.
        b: ``(num_b, num_features)``.

    Returns:
        ``(num_a, num_b)``.
    """
    product: npt.NDArray[np.int32] = np.matmul(a, b.T, dtype=np.int32)
    return product


def numkong_product(a: SignedBytes, b: SignedBytes) -> npt.NDArray[np.int32]:
    """``a @ b.T`` by the 8-bit instructions of a processor, in one thread.

    Args:
        a: ``(num_a, num_features)``, at most ``MAX_FEATURES`` features.
        b: ``(num_b, num_features)``.

    Returns:
        ``(num_a, num_b)``.
    """
    import numkong

    total: npt.NDArray[np.int32] | None = None
    for start in range(0, a.shape[1], NUMKONG_FEATURES):
        part = slice(start, start + NUMKONG_FEATURES)
        gram = np.asarray(numkong.dots_packed(a[:, part], numkong.dots_pack(b[:, part])))
        total = gram if total is None else np.add(total, gram, out=total)
    return np.zeros((len(a), len(b)), np.int32) if total is None else total


def torch_product(a: SignedBytes, b: SignedBytes, device: str = "cpu") -> npt.NDArray[np.int32]:
    """``a @ b.T`` by the 8-bit instructions of a processor or of a graphics card.

    Args:
        a: ``(num_a, num_features)``, ``MIN_FEATURES`` to ``MAX_FEATURES`` features, writable.
        b: ``(num_b, num_features)``, writable.
        device: ``"cpu"``, or a torch device such as ``"cuda"``, which takes 17 rows at least and multiples of
            8: zeros are added and cut off again.

    Returns:
        ``(num_a, num_b)``, in this process's memory.
    """
    import torch

    left, right = torch.from_numpy(a), torch.from_numpy(b)
    if torch.device(device).type == "cpu":
        return torch._int_mm(left, right.T).numpy()
    left = _padded(left.to(device), 32)
    right = left if a is b else _padded(right.to(device), 32)
    product: npt.NDArray[np.int32] = torch._int_mm(left, right.T)[: len(a), : len(b)].cpu().numpy()
    return product


def _padded(rows: Any, multiple: int) -> Any:
    """Rows with zeros added on both axes, up to a multiple."""
    import torch

    num_rows, num_features = rows.shape
    return torch.nn.functional.pad(rows, (0, -num_features % multiple, 0, -num_rows % multiple))


def choose_product(num_rows: int, num_features: int, total: float, device: str = "cpu") -> Product:
    """The fastest exact product for blocks of this size in this process.

    Args:
        num_rows: Rows of a block.
        num_features: Features of a row.
        total: Multiply-adds of the whole task: importing torch must be worth it.
        device: A torch device other than ``"cpu"`` is used wherever it is exact.

    Returns:
        A function of two blocks; all that it may be give the same bits.
    """
    without = blas_product if blas_is_exact() else wide_product
    if num_features < MIN_FEATURES:
        return without
    if device != "cpu":
        return partial(torch_product, device=device) if is_exact(device) else without
    ways = _integer_ways(total)
    if not ways or num_rows * num_rows * num_features < CHOICE_PAYS:
        return ways[0] if ways else without
    return _fastest((*ways, without), num_rows.bit_length(), num_features.bit_length())


def check_device(device: str) -> None:
    """Say so where torch has no such device, before anything is computed.

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


def _integer_ways(total: float) -> list[Product]:
    """The products of this processor's integer instructions that are here and right, the lightest first."""
    ways: list[Product] = [numkong_product] if numkong_is_exact() else []
    import_pays = IMPORT_PAYS_BESIDE_NUMKONG if ways else IMPORT_PAYS
    if ("torch" in sys.modules or total >= import_pays) and is_exact():
        ways.append(torch_product)
    return ways


@cache
def is_exact(device: str = "cpu") -> bool:
    """Whether torch's integer product exists on ``device`` and is right on products that break others."""
    return _passes_self_test("torch", lambda a, b: torch_product(a, b, device))


@cache
def numkong_is_exact() -> bool:
    """The same of numkong's."""
    return _passes_self_test("numkong", lambda a, b: numkong_product(a, b))


@cache
def blas_is_exact() -> bool:
    """The same of float32 products, which some libraries can be told to round to 16 bits."""
    return _passes_self_test("BLAS", lambda a, b: blas_product(a, b))


def _passes_self_test(name: str, product: Product) -> bool:
    """Compare with wide integers where other products were seen to fail.

    Instructions that add pairs of products in 16 bits (before VNNI) saturate at extremes of one sign; odd
    shapes take other code paths than round ones.
    """
    rng = np.random.default_rng(0)
    for num_a, num_b, num_features in [
        (1, 1, MIN_FEATURES),
        (3, 5, 17),
        (70, 33, 1000),
        (2, 3, MAX_FEATURES),
    ]:
        a = rng.integers(-128, 128, (num_a, num_features), np.int8)
        b = rng.integers(-128, 128, (num_b, num_features), np.int8)
        a[0], b[-1] = -128, rng.choice(np.array([-128, 127], np.int8))
        if not _is_right(name, product, a, b):
            return False
    return True


def _is_right(name: str, product: Product, a: SignedBytes, b: SignedBytes) -> bool:
    """Whether ``product(a, b)`` is ``a @ b.T``, by products with one long random number per row of ``b``.

    ``(a bᵀ) r = a (bᵀ r)`` costs two passes over the rows instead of a second product, in integers that
    cannot overflow; a wrong entry goes unseen once in 2²⁰ numbers (Freivalds 1977).
    """
    weights = np.random.default_rng(1).integers(1, 1 << 20, len(b))
    try:
        found = product(a, b).astype(np.int64) @ weights
    except Exception as error:  # whatever a library raises that is broken, or too old for this processor
        logger.info("8-bit products by %s are left aside: %s", name, error)
        return False
    if np.array_equal(found, a.astype(np.int64) @ (weights @ b.astype(np.int64))):
        return True
    logger.warning("products by %s are wrong on this machine and left aside; results do not change", name)
    return False


@dataclass(frozen=True)
class Probe:
    """What one device does with 8-bit products.

    Attributes:
        device: Torch's name of it.
        exact: Whether its products are right.
        integer_rate: Multiply-adds per second of the integer product, None where it is not exact.
        float32_rate: The same of the way without it, on this process's processor.
    """

    device: str
    exact: bool
    integer_rate: float | None
    float32_rate: float


def probe(device: str = "cpu", num_rows: int = 2048, num_features: int = 16384) -> Probe:
    """Check and time the integer product on a device, transfers included: a report for a new machine."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (num_rows, num_features), np.int8) for _ in range(2))
    work = float(num_rows**2 * num_features)
    exact = is_exact(device) and np.array_equal(torch_product(a, b, device), blas_product(a, b))
    seconds = _seconds(lambda a, b: torch_product(a, b, device), a, b) if exact else None
    return Probe(device, exact, seconds and work / seconds, work / _seconds(blas_product, a, b))


@cache
def _fastest(ways: tuple[Product, ...], rows_class: int, features_class: int) -> Product:
    """Measure all ways once per process and size class, on at most 512 rows of 4,096 features.

    One that is wrong there, though it passed the self-test, is left aside.
    """
    num_rows, num_features = min(512, 1 << rows_class), min(4096, 1 << features_class)
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (num_rows, num_features), np.int8) for _ in range(2))
    right = [product for product in ways if _is_right(product.__name__, product, a, b)]
    return min(right, key=lambda product: _seconds(product, a, b), default=wide_product)


def _seconds(product: Product, a: SignedBytes, b: SignedBytes) -> float:
    product(a, b)  # first calls load code and fill caches
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        product(a, b)
        best = min(best, time.perf_counter() - start)
    return best
