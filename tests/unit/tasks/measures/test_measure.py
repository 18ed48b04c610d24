import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from search_spaces.errors import ConfigError, DataError
from tasks.measures.measure import measure_array, measure_nested
from tasks.measures.neighbors import nested_neighbors
from tasks.measures.records import MeasureSettings
from tests import reference


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (120, 3, 5, 5), dtype=np.uint8)


@pytest.fixture
def labels():
    return np.arange(120) % 2


def test_every_size_equals_measuring_its_prefix_alone(images, labels):
    record = measure_nested(images, labels, [40, 80, 120])
    for size in record.sizes:
        n = size.train_size
        record_alone = measure_nested(images[:n], labels[:n], [n])
        assert size.d_data["mle"].value == pytest.approx(record_alone.d_data["mle"].value, rel=1e-6)
        assert size.d_data["mle"].value == pytest.approx(reference.mle(images[:n], 20, 2), rel=1e-5)
        assert size.d_data["twonn"].value == pytest.approx(
            reference.twonn(images[:n], 0.1), rel=1e-5
        )
        assert size.label_sharpness.value == pytest.approx(
            reference.label_sharpness(images[:n], labels[:n]), rel=1e-6
        )


FORKED = """
import multiprocessing
import numpy as np
from tasks.measures.measure import measure_array

def k_f(seed):
    images = np.random.default_rng(seed).integers(0, 256, (600, 64), dtype=np.uint8)
    return measure_array(images, np.arange(600) % 2).label_sharpness.value

own = k_f(0)
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.map(k_f, [0]) == [own]
"""


def test_a_process_forked_after_a_measure_measures_too():
    threads = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FORKED], check=True, timeout=600, env=threads)


def test_a_record_is_json_and_contains_its_settings(images, labels):
    record = measure_array(images, labels, train_sizes=[60, 120]).to_json()
    text = json.dumps(record, allow_nan=False)
    assert json.loads(text) == record
    assert {
        "num_images",
        "duplicates",
        "conflicts",
        "d_data",
        "label_sharpness",
        "by_train_size",
    } <= set(record)
    assert [row["train_size"] for row in record["by_train_size"]] == [60, 120]
    assert record["num_images"] == 120
    assert record["d_data"]["mle"]["value"] == record["by_train_size"][1]["d_data"]["mle"]["value"]
    assert {"value", "std_error", "num_points", "num_neighbors", "convention"} <= set(
        record["d_data"]["mle"]
    )
    assert record["label_sharpness"]["side"] == [5, 5]
    assert record["settings"]["num_neighbors"] == 20


def test_array_layouts_give_the_same_numbers(images, labels):
    first = measure_array(images, labels)
    last = measure_array(np.moveaxis(images, 1, 3), labels)
    assert last.d_data["mle"].value == pytest.approx(first.d_data["mle"].value, rel=1e-6)
    assert last.label_sharpness == first.label_sharpness
    grey = measure_array(images[:, 0], labels).label_sharpness.convention
    assert (grey.side, grey.channels) == ((5, 5), 1)


@pytest.mark.parametrize("kind", ["bytes", "floats"])
def test_train_sizes_do_not_change_the_measures_of_all_images(images, labels, kind):
    if kind == "floats":
        images = images + np.float32(0.3)
    settings = MeasureSettings(sharpness_sample=50)
    record_alone = measure_array(images, labels, settings=settings)
    record = measure_array(images, labels, train_sizes=[40, 80, 120], settings=settings)
    assert [size.train_size for size in record.sizes] == [40, 80, 120]
    assert record.sizes[-1].to_json() == record_alone.sizes[-1].to_json()
    assert record.notes == record_alone.notes
    assert record.conflict_pairs == record_alone.conflict_pairs


def test_all_images_as_the_only_train_size_are_measured_once(images, labels):
    record = measure_array(images, labels, train_sizes=[120])
    assert record.to_json() == measure_array(images, labels).to_json()


