"""Packaged, derived and generated datasets have the labels and groups that their rows describe."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from skimage.color import rgb2hed

from search_spaces.datasets import DATASETS, generated_dataset_spec
from search_spaces.errors import ConfigError, SetupError
from search_spaces.interventions import ControlledDatasetSpec
from search_spaces.specs import PreparedSpec
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.record import preparation_lines
from tasks.prepared.store import PreparedDataset
from tasks.remote import InlineExecutor
from tasks.sources import demo
from tasks.sources.base import RawRequest
from tasks.sources.demo import lesions, render_slice
from tasks.sources.generated import MARGIN, manifold_images, manifold_points

PATCHED = {"textures": 32, "photographs": 32, "histology": 20, "retina": 32}
PACKAGED = [row for row in DATASETS.values() if row.images_per_class]
SMALL = [row.name for row in PACKAGED if row.name != "mri_lesion"]


def prepared(name: str, tmp_path) -> PreparedDataset:
    spec = PreparedSpec(dataset=name, image_size=16, channels=1)
    folder = tmp_path / name
    prepare_dataset(spec, DATASETS[name], raw=None, destination=folder, executor=InlineExecutor())
    return PreparedDataset.open(folder)


def test_a_set_that_is_not_real_says_so_in_its_row():
    for row in PACKAGED:
        assert (row.origin == "real") == (not row.label_rule)
        assert row.origin == "real" or row.origin in row.title
        assert row.raw_layout.startswith("nothing to download")


@pytest.mark.parametrize("name", SMALL)
def test_a_packaged_set_is_prepared_without_a_network(name, tmp_path, monkeypatch):
    import socket
    import threading

    connect = socket.socket.connect

    def refuse(*arguments):
        if threading.current_thread() is threading.main_thread():
            pytest.fail("a connection was opened")
        return connect(*arguments)  # a thread that an earlier test left

    monkeypatch.setattr(socket.socket, "connect", refuse)
    data = prepared(name, tmp_path)
    record, row = data.record, DATASETS[name]
    assert record.num_images == len(demo.SETS[name]().labels)
    assert record.label_names == row.label_names
    assert min(record.num_images_per_label.values()) >= 97
    assert (record.origin, record.label_rule) == (row.origin, row.label_rule)
    assert record.skipped == {}
    assert record.num_conflicts == 0
    if row.origin != "real":
        assert f"  {row.origin}; label: {row.label_rule}" in preparation_lines(record)


@pytest.mark.parametrize(("name", "side"), PATCHED.items())
def test_a_patch_is_a_piece_of_the_picture_in_the_block_of_its_group(name, side):
    files = {
        "textures": ("skimage", [f"data/{name}.png" for name in ("grass", "gravel", "brick")]),
        "photographs": ("sklearn", [f"datasets/images/{name}.jpg" for name in ("china", "flower")]),
        "histology": ("skimage", ["data/ihc.png"]),
        "retina": ("skimage", ["data/retina.jpg"]),
    }
    package, names = files[name]
    pictures = [demo._read_picture(package, file) for file in names]
    images = demo.SETS[name]()
    found_places = set()
    for pixels, group in zip(images.pixels, images.groups, strict=True):
        *number, row, column = map(int, group.split())
        picture = pictures[number[0] if number else 0]
        places = [
            (group, y, x)
            for y in (2 * row * side, (2 * row + 1) * side)
            for x in (2 * column * side, (2 * column + 1) * side)
            if np.array_equal(picture[y : y + side, x : x + side], pixels)
        ]
        assert len(places) == 1
        found_places.add(places[0])
    assert len(found_places) == len(images.pixels)


def test_stained_patches_are_those_that_scikit_image_calls_stained():
    """Oracle: ``rgb2hed``, its own colour deconvolution."""
    images = demo.histology()
    stain_strength = np.array([rgb2hed(pixels)[..., 2].mean() for pixels in images.pixels])
    middle = np.median(stain_strength)
    assert ((stain_strength > middle) == (images.labels == 1)).mean() > 0.95


def test_patches_labelled_white_matter_are_brighter():
    """White matter is brighter than gray matter in T1, independent of the template's maps."""
    images = demo.tissue()
    bright = images.pixels.mean((1, 2))
    assert bright[images.labels == 1].mean() > bright[images.labels == 0].mean() + 10
    assert len(set(images.groups)) > 100


def test_patches_labelled_vessels_have_darker_places():
    images = demo.retina()
    green = images.pixels[..., 1].astype(float)
    spread = np.quantile(green, 0.5, axis=(1, 2)) - green.min(axis=(1, 2))
    assert spread[images.labels == 1].mean() > 1.5 * spread[images.labels == 0].mean()


@pytest.mark.parametrize("name", ["textures", "tissue"])
def test_a_missing_package_is_reported_as_a_setup_error(name, monkeypatch):
    demo.SETS[name].cache_clear()
    demo.template.cache_clear()
    monkeypatch.setattr(demo, "find_spec", lambda _: None)
    with pytest.raises(
        SetupError,
        match="which contains the images of this dataset, is not installed",
    ):
        demo.SETS[name]()
    assert importlib.util.find_spec("skimage") is not None


