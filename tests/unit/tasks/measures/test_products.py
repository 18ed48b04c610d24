import os
import sys
from functools import partial

import numpy as np
import pytest
import torch

from search_spaces.errors import SetupError
from tasks.measures import products
from tasks.measures.distances import Precision
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.products import (
    FLOAT32_FEATURES,
    MAX_FEATURES,
    TORCH_IMPORT_WORK,
    blas_product,
    choose_product,
    integer_product,
    is_exact,
    num_threads,
    numkong_product,
    to_signed,
    torch_product,
)

SHAPES = [
    (1, 1, 1),
    (1, 1, 16),
    (3, 5, 17),
    (64, 64, 784),
    (33, 70, 1025),
    (2, 1, 4096),
    (130, 257, 63),
]
# A product that fails its self-test is not used either.
PRODUCTS = [
    integer_product,
    *(
        pytest.param(
            product, id=name, marks=pytest.mark.skipif(not is_exact(name, product), reason="wrong")
        )
        for name, product in [
            ("BLAS", blas_product),
            ("torch", torch_product),
            ("numkong", numkong_product),
        ]
    ),
]


def random_rows(num_rows, num_features, seed):
    return np.random.default_rng(seed).integers(-128, 128, (num_rows, num_features), np.int8)


def product_in_float64(a, b):
    """Return the exact products. For rows with themselves, only the upper triangle is defined."""
    dot_products = to_signed(a).astype(np.float64) @ to_signed(b).astype(np.float64).T
    return np.triu(dot_products) if a is b else dot_products


@pytest.fixture(autouse=True)
def _forget_exactness():
    """Forget which products are exact: these tests change the libraries that were checked."""
    is_exact.cache_clear()
    yield
    is_exact.cache_clear()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("num_a", "num_b", "num_features"), SHAPES)
