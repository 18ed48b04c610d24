"""Measuring and predicting from a notebook."""

import json

import numpy as np
import pytest

import isweep
from orchestrator.analysis.fits import fit_scaling_laws
from search_spaces.errors import SweepError
from tasks import measure_array
from tests.synthetic import synthetic_table


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (60, 8, 8), dtype=np.uint8)


LABELS = ["cat" if place % 2 else "dog" for place in range(60)]


@pytest.fixture(scope="module")
def record(images):
    return isweep.measure(images, LABELS, train_sizes=[30, 60])


def test_text_labels_and_numbers_give_the_same_measures(images, record):
    numbers = measure_array(images, [int(label == "dog") for label in LABELS], train_sizes=[30, 60])
    assert record.d_data == numbers.d_data["mle"].value
    assert record.label_sharpness == numbers.label_sharpness.value
    assert record.label_names == ("cat", "dog")


def test_a_record_describes_itself(record):
    assert repr(record).startswith("Measurement: 60 images, 2 classes, d_data ")
    assert "K_F" in repr(record)
    assert record.to_frame()["train_size"].unique().tolist() == [30, 60]
    assert "<table" in record._repr_html_()
    # A notebook shows the figure as PNG without pyplot.
    assert record.plot_pair()._repr_png_().startswith(b"\x89PNG")


def test_the_frame_has_label_sharpness_of_samples_and_of_all_pairs(images):
    frame = isweep.measure(images, LABELS, sharpness_sample=20).to_frame()
    rows = images.reshape(60, -1).astype(float)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    is_unlike = np.array(LABELS)[:, None] != np.array(LABELS)[None]
    all_pairs = 1 / distances[is_unlike].min()
    assert frame["label_sharpness_all_pairs"].tolist() == pytest.approx([all_pairs] * 3)
    assert (frame["label_sharpness"] < all_pairs).all()


def test_the_closest_pair_has_the_shortest_distance(images, record):
    rows = images.reshape(60, -1).astype(float)
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
    is_unlike = np.array(LABELS)[:, None] != np.array(LABELS)[None]
    first, second = record.pair_images
    shortest = distances[is_unlike].min()
    assert np.linalg.norm(first.astype(float) - second) == pytest.approx(shortest)
    titles = [axes.get_title() for axes in record.plot_pair().axes]
    rows = record.record.label_sharpness.pair
    assert titles == [f"image {row}: {LABELS[row]}" for row in rows]


def test_a_folder_and_its_arrays_give_the_same_measures(images, tmp_path):
    from PIL import Image

    for row, (image, label) in enumerate(zip(images, LABELS, strict=True)):
        (tmp_path / "images" / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "images" / label / f"{row:02d}.png")
    measurement = isweep.measure(tmp_path / "images", image_size=8, root=tmp_path / "root")
    assert measurement.num_images == 60
    assert measurement.label_sharpness == pytest.approx(
        isweep.measure(images, LABELS).label_sharpness, rel=1e-6
    )


def test_floats_are_scaled_as_the_command_scales_them(images, record):
    for floats in (images / 255, images.astype(np.float32)):
        measurement = isweep.measure(floats, LABELS, train_sizes=[30, 60])
        assert measurement.to_json() == record.to_json() | {
            "settings": measurement.to_json()["settings"]
        }
        assert measurement.image_lines
    measurement = isweep.measure(
        images * 4.0 - 1000, LABELS, train_sizes=[30, 60], pixel_range=(-1000, 20)
    )
    assert measurement.label_sharpness == pytest.approx(record.label_sharpness)
    for floats in (images / 127.5 - 1, images * 12.0 - 1000):
        with pytest.raises(SweepError, match="so it is unclear which value is white"):
            isweep.measure(floats, LABELS)
    with pytest.raises(SweepError, match=r"of the values lie outside pixel_range \[-1, 1\]"):
        isweep.measure(images * 12.0 - 1000, LABELS, pixel_range=(-1, 1))


def test_a_file_whose_parts_may_have_two_scales_is_refused(images, tmp_path):
    arrays = {"train_labels": LABELS[:30], "test_labels": LABELS[30:], "train_images": images[:30]}
    np.savez(tmp_path / "mixed.npz", **arrays, test_images=images[30:] / 255)
    with pytest.raises(
        SweepError, match=r"several types \(float64, uint8\), so their scales may differ"
    ):
        isweep.measure(tmp_path / "mixed.npz")


