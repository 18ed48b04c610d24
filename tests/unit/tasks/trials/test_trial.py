import json
import math
import pickle
import warnings

import numpy as np
import pytest
import torch

import tasks.trials.trial
from search_spaces.errors import ConfigError, DataError
from search_spaces.specs import (
    AttackSpec,
    ModelSpec,
    NetworkSpec,
    PreparedSpec,
    RecipeSpec,
    RepresentationSpec,
    RobustnessSpec,
    SubsetSpec,
    TrialSpec,
)
from tasks.prepared.subsets import TrialData
from tasks.trials.models import PixelModel, build_model
from tasks.trials.records import TrialResult
from tasks.trials.trial import run_trial

ATTACKS = ["fgsm_0.5", "fgsm_1", "fgsm_2", "fgsm_4", "fgsm_8"]


def trial_spec(architecture="small_cnn", library="isweep", train_size=48, num_neighbors=10, **changes):
    recipe = {
        "name": "test",
        "epochs": 10,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "input_scale": 1 / 255,
    } | changes
    prepared = PreparedSpec(dataset="made_up", image_size=12, channels=1)
    return TrialSpec(
        network=NetworkSpec(
            model=ModelSpec(name=architecture, library=library, architecture=architecture),
            subset=SubsetSpec(prepared=prepared, test_size=20),
            train_size=train_size,
            recipe=RecipeSpec(**recipe),
        ),
        attacks=AttackSpec(epsilons=(0.5, 1.0, 2.0, 4.0, 8.0)),
        representation=RepresentationSpec(num_neighbors=num_neighbors),
    )


