import numpy as np
import pytest
import torch
from torch import nn

from search_spaces.specs import ModelSpec
from tasks.trials.models import build_model
from tasks.trials.representations import extract_features, feature_layer

torch.set_num_threads(1)  # work this small is only slowed by threads that wait for each other


def build(architecture, library="torchvision", image_size=32, dropout=None):
    spec = ModelSpec(name="any", library=library, architecture=architecture)
    return build_model(
        spec,
        num_outputs=2,
        in_channels=1,
        input_scale=1 / 255,
        dropout=dropout,
        seed=0,
        image_size=image_size,
    )


def pixels(num_images=5, image_size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(
        0, 256, (num_images, 1, image_size, image_size), generator=generator, dtype=torch.uint8
    )


def settle(model, images):
    """Let batch norm see the images once, so that its statistics are not the initial ones."""
    model.train()
    with torch.no_grad():
        model(images.float())
    return model


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnets_give_layer4_before_pooling_flattened(library):
    images = pixels()
    model = settle(build("resnet18", library), images)
    features = extract_features(model, images, batch_size=2)
    assert (features.dtype, features.shape) == (np.float32, (5, 512 * 1 * 1))
    assert features.min() >= 0  # after its last ReLU
    net = model.network.eval()
    with torch.no_grad():
        x = images.float() / 255
        x = net.maxpool(getattr(net, "relu", getattr(net, "act1", None))(net.bn1(net.conv1(x))))
        x = net.layer4(net.layer3(net.layer2(net.layer1(x)))).flatten(1)
    np.testing.assert_allclose(features, x.numpy(), rtol=1e-4, atol=1e-5)


def test_resnet18_has_25088_features_at_224_pixels():
    assert extract_features(build("resnet18"), pixels(1, 224)).shape == (1, 512 * 7 * 7)


@pytest.fixture(scope="module")
def vgg():
    return build("vgg11")


def test_vggs_give_the_second_fully_connected_layer_before_its_relu(vgg):
    images = pixels(3)
    vgg.train()
    features = extract_features(vgg, images)
    assert vgg.training
    assert features.shape == (3, 4096)
    net = vgg.network.eval()
    with torch.no_grad():
        x = net.avgpool(net.features(images.float() * (1 / 255))).flatten(1)
        hidden = torch.relu(net.classifier[0](x))
        expected = hidden @ net.classifier[3].weight.T + net.classifier[3].bias
    np.testing.assert_allclose(features, expected.numpy(), rtol=1e-3, atol=1e-6)


def test_the_relu_that_works_in_place_does_not_alter_vgg_features(vgg):
    assert vgg.network.classifier[4].inplace
    features = extract_features(vgg, pixels(3))
    assert 0.1 < (features < 0).mean() < 0.9


def test_timm_vggs_are_read_at_the_same_place():
    assert extract_features(build("vgg11", "timm"), pixels(2)).shape == (2, 4096)


@pytest.mark.parametrize(
    ("library", "architecture", "num_features"),
    [("isweep", "small_cnn", 512), ("isweep", "small_mlp", 64), ("torchvision", "densenet121", 1024)],
)
def test_other_networks_give_the_input_of_their_classifier(library, architecture, num_features):
    images = pixels()
    model = build(architecture, library)
    features = extract_features(model, images)
    assert features.shape == (5, num_features)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        torch.testing.assert_close(last(torch.from_numpy(features)), model.eval()(images.float()))


def test_features_are_read_in_evaluation_mode_and_change_nothing():
    images = pixels(8)
    model = settle(build("small_cnn", "isweep", dropout=0.5), images)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, again = extract_features(model, images), extract_features(model, images, batch_size=3)
    np.testing.assert_allclose(first, again, rtol=1e-5, atol=1e-6)
    assert np.array_equal(first, extract_features(model, images))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.network[-1]._forward_pre_hooks


def test_the_layer_is_named_by_class():
    assert feature_layer(build("resnet18").network).module == "layer4"
    assert feature_layer(build("small_cnn", "isweep").network).side == "input"
