"""Conditions that blend images after the split: test sets stay, and training sets are nested."""

import numpy as np
import pytest

from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.preparation import load_arrays
from search_spaces.errors import ConfigError, DataError
from search_spaces.tuning import ValidationSpec
from tasks.prepared.blending import (
    DISTANCE_BLOCK_ROWS,
    LabeledImages,
    blend_images,
    find_nearest_of_other_class,
)
from tasks.prepared.prepare import prepare_dataset
from tasks.prepared.subsets import load_validation, make_subset
from tasks.remote import InlineExecutor
from tasks.trials.trial import run_trial

SWEEP = {
    "name": "moved",
    "models": ["small_mlp"],
    "worlds": [
        {"name": "digits", "from": "pictures", "dials": {"set": 0, "first": 3, "second": 9}},
        {
            "name": "made",
            "from": "generated",
            "dials": {"num_images": 300, "dimension": 2, "bits": 1, "gap": 50, "fine_gap": 11},
        },
    ],
    "arms": [
        {"name": "near", "moves": "sharpness", "dials": {"blend": 0.4, "reach": 0.05}},
        {"name": "nearer", "moves": "sharpness", "dials": {"blend": 0.45, "reach": 0.2}},
        {"name": "null", "moves": "nothing", "dials": {"blend": 0.0, "reach": 0.05}},
        {"name": "none", "moves": "nothing", "dials": {"blend": 0.4, "reach": 0.0}},
    ],
    "intervene_on": "training",
    "further_test_sets": True,
    "train_sizes": [20, 60, 120],
    "test_size": 60,
    "image_size": 16,
    "recipe": "smoke",
}
SIZES = (20, 60, 120)
MOVED = ("near", "nearer")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    opened = Workspace.open(SWEEP, str(tmp_path_factory.mktemp("root")))
    for spec in opened.plan.prepared:
        prepare_dataset(
            spec,
            opened.plan.datasets[spec.dataset],
            raw=None,
            destination=opened.paths.prepared(spec),
            executor=InlineExecutor(),
        )
    opened.forget_prepared()
    return opened


@pytest.fixture(scope="module")
def subsets(workspace):
    return {measure.subset.dataset: measure.subset for measure in workspace.plan.measures}


def load(workspace, subset, size=120):
    return load_arrays(workspace, subset, size)


def test_only_base_datasets_are_prepared(workspace, subsets):
    assert {spec.dataset for spec in workspace.plan.prepared} == {"digits_base", "made_base"}
    assert len(subsets) == 10


@pytest.mark.parametrize("base_name", ["digits", "made"])
@pytest.mark.parametrize("condition", ["near", "nearer", "null", "none"])
def test_no_test_image_of_a_base_differs_in_any_condition(workspace, subsets, base_name, condition):
    base = load(workspace, subsets[f"{base_name}_base"])
    for size in SIZES:
        data = load(workspace, subsets[f"{base_name}_{condition}"], size)
        assert data.test_images.dtype == base.test_images.dtype
        assert data.test_images.tobytes() == base.test_images.tobytes()
        assert data.test_labels.tobytes() == base.test_labels.tobytes()
        np.testing.assert_array_equal(data.test_rows, base.test_rows)
        assert data.data_fingerprint == base.data_fingerprint


@pytest.mark.parametrize("base_name", ["digits", "made"])
def test_training_sets_of_all_sizes_and_conditions_hold_the_same_images(
    workspace, subsets, base_name
):
    prepared = workspace.prepared[subsets[f"{base_name}_base"].prepared.prepared_id]

    def rows(name, size):
        arguments = (
            prepared.classes,
            prepared.groups,
            subsets[f"{base_name}_{name}"],
            prepared.splits,
        )
        return make_subset(*arguments, max_train_size=size).train_rows[:size]

    for name in ("base", "near", "nearer", "null"):
        for size in SIZES:
            np.testing.assert_array_equal(rows(name, size), rows("base", 120)[:size])
            smaller = load(workspace, subsets[f"{base_name}_{name}"], size)
            larger = load(workspace, subsets[f"{base_name}_{name}"], 120)
            np.testing.assert_array_equal(smaller.train_images, larger.train_images[:size])
            np.testing.assert_array_equal(smaller.train_labels, larger.train_labels[:size])


@pytest.mark.parametrize("base_name", ["digits", "made"])
def test_a_moved_training_image_is_a_blend_of_two_training_images(workspace, subsets, base_name):
    """The expected images come from a slow search over all pairs of training images."""
    subset = subsets[f"{base_name}_near"]
    prepared = workspace.prepared[subset.prepared.prepared_id]
    chosen = make_subset(prepared.classes, prepared.groups, subset, prepared.splits)
    pool = prepared.read_rows(chosen.train_rows).astype(np.float64)
    distances, partners = [], []
    for image, label in zip(pool, chosen.train_labels, strict=True):
        squared_distances = [float(np.square(image - pool_image).sum()) for pool_image in pool]
        distances_to_other_labels = [
            np.inf if pool_label == label else distance
            for distance, pool_label in zip(squared_distances, chosen.train_labels, strict=True)
        ]
        partners.append(int(np.argmin(distances_to_other_labels)))
        distances.append(min(distances_to_other_labels))
    expected = pool.copy()
    for place in np.argsort(distances, kind="stable")[: round(0.05 * len(pool))]:
        expected[place] = pool[place] + 0.4 * (pool[partners[place]] - pool[place])
    size = chosen.max_train_size
    data = load(workspace, subset, size)
    if data.train_images.dtype == np.uint8:
        expected = np.rint(expected)
    np.testing.assert_allclose(data.train_images[:size], expected, atol=1e-4)