def test_images_that_are_almost_black_are_doubtful_but_dark_images_are_not(images):
    doubt = "the brightest pixel has only 0.39% of the brightness of white. If the images were "
    for floats in (images / 255 / 255, (images / 255 / 255).astype(np.float32)):
        measurement = isweep.measure(floats, LABELS)
        assert measurement.image_lines[-1].startswith(f"  doubtful: {doubt}")
        assert f"\nDoubtful: {doubt}divided by 255 twice" in repr(measurement)
        assert doubt in measurement._repr_html_()
    for share in (1, 0.2, 0.05):
        dark = isweep.measure(images / 255 * share, LABELS)
        assert "oubtful" not in repr(dark) + "".join(dark.image_lines)


def test_images_on_two_scales_are_refused_with_their_number(images):
    floats = images.astype(np.float32)
    floats[::2] /= 255
    message = "different scales. In 30 of 60 images, no value is above 1, but .* as large as 255"
    with pytest.raises(SweepError, match=message):
        isweep.measure(floats, LABELS)
    assert isweep.measure(floats, LABELS, pixel_range=(0, 255)).num_images == 60


def test_a_few_almost_black_images_are_accepted(images):
    floats = images.astype(np.float32)
    floats[:2] /= 255
    floats[3:6] = 0
    assert isweep.measure(floats, LABELS).num_images == 60


def test_images_divided_by_255_and_stored_as_whole_numbers_are_refused(images, tmp_path):
    divided = (images / 255 + 0.5).astype(np.uint8)
    np.savez(tmp_path / "divided.npz", images=divided, labels=np.array(LABELS))
    message = "all values of the images are 0 or 1. The images were probably divided by 255"
    with pytest.raises(SweepError, match=message):
        isweep.measure(divided, LABELS)
    with pytest.raises(SweepError, match=message):
        isweep.measure(tmp_path / "divided.npz", root=tmp_path / "root")
    white = isweep.measure(divided * 255, LABELS).label_sharpness
    assert isweep.measure(divided, LABELS, pixel_range=(0, 1)).label_sharpness == white


def test_equal_images_with_different_labels_are_counted_in_the_summary(images):
    repeated = images.copy()
    repeated[1] = repeated[0]
    summary = repr(isweep.measure(repeated, LABELS))
    assert summary.endswith(
        "1 duplicate left out, 1 duplicate with another label than the equal image"
    )


def test_a_value_just_below_black_does_not_mean_another_scale(images, record):
    floats = images / 255
    floats[0, 0, 0] = -(2.0**-23)
    with pytest.raises(SweepError, match=r"for isweep measure: --pixel-range -1.1920929e-07 1\)"):
        isweep.measure(floats, LABELS)
    measurement = isweep.measure(floats, LABELS, train_sizes=[30, 60], pixel_range=(-(2.0**-23), 1))
    assert measurement.label_sharpness == pytest.approx(record.label_sharpness, rel=1e-5)


def test_a_sweeps_name_in_place_of_a_record_is_refused(fits):
    with pytest.raises(
        SweepError,
        match=r"The record demo cannot be read: No such file.* If demo is a sweep, write sweep='demo'",
    ):
        isweep.predict("demo", model="small_cnn", train_size=200)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(
        AttributeError,
        match=r"isweep has no attribute 'results'.*\.table\.$",
    ):
        isweep.results("demo")
    assert not hasattr(isweep, "__wrapped__")


