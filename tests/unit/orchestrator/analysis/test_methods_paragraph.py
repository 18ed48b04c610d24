"""The paragraph for a methods section states the settings of the sweep, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.analysis.sentences.methods import methods_paragraph
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import Provenance
from tasks.trials.steps import SGD_MOMENTUM

NO_SPLIT_GROUPS = "no group is in both training and test set"
PROMISES_OF_THE_SPLIT = (NO_SPLIT_GROUPS, "nested", "is the same for all train sizes")


def paragraph_of(name: str, records=(), changes=None, *, has_groups: bool = True) -> str:
    """Return the paragraph of a preset with changed settings."""
    plan = plan_sweep(load_sweep(name, changes))
    by_id = {trial.trial_id: record for trial, record in zip(plan.trials, records, strict=False)}
    return " ".join(methods_paragraph(plan, by_id, has_groups=has_groups))


def record(code_version: str, device: str, micro_batch: int | None = None) -> SimpleNamespace:
    """Return the facts of a stored result that the paragraph contains."""
    provenance = Provenance(code_version=code_version, packages={"torch": "2.9.1"})
    result = SimpleNamespace(device=device, micro_batch=micro_batch)
    return SimpleNamespace(provenance=provenance, result=result)


@pytest.mark.parametrize(
    "sentence",
    [
        "1 dataset: UCI digits.",
        "The images have 8 × 8 pixels.",
        "Each task has two classes. There are 45 pairs of classes.",
        "The networks were trained on 240 images.",
        "Training sets are stratified by class. Each test set has 100 other images. If",
        "1 network architecture: small_cnn.",
        "Each network was trained for 15 epochs with Adam with coupled weight decay (learning rate "
        "0.002, weight decay 0.0001, batch size 32).",
        "PGD (steps 20, restarts 1, relative step size 0.1) changed each pixel by at most 32 (in "
        "1/255 of the pixel range).",
        "Results exist for 0 of 45 planned trainings.",
    ],
)
def test_the_paragraph_has_the_settings_of_the_sweep_file(sentence):
    assert sentence in paragraph_of("digits-demo")


def test_settings_of_the_training_are_given_for_each_network():
    paragraph = paragraph_of("demo")
    assert (
        "The network small_cnn was trained for 30 epochs with Adam with coupled weight decay "
        "(learning rate 0.002, weight decay 0.0001, batch size 32)." in paragraph
    )
    assert "The network resnet_tiny was trained for 20 epochs" in paragraph


def test_settings_that_differ_between_datasets_are_named_by_their_recipe():
    paragraph = paragraph_of("demo", changes={"recipe": {"from": "demo", "epochs": [1, 2]}})
    assert "differ between trials (isweep's recipes demo+epochs=1, demo+epochs=2)" in paragraph
    assert "learning rate" not in paragraph


def test_images_cut_from_the_same_pictures_are_counted():
    sentence = "training and test images were cut from the same few pictures"
    assert f"In 6 datasets, {sentence}" in paragraph_of("demo")
    assert sentence not in paragraph_of("digits-demo")


@pytest.mark.parametrize(
    ("preset", "images"),
    [
        ("demo", "training images with different labels."),
        (
            "paper",
            "images with different labels, as a mean over 10 samples of at most 1,000 training images.",
        ),
    ],
)
def test_samples_for_label_sharpness_are_named_only_where_training_sets_are_larger(preset, images):
    assert f"1 / the smallest distance between {images}" in paragraph_of(preset)


def test_each_version_of_the_code_and_each_device_is_named():
    stored = [record("1.0+a", "cpu"), record("1.0+b", "NVIDIA A100"), record("1.0+a", "cpu")]
    paragraph = paragraph_of("digits-demo", stored)
    assert "Results exist for 3 of 45 planned trainings." in paragraph
    assert "isweep 1.0+a, 1.0+b and PyTorch 2.9.1 on NVIDIA A100, cpu." in paragraph


def test_trainings_that_split_their_batches_are_counted():
    stored = [record("1.0", "cpu"), record("1.0", "cpu", micro_batch=8)]
    sentence = (
        "For lack of memory, 1 training split each batch into parts. In networks with batch "
        "norm, batch norm then used the statistics of each part."
    )
    assert sentence in paragraph_of("digits-demo", stored)
    assert "split each batch" not in paragraph_of("digits-demo", stored[:1])


def test_the_momentum_of_sgd_is_that_of_the_training():
    paragraph = paragraph_of("demo", changes={"recipe": {"from": "demo", "optimizer": "sgd"}})
    assert f"with stochastic gradient descent with momentum {SGD_MOMENTUM:g} (" in paragraph


def test_another_precision_is_named():
    paragraph = paragraph_of("demo", changes={"recipe": {"from": "demo", "precision": "bfloat16"}})
    assert "batch size 32, forward pass in bfloat16)" in paragraph
    assert "forward pass" not in paragraph_of("demo")


def test_train_sizes_are_alternatives():
    assert "The networks were trained on 60, 120 or 240 images." in paragraph_of("demo")


@pytest.mark.parametrize(
    ("preset", "changes"),
    [("paper-as-released", {}), ("paper", {"faults": ["image_level_split"]})],
)
def test_nothing_is_promised_about_a_split_with_faults_of_the_released_code(preset, changes):
    corrected = paragraph_of("paper")
    released = paragraph_of(preset, changes=changes)
    for promise in PROMISES_OF_THE_SPLIT:
        assert promise in corrected
        assert promise not in released
    assert "with known faults of the study's released code" in released


def test_groups_are_mentioned_only_if_images_form_groups():
    assert NO_SPLIT_GROUPS not in paragraph_of("paper", has_groups=False)


def test_the_estimator_is_named_only_if_it_was_used():
    assert "maximum likelihood" in paragraph_of("demo")
    paragraph = paragraph_of("demo", changes={"estimators": ["twonn"]})
    assert "maximum likelihood" not in paragraph


def test_an_experiment_counts_its_base_datasets_and_not_their_changed_copies():
    paragraph = paragraph_of("interventions-digits-training")
    assert "base datasets and of changed copies" in paragraph
    assert "also tested on changed copies of the test images" in paragraph
