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
    IMPORT_PAYS,
    IMPORT_PAYS_BESIDE_NUMKONG,
    MAX_FEATURES,
    MIN_FEATURES,
    blas_is_exact,
    blas_product,
    choose_product,
    is_exact,
    numkong_is_exact,
    numkong_product,
    probe,
    torch_product,
    wide_product,
)

SHAPES = [(1, 1, 16), (3, 5, 17), (64, 64, 784), (33, 70, 1025), (2, 1, 4096), (130, 257, 63)]
# A product that fails its self-test is not used either.
needs_exact_torch = pytest.mark.skipif(not is_exact(), reason="torch's integer product is not exact here")
needs_exact_numkong = pytest.mark.skipif(not numkong_is_exact(), reason="numkong's is not exact here")
PRODUCTS = [
    wide_product,
    pytest.param(blas_product, marks=pytest.mark.skipif(not blas_is_exact(), reason="this BLAS rounds")),
    pytest.param(torch_product, marks=needs_exact_torch),
    pytest.param(numkong_product, marks=needs_exact_numkong),
]


def random_rows(num_rows, num_features, seed):
    return np.random.default_rng(seed).integers(-128, 128, (num_rows, num_features), np.int8)


@pytest.fixture(autouse=True)
def _forget():
    """Choices are cached per process; these tests change what they rest on."""
    caches = (is_exact, numkong_is_exact, blas_is_exact, products._fastest)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize(("num_a", "num_b", "num_features"), SHAPES)
def test_products_are_those_of_wide_integers(product, num_a, num_b, num_features):
    a, b = random_rows(num_a, num_features, 0), random_rows(num_b, num_features, 1)
    found = product(a, b)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, a.astype(np.int64) @ b.astype(np.int64).T)
    np.testing.assert_array_equal(product(a, a), a.astype(np.int64) @ a.astype(np.int64).T)


@pytest.mark.parametrize("product", PRODUCTS)
def test_rows_may_be_slices_of_longer_ones(product):
    a, b = random_rows(20, 300, 0), random_rows(30, 300, 1)
    part = slice(7, 207)
    np.testing.assert_array_equal(
        product(a[:, part], b[:, part]), a[:, part].astype(int) @ b[:, part].astype(int).T
    )


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("low", [-128, 127])
def test_longest_rows_of_extremes_do_not_overflow(product, low):
    a = np.full((2, MAX_FEATURES), -128, np.int8)
    b = np.full((3, MAX_FEATURES), low, np.int8)
    assert (product(a, b) == -128 * low * MAX_FEATURES).all()


def test_one_feature_more_would_overflow():
    assert 128**2 * MAX_FEATURES < 2**31 <= 128**2 * (MAX_FEATURES + 1)
    assert 128**2 * FLOAT32_FEATURES <= 2**24


def test_rows_of_one_feature_are_left_to_the_way_that_multiplies_them_right():
    # torch._int_mm takes the transpose of one feature for a row: its products are of the wrong pairs.
    assert choose_product(64, 1, 1e15) is blas_product
    assert choose_product(64, MIN_FEATURES - 1, 1e15) is blas_product


@pytest.mark.parametrize(
    "broken",
    [
        lambda a, b, device: (_ for _ in ()).throw(RuntimeError("not implemented for this processor")),
        lambda a, b, device: (_ for _ in ()).throw(AttributeError("no attribute '_int_mm'")),
        lambda a, b, device: (_ for _ in ()).throw(OSError("libcudart.so: cannot open shared object file")),
        lambda a, b, device: blas_product(a, b) + (a.shape[1] > 1000),
        lambda a, b, device: np.clip(blas_product(a, b), -(2**15), 2**15),
        lambda a, b, device: blas_product(a, b)[:, ::-1],
        lambda a, b, device: blas_product(a, b)[:-1],
        lambda a, b, device: blas_product(a, b) + (np.arange(len(a) * len(b)).reshape(len(a), -1) == 7),
    ],
    ids=["raises", "missing", "broken", "wrong for long rows", "saturates", "swaps", "cuts", "one entry"],
)
def test_a_product_that_fails_its_self_test_is_left_aside(monkeypatch, broken):
    monkeypatch.setattr(products, "torch_product", broken)
    monkeypatch.setattr(products, "numkong_product", lambda a, b: broken(a, b, "cpu"))
    assert not is_exact()
    assert not numkong_is_exact()
    assert choose_product(2048, 4096, 1e15) is blas_product


