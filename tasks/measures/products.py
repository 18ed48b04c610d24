"""Compute exact matrix products of rows of bytes, with the fastest library on this machine.

A product is ``a @ b.T``. All implementations return the same integers. The table lists their
speed in billions of multiply-adds per second, on one core of an Intel Xeon with AVX-512 VNNI.
We measured it with ``benchmarks/measures.py products``. For the third column, we switched off
the newer instructions in each library. The last column is the time of the import.

=================  ============  ====================  ===============
implementation     AVX-512 VNNI  AVX-512 or AVX2 only  cost of import
=================  ============  ====================  ===============
torch._int_mm      310           wrong: sums saturate  1.1 s
numkong            120 to 170    37                    none
float32 by BLAS    60            60 (AVX2: 33)         none
=================  ============  ====================  ===============

If the processor has 8-bit instructions (VNNI, AMX or SDOT), torch computes large products.
numkong computes small products, because the import of torch takes time. We did not measure the
speed with AMX and SDOT. ``_int_mm`` is a private function of torch. On all other processors,
BLAS multiplies in float32. Each implementation is tested on random bytes before its first use.
An implementation that is missing or returns wrong products is not used.
"""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Any

import numpy as np

from search_spaces.errors import SetupError
from tasks.array_types import Bytes, IntArray

logger = logging.getLogger(__name__)

Product = Callable[[Bytes, Bytes], IntArray]
"""Function that returns ``a @ b.T`` for rows of at most ``MAX_FEATURES`` bytes. The function
first shifts uint8 values by -128 (see `to_signed`), which changes no distance. If ``a is b``,
the entries below the diagonal may be undefined."""

MAX_FEATURES = 131_071
"""Largest number of features of a row. The sum of this number of products of two signed bytes
is below 2³¹."""
FLOAT32_FEATURES = 1_024
"""Number of features in one float32 product. The sum of this number of products is at most
2²⁴, and float32 represents all integers up to 2²⁴."""
NUMKONG_FEATURES = 4_096
"""Number of features in one call of numkong. Rows of this length stay in the processor's
cache."""
NUMKONG_COLUMNS = 64
"""Number of columns of the product in one call of numkong. They stay in the processor's
cache."""
TORCH_COLUMNS = 256
"""Number of columns in one torch product of rows with themselves. The smaller this number is,
the fewer unneeded entries below the diagonal are computed."""
TORCH_IMPORT_WORK = 4e11
"""Number of multiply-adds per thread above which torch's faster products save more time than
the import of torch takes. The import also needs 190 MiB of memory."""
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
"""The processor features that multiply 8-bit integers in one instruction, by their names in
numkong."""
SELF_TEST_SHAPES = [
    (1, 1, 1),
    (3, 5, 17),
    (2, 3, MAX_FEATURES),
    (133, 70, 9000),
]
"""Shapes ``(num_a, num_b, num_features)`` of the self-test. Small, large, odd and round shapes
are included, because the libraries run different code for them."""


def num_threads() -> int:
    """Return the number of threads that this process may use.

    If the variable ``OMP_NUM_THREADS`` is set, the function returns its value. Otherwise, it
    returns the number of available cores. Ray sets this variable for its workers.
    """
    requested = os.environ.get("OMP_NUM_THREADS", "")
    if requested.isdecimal():
        return max(int(requested), 1)
    return len(os.sched_getaffinity(0))


def to_signed(rows: Bytes, buffer: IntArray | None = None) -> IntArray:
    """Copy rows of bytes to int8. uint8 values are shifted by -128, which changes no distance.

    Args:
        rows: ``(num_rows, num_features)`` uint8, int8 or bool.
        buffer: One-dimensional int8 array for the result, at least as large as ``rows``. With
            None, a new array is allocated, which takes as long as filling it.

    Returns:
        A copy with the same shape. Its memory is in ``buffer`` if ``buffer`` is not None.
    """
    if buffer is None:
        buffer = np.empty(rows.size, np.int8)
    copy = buffer[: rows.size].reshape(rows.shape)
    if rows.dtype == np.uint8:
        np.bitwise_xor(rows, 128, out=copy.view(np.uint8))  # x - 128 in two's complement
    else:
        copy[...] = rows
    return copy


