import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError
from tasks.trials import networks
from tasks.trials.isolation import deterministic
from tasks.trials.models import num_parameters
from tasks.trials.networks import PoolsFirst
from tasks.trials.steps import autocast
from tests.unit.tasks.trials.conftest import built, equal


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_one_channel_and_two_outputs_change_only_the_first_and_the_last_layer(library):
    """The published number is for three channels and 1,000 outputs. test_costs checks all networks."""
    assert num_parameters(built("resnet18", library)) == 11_689_512 - 2 * 64 * 7 * 7 - 998 * (
        512 + 1
    )


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    ("library", "architecture", "image_size"),
    [
        ("torchvision", "densenet121", 32),
        ("torchvision", "mobilenet_v3_small", 32),
        ("torchvision", "squeezenet1_1", 32),
        ("torchvision", "vit_b_32", 32),
        ("torchvision", "googlenet", 32),
        ("timm", "test_vit", 32),
    ],
)
def test_any_classification_architecture_gives_one_row_of_logits_per_image(
    library, architecture, image_size, channels
):
    model = built(architecture, library, in_channels=channels, image_size=image_size, num_outputs=5)
    assert model.training
    assert model(torch.full((2, channels, image_size, image_size), 255.0)).shape == (2, 5)


def test_scaling_is_part_of_the_model():
    scaled, raw = built("small_cnn", "isweep", input_scale=1 / 255), built("small_cnn", "isweep")
    pixels = torch.randint(0, 256, (4, 1, 32, 32)).float()
    assert torch.equal(scaled.eval()(pixels), raw.eval()(pixels * (1 / 255)))


def dropouts(model):
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


def test_dropout_is_the_library_default_unless_the_recipe_names_one():
    assert dropouts(built("alexnet", image_size=64)) == {0.5}
    assert dropouts(built("alexnet", image_size=64, dropout=0.1)) == {0.1}
    assert dropouts(built("small_mlp", "isweep", dropout=0.3)) == {0.3}
    assert dropouts(built("resnet18", dropout=0.0)) == set()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "torchvision resnet18",
            {"dropout": 0.5},
            (r"The recipe has dropout 0\.5, but any has no dropout layers"),
        ),
        (
            "torchvision vgg11",
            {"image_size": 16},
            (
                r"torchvision vgg11 cannot be used with images of 1x16x16 \(Given input size: \(512x1x1\)"
            ),
        ),
        # patches of 32
        (
            "torchvision vit_b_32",
            {"image_size": 30},
            r"torchvision vit_b_32 cannot be used with images of 1x30x30 \(Input shape indivisible by patch",
        ),
        (
            "torchvision resnet81",
            {},
            ("Unknown torchvision architecture 'resnet81'"),
        ),
        ("torchvision fcn_resnet50", {}, "Unknown torchvision architecture"),
        (
            "timm resnet10x",
            {},
            ("timm has no architecture 'resnet10x'"),
        ),
        ("isweep small_cn", {}, "Did you mean 'small_cnn'"),
    ],
)
def test_a_network_that_cannot_be_built_is_refused(name, changes, message):
    library, architecture = name.split()
    with pytest.raises(ConfigError, match=message):
        built(architecture, library, **changes)


def misspelt(*, num_output, in_channels, image_size):
    raise AssertionError("not called")


def no_network(*, num_outputs, in_channels, image_size):
    return [num_outputs]


def wrong_shape(*, num_outputs, in_channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_size**2, num_outputs + 1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            misspelt,
            "has the arguments num_output, in_channels, image_size.* Give the function .* num_outputs,",
        ),
        (
            no_network,
            r"returned an object of type list, which is not a network\. Return a torch\.nn\.Module",
        ),
        (wrong_shape, r"returned \(1, 3\) .*Correct the function new in tasks/trials/networks\.py"),
    ],
)
def test_a_wrong_function_of_isweeps_networks_is_named(monkeypatch, function, message):
    monkeypatch.setattr(networks, "new", function, raising=False)
    with pytest.raises(ConfigError, match=message):
        built("new", "isweep")


def test_the_small_network_trains_like_its_plain_layers_bit_by_bit():
    """Pools come before ReLUs, and all numbers are equal bit by bit."""
    pools_first, plain = (built("small_cnn", "isweep").network.train() for _ in range(2))
    images = torch.randn(6, 1, 32, 32)
    images[0] = 0  # ties, and nothing above zero
    for network, logits in (
        (pools_first, pools_first(images)),
        (plain, nn.Sequential.forward(plain, images)),
    ):
        logits.square().sum().backward()
        network.logits = logits
    assert torch.equal(pools_first.logits, plain.logits)
    for (name, ours), theirs in zip(
        pools_first.named_parameters(), plain.parameters(), strict=True
    ):
        assert torch.equal(ours.grad, theirs.grad), name
    assert equal(pools_first.state_dict(), plain.state_dict())
    assert torch.equal(pools_first.eval()(images), nn.Sequential.forward(plain.eval(), images))


@pytest.mark.parametrize(
    ("library", "name", "precision"),
    [
        pytest.param("torchvision", "vgg11_bn", "float32", marks=pytest.mark.long),
        pytest.param("timm", "vgg11", "bfloat16", marks=pytest.mark.long),
    ],
)
def test_a_vgg_trains_like_its_librarys_bit_by_bit(library, name, precision):
    """Only the convolutional part is compared. It pools a quarter of the values before each ReLU."""
    pools_first, library_features = (
        built(name, library).network.features.train() for _ in range(2)
    )
    library_features.__class__ = nn.Sequential
    assert type(pools_first) is PoolsFirst
    images = torch.randint(0, 3, (2, 1, 32, 32)).float().to(memory_format=torch.channels_last)
    images[0] = 0  # ties, and nothing above zero
    gradients = []
    for features in (pools_first, library_features):
        pixels = images.clone().requires_grad_()
        with deterministic(), autocast(precision, torch.device("cpu")):
            output = features(pixels)
            output.float().square().sum().backward()
        gradients.append(
            [output, pixels.grad, *(parameter.grad for parameter in features.parameters())]
        )
    assert all(map(torch.equal, *gradients))
    assert torch.equal(pools_first.eval()(images), library_features.eval()(images))
    assert list(pools_first.state_dict()) == list(library_features.state_dict())