def test_a_product_wrong_for_larger_blocks_than_the_self_tests_is_left_aside_and_said_so(monkeypatch, caplog):
    def lies(a, b):
        return blas_product(a, b) + (len(a) > 100)

    monkeypatch.setattr(products, "numkong_product", lies)
    monkeypatch.setattr(products, "is_exact", lambda device="cpu": False)
    monkeypatch.setattr(products, "_seconds", lambda product, a, b: product is not lies)
    assert numkong_is_exact()
    assert choose_product(512, 4096, 1e15) is blas_product
    assert "products by lies are wrong on this machine and left aside" in caplog.text


def test_a_blas_that_rounds_to_16_bits_is_left_aside(monkeypatch):
    def rounds(a, b):
        return np.float32(np.float16(a / 256) @ np.float16(b / 256).T).astype(np.int32)

    monkeypatch.setattr(products, "blas_product", rounds)
    monkeypatch.setattr(products, "is_exact", lambda device="cpu": False)
    monkeypatch.setattr(products, "numkong_is_exact", lambda: False)
    for num_features in (1, 4096):
        assert choose_product(512, num_features, 1e15) is wide_product


@pytest.fixture
def all_exact(monkeypatch):
    monkeypatch.setattr(products, "is_exact", lambda device="cpu": True)
    monkeypatch.setattr(products, "numkong_is_exact", lambda: True)
    monkeypatch.setattr(products, "_is_right", lambda name, product, a, b: True)


@pytest.mark.usefixtures("all_exact")
@pytest.mark.parametrize("winner", ["torch_product", "numkong_product", "blas_product"])
def test_the_fastest_one_is_chosen_and_measured_once_per_size_class(monkeypatch, winner):
    calls = []

    def seconds(product, a, b):
        calls.append(a.shape)
        return 1.0 if product is getattr(products, winner) else 2.0

    monkeypatch.setattr(products, "_seconds", seconds)
    for num_rows in (300, 400, 500):  # one class
        assert choose_product(num_rows, 5000, 1e15) is getattr(products, winner)
    assert len(calls) == 3
    choose_product(300, 50_000, 1e15)
    assert len(calls) == 6
    assert max(rows * features for rows, features in calls) <= 512 * 4096


@pytest.mark.usefixtures("all_exact")
def test_torch_is_not_imported_for_little_work(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(products, "_seconds", lambda product, a, b: product is not torch_product)
    assert choose_product(1024, 784, IMPORT_PAYS_BESIDE_NUMKONG / 2) is not torch_product
    assert choose_product(1024, 784, IMPORT_PAYS_BESIDE_NUMKONG * 2) is torch_product
    monkeypatch.setattr(products, "numkong_is_exact", lambda: False)
    assert choose_product(64, 784, IMPORT_PAYS / 2) is blas_product
    assert choose_product(64, 784, IMPORT_PAYS * 2) is torch_product


@pytest.mark.parametrize("missing", ["torch", "numkong"])
def test_works_where_one_is_not_installed(monkeypatch, missing):
    other = {"torch": numkong_product, "numkong": torch_product}[missing]
    monkeypatch.setitem(sys.modules, missing, None)  # importing it raises ImportError
    monkeypatch.setattr(products, "_seconds", lambda product, a, b: product is blas_product)
    # Of those that are timed, which go by the names of their functions; not of the self-tests before.
    monkeypatch.setattr(products, "_is_right", lambda name, product, a, b: name == other.__name__)
    present = {"torch": "numkong_is_exact", "numkong": "is_exact"}[missing]
    monkeypatch.setattr(products, present, lambda *device: True)
    monkeypatch.setattr(products, "blas_is_exact", lambda: True)
    assert choose_product(2048, 4096, 1e15) is other


def test_a_device_that_is_not_there_is_said_so():
    for rows in (random_rows(5, 3, 0), random_rows(5, 3, 0) / 7):
        with pytest.raises(SetupError, match="device that measures run on must be there; found: nonsense"):
            nested_neighbors(rows, None, [5], 2, precision=Precision(device="nonsense"))


def test_another_device_is_used_where_it_is_exact():
    a = random_rows(40, 100, 0)
    product = choose_product(40, 100, 1e3, "cpu:0")
    np.testing.assert_array_equal(product(a, a), blas_product(a, a))


def test_a_probe_tells_what_a_device_does():
    found = probe("cpu", 64, 64)
    assert found.exact == is_exact()
    assert (found.integer_rate is not None) == found.exact
    assert found.float32_rate > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("num_a", "num_b", "num_features"), [*SHAPES, (2, 3, MAX_FEATURES)])
def test_cuda_gives_the_same_bits(num_a, num_b, num_features):
    a, b = random_rows(num_a, num_features, 0), random_rows(num_b, num_features, 1)
    on_card = partial(torch_product, device="cuda")
    np.testing.assert_array_equal(on_card(a, b), blas_product(a, b))
    np.testing.assert_array_equal(on_card(a, a), blas_product(a, a))
    assert probe("cuda", 256, 1024).exact