def pictures(**parameters: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels and labels of a generated dataset of two classes."""
    dataset = generated_dataset_spec(
        "world", ControlledDatasetSpec.model_validate({"from": "pictures", "dials": parameters})
    )
    request = RawRequest(
        dataset, PreparedSpec(dataset="world", image_size=16, channels=1, dials=dataset.dials)
    )
    items = demo.pictures.list_items(request).items
    reader = demo.pictures.reader(request)
    pixels = np.stack([sample.pixels for item in items for sample in reader(item)])
    return pixels.reshape(len(pixels), -1).astype(float), np.array([item.label for item in items])


def test_blend_moves_the_images_nearest_to_the_other_class_by_its_share():
    base, labels = pictures(set=0, first=3, second=8)
    blended, blended_labels = pictures(set=0, first=3, second=8, blend=0.4, reach=0.1)
    assert blended_labels.tolist() == labels.tolist()
    assert np.bincount(labels).tolist() == [183, 174]
    distances = np.sqrt(np.square(base[:, None] - base[None]).sum(-1))
    distances[labels[:, None] == labels[None]] = np.inf
    nearest, distance = distances.argmin(1), distances.min(1)
    chosen = np.flatnonzero((blended != base).any(axis=1))
    assert len(chosen) == round(0.1 * len(base))
    assert distance[chosen].max() <= np.delete(distance, chosen).min()
    expected = base[chosen] + 0.4 * (base[nearest[chosen]] - base[chosen])
    np.testing.assert_allclose(blended[chosen], expected, atol=0.51)


def test_colours_are_averaged_and_a_class_that_the_set_lacks_is_refused():
    pixels, _ = pictures(set=4, first=0, second=1)
    images = demo.photographs()
    np.testing.assert_allclose(
        pixels, images.pixels.reshape(len(pixels), -1, 3).mean(-1), atol=0.51
    )
    with pytest.raises(
        ConfigError,
        match=r"first and second are 0 and 7, but must be two different classes\. The set has 2",
    ):
        pictures(set=4, first=0, second=7)


@pytest.mark.parametrize("dimension", [4, 12])
def test_manifold_is_an_isometry_up_to_one_factor(dimension):
    latents, labels = manifold_points(dimension, 500)
    images = manifold_images(latents, 16).astype(float)
    assert images.min() >= 0
    assert images.max() <= 255
    assert 0.3 < labels.mean() < 0.7
    # Small steps in z, in any direction, move the image equally far.
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(200, dimension))
    steps *= 1e-4 / np.linalg.norm(steps, axis=1, keepdims=True)
    shifted_images = manifold_images(latents[:200] + steps, 16).astype(float)
    lengths = np.linalg.norm((shifted_images - images[:200]).reshape(200, -1), axis=1)
    assert lengths.std() / lengths.mean() < 0.05


def test_manifold_classes_keep_their_distance():
    latents, labels = manifold_points(4, 400)
    images = manifold_images(latents, 16).reshape(400, -1).astype(float)
    smallest_distance = np.linalg.norm(
        images[labels == 0][:, None] - images[labels == 1][None], axis=2
    ).min()
    step = (
        np.linalg.norm(
            manifold_images(np.full((1, 4), 0.5), 16)
            - manifold_images(np.full((1, 4), 0.5 + 1e-4), 16)
        )
        / 2e-4
    )
    # f has slope at most 2 pi, and chords are at least 2 / pi of the arc they span.
    assert smallest_distance >= 2 * MARGIN / (2 * np.pi) * step * 2 / np.pi


def test_manifold_needs_enough_pixels():
    with pytest.raises(ConfigError, match="needs images of more than 40 pixels"):
        manifold_images(np.full((1, 20), 0.5), 6)


def test_only_the_lesion_predicts_the_label():
    with_lesion = render_slice(3, 1, lesion=True)
    without = render_slice(3, 1, lesion=False)
    assert 0 < (with_lesion != without).mean() < 0.25
    np.testing.assert_array_equal(without, render_slice(3, 1, lesion=False))


def test_lesions_are_half_of_every_variation():
    request = RawRequest(
        DATASETS["mri_lesion"], PreparedSpec(dataset="mri_lesion", image_size=8, channels=1)
    )
    items = lesions.list_items(request).items
    labels = np.array([item.label for item in items]).reshape(-1, 4)
    assert (labels.sum(axis=1) == 2).all()
    assert len({item.group for item in items}) == len(labels)


def test_interpolation_is_that_of_scipy_to_the_last_bit():
    rng = np.random.default_rng(0)
    plane = rng.random((9, 7)).astype(np.float32)
    edges = [
        np.array([[0.0, 8.0, 8.0, -0.5, 8.5, 3.25]]),
        np.array([[0.0, 6.0, 6.5, 2.0, 2.0, 6.0]]),
    ]
    for places in (edges, [rng.uniform(-1, size, (40, 30)) for size in plane.shape]):
        np.testing.assert_array_equal(
            demo._interpolate(plane, *places), map_coordinates(plane, places, order=1)
        )