def test_settings_are_recorded_and_the_seed_orders_the_subsets(images, labels):
    settings = MeasureSettings(num_neighbors=10, seed=7, estimators=("mle",))
    record = measure_array(images, labels, train_sizes=[50], settings=settings)
    assert record.settings == settings
    assert record.d_data["mle"].num_neighbors == 10
    again, with_another_seed = (
        measure_array(images, labels, train_sizes=[50], settings=replace(settings, seed=seed))
        for seed in (7, 8)
    )
    assert again.to_json() == record.to_json()
    assert with_another_seed.sizes[0].d_data["mle"].value != record.sizes[0].d_data["mle"].value


def test_labels_may_be_any_whole_numbers_or_missing(images, labels):
    distant_labels = np.where(labels == labels[0], -5, 2**40)
    assert measure_array(images, distant_labels, train_sizes=[50]).label_sharpness.value > 0
    record = measure_array(images, None, train_sizes=[50, 100])
    assert record.label_sharpness is record.to_json()["label_sharpness"] is None
    assert record.d_data["mle"].value > 0


def test_duplicates_and_conflicts_are_counted_by_size_and_explained(images, labels):
    images[10], images[31], images[100] = (
        images[0],
        images[0],
        images[50],
    )  # 31 has another label than 0
    record = measure_nested(images, labels, [20, 60, 120])
    assert [size.num_duplicates for size in record.sizes] == [1, 2, 3]
    assert [size.num_conflicts for size in record.sizes] == [0, 1, 1]
    assert record.conflict_pairs == ((31, 0),)
    assert record.d_data["mle"].num_points == 117
    distinct_rows = np.setdiff1d(np.arange(120), [10, 31, 100])
    assert record.d_data["mle"].value == pytest.approx(
        reference.mle(images[distinct_rows], 20, 2), rel=1e-5
    )
    assert record.label_sharpness.value == pytest.approx(
        reference.label_sharpness(images[distinct_rows], labels[distinct_rows]), rel=1e-6
    )
    assert "3 of 120 images are equal to an earlier image" in record.notes[0]
    # Images 0 and 10 equal image 31, which has another label.
    note = record.notes[1]
    assert note.startswith("3 of 120 images are equal to an image with another label. For two")


def test_too_few_distinct_images_are_explained(images, labels):
    record = measure_array(np.full((120, 1, 4, 4), 7, np.uint8), labels).to_json()
    assert (record["duplicates"], record["conflicts"]) == (119, 60)
    assert record["d_data"]["mle"]["value"] is record["label_sharpness"]["value"] is None
    assert (
        record["d_data"]["mle"]["reason"]
        == "20 neighbors need at least 21 distinct points, but there are 1"
    )
    json.dumps(record, allow_nan=False)
    record = measure_array(images[:15], labels[:15]).to_json()
    assert (
        "20 neighbors need at least 21 distinct points, but there are 15"
        in record["d_data"]["mle"]["reason"]
    )
    assert record["d_data"]["twonn"]["value"] > 0
    one_pixel = np.arange(120, dtype=np.uint8).reshape(120, 1, 1, 1)
    assert measure_array(one_pixel, labels).label_sharpness.value == 1


def test_sixteen_bit_and_float_images_measure_alike(images, labels):
    expected = measure_array(images, labels).d_data["mle"].value
    for converted in (images.astype(np.uint16) * 257, images * np.float32(0.5), images / 255):
        record = measure_array(converted, labels)
        assert record.d_data["mle"].value == pytest.approx(expected, rel=1e-5)
        assert record.precision == ("exact integer" if converted.dtype == np.float64 else "float32")


def test_a_stream_of_floats_that_hold_bytes_is_exact_and_one_other_value_is_not(images, labels):
    for divisor in (1, 255):
        floats = images.astype(np.float32) / np.float32(divisor)
        record = measure_nested(reference.Stream(floats), labels, [60, 120])
        expected = measure_nested(floats, labels, [60, 120])
        assert record.precision == "exact integer"
        assert record.to_json() == expected.to_json()
    floats[100, 0, 0, 0] += 1e-3
    assert measure_nested(reference.Stream(floats), labels, [60, 120]).precision == "float32"


