"""Generated and semi-synthetic sources: known dimension, only the lesion tells the label."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from search_spaces.datasets import dataset_spec
from search_spaces.errors import ConfigError
from search_spaces.specs import PreparedSpec
from tasks.sources import demo
from tasks.sources.base import RawRequest
from tasks.sources.demo import brain_mask, lesions, render_slice, template
from tasks.sources.made import MARGIN, embed, latent_points, manifold


@pytest.mark.parametrize("dimension", [4, 12])
def test_manifold_is_an_isometry_up_to_one_factor(dimension):
    latents, labels = latent_points(dimension, 500)
    images = embed(latents, 16).astype(float)
    assert images.min() >= 0
    assert images.max() <= 255
    assert 0.3 < labels.mean() < 0.7
    # Small steps in z, in any direction, move the image equally far.
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(200, dimension))
    steps *= 1e-4 / np.linalg.norm(steps, axis=1, keepdims=True)
    moved = embed(latents[:200] + steps, 16).astype(float)
    lengths = np.linalg.norm((moved - images[:200]).reshape(200, -1), axis=1)
    assert lengths.std() / lengths.mean() < 0.05


def test_manifold_classes_keep_their_distance():
    latents, labels = latent_points(4, 400)
    images = embed(latents, 16).reshape(400, -1).astype(float)
    apart = np.linalg.norm(images[labels == 0][:, None] - images[labels == 1][None], axis=2).min()
    step = np.linalg.norm(embed(np.full((1, 4), 0.5), 16) - embed(np.full((1, 4), 0.5 + 1e-4), 16)) / 2e-4
    # f has slope at most 2 pi, and chords are at least 2 / pi of the arc they span.
    assert apart >= 2 * MARGIN / (2 * np.pi) * step * 2 / np.pi


def test_manifold_needs_enough_pixels_and_a_dimension():
    with pytest.raises(ConfigError, match="patterns need more than 40 pixels"):
        embed(np.full((1, 20), 0.5), 6)
    row = dataset_spec("manifold_d4").model_copy(update={"name": "manifold"})
    request = RawRequest(row, PreparedSpec(dataset="manifold", image_size=8, channels=1))
    with pytest.raises(ConfigError, match="is named manifold_d<dimension>"):
        manifold.list_items(request)


def test_only_the_lesion_tells_the_label():
    volume, brain = template("t1"), brain_mask()
    with_lesion, without = (render_slice(volume, brain, 3, 1, lesion=lesion) for lesion in (True, False))
    differs = with_lesion != without
    assert 0 < differs.mean() < 0.25
    np.testing.assert_array_equal(without, render_slice(volume, brain, 3, 1, lesion=False))


def test_lesions_are_half_of_every_variation():
    request = RawRequest(
        dataset_spec("mri_lesion"), PreparedSpec(dataset="mri_lesion", image_size=8, channels=1)
    )
    items = lesions.list_items(request).items
    labels = np.array([item.label for item in items]).reshape(-1, 4)
    assert (labels.sum(axis=1) == 2).all()
    assert len({item.group for item in items}) == len(labels)


def test_lesions_are_moved_as_scipy_moves_images():
    rng = np.random.default_rng(0)
    plane = rng.random((9, 7)).astype(np.float32)
    edges = [np.array([[0.0, 8.0, 8.0, -0.5, 8.5, 3.25]]), np.array([[0.0, 6.0, 6.5, 2.0, 2.0, 6.0]])]
    for places in (edges, [rng.uniform(-1, size, (40, 30)) for size in plane.shape]):
        np.testing.assert_array_equal(demo._between(plane, places), map_coordinates(plane, places, order=1))
