import numpy as np
import pytest
import torch
from torch import nn

from tasks.trials.representations import Features, extract_features
from tests.unit.tasks.trials.conftest import built, equal, pixels_of, weights


def scaled(*network, **changes):
    return built(*network, input_scale=1 / 255, **changes)


def settle(model, images):
    """Let batch norm see the images once, so that its statistics are not the initial ones."""
    model.train()
    with torch.no_grad():
        model(images.float())
    return model


def test_resnets_of_timm_give_layer4_before_pooling_flattened():
    """Torchvision's networks are held to its own extractor in test_fidelity."""
    images = pixels_of(5)
    model = settle(scaled("resnet18", "timm"), images)
    features = extract_features(model, images, batch_size=2)
    assert (features.dtype, features.shape) == (np.float32, (5, 512 * 1 * 1))
    assert features.min() >= 0  # after its last ReLU
    net = model.network.eval()
    with torch.no_grad():
        x = images.float() / 255
        x = net.maxpool(net.act1(net.bn1(net.conv1(x))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x)))).flatten(1)
    np.testing.assert_allclose(features, x.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("library", "architecture", "side", "count"),
    [
        ("torchvision", "resnet18", 224, 512 * 7 * 7),
        pytest.param("timm", "vgg11", 32, 4096, marks=pytest.mark.long),
    ],
)
def test_number_of_features(library, architecture, side, count):
    assert extract_features(scaled(architecture, library), pixels_of(1, side=side)).shape == (
        1,
        count,
    )


@pytest.mark.parametrize(
    ("library", "architecture", "num_features"),
    [
        ("isweep", "small_cnn", 512),
        ("isweep", "small_mlp", 64),
        ("torchvision", "densenet121", 1024),
    ],
)
def test_other_networks_give_the_input_of_their_classifier(library, architecture, num_features):
    images = pixels_of(5)
    model = scaled(architecture, library)
    features = extract_features(model, images)
    assert features.shape == (5, num_features)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        torch.testing.assert_close(last(torch.from_numpy(features)), model.eval()(images.float()))


def test_features_are_read_in_evaluation_mode_and_change_nothing():
    images = pixels_of(8)
    model = settle(scaled("small_cnn", "isweep", dropout=0.5), images)
    before = weights(model)
    first, again = extract_features(model, images), extract_features(model, images, batch_size=3)
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-6)
    assert np.array_equal(first, extract_features(model, images))
    assert equal(before, model.state_dict())
    assert not model.network[-1]._forward_pre_hooks


class OnGpu(torch.Tensor):
    """A tensor that reports a GPU as its device."""

    device = property(lambda self: torch.device("cuda"))


def test_features_of_a_gpu_need_no_pinned_memory(monkeypatch):
    """WSL has less than 1 GiB of it: "CUDA error: out of memory" until nothing is pinned."""
    empty = torch.empty

    def in_wsl(*shape, pin_memory=False, **options):
        if pin_memory:
            raise torch.AcceleratorError("CUDA error: out of memory")
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", in_wsl)
    features = Features(4)
    for first in (0, 2):
        batch = torch.arange(6.0).reshape(2, 3) + 6 * first / 2
        features.add(batch.as_subclass(OnGpu))
    assert features.array.tolist() == torch.arange(12.0).reshape(4, 3).tolist()