@pytest.mark.parametrize(
    "types", [(np.uint8, np.float32), (np.uint8, np.int8), (np.float32, np.uint8)]
)
def test_rows_of_several_types_are_measured_as_floats(images, labels, types):
    @dataclasses.dataclass
    class Shards:
        parts: list
        num_rows: int = 120
        row_shape: tuple = (3, 5, 5)

        def read(self, start, stop):
            first, second = self.parts
            read = [first[start:stop], second[max(start - 60, 0) : max(stop - 60, 0)]]
            return np.concatenate([part for part in read if len(part)])

    halves = images // 2  # which int8 holds too
    parts = [halves[:60].astype(types[0]), halves[60:].astype(types[1])]
    if types[1] == np.uint8:
        parts[0] += np.float32(0.5)
    calibrate = types[1] == np.int8  # takes two seconds
    record = measure_nested(
        Shards(parts), labels, [120], settings=MeasureSettings(calibrate=calibrate)
    )
    rows = np.concatenate([part.astype(float) for part in parts])
    assert record.precision in ("float32", "float64")
    assert record.label_sharpness.value == pytest.approx(
        reference.label_sharpness(rows, labels), rel=1e-6
    )
    assert (record.calibration is not None) == calibrate
    json.dumps(record.to_json(), allow_nan=False)
    if types[0] == np.uint8:
        with pytest.raises(
            DataError, match="Row 0 has the dtype uint8, but the rows from row 0 on have the dtype"
        ):
            nested_neighbors(Shards(parts), None, [120], 5)


@pytest.mark.ray
def test_two_workers_give_the_same_bits(ray_local, images, labels):
    from tasks.remote import RayExecutor

    local_record = measure_nested(images, labels, [40, 120])
    remote_record = measure_nested(images, labels, [40, 120], executor=RayExecutor())
    assert remote_record.to_json() == local_record.to_json()


