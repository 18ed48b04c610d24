import pytest
import torch
from torch import nn

from search_spaces.errors import ConfigError
from search_spaces.specs import ModelSpec
from tasks.trials.models import build_model, num_parameters

DEFAULTS = {
    "num_outputs": 2,
    "in_channels": 1,
    "input_scale": 1.0,
    "dropout": None,
    "seed": 0,
    "image_size": 32,
}


def build(architecture, library="torchvision", **changes):
    spec = ModelSpec(name="any", library=library, architecture=architecture)
    return build_model(spec, **DEFAULTS | changes)


# Trainable parameters as torchvision's own documentation lists them for 3 channels and 1,000 outputs.
@pytest.mark.parametrize(
    ("architecture", "count"),
    [("resnet18", 11_689_512), ("resnet34", 21_797_672), ("resnet50", 25_557_032)],
)
def test_resnets_have_the_published_parameter_counts(architecture, count):
    assert num_parameters(build(architecture, num_outputs=1000, in_channels=3)) == count


def test_vgg13_has_the_published_parameter_count():
    assert num_parameters(build("vgg13", num_outputs=1000, in_channels=3)) == 133_047_848


def test_one_channel_and_two_outputs_change_only_the_first_and_the_last_layer():
    expected = 11_689_512 - 2 * 64 * 7 * 7 - 998 * (512 + 1)
    assert num_parameters(build("resnet18")) == expected


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_both_libraries_build_the_same_resnet18(library):
    assert num_parameters(build("resnet18", library)) == 11_171_266


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("library", "architecture", "image_size"),
    [
        ("torchvision", "densenet121", 32),
        ("torchvision", "mobilenet_v3_small", 32),
        ("torchvision", "squeezenet1_1", 32),
        ("torchvision", "vit_b_32", 32),
        ("torchvision", "googlenet", 32),
        ("timm", "resnet10t", 28),
        ("timm", "test_vit", 32),
        ("isweep", "small_cnn", 28),
        ("isweep", "small_mlp", 8),
    ],
)
def test_any_classification_architecture_gives_one_row_of_logits_per_image(
    library, architecture, image_size, channels
):
    model = build(architecture, library, in_channels=channels, image_size=image_size, num_outputs=5)
    assert model.training
    assert model(torch.full((2, channels, image_size, image_size), 255.0)).shape == (2, 5)


def test_scaling_is_part_of_the_model():
    scaled, raw = build("small_cnn", "isweep", input_scale=1 / 255), build("small_cnn", "isweep")
    pixels = torch.randint(0, 256, (4, 1, 32, 32)).float()
    assert torch.equal(scaled.eval()(pixels), raw.eval()(pixels * (1 / 255)))


def test_weights_depend_on_the_seed_alone():
    first = build("small_cnn", "isweep", seed=3)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again, other = build("small_cnn", "isweep", seed=3), build("small_cnn", "isweep", seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.network[-1].weight, other.network[-1].weight)


def dropouts(model):
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


def test_dropout_is_the_library_default_unless_the_recipe_names_one():
    assert dropouts(build("alexnet", image_size=64)) == {0.5}
    assert dropouts(build("alexnet", image_size=64, dropout=0.1)) == {0.1}
    assert dropouts(build("small_mlp", "isweep", dropout=0.3)) == {0.3}


def test_no_dropout_suits_a_network_without_dropout_layers():
    assert dropouts(build("resnet18", dropout=0.0)) == set()
    with pytest.raises(ConfigError, match=r"needs a network that has dropout layers; found: dropout 0.5"):
        build("resnet18", dropout=0.5)


def test_an_image_too_small_for_the_architecture_is_refused():
    with pytest.raises(ConfigError, match=r"1x16x16 for torchvision vgg11 .*choose a larger image_size"):
        build("vgg11", image_size=16)


def test_an_image_size_a_transformer_cannot_cut_into_patches_is_refused():
    with pytest.raises(ConfigError, match="1x30x30 for torchvision vit_b_32"):
        build("vit_b_32", image_size=30)


@pytest.mark.parametrize(
    ("library", "name", "message"),
    [
        ("torchvision", "resnet81", "Unknown torchvision architecture; found: 'resnet81'; did you mean"),
        ("torchvision", "fcn_resnet50", "Unknown torchvision architecture"),
        ("timm", "resnet10x", "Unknown timm architecture; found: 'resnet10x'; nearest names: .*resnet10t"),
        ("isweep", "small_cn", "did you mean 'small_cnn'"),
    ],
)
def test_an_unknown_architecture_is_refused_with_near_names(library, name, message):
    with pytest.raises(ConfigError, match=message):
        build(name, library)
