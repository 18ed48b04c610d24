"""d_repr after every stage: the stages, their activations and their dimension."""

import numpy as np
import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from search_spaces.models import model_spec
from tasks.measures.measure import intrinsic_dimension
from tasks.trials.models import build_model
from tasks.trials.stages import StageRows, list_stages
from tasks.trials.trial import measure_trial, run_trial
from tests.unit.tasks.trials.conftest import pixels_of, trial_spec


def model_of(name, size=32):
    usual = {"num_outputs": 2, "in_channels": 1, "input_scale": 1 / 255, "dropout": None, "seed": 0}
    return build_model(model_spec(name), image_size=size, **usual)


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("resnet18", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("resnet_tiny", 64, ["act1", "layer1", "layer2", "layer3", "layer4"]),
        pytest.param(
            "vgg13",  # 129 million weights
            224,
            ["features.3", "features.8", "features.13", "features.18", "features.23", "avgpool"],
            marks=pytest.mark.long,
        ),
        ("small_cnn", 32, ["2", "6", "10", "11"]),
        ("small_mlp", 32, []),
        # Channels last.
        ("torchvision:swin_t", 64, ["features.1", "features.3", "features.5", "permute"]),
        pytest.param(
            "torchvision:convnext_tiny",
            64,
            ["features.1", "features.3", "features.5", "features"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_a_stage_ends_where_the_spatial_size_changes(name, size, expected):
    images = torch.zeros(1, 1, size, size, dtype=torch.uint8)
    assert list(list_stages(model_of(name, size), images)) == expected


@pytest.mark.long
def test_activations_equal_torchvisions_extractor_in_blocks_of_any_size():
    model = model_of("resnet18", 64)
    images = pixels_of(40, side=64)
    extractor = create_feature_extractor(model.network.eval(), ["layer1", "relu"])
    with torch.no_grad():
        parts = [extractor(batch.float() / 255) for batch in images.split(32)]
    for name in ("relu", "layer1"):
        rows = StageRows(model, name, images)
        activations = rows.read(0, 40)
        np.testing.assert_allclose(
            activations, torch.cat([part[name] for part in parts]), rtol=1e-5, atol=1e-5
        )
        assert np.array_equal(
            np.concatenate([rows.read(0, 7), rows.read(7, 35), rows.read(35, 40)]), activations
        )


def test_every_stage_is_measured_at_once_and_later_alike(data):
    spec = trial_spec(epochs=2)
    extended_spec = spec.model_copy(
        update={"representation": spec.representation.model_copy(update={"stages": True})}
    )
    assert spec.trial_id == extended_spec.trial_id
    stored_weights = []
    first = run_trial(
        spec, data, store_weights=lambda content: stored_weights.append(content) or "here"
    )
    at_once = run_trial(extended_spec, data)
    later = measure_trial(
        extended_spec, data, stored_weights[0], first, spec.missing_for(extended_spec)
    )
    assert [stage.module for stage in later.d_repr_stages] == ["2", "6", "10", "11"]
    assert [stage.num_features for stage in later.d_repr_stages] == [
        8 * 144,
        16 * 36,
        32 * 9,
        32 * 16,
    ]
    assert (first.d_repr_stages, later.d_repr) == ((), first.d_repr)
    for stage_at_once, stage_later in zip(at_once.d_repr_stages, later.d_repr_stages, strict=True):
        for name in ("mle", "twonn"):
            assert stage_at_once.d_repr[name].value == pytest.approx(
                stage_later.d_repr[name].value, rel=1e-4
            )


def test_the_stages_keep_the_estimates_of_an_earlier_measurement(data):
    spec = trial_spec(epochs=1)
    extended_spec = spec.model_copy(
        update={"representation": spec.representation.model_copy(update={"stages": True})}
    )
    stored_weights = []
    result = run_trial(
        spec, data, store_weights=lambda content: stored_weights.append(content) or "here"
    )
    requested = spec.missing_for(extended_spec)
    at_once = measure_trial(extended_spec, data, stored_weights[0], result, requested)
    for measurement in requested:  # one estimator after the other
        result = measure_trial(extended_spec, data, stored_weights[0], result, [measurement])
    assert len(requested) > 1
    assert result.d_repr_stages == at_once.d_repr_stages


def test_blocks_change_no_dimension(monkeypatch):
    model, size = model_of("small_cnn"), 32
    images = pixels_of(120, side=size)
    rows = StageRows(model, "2", images)
    in_one_block = intrinsic_dimension(rows.read(0, 120), num_neighbors=10)
    monkeypatch.setattr("tasks.trials.stages.STAGE_BLOCK_BYTES", 4 * 8 * size * size * 50)
    assert rows.block_rows == 50
    in_blocks = intrinsic_dimension(rows, num_neighbors=10, block_rows=rows.block_rows)
    for name in in_one_block:
        assert in_blocks[name].value == pytest.approx(in_one_block[name].value, rel=1e-5)