@pytest.mark.parametrize("base_name", ["digits", "made"])
def test_a_further_test_set_moves_the_test_images_nearest_to_the_other_class(
    workspace, subsets, base_name
):
    base = load(workspace, subsets[f"{base_name}_base"])
    tests = {test.name: test for test in base.further_tests}
    assert [*tests] == ["near", "nearer", "null", "none"]
    for name, share in (("near", 0.05), ("nearer", 0.2)):
        test = tests[name]
        differs = (test.images != base.test_images).reshape(len(test.images), -1).any(axis=1)
        assert test.is_blended.sum() == round(share * 60)
        np.testing.assert_array_equal(differs, test.is_blended)
        (condition_test,) = load(workspace, subsets[f"{base_name}_{name}"]).further_tests
        assert condition_test.images.tobytes() == test.images.tobytes()
    for name in ("null", "none"):
        assert tests[name].images.tobytes() == base.test_images.tobytes()
        assert not tests[name].is_blended.any()


def test_no_test_image_enters_training(workspace, subsets):
    """The training images of a condition can be computed from training images and labels alone."""
    subset = subsets["digits_near"]
    prepared = workspace.prepared[subset.prepared.prepared_id]
    chosen = make_subset(prepared.classes, prepared.groups, subset, prepared.splits)
    training = LabeledImages(prepared.read_rows(chosen.train_rows), chosen.train_labels)
    blended, _ = blend_images(training, training, subset.condition.parameters)
    data = load(workspace, subset)
    assert blended[:120].tobytes() == data.train_images.tobytes()


def test_nearest_images_of_another_class_equal_those_of_a_slow_search_in_several_blocks():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (DISTANCE_BLOCK_ROWS + 50, 1, 3, 3), dtype=np.uint8)
    pool = rng.integers(0, 256, (40, 1, 3, 3), dtype=np.uint8)
    labels, pool_labels = rng.integers(0, 3, len(images)), rng.integers(0, 3, len(pool))
    partners, squares = find_nearest_of_other_class(
        LabeledImages(images, labels), LabeledImages(pool, pool_labels)
    )
    for place in range(0, len(images), 97):
        distances = (
            np.square(images[place].astype(int) - pool.astype(int)).sum((1, 2, 3)).astype(float)
        )
        distances[pool_labels == labels[place]] = np.inf
        assert (partners[place], squares[place]) == (distances.argmin(), distances.min())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arms": [{"name": "faint", "moves": "sharpness", "dials": {"contrast": 0.5}}]},
            "arm faint in world digits: `dials` contains 'contrast', which applies to the whole dataset and cannot "
            "change training images only. With `intervene_on: training`, `dials` can contain only `blend` and `reach`",
        ),
        (
            {"arms": [{"name": "near", "moves": "sharpness", "dials": {"blnd": 0.2}}]},
            "arm near in world digits: `dials` has no parameter 'blnd'. With `intervene_on: training`, `dials` can contain only",
        ),
        (
            {"arms": [{"name": "far", "moves": "sharpness", "dials": {"blend": 0.7}}]},
            "`dials.blend` is 0.7, but must be a number from 0 to 0.49",
        ),
        (
            {"intervene_on": "all", "arms": []},
            "`further_test_sets` is on, but `intervene_on` is not `training`",
        ),
        (
            {"data_mode": "as_released"},
            "faults of the released code, which cannot be combined",
        ),
    ],
)
def test_conditions_that_cannot_change_training_images_alone_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        load_sweep({**SWEEP, **changes})


def test_a_search_does_not_tune_on_a_condition(workspace, subsets):
    prepared = workspace.prepared[subsets["digits_near"].prepared.prepared_id]
    with pytest.raises(DataError, match="condition of digits_near changes training images"):
        load_validation(prepared, subsets["digits_near"], 60, ValidationSpec(share=0.25))


def test_all_networks_of_a_world_are_tested_on_every_condition_of_it(workspace):
    plan = plan_sweep(workspace.plan.sweep)
    tests = {
        trial.network.subset.dataset: [test.name for test in trial.further_tests]
        for trial in plan.trials
    }
    assert tests["digits_base"] == tests["made_base"] == ["near", "nearer", "null", "none"]
    assert tests["digits_near"] == ["near"]
    plan_without_tests = plan_sweep(load_sweep({**SWEEP, "further_test_sets": False}))
    assert not any(trial.further_tests for trial in plan_without_tests.trials)
    assert [trial.trial_id for trial in plan_without_tests.trials] == [
        t.trial_id for t in plan.trials
    ]


def test_the_loss_of_a_network_concentrates_on_test_images_that_were_moved_on_purpose(
    workspace, subsets
):
    """Positive control: the network never saw a moved image. The null condition has no effect."""
    sweep = load_sweep({**SWEEP, "recipe": {"from": "demo", "batch_size": 16}})
    (trial,) = (
        planned_trial
        for planned_trial in plan_sweep(sweep).trials
        if planned_trial.network.subset.dataset == "digits_base"
        and planned_trial.network.train_size == 120
    )
    result = run_trial(trial, load(workspace, subsets["digits_base"]))
    tests = {test.name: test for test in result.further_tests}

    def share_on_moved(test):
        return test.num_moved * test.moved_loss / (60 * test.loss)

    near_test = tests["near"]
    assert near_test.num_moved == 3  # of 60
    unmoved_in_base = 57 * near_test.unmoved_loss / (60 * result.scores.test_loss)
    assert share_on_moved(near_test) > 0.5
    assert share_on_moved(near_test) > 1 - unmoved_in_base
    assert near_test.loss > 1.5 * result.scores.test_loss
    for null in (tests["null"], tests["none"]):
        assert null.loss == pytest.approx(result.scores.test_loss, rel=1e-6)
        assert null.num_moved == 0