MASKED = np.ma.masked_equal(np.arange(8).reshape(2, 2, 2), 1)
FOUR_IMAGES = np.zeros((4, 2, 2))
FOUR_LABELS = [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (
            "absent",
            None,
            {},
            "absent is neither an existing path nor the name of a known dataset. Give the path",
        ),
        (
            ".",
            [1, 2],
            {},
            "`images` is the folder .*, but you also passed `labels` of the type list. Remove",
        ),
        (FOUR_IMAGES, None, {"train_size": [2]}, "'train_size'. Did you mean 'train_sizes'"),
        (
            "x.npy",
            [1, 2],
            {},
            "`images` is the file or dataset x.npy, but `labels` has the type list",
        ),
        (FOUR_IMAGES, [1], {}, r"The labels have the shape \(1,\), but there are 4 images"),
        (FOUR_IMAGES, [None] * 4, {}, "^The label is missing for"),
        (FOUR_IMAGES, [float("nan"), 1.0] * 2, {}, "^The label is missing for"),
        (
            FOUR_IMAGES,
            ["Cat", "cat", "dog", "dog"],
            {},
            "^These class names differ only in spelling: 'Cat' / 'cat'",
        ),
        (FOUR_IMAGES[:3], [-1, 0, 1], {}, "Correct these labels, or remove the images"),
        (
            MASKED,
            [0, 1],
            {},
            r"Images contain masked values\. Replace the masked values with `\.filled",
        ),
        (
            [MASKED[0], MASKED[1]],
            [0, 1],
            {},
            "Images contain masked values",
        ),
        (
            FOUR_IMAGES[:2],
            np.ma.masked_equal([0, 1], 1),
            {},
            "Labels contain masked values",
        ),
        ([[1, 2], [3]], None, {}, "Images have different shapes, so they do not form one array"),
        (
            [],
            None,
            {},
            r"Images have the shape \(0,\), but an axis for the pixels is missing\. Pass an array of shape",
        ),
        (np.array([["a"]]), None, {}, "Images contain texts or paths"),
        (
            np.zeros((9, 6, 8)),
            [0, 1] * 4,
            {},
            r"The labels have the shape \(8,\), but there are 9 images\. Pass a flat list",
        ),
        (
            np.zeros((4, 6, 8)),
            [0, 1] * 4,
            {},
            r"has the shape \(4, 6, 8\), and there are 8 labels, so the last axis of the array seems "
            r"to count the images\. Make the last axis the first axis: images = numpy\.moveaxis\(",
        ),
        (
            FOUR_IMAGES,
            None,
            {"train_sizes": 2},
            r"train_sizes is 2, which is not a list\. Pass a list of sizes",
        ),
        (
            FOUR_IMAGES,
            None,
            {"num_neighbours": 4},
            "Unknown setting 'num_neighbours'. Did you mean",
        ),
        (
            FOUR_IMAGES,
            FOUR_LABELS,
            {"class_pair": ("0", "7")},
            "The class pair 0 7 cannot be used: no image of the data has the class 7",
        ),
        (
            FOUR_IMAGES,
            None,
            {"class_pair": ("0", "1")},
            "A class pair needs labels, but the images have no labels",
        ),
        (
            FOUR_IMAGES,
            FOUR_LABELS,
            {"class_pair": (0, 1, 2)},
            r"`class_pair` is \(0, 1, 2\), but must contain the names of two classes",
        ),
        (
            FOUR_IMAGES,
            FOUR_LABELS,
            {"class_pair": 3},
            r"`class_pair` is 3, .*\. Pass two names, for example",
        ),
        (
            FOUR_IMAGES,
            None,
            {"image_size": 4},
            "`image_size=4` and `channels=1` are only for images in files",
        ),
        (
            FOUR_IMAGES,
            None,
            {"channels": 3},
            "`image_size=None` and `channels=3` are only for images in files",
        ),
        ("digits", None, {"channels": 5}, "`channels` is 5, but should be 1 or 3"),
        (
            "digits",
            None,
            {"image_size": "x"},
            "`image_size` is 'x', but must be a whole number",
        ),
        (".", None, {"own": "x"}, "`own` is 'x', but must be a dictionary"),
        (".", None, {"root": 3}, "`root` is 3, but must be the path of a folder"),
        (["cat", "dog"], np.zeros((2, 8, 8)), {}, "Pass the images first"),
        (np.zeros((2, 8, 8)), "labels.csv", {}, "`labels` is the text or path 'labels.csv'"),
        (np.zeros((2, 8, 8)), {"cat"}, {}, "Pass an array, or a list with one entry for each"),
        (["a.png", "b.png"], None, {"image_size": 28}, "Images contain texts or paths"),
    ],
)
def test_a_mistake_is_refused_with_its_hint(images, labels, options, message):
    with pytest.raises(isweep.SweepError, match=message):
        isweep.measure(images, labels, **options)


@pytest.mark.long
def test_predict_takes_a_record_and_its_file(record, fits, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record.to_json()), encoding="utf-8")
    options = {"model": "pooled", "train_size": 100}
    from_object = isweep.predict(record, fits, **options)
    assert isweep.predict(path, fits, **options) == from_object
    numbers = {"d_data": record.d_data, "label_sharpness": record.label_sharpness}
    assert isweep.predict(None, fits, **numbers, **options) == from_object
    assert repr(from_object).startswith("Prediction: test loss ")
    assert from_object.to_json()["loss"] == from_object.value


def test_a_record_of_another_side_than_the_sweeps_is_refused(record, fits):
    larger_images = np.random.default_rng(0).integers(0, 256, (60, 16, 16), dtype=np.uint8)
    larger = isweep.measure(larger_images, LABELS)
    with pytest.raises(
        SweepError,
        match=r"another scale \(16×16 pixels, 1 channel, range 255\) than K_F of the sweep.*"
        r"isweep measure SOURCE --image-size \d+ --channels \d",
    ):
        isweep.predict(larger, fits, train_size=500)
    assert isweep.predict(larger, fits, label_sharpness=1e-4, train_size=500).value is not None