def ragged():
    return [np.zeros((3, 4)), np.zeros((3, 5))]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (
            np.zeros((0, 1, 4, 4), np.uint8),
            [],
            r"The array of shape \(0, 1, 4, 4\) contains no images",
        ),
        (
            np.zeros((5, 1, 0, 4), np.uint8),
            [0] * 5,
            r"The array of shape \(5, 1, 0, 4\) contains images without pixels",
        ),
        (
            np.zeros((5, 4)),
            [0, 1],
            r"Labels have the shape \(2,\), but there are 5 images",
        ),
        (np.zeros((5, 4)), ["a"] * 5, "Labels have the dtype <U1, but must be whole numbers"),
        (
            np.zeros((5, 4)),
            [0, 1, 0.5, 1, 0],
            r"The label of row 2 is 0\.5, which is not a whole number",
        ),
        (
            np.zeros((5, 4)),
            [0, 1, np.nan, 1, 0],
            "The label of row 2 is nan, which is not a whole number",
        ),
        (
            np.eye(5),
            [0, 1, 1e300, 2e300, 0],
            r"The label of row 2 is 1e\+300, which is not a whole number",
        ),
        (
            np.zeros(5),
            [0] * 5,
            r"Images have the shape \(5,\), but an axis for the pixels is missing",
        ),
        (
            ragged(),
            [0, 1],
            "Images have different shapes, so they do not form one array. Convert all images to",
        ),
        (
            np.array([*ragged(), None], object)[:2],
            [0, 1],
            r"Images have different shapes: \[\(3, 4\), \(3, 5\)\]",
        ),
        (
            np.full((5, 4), np.nan),
            [0] * 5,
            "5 of 5 rows have values that are NaN or infinite, for example row 0, 1, 2, 3, 4",
        ),
        (
            np.diag([0, 1, -np.inf]),
            [0] * 3,
            "1 of 3 rows have values that are NaN or infinite, for example row 2",
        ),
        (
            np.ones((2, 2), complex),
            [0, 1],
            "Images have the dtype complex128, but must be real numbers of at most 64 bits",
        ),
        (
            np.array([["a"], ["b"]]),
            [0, 1],
            "Images contain texts or paths, but must be pixel values",
        ),
        (
            np.array([[1, 2], [3, 4]], object),
            [0, 1],
            "Images have the dtype object, but must be real numbers",
        ),
        (
            ["cat/1.png", "cat/2.png"],
            [0, 1],
            "For image files, pass the path of their folder, or the path of a CSV",
        ),
        ([Path("1.png")], [0], "Images contain texts or paths, but must be pixel values"),
        (
            pd.DataFrame({"path": ["1.png", "2.png"], "label": [0, 1]}),
            [0, 1],
            "Images contain texts or paths, but must be pixel values",
        ),
        (np.float32(5), [0], r"Images cannot be converted to an array: 5\.0"),
        (
            np.ma.masked_less(np.eye(2), 1),
            [0, 1],
            "Images contain masked values",
        ),
    ],
)
def test_input_that_cannot_be_measured_is_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        measure_array(images, labels)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([60.5, 120], r"is \[60\.5, 120\], but not all of these are whole numbers"),
        (["60", 120], r"is \['60', 120\], but not all of these are whole numbers"),
        (60, "is 60, which is not a list. Pass a list of sizes"),
        ("60", "is '60', which is not a list. Pass a list of sizes"),
        *[(sizes, "is .*, but there are 120 images") for sizes in ([], [0], [121], [-3, 10])],
    ],
)
def test_invalid_train_sizes_are_refused(images, labels, sizes, message):
    with pytest.raises(DataError, match=f"train_sizes {message}"):
        measure_array(images, labels, train_sizes=sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *[
            (
                {"num_neighbors": k},
                rf"num_neighbors is '?{k}'?, which is not valid\. Choose a whole number, 3 or more",
            )
            for k in (2, 20.5, "a")
        ],
        *[
            (
                {"block_rows": rows},
                rf"block_rows is {rows}, which is not valid\. Choose a whole number, 1 or more",
            )
            for rows in (0, 2.5)
        ],
        *[
            (
                {"sharpness_sample": m},
                rf"sharpness_sample is {m}, .*2 or more, or None for all images",
            )
            for m in (1, 2.5)
        ],
        *[
            (
                {"seed": seed},
                rf"seed is '?{seed}'?, which is not valid\. Choose a whole number, 0 or more",
            )
            for seed in (-1, "x")
        ],
        *[
            (
                {"sharpness_seeds": seeds},
                r"sharpness_seeds is \(.*, which is not valid\. Choose whole numbers, 0 or more",
            )
            for seeds in ((), (1, 1.5), (0, -1))
        ],
        *[
            (
                {"pixel_range": limits},
                r"pixel_range is .*, which is not valid\. Choose two numbers, \(black, white\)",
            )
            for limits in (5, (0, 1, 2), ("a", "b"))
        ],
        (
            {"pixel_range": (1.0, 0.0)},
            r"pixel_range is \(1\.0, 0\.0\), but the first number must be lower than the second",
        ),
        (
            {"dtype": "float16"},
            r"dtype is 'float16', which is not valid\. Choose float32 or float64\.",
        ),
        *[
            (
                {"discard_fraction": f},
                rf"discard_fraction is '?{f}'?, .*Choose a number in \[0, 1\)",
            )
            for f in (1.0, "a")
        ],
        *[
            ({"estimators": names}, "estimators is .*Choose a list of different names")
            for names in (5, "mle", (), ("mle",) * 2)
        ],
        ({"estimators": ("pca",)}, "Unknown estimator 'pca'"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MeasureSettings(**settings)


def test_package_has_no_other_names():
    import tasks

    assert tasks.measure_array is measure_array
    with pytest.raises(AttributeError, match=r"tasks.* attribute '?nothing"):
        _ = tasks.nothing