def blas_product(a: Bytes, b: Bytes) -> IntArray:
    """Return ``a @ b.T``, computed by BLAS as a sum of float32 products.

    Each float32 product is exact, because it has few features.
    """
    total = np.zeros((len(a), len(b)), np.int32)
    for features in _cut(a.shape[1], FLOAT32_FEATURES):
        left = to_signed(a[:, features]).astype(np.float32)
        right = left  # for two equal factors, BLAS computes only one triangle
        if a is not b:
            right = to_signed(b[:, features]).astype(np.float32)
        total += np.matmul(left, right.T).astype(np.int32)
    return total


def integer_product(a: Bytes, b: Bytes) -> IntArray:
    """Return ``a @ b.T``, computed by numpy in integers.

    This is slow. It is used only if all other implementations fail.
    """
    left = to_signed(a)
    right = to_signed(b)
    product: IntArray = np.matmul(left, right.T, dtype=np.int32)
    return product


def numkong_product(a: Bytes, b: Bytes) -> IntArray:
    """Return ``a @ b.T``, computed by numkong with 8-bit instructions in all threads.

    The features are cut into chunks. Each of t threads multiplies every t-th chunk, and adds
    the products to a separate total. So threads with different chunks share no input. If there
    are more threads than chunks, several threads multiply the same chunk, and each of them
    computes other columns of the product.
    """
    import numkong

    num_features = a.shape[1]
    feature_threads = max(min(num_threads(), num_features // NUMKONG_FEATURES), 1)
    num_rounds = math.ceil(num_features / (feature_threads * NUMKONG_FEATURES))
    # All chunks have the same width. It is a multiple of 64 bytes, the size of a register.
    width = math.ceil(num_features / (feature_threads * num_rounds * 64)) * 64
    chunks = _cut(num_features, width)
    column_blocks = _cut(len(b), NUMKONG_COLUMNS)
    column_threads = max(min(num_threads() // feature_threads, len(column_blocks)), 1)
    totals = np.zeros((feature_threads, len(a), len(b)), np.int32)

    def add_products(thread: tuple[int, int]) -> None:
        """Add the products of one thread's chunks and blocks of columns to its total."""
        feature_thread, column_thread = thread
        buffer_a = np.empty(len(a) * width, np.int8)
        buffer_b = np.empty(len(b) * width, np.int8)
        for features in chunks[feature_thread::feature_threads]:
            left = to_signed(a[:, features], buffer_a)
            right = left if a is b else to_signed(b[:, features], buffer_b)
            for columns in column_blocks[column_thread::column_threads]:
                rows = slice(columns.stop if a is b else None)  # none below the diagonal
                packed = numkong.dots_pack(right[columns])
                products = numkong.dots_packed(left[rows], packed)
                totals[feature_thread, rows, columns] += np.asarray(products)

    in_threads(add_products, list(np.ndindex(feature_threads, column_threads)))
    total: IntArray = totals[0]
    if feature_threads > 1:
        total = totals.sum(axis=0, dtype=np.int32)
    return total


def _cut(length: int, step: int) -> list[slice]:
    """Cut an axis of this length into slices of ``step`` items."""
    return [slice(start, start + step) for start in range(0, length, step)]


def in_threads(function: Callable[[Any], None], shares: Sequence[Any]) -> None:
    """Call ``function`` once for every share of the work, in at most `num_threads` threads."""
    count = min(num_threads(), len(shares))
    if count == 1:
        for share in shares:
            function(share)
    else:
        list(_thread_pool(count).map(function, shares))


@cache
def _thread_pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="measures")


# A forked child process does not have the threads of its parent, so it must not use the
# parent's pools.
os.register_at_fork(after_in_child=_thread_pool.cache_clear)


def torch_product(a: Bytes, b: Bytes, device: str = "cpu") -> IntArray:
    """Return ``a @ b.T``, computed by torch on a CPU or on a GPU.

    On a CPU, torch uses 8-bit instructions in all its threads. On a GPU, ``_int_mm`` needs
    sizes that are multiples of 8, and at least 17 rows. Therefore rows and features are padded
    with zeros, and the padded rows are removed from the product. On a CPU, only features are
    padded, because torch 2.13 computes wrong products of rows with one feature.
    """
    import torch

    on_cpu = torch.device(device).type == "cpu"

    def padded(rows: Bytes) -> torch.Tensor:
        num_more_rows = 0 if on_cpu else -len(rows) % 32
        padding = (0, -rows.shape[1] % 32, 0, num_more_rows)
        tensor = torch.from_numpy(to_signed(rows)).to(device)
        if any(padding):
            return torch.nn.functional.pad(tensor, padding)
        return tensor

    left = padded(a)
    if on_cpu and a is b:
        triangle = np.zeros((len(a), len(a)), np.int32)
        for columns in _cut(len(a), TORCH_COLUMNS):
            rows = slice(columns.stop)  # none below the diagonal
            triangle[rows, columns] = torch._int_mm(left[rows], left[columns].T).numpy()
        return triangle
    right = left if a is b else padded(b)
    product: IntArray = torch._int_mm(left, right.T)[: len(a), : len(b)].cpu().numpy()
    return product


def choose_product(work: float, device: str = "cpu") -> Product:
    """Return the fastest implementation that is exact on this machine.

    Args:
        work: Number of multiply-adds that this process will compute. torch is imported only if
            this number is large. If torch has already been imported, it is used for a small
            number too.
        device: ``"cpu"`` or a torch device.
    """
    candidates: dict[str, Product] = {}
    if device != "cpu":
        candidates[f"torch on {device}"] = _torch_product_on(device)
    elif has_byte_instructions():
        if "torch" in sys.modules or work / num_threads() >= TORCH_IMPORT_WORK:
            candidates["torch"] = torch_product
        candidates["numkong"] = numkong_product
    candidates["BLAS"] = blas_product
    for name, product in candidates.items():
        if is_exact(name, product):
            return product
    return integer_product


@cache
def _torch_product_on(device: str) -> Product:
    """Return torch's product on a device.

    The function always returns the same object for a device, because the cache of `is_exact`
    needs it.
    """
    return partial(torch_product, device=device)


def check_device(device: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        SetupError: torch cannot use the device.
    """
    if device == "cpu":
        return
    import torch

    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        cause = str(error).splitlines()[0]
        raise SetupError(
            f"torch cannot use the device {device}: {cause}",
            hint="Choose another device, for example cpu",
        ) from None


@cache
def has_byte_instructions() -> bool:
    """Return whether this processor multiplies 8-bit integers faster than floats."""
    try:
        import numkong
    except ImportError:
        return False
    capabilities = numkong.get_capabilities()
    return any(capabilities.get(name) for name in BYTE_INSTRUCTIONS)


@cache
def is_exact(name: str, product: Product) -> bool:
    """Return whether an implementation runs on this machine and passes the self-test.

    The results are cached, so the self-test of an implementation runs only once per process.
    It detects two known errors. Sums in instructions older than VNNI saturate if many large
    values have the same sign. Some BLAS libraries round the factors to 16 bits.
    """
    rng = np.random.default_rng(0)
    try:
        if all(_passes_self_test(product, rng, *shape) for shape in SELF_TEST_SHAPES):
            return True
    # A library that is broken, or too new for this processor, may raise any exception.
    except Exception as error:
        logger.info("8-bit products by %s failed, so %s is not used: %s", name, name, error)
        return False
    logger.warning(
        "Products by %s are wrong on this machine, so %s is not used. Results do not change.",
        name,
        name,
    )
    return False


def _passes_self_test(
    product: Product, rng: np.random.Generator, num_a: int, num_b: int, num_features: int
) -> bool:
    """Return whether ``product(a, b)`` equals ``a @ b.T`` for random bytes.

    The function checks whether ``(a bᵀ) r = a (bᵀ r)`` for a random vector r (Freivalds 1977).
    The entries of r are random numbers of 20 bits. So a wrong product passes the check with a
    probability of at most about 2⁻²⁰.
    """
    a: Any = rng.integers(-128, 128, (num_a, num_features), np.int8)
    b: Any = rng.integers(-128, 128, (num_b, num_features), np.int8)
    # One row of each factor contains only the smallest or the largest byte, because sums of
    # these bytes saturate first.
    extremes = np.array([-128, 127], np.int8)
    a[0] = -128
    b[-1] = rng.choice(extremes)
    weights = rng.integers(1, 1 << 20, num_b)
    weighted = product(a, b).astype(np.int64) @ weights
    expected = np.einsum("ij,j->i", a, np.einsum("i,ij->j", weights, b))
    return np.array_equal(weighted, expected)