def test_classes_that_are_numbers_are_named_by_numbers_of_arrays_and_files(images, tmp_path):
    labels = np.arange(len(images)) % 3 + 3
    by_number = isweep.measure(images, labels, class_pair=(3, 5))
    assert by_number.to_json() == isweep.measure(images, labels, class_pair=("3", "5")).to_json()
    assert by_number.num_images == np.isin(labels, [3, 5]).sum()
    assert by_number.label_names == ("3", "5")
    assert "2 classes" in repr(by_number)  # the data have three
    np.savez(tmp_path / "three.npz", images=images, labels=labels)
    options = {"class_pair": ("3", "5"), "image_size": 8, "root": tmp_path / "root"}
    of_file = isweep.measure(tmp_path / "three.npz", **options)
    assert of_file.label_names == ("3", "5")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"pilot": [1, 2]},
            r"`pilot` is \[1, 2\], but must be a list of pairs or a path\. Pass pairs",
        ),
        ({"pilot": [("a", "b")]}, "must be a list of pairs or a path"),
        ({"pilot": 3}, "`pilot` is 3, but must be a list of pairs or a path"),
        ({"model": 3}, "Unknown fitted model '3'"),
        ({"domain": 3}, "Unknown domain '3'"),
    ],
)
def test_a_wrong_argument_of_predict_is_refused(record, fits, wrong, message):
    with pytest.raises(SweepError, match=message):
        isweep.predict(record, fits, train_size=500, **wrong)


def test_predict_takes_a_pilot_as_pairs_or_as_a_file(record, fits, tmp_path):
    plain = isweep.predict(record, fits, train_size=500)
    pairs = isweep.predict(record, fits, train_size=500, pilot=[(50, 0.6), (100, 0.5)])
    (tmp_path / "pilot.csv").write_text("train_size,test_loss\n50,0.6\n100,0.5\n", encoding="utf-8")
    assert pairs == isweep.predict(record, fits, train_size=500, pilot=tmp_path / "pilot.csv")
    assert pairs.num_pilot == 2
    assert pairs.value != plain.value
    with pytest.raises(
        isweep.SweepError, match=r"pilot loss is -1\.0, which is not a number between"
    ):
        isweep.predict(record, fits, train_size=500, pilot=[(50, -1)])


def test_predict_needs_both_numbers(images, fits, tmp_path):
    with pytest.raises(isweep.SweepError, match="The prediction needs label_sharpness of"):
        isweep.predict(isweep.measure(images), fits, train_size=100)
    with pytest.raises(
        isweep.SweepError, match="The prediction needs d_data and label_sharpness of"
    ):
        isweep.predict(None, fits, train_size=100)
    for name, value in (("d_data", "9"), ("label_sharpness", True), ("train_size", "100")):
        options = {"d_data": 9.0, "label_sharpness": 1e-4, "train_size": 100, name: value}
        with pytest.raises(SweepError, match=f"`{name}` is {value!r}, but must be a number"):
            isweep.predict(None, fits, **options)
    (tmp_path / "bad.json").write_text("{}", encoding="utf-8")
    with pytest.raises(isweep.SweepError, match=r"bad\.json has no d_data"):
        isweep.predict(tmp_path / "bad.json", fits, train_size=100)
    with pytest.raises(isweep.SweepError, match=r"absent\.json cannot be read"):
        isweep.predict(tmp_path / "absent.json", fits, train_size=100)


@pytest.fixture(scope="module")
def fits():
    # A prediction needs images of the sweep's size, here the 8 pixels of the images above.
    table = synthetic_table(num_natural=6, num_medical=6).assign(image_size=8)
    return isweep.Fits(fit_scaling_laws(table, explore=True), table)


def test_fits_are_a_table(fits):
    rows = fits.to_frame()
    assert {"fit", "coefficient", "value", "low", "high"} <= set(rows)
    fit_names = {"headline", "height", "exponent", "fall", "attack", "representation"}
    assert set(rows["fit"]) == fit_names
    assert repr(fits).startswith("Fits of ")


def test_a_refused_fit_is_a_row_with_its_reason():
    table = synthetic_table(num_natural=1, num_medical=0)
    fits = isweep.Fits(fit_scaling_laws(table), table).to_frame()
    assert fits["reason"].astype(bool).any()
    assert fits.query("fit not in ('representation', 'fall')")["value"].isna().all()


def test_the_channels_of_an_npy_file_have_only_one_way_out(tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.zeros((4, 8, 8), dtype=np.uint8))
    with pytest.raises(SweepError, match=r"images of images\.npy are measured as stored") as error:
        isweep.measure(path, channels=3)
    assert error.value.hint == "Remove --channels"
