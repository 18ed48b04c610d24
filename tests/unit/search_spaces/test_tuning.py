"""Search spaces: ranges by family, limits of a sweep, and the ids of a search's trials."""

import pytest
from pydantic import ValidationError

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from search_spaces.errors import ConfigError
from search_spaces.models import MODELS
from search_spaces.tuning import SearchTrialSpec, TuneSpec, ValidationSpec, space_of


def test_released_rates_lie_in_the_range_of_their_family():
    """The released code's hand-set rates: 1e-3, VGGs 1e-4, on SVHN 1e-6."""
    for name, rates in {"resnet18": (1e-3,), "vgg13": (1e-4, 1e-6), "timm_vgg16": (1e-4,)}.items():
        low, high = space_of(MODELS[name], "adam", TuneSpec(), 1000).learning_rate
        assert all(low <= rate <= high for rate in rates), name


def test_the_optimiser_decides_before_the_family_and_a_sweep_over_both():
    assert space_of(MODELS["vgg13"], "sgd", TuneSpec(), 1000).learning_rate == (1e-4, 1e-1)
    tune = TuneSpec(learning_rate=(1e-4, 1.0), batch_size=(4, 100))
    space = space_of(MODELS["resnet18"], "adam", tune, 100)
    assert (space.learning_rate, space.batch_size, space.weight_decay) == (
        (1e-4, 1.0),
        (4, 100),
        (1e-6, 1e-2),
    )
    # Batches of a family that do not fit are left out.
    assert space_of(MODELS["resnet18"], "adam", TuneSpec(), 40).batch_size == (8, 16, 32)


@pytest.mark.parametrize(
    ("batch_sizes", "num_train", "message_part"),
    [
        ((8, 64), 45, "`tune.batch_size` contains 64, but a trial of the search has only 45"),
        (None, 3, "smallest batch size of the search is 8, but a trial of the search has only 3"),
    ],
)
def test_a_batch_larger_than_the_set_is_refused(batch_sizes, num_train, message_part):
    with pytest.raises(ConfigError, match=f"{message_part} training images"):
        space_of(MODELS["resnet18"], "adam", TuneSpec(batch_size=batch_sizes), num_train)


@pytest.mark.parametrize(
    ("tune_block", "message"),
    [
        (
            {"learning_rate": [1e-3, 1e-5]},
            r"`tune\.learning_rate` is \[.*must be two different numbers",
        ),
        (
            {"learning_rate": [1e-3, 1e-3]},
            r"`tune\.learning_rate` is \[.*must be two different numbers",
        ),
        (
            {"learning_rate": [0, 1e-3]},
            r"value 1 of `tune\.learning_rate` is 0, but must be above 0",
        ),
        ({"learning_rate": [1e-3]}, r"`tune\.learning_rate` is \[.*must be two different numbers"),
        ({"weight_decay": []}, r"`tune\.weight_decay` is \[\], but must be two different numbers"),
        ({"weight_decay": 1e-3}, r"`tune\.weight_decay` is 0\.001, but should be a list"),
        (
            {"weight_decay": [1e-3, "a"]},
            r"value 2 of `tune\.weight_decay` is 'a', but must be a number",
        ),
        ({"batch_size": []}, r"tune\.batch_size"),
        ({"batch_size": [8, 8]}, r"`tune\.batch_size` is .* lists 8 more than once"),
        (
            {"budget": 0.03},
            r"`tune\.budget` is 0\.03, but must be at least 0\.04",
        ),
        ({"budget": -1}, r"`tune\.budget` is -1, but must be at least 0\.04"),
        (
            {"validation_share": 0.9},
            r"`tune\.validation_share` is 0\.9, but must be at most 0\.5",
        ),
        ({"sampler": "tbe"}, r"`tune\.sampler` is 'tbe', but should be 'tpe', 'gp' or 'random'"),
        ({"seed": -1}, r"`tune\.seed` is -1, but must be at least 0"),
        ({"bugdet": 0.2}, r"`tune\.bugdet` is not a known key\. Did you mean 'budget'\?"),
    ],
)
def test_a_wrong_tune_key_is_refused_with_its_name(tune_block, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep("smoke", {"tune": tune_block})


def test_the_tune_block_is_no_part_of_any_trial_id():
    untuned_sweep, tuned_sweep = (
        load_sweep("smoke"),
        load_sweep("smoke", {"tune": {"budget": 0.4, "sampler": "gp", "seed": 3}}),
    )
    assert set(plan_sweep(untuned_sweep).trials_by_id) == set(plan_sweep(tuned_sweep).trials_by_id)


def test_a_search_trial_is_another_trial_than_the_sweeps_and_depends_on_the_split():
    trial = plan_sweep(load_sweep("smoke")).trials[0]
    searched = [
        SearchTrialSpec(network=trial.network, validation=ValidationSpec(share=share))
        for share in (0.2, 0.25)
    ]
    assert len({trial.trial_id, *(spec.trial_id for spec in searched)}) == 3
    assert not searched[0].attacks.methods
    with pytest.raises(ValidationError, match="less than 1"):
        ValidationSpec(share=1.0)
