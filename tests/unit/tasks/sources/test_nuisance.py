"""Nuisance factors vary images and do not depend on the label."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import kstest

from search_spaces.datasets import generated_dataset_spec
from search_spaces.specs import PreparedSpec
from search_spaces.sweeps import ControlledDatasetSpec
from tasks.measures.measure import intrinsic_dimension
from tasks.sources import nuisance, source_for
from tasks.sources.base import RawRequest
from tasks.sources.demo import mnist5k
from tasks.sources.nuisance import FACTORS, add_background, blur, draw_factors, move, vary

LEVELS = (0, 2, 4, 6)


def some_images(count=60):
    return mnist5k().pixels[:: 5000 // count][:count]


def generated_images(parameters):
    """Return the images of a generated dataset in stored order, and their labels."""
    dataset = generated_dataset_spec(
        "made", ControlledDatasetSpec.model_validate({"from": "pictures", **parameters})
    )
    spec = PreparedSpec(dataset=dataset.name, task=dataset.task, image_size=28, channels=1)
    request = RawRequest(dataset, spec, None, key="k")
    source = source_for("pictures")
    items, read = source.list_items(request).items, source.reader(request)
    pixels = np.stack([sample.pixels for item in items for sample in read(item)])
    return pixels, np.array([item.label for item in items])


def of_pair(num_factors, first=3, second=8, set_number=1):
    pair = {"set": set_number, "first": first, "second": second}
    return generated_images({"dials": {**pair, "factors": num_factors}})


def test_without_factors_images_are_the_packaged_ones_byte_for_byte():
    images, labels = of_pair(0)
    rows = np.flatnonzero(np.isin(mnist5k().labels, [3, 8]))
    np.testing.assert_array_equal(images, mnist5k().pixels[rows])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(labels, mnist5k().labels[rows] == 8)


def test_no_level_moves_a_label_and_every_level_draws_the_same_again():
    plain, labels = of_pair(0)
    for level in LEVELS[1:]:
        images, same_labels = of_pair(level)
        np.testing.assert_array_equal(labels, same_labels)
        np.testing.assert_array_equal(images, of_pair(level)[0])
        assert images.shape == plain.shape
        assert images.dtype == plain.dtype
        assert len(np.unique(images.reshape(len(images), -1), axis=0)) == len(images)


@pytest.mark.parametrize("number", range(1, 7))
def test_every_factor_changes_images_and_leaves_the_values_of_earlier_ones(number):
    images = some_images()
    before, after = vary(images, number - 1, seed=3), vary(images, number, seed=3)
    changed = (before != after).any(axis=(1, 2))
    assert changed.mean() > 0.8, FACTORS[number - 1]


def test_values_of_factors_do_not_predict_the_label():
    """A linear rule on all values, fitted on one half, is at chance level on the other half."""
    labels = np.sort(np.arange(4000) % 2)
    values = draw_factors(4000, seed=5)
    columns = np.column_stack([values.shift, values.turn, values.contrast, values.blur])
    columns = np.column_stack([columns, values.coarse, values.fine, np.ones(4000)])
    half = np.arange(4000) % 2 == 0
    weights = np.linalg.lstsq(columns[half], 2.0 * labels[half] - 1, rcond=None)[0]
    accuracy = ((columns[~half] @ weights > 0) == labels[~half]).mean()
    # Four standard deviations of 2,000 coin tosses.
    assert abs(accuracy - 0.5) < 4 * 0.5 / np.sqrt(2000)
    centred = columns[:, :-1] - columns[:, :-1].mean(axis=0)
    correlations = (centred / centred.std(axis=0)).T @ (labels - 0.5) / (4000 / 2)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(4000)


def test_values_fill_their_ranges_evenly():
    values = draw_factors(3000, seed=1)
    scaled_turns = values.turn / nuisance.MAX_TURN / 2 + 0.5
    assert kstest(scaled_turns, "uniform").pvalue > 0.001
    widths = (values.blur - nuisance.MIN_BLUR) / (nuisance.MAX_BLUR - nuisance.MIN_BLUR)
    assert kstest(widths, "uniform").pvalue > 0.001
    assert values.coarse.std() == pytest.approx(nuisance.COARSE_WEIGHT, rel=0.02)
    assert values.fine.std() == pytest.approx(nuisance.FINE_WEIGHT, rel=0.02)
    assert values.contrast.min() >= nuisance.MIN_CONTRAST


def test_moved_images_equal_those_of_scipy():
    images = some_images(5).astype(float)
    turn, shift = np.array([0.3, -0.2, 0.0, 0.4, 0.1]), np.full((5, 2), (0.05, -0.08))
    moved_images = move(images, turn, shift)
    for image, angle, share, ours in zip(images, turn, shift, moved_images, strict=True):
        matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        centre = np.array([13.5, 13.5])
        offset = centre - matrix @ (centre + 28 * share)
        theirs = ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


def test_blurring_is_a_gaussian_that_keeps_flat_images_and_the_unblurred():
    flat = np.full((2, 28, 28), 7.0)
    np.testing.assert_allclose(blur(flat, np.array([0.0, 0.03])), flat)
    images = np.zeros((2, 28, 28))
    images[:, 14, 14] = 1
    sharp, soft = blur(images, np.array([0.0, 1.5 / 28]))
    np.testing.assert_allclose(sharp, images[0], atol=1e-12)
    expected = ndimage.gaussian_filter(images[1], 1.5, truncate=20)
    np.testing.assert_allclose(soft, expected, atol=1e-6)


def test_a_background_lightens_what_is_dark_and_keeps_white_white():
    images = np.zeros((3, 28, 28))
    images[:, :14] = 255
    values = draw_factors(3, seed=0)
    lightened = add_background(images, values.coarse, values.fine)
    np.testing.assert_allclose(lightened[:, :14], 255)
    assert (lightened[:, 14:] >= 0).all()
    assert lightened.max() <= 255
    assert lightened[:, 14:].max() <= 255 * nuisance.BACKGROUND_LIGHT
    assert lightened[:, 14:].std() > 20


def test_small_images_have_fewer_waves():
    images, _ = of_pair(6, set_number=0)
    assert images.shape[1:] == (8, 8)
    assert images.std() > 0


def test_factors_raise_the_dimension_threefold():
    dimensions = {}
    for level in (0, 6):
        images, _ = of_pair(level)
        means = images[:640, ::2, ::2].reshape(640, -1).astype(float)
        dimensions[level] = intrinsic_dimension(means, estimators=("mle",))["mle"].value
    assert dimensions[6] > 2.5 * dimensions[0]


@pytest.mark.parametrize("value", [-1, 7, 2.5])
def test_an_unknown_number_of_factors_is_refused(value):
    with pytest.raises(
        ValueError, match=r"`dials.factors` is .* must be a whole number from 0 to 6"
    ):
        ControlledDatasetSpec.model_validate({"from": "pictures", "dials": {"factors": value}})