def test_products_are_those_of_wide_integers(product, num_a, num_b, num_features):
    a, b = random_rows(num_a, num_features, 0), random_rows(num_b, num_features, 1)
    dot_products = product(a, b)
    assert dot_products.dtype == np.int32
    np.testing.assert_array_equal(dot_products, product_in_float64(a, b))
    np.testing.assert_array_equal(np.triu(product(a, a)), product_in_float64(a, a))
    a, b = (rows[:, num_features // 3 :].view(np.uint8) for rows in (a, b))  # slices of longer rows
    np.testing.assert_array_equal(product(a, b), product_in_float64(a, b))


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("low", [-128, 127])
def test_longest_rows_of_extremes_do_not_overflow(product, low):
    a = np.full((2, MAX_FEATURES), -128, np.int8)
    b = np.full((3, MAX_FEATURES), low, np.int8)
    assert (product(a, b) == -128 * low * MAX_FEATURES).all()


def test_one_feature_more_would_overflow():
    assert 128**2 * MAX_FEATURES < 2**31 <= 128**2 * (MAX_FEATURES + 1)
    assert 128**2 * FLOAT32_FEATURES <= 2**24


@pytest.fixture
def new_processor(monkeypatch):
    monkeypatch.setattr(products, "has_byte_instructions", lambda: True)


@pytest.mark.usefixtures("new_processor")
@pytest.mark.parametrize(
    "broken",
    [
        lambda a, b: (_ for _ in ()).throw(RuntimeError("not implemented for this processor")),
        lambda a, b: (_ for _ in ()).throw(OSError("libcudart.so: cannot open shared object file")),
        lambda a, b: blas_product(a, b) + (a.shape[1] > 1000),
        lambda a, b: np.clip(blas_product(a, b), -(2**15), 2**15),
        lambda a, b: blas_product(a, b)[:, ::-1],
        lambda a, b: blas_product(a, b)[:-1],
        lambda a, b: blas_product(a, b) + (np.arange(len(a) * len(b)).reshape(len(a), -1) == 7),
        lambda a, b: blas_product(a, b) + (len(a) > 100),
    ],
    ids=["raises", "broken", "long rows", "saturates", "swaps", "cuts", "one entry", "many rows"],
)
def test_a_product_that_fails_its_self_test_is_not_used(monkeypatch, broken):
    monkeypatch.setattr(products, "torch_product", broken)
    monkeypatch.setattr(products, "numkong_product", broken)
    assert choose_product(1e15) is blas_product


@pytest.mark.usefixtures("new_processor")
def test_a_wrong_product_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(products, "torch_product", lambda a, b: blas_product(a, b) + 1)
    assert choose_product(1e15) is numkong_product
    assert "Products by torch are wrong on this machine, so torch is not used" in caplog.text


def test_a_blas_that_rounds_to_16_bits_is_not_used(monkeypatch):
    def rounds(a, b):
        return np.float32(np.float16(a / 256) @ np.float16(b / 256).T).astype(np.int32)

    monkeypatch.setattr(products, "has_byte_instructions", lambda: False)
    assert choose_product(1e15) is products.blas_product is blas_product
    monkeypatch.setattr(products, "blas_product", rounds)
    assert choose_product(1e15) is integer_product


@pytest.mark.usefixtures("new_processor")
def test_torch_is_imported_if_the_work_of_a_thread_pays_for_it(monkeypatch):
    work = TORCH_IMPORT_WORK * num_threads()
    assert choose_product(work / 2) is torch_product  # it is loaded here
    monkeypatch.delitem(sys.modules, "torch")
    assert choose_product(work / 2) is numkong_product
    assert choose_product(work) is torch_product


@pytest.mark.parametrize(
    ("missing", "remaining_product"), [("torch", numkong_product), ("numkong", torch_product)]
)
@pytest.mark.usefixtures("new_processor")
def test_the_remaining_library_is_used_if_the_other_is_not_installed(
    monkeypatch, missing, remaining_product
):
    monkeypatch.setitem(sys.modules, missing, None)  # importing it raises ImportError
    assert choose_product(1e15) is remaining_product


@pytest.mark.parametrize(
    ("value", "expected"), [("1", 1), ("3", 3), ("", None), ("4,2", None), ("0", 1)]
)
def test_threads_follow_the_environment_variable_or_the_number_of_cores(
    monkeypatch, value, expected
):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert num_threads() == (expected or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("threads", [2, 3, 64])
@pytest.mark.parametrize(
    ("num_a", "num_features"), [(300, 40), (300, 9000), (5, 5000), (1000, 1024)]
)
def test_a_product_does_not_depend_on_the_number_of_threads(
    monkeypatch, threads, num_a, num_features
):
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    a, b = random_rows(num_a, num_features, 0), random_rows(200, num_features, 1)
    np.testing.assert_array_equal(numkong_product(a, b), product_in_float64(a, b))
    np.testing.assert_array_equal(np.triu(numkong_product(a, a)), product_in_float64(a, a))


@pytest.mark.parametrize("device", ["nonsense", "meta"])  # meta holds no numbers
def test_a_missing_device_is_reported(device):
    for rows in (random_rows(5, 3, 0), random_rows(5, 3, 0) / 7):
        with pytest.raises(SetupError, match=f"torch cannot use the device {device}"):
            nested_neighbors(rows, None, [5], 2, precision=Precision(device=device))


def test_another_device_is_used_if_it_is_exact():
    a = random_rows(40, 100, 0)
    product = choose_product(1e3, "cpu:0")
    assert product.func is torch_product
    np.testing.assert_array_equal(product(a, a), blas_product(a, a))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("num_a", "num_b", "num_features"), [*SHAPES, (2, 3, MAX_FEATURES)])
def test_cuda_gives_the_same_bits(num_a, num_b, num_features):
    a, b = random_rows(num_a, num_features, 0), random_rows(num_b, num_features, 1)
    on_gpu = partial(torch_product, device="cuda")
    np.testing.assert_array_equal(on_gpu(a, b), blas_product(a, b))
    np.testing.assert_array_equal(on_gpu(a, a), blas_product(a, a))
