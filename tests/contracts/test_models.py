"""Promises of every network in ``MODELS``.

Tests that need no numbers build networks on torch's meta device, whose tensors have only shapes."""

from __future__ import annotations

import inspect

import pytest
import torch

from orchestrator.planning.costs.networks import network_cost
from search_spaces.errors import ConfigError
from search_spaces.models import _ROWS, ABOUT, MODELS, _row, model_spec
from search_spaces.specs import RecipeSpec
from tasks.trials import networks
from tasks.trials.models import build_model, num_parameters
from tasks.trials.representations import extract_features, feature_layer

SMALL = sorted(
    ["resnet10t", "resnet_tiny", *(name for name, row in MODELS.items() if row.library == "isweep")]
)
"""The networks that tests build with numbers on a CPU."""


def build(name: str, *, num_outputs=1000, in_channels=3, image_size=224, seed=0, device="meta"):
    with torch.device(device):
        return build_model(
            MODELS[name],
            num_outputs=num_outputs,
            in_channels=in_channels,
            input_scale=1 / 255,
            dropout=None,
            seed=seed,
            image_size=image_size,
        )


@pytest.mark.parametrize("name", sorted(MODELS))
class TestModel:
    @pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.long)])
    def test_one_row_of_logits_per_image(self, name, channels):
        model = build(name, num_outputs=2, in_channels=channels, image_size=64)
        with torch.device("meta"):
            logits = model.eval()(torch.zeros(5, channels, 64, 64))
        assert logits.shape == (5, 2)

    def test_its_costs_are_counted_from_the_network(self, name):
        recipe = RecipeSpec(name="contract", batch_size=2)
        cost = network_cost(MODELS[name], recipe, channels=3, image_size=224, num_outputs=1000)
        assert cost.num_parameters == num_parameters(build(name))
        assert cost.forward_flops > 2 * cost.num_parameters / 10
        assert cost.step.peak_bytes > 0
        assert not cost.uncounted
        # A training step is a forward pass and a backward pass of twice its operations, less the
        # gradient by the pixels. Another ratio means that a pass was not counted.
        num_passes = cost.step.flops / recipe.batch_size / cost.forward_flops
        assert 2 < num_passes < 3.1, (
            f"a training step of {name} is counted as {num_passes:.1f} forward passes instead of 2 to "
            "3.1, so its cost in `isweep plan` is wrong: see orchestrator/planning/costs"
        )

    def test_it_has_one_row_and_a_description(self, name):
        num_rows = [row.spec.name for row in _ROWS].count(name)
        assert num_rows == 1, (
            f"search_spaces/models.py, _ROWS: {num_rows} rows have the name {name!r}. Rename one"
        )
        assert len(ABOUT[name]) > 10
        assert model_spec(name) == MODELS[name]

    def test_its_feature_layer_exists(self, name):
        network = build(name).network
        network.get_submodule(feature_layer(network).module)


def test_every_network_of_isweep_has_a_row():
    functions = {
        name
        for name, function in inspect.getmembers(networks, inspect.isfunction)
        if function.__module__ == networks.__name__ and not name.startswith("_")
    }
    rows = {spec.architecture for spec in MODELS.values() if spec.library == "isweep"}
    without_row = sorted(functions - rows)
    assert not without_row, (
        f"tasks/trials/networks.py: no row of _ROWS in search_spaces/models.py has the architecture "
        f"{without_row}, so no test builds it. Add a row, or begin the function's name with _"
    )


@pytest.mark.parametrize(
    ("name", "library", "field"), [("Big Net", "isweep", "name"), ("new", "keras", "library")]
)
def test_a_message_names_the_row_and_field_of_a_wrong_model(name, library, field):
    place = f"^search_spaces/models.py, _ROWS, row '{name}': `{field}` is"
    with pytest.raises(ConfigError, match=place):
        _row(name, library, "small_cnn", "a row with a mistake")


@pytest.mark.parametrize("name", SMALL)
def test_weights_and_features_depend_on_the_seed_alone(name):
    images = torch.randint(0, 256, (3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    options = {"num_outputs": 2, "in_channels": 1, "image_size": 32, "device": "cpu"}
    first = extract_features(build(name, **options, seed=1), images)
    torch.rand(7)  # earlier random numbers must not matter
    same_seed = extract_features(build(name, **options, seed=1), images)
    other_seed = extract_features(build(name, **options, seed=2), images)
    assert (same_seed == first).all()
    assert (other_seed != first).any()
    assert first.shape[0] == 3
