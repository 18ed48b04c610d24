"""Resize and channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from tasks.sources.pictures import by_own_maximum, to_prepared

PICTURE = np.random.default_rng(0).integers(0, 256, (37, 53)).astype(np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (20, 20, 3)).astype(np.uint8)


@pytest.mark.parametrize("side", [16, 37, 64])
def test_without_antialias_it_is_torchs_plain_bilinear(side):
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(PICTURE).float()[None, None], (side, side), mode="bilinear", align_corners=False
    )[0].numpy()
    found = to_prepared(PICTURE, image_size=side, channels=1, dtype="float32", antialias=False)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("side", [16, 64])
def test_with_antialias_it_is_torchvisions(side):
    expected = resize(torch.from_numpy(PICTURE).float()[None], [side, side], antialias=True).numpy()
    found = to_prepared(PICTURE, image_size=side, channels=1, dtype="float32")
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_channels():
    assert to_prepared(PICTURE, image_size=8, channels=3).shape == (3, 8, 8)
    grey = to_prepared(COLOUR, image_size=20, channels=1)[0]
    np.testing.assert_allclose(grey, COLOUR @ np.array([0.299, 0.587, 0.114]), atol=0.51)
    np.testing.assert_array_equal(to_prepared(COLOUR, image_size=20, channels=3), COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_own_maximum_is_the_studys_rule_exactly(dtype):
    values = np.random.default_rng(2).integers(-50, 3000, (80, 80))
    values = {np.uint8: values % 200, np.uint16: abs(values)}.get(dtype, values).astype(dtype)
    expected = (np.clip(values, 0, None).astype(float) * 255.0 / values.max()).astype(np.uint8)
    np.testing.assert_array_equal(by_own_maximum(values)[0], expected)
