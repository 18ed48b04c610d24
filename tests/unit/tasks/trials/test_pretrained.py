"""Networks that start from a library's weights. Downloads need a connection and are replaced."""

import hashlib

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load, save

from search_spaces.errors import ConfigError
from search_spaces.models import model_spec
from search_spaces.sweeps import ModelChoice
from tasks.trials.models import build_model
from tasks.trials.trial import run_trial
from tasks.trials.weights import download
from tests.unit.tasks.trials.conftest import trial_spec


def spec_of(name):
    return model_spec(ModelChoice.model_validate({"from": name, "pretrained": True}))


def built(spec, weights, **changes):
    settings = {"num_outputs": 2, "in_channels": 3, "input_scale": 0.5, "dropout": None, "seed": 0}
    return build_model(spec, pretrained=weights, **{"image_size": 64, **settings, **changes})


@pytest.fixture
def resnet18():
    torch.manual_seed(3)
    return torchvision.models.resnet18()


def test_features_of_a_pretrained_network_are_those_of_the_librarys(resnet18):
    model = built(spec_of("resnet18"), save(resnet18.state_dict()), num_outputs=1000).eval()
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (2, 3, 64, 64)).astype(np.float32)
    )
    normalized = torchvision.transforms.functional.normalize(
        pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.no_grad():
        expected = resnet18.eval()(normalized)
        torch.testing.assert_close(model(pixels), expected, rtol=1e-4, atol=1e-5)


def test_only_the_classifier_is_random_if_the_number_of_outputs_differs(resnet18):
    library_weights = resnet18.state_dict()
    loaded_weights = built(spec_of("resnet18"), save(library_weights)).network.state_dict()
    changed = {
        name
        for name, value in library_weights.items()
        if not torch.equal(loaded_weights[name], value)
    }
    assert changed == {"fc.weight", "fc.bias"}


def test_one_channel_takes_the_sum_of_the_colours_as_timm_does():
    library_network = timm.create_model("test_resnet", pretrained=False)
    network = built(
        spec_of("resnet_tiny"), save(library_network.state_dict()), in_channels=1
    ).network
    first = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    library_first = next(
        module for module in library_network.modules() if isinstance(module, torch.nn.Conv2d)
    )
    expected = timm.models._manipulate.adapt_input_conv(1, library_first.weight)
    assert torch.allclose(first.weight, expected)


@pytest.mark.long
def test_weights_that_do_not_fit_are_refused(resnet18):
    with pytest.raises(
        ConfigError,
        match=r"not fit timm test_resnet. For example, these tensors are missing or .*: bn1\.bias, ",
    ):
        built(spec_of("resnet_tiny"), save(resnet18.state_dict()))
    theirs = torchvision.models.vit_b_16(num_classes=2, image_size=64, weights=None)
    with pytest.raises(
        ConfigError, match=r"vit_b_16\. .*: encoder\.pos_embedding\. Use the `image_size"
    ):
        built(spec_of("torchvision:vit_b_16"), save(theirs.state_dict()), image_size=32)


@pytest.mark.parametrize("name", ["small_cnn", "tests.nets:build"])
def test_only_library_networks_have_pretrained_weights(name, monkeypatch):
    monkeypatch.setattr("search_spaces.models.code_hash", lambda reference: "h")
    with pytest.raises(
        ConfigError, match="but only networks of torchvision and timm have pretrained weights"
    ):
        spec_of(name)


def test_an_architecture_without_weights_is_refused():
    with pytest.raises(ConfigError, match="timm has no pretrained weights for test_vit9"):
        download(spec_of("timm:test_vit9"))


def test_a_trial_starts_from_pretrained_weights_and_records_their_checksum(data, monkeypatch):
    library_network = timm.create_model("test_resnet", pretrained=False)
    original_create = timm.create_model

    def create(*args, **options):
        return library_network if options.get("pretrained") else original_create(*args, **options)

    monkeypatch.setattr("timm.create_model", create)
    plain = trial_spec("test_resnet", "timm", epochs=0)
    model = plain.network.model.model_copy(update={"pretrained": True})
    spec = plain.model_copy(update={"network": plain.network.model_copy(update={"model": model})})
    assert spec.trial_id != plain.trial_id
    weights = download(model)
    stored_weights = []
    result = run_trial(
        spec,
        data,
        pretrained_weights=weights,
        store_weights=lambda content: stored_weights.append(content) or "here",
    )
    assert result.pretrained == hashlib.sha256(weights).hexdigest()
    name = "layer4.0.conv1.weight"
    assert torch.equal(
        load(stored_weights[0])[f"network.{name}"], library_network.state_dict()[name]
    )
    with pytest.raises(
        ConfigError,
        match="model test_resnet has `pretrained: true`, but the weights were not passed",
    ):
        run_trial(spec, data)