@pytest.fixture(scope="module")
def data():
    """Bright squares on the left (0) or the right (1) over noise; read-only, as Ray hands arrays out."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 120, (80, 1, 12, 12), dtype=np.uint8)
    labels = (np.arange(80) % 2).astype(np.int64)
    for image, label in zip(images, labels, strict=True):
        image[0, 3:8, (1 + 6 * label) : (5 + 6 * label)] += 130
    for array in (images, labels):
        array.setflags(write=False)
    return TrialData(images[:60], labels[:60], images[60:], labels[60:], 2, "made up")


@pytest.fixture(scope="module")
def outcome(data):
    return run_trial(trial_spec(), data)


def without_clock(outcome):
    history = [(row.epoch, row.train_loss, row.train_accuracy) for row in outcome.history]
    return outcome.scores, outcome.d_repr, outcome.attacks, history, outcome.seed


def is_complete(result):
    return result.scores is not None and set(result.d_repr) == {"mle", "twonn"} and names(result) == ATTACKS


def names(result):
    return [attack.name for attack in result.attacks]


def test_a_trial_reports_everything_that_was_asked_for(outcome):
    assert outcome.status == "done"
    assert outcome.scores.num_parameters > 0
    assert names(outcome) == ATTACKS
    assert not any(attack.reason for attack in outcome.attacks)
    assert set(outcome.d_repr) == {"mle", "twonn"}
    assert all(estimate.value > 0 and estimate.reason is None for estimate in outcome.d_repr.values())
    assert all(seconds > 0 for name, seconds in outcome.timings if name != "robustness")
    assert [row.epoch for row in outcome.history] == list(range(1, 11))
    assert (outcome.device, outcome.num_threads, outcome.reason) == ("cpu", 1, "")
    assert outcome.seed == trial_spec().derived_seed
    assert outcome.peak_memory_bytes > 2**20


def test_a_separable_set_is_learned(outcome):
    assert outcome.scores.test_accuracy == 1.0
    assert outcome.scores.train_loss < 0.2


def test_the_loss_gain_is_over_the_clean_test_loss(outcome):
    record = outcome.attacks[-1]
    assert record.epsilon == 8.0
    assert record.loss_gain == pytest.approx(record.loss - outcome.scores.test_loss, rel=1e-6)


def test_a_result_survives_json_and_pickling(outcome):
    text = outcome.text()
    assert json.loads(text) == outcome.plain()
    assert TrialResult.model_validate_json(text) == outcome
    assert pickle.loads(pickle.dumps(outcome)) == outcome


def test_asking_for_another_epsilon_changes_no_loss(data, outcome):
    more = trial_spec().model_copy(update={"attacks": AttackSpec(epsilons=(3.0,))})
    result = run_trial(more, data)
    assert (result.seed, result.scores, result.d_repr) == (outcome.seed, outcome.scores, outcome.d_repr)
    assert names(result) == ["fgsm_3"]


def test_the_same_spec_is_equal_to_the_last_bit_whatever_ran_before(data, outcome):
    torch.manual_seed(12345)
    np.random.seed(7)  # noqa: NPY002 (other people's code does)
    torch.randn(100) @ torch.randn(100, 100)
    run_trial(trial_spec(train_size=30), data)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.randn(8, 8) @ torch.randn(8, 8)
    assert without_clock(run_trial(trial_spec(), data)) == without_clock(outcome)


def test_gradients_of_all_attacks_are_taken_of_half_a_training_batch_at_once(data, monkeypatch):
    """What a trial needs of a GPU is predicted for it; more would end out of memory on its share."""
    plain, sizes = PixelModel.forward, set()

    def passed(model, pixels):
        if pixels.requires_grad:
            sizes.add(len(pixels))
        return plain(model, pixels)

    monkeypatch.setattr(PixelModel, "forward", passed)
    attacks = AttackSpec(methods=("fgsm", "pgd"), epsilons=(1.0,))
    asked = {"attacks": attacks, "robustness": RobustnessSpec(num_images=20, num_steps=2, num_bisections=1)}
    result = run_trial(trial_spec(epochs=1).model_copy(update=asked), data)
    assert names(result) == ["fgsm_1", "pgd_1"]
    assert len(result.robustness.radii) == 20
    assert max(sizes) == 16 // 2


def test_another_seed_gives_another_network(data, outcome):
    network = trial_spec().network.model_copy(update={"seed": 1})
    other = run_trial(trial_spec().model_copy(update={"network": network}), data)
    assert other.scores.train_loss != outcome.scores.train_loss


def test_nothing_of_the_process_is_left_changed(data):
    torch.manual_seed(5)
    before = (torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    run_trial(trial_spec(epochs=1), data, num_threads=2)
    after = (torch.get_rng_state(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_only_the_first_rows_are_trained_on(data, outcome):
    images, labels = data.train_images.copy(), data.train_labels.copy()
    images[48:], labels[48:] = 0, 0
    changed = TrialData(images, labels, data.test_images, data.test_labels, 2, "other")
    assert without_clock(run_trial(trial_spec(), changed)) == without_clock(outcome)


def test_bytes_and_floats_of_the_same_pixels_give_the_same_numbers(data, outcome):
    images = data.train_images.astype(np.float32)
    floats = TrialData(
        images, data.train_labels, data.test_images.astype(np.float32), data.test_labels, 2, "x"
    )
    assert without_clock(run_trial(trial_spec(), floats)) == without_clock(outcome)


def test_read_only_arrays_cause_no_warning(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_trial(trial_spec(epochs=0), data)


def test_no_epochs_leave_an_untrained_network_measured_and_attacked(data):
    untrained = run_trial(trial_spec(epochs=0), data)
    assert untrained.history == ()
    assert is_complete(untrained)


def test_every_epoch_is_reported(data):
    seen = []
    result = run_trial(trial_spec(epochs=3), data, on_epoch=seen.append)
    assert tuple(seen) == result.history
    assert len(seen) == 3


@pytest.mark.parametrize(("architecture", "library"), [("resnet10t", "timm"), ("small_mlp", "isweep")])
def test_library_networks_run_as_trials(data, architecture, library):
    result = run_trial(trial_spec(architecture, library, train_size=24, epochs=1, num_neighbors=5), data)
    assert is_complete(result)


def test_a_diverged_training_is_a_result_with_its_reason(data):
    # Pixels times 1e36 overflow float32 in the first layer's gradients.
    result = run_trial(trial_spec("small_mlp", input_scale=1e36, optimizer="sgd", learning_rate=10.0), data)
    assert (result.status, result.scores, result.d_repr, result.attacks) == ("diverged", None, {}, ())
    assert "loss" in result.reason
    assert all(math.isfinite(row.train_loss) for row in result.history)
    assert TrialResult.model_validate_json(result.text()) == result


def test_d_repr_of_too_few_images_is_absent_with_its_reason(data):
    result = run_trial(trial_spec(train_size=6, num_neighbors=10, epochs=1), data)
    assert result.status == "done"
    assert result.d_repr["mle"].value is None
    assert result.d_repr["mle"].reason


def test_d_repr_of_a_network_that_maps_all_images_to_one_point_is_absent(data, monkeypatch):
    def constant(*arguments, **options):
        model = build_model(*arguments, **options)
        for parameter in model.parameters():
            parameter.data.zero_()
        return model

    monkeypatch.setattr(tasks.trials.trial, "build_model", constant)
    result = run_trial(trial_spec(epochs=0), data)
    assert result.status == "done"
    assert set(result.d_repr) == {"mle", "twonn"}
    assert all(estimate.value is None and estimate.reason for estimate in result.d_repr.values())
    assert result.scores.test_loss == pytest.approx(math.log(2))
    assert [attack.num_unchanged for attack in result.attacks] == [20] * 5


def test_the_released_head_of_1000_logits_is_kept_when_the_recipe_says_so(data):
    result = run_trial(trial_spec("small_mlp", num_outputs=1000, epochs=0), data)
    assert result.scores.test_loss == pytest.approx(math.log(1000), rel=0.1)


def test_fewer_logits_than_classes_are_refused(data):
    three = TrialData(data.train_images, data.train_labels, data.test_images, data.test_labels, 3, "x")
    with pytest.raises(ConfigError, match="num_outputs 2 for 3 classes"):
        run_trial(trial_spec(num_outputs=2), three)


def test_more_training_images_than_there_are_are_refused(data):
    with pytest.raises(DataError, match="60 images for train_size 61"):
        run_trial(trial_spec(train_size=61), data)


@pytest.mark.parametrize(("value", "found"), [(300.0, "0.0 to 300.0"), (np.nan, "nan to nan")])
def test_pixels_out_of_range_are_refused(data, value, found):
    images = np.zeros((60, 1, 12, 12), np.float32)
    images[0, 0, 0, 0] = value
    bad = TrialData(images, data.train_labels, data.test_images, data.test_labels, 2, "x")
    with pytest.raises(DataError, match=f"from 0 to 255; found: {found} in the training images"):
        run_trial(trial_spec(), bad)


def test_labels_out_of_range_are_refused(data):
    bad = TrialData(data.train_images, data.train_labels, data.test_images, data.test_labels + 1, 2, "x")
    with pytest.raises(
        DataError, match="Labels must be integers from 0 to 1; found: 1 to 2 in the test labels"
    ):
        run_trial(trial_spec(), bad)


@pytest.mark.parametrize(
    ("kind", "said", "size"),
    [(torch.OutOfMemoryError, "CUDA out of memory", 0), (MemoryError, "DefaultCPUAllocator", 2**60)],
)
def test_running_out_of_memory_escapes_with_its_own_type(data, monkeypatch, kind, said, size):
    def exhausted(*arguments, **options):
        torch.empty(size)
        raise kind(said)

    monkeypatch.setattr(tasks.trials.trial, "train", exhausted)
    with pytest.raises(kind, match=said):
        run_trial(trial_spec(), data)


def test_where_memory_is_short_nothing_passes_in_larger_parts_than_training(data, monkeypatch):
    """A quarter of each: of training's batch of 16, of an evaluation's 16 and of an attack's 8."""
    forward, passed = PixelModel.forward, []

    def count(model, pixels):
        passed.append((model.training, pixels.requires_grad, len(pixels)))
        return forward(model, pixels)

    monkeypatch.setattr(PixelModel, "forward", count)
    spec = trial_spec("small_mlp", epochs=4, test_loss="mean_of_batch_means")
    found = {}
    for micro_batch in (None, 4):
        passed.clear()
        result = run_trial(spec, data, micro_batch=micro_batch)
        most = {kind: max(size for *of, size in passed if tuple(of) == kind) for kind in KINDS_OF_PASS}
        found[micro_batch] = (most, result)
    assert [list(most.values()) for most, _ in found.values()] == [[16, 16, 8], [4, 4, 2]]
    whole, parts = (result.scores for _, result in found.values())
    assert (parts.train_loss, parts.test_loss) == pytest.approx((whole.train_loss, whole.test_loss), rel=1e-4)


KINDS_OF_PASS = (True, False), (False, False), (False, True)
"""Of training, an evaluation and an attack: whether the model trains, whether pixels have a gradient."""
