"""The paragraph for a methods section states the settings of the sweep, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from orchestrator.analysis.sentences.methods import methods_paragraph
from orchestrator.planning.plan import plan_sweep
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.results.records import Provenance

NO_SPLIT_GROUPS = "Images of one group, such as a patient, are never in both"


def paragraph_of(name: str, records=(), **settings) -> str:
    """Return the paragraph of a preset with changed settings."""
    plan = plan_sweep(load_sweep(name, **settings))
    by_id = {trial.trial_id: record for trial, record in zip(plan.trials, records, strict=False)}
    return " ".join(methods_paragraph(plan, by_id))


def record(code_version: str, device: str) -> SimpleNamespace:
    """Return the facts of a stored result that the paragraph contains."""
    provenance = Provenance(code_version=code_version, packages={"torch": "2.9.1"})
    return SimpleNamespace(provenance=provenance, result=SimpleNamespace(device=device))


@pytest.mark.parametrize(
    "sentence",
    [
        "1 dataset: UCI digits.",
        "The images have 8 × 8 pixels.",
        "Each task has two classes. There are 45 pairs of classes.",
        "The networks were trained on 240 images.",
        "The test set has 100 other images, the same for all train sizes.",
        "1 network architecture: small_cnn.",
        "Each network was trained for 30 epochs with Adam with coupled weight decay (learning rate "
        "0.002, weight decay 0.0001, batch size 32).",
        "PGD (steps 20, restarts 5, relative step size 0.1) changed each pixel by at most 32 (in "
        "1/255 of the pixel range).",
        "Of 45 planned trainings, 0 have a result.",
    ],
)
def test_the_paragraph_has_the_settings_of_the_sweep_file(sentence):
    assert sentence in paragraph_of("digits-demo")


def test_settings_that_differ_between_trials_are_left_to_the_sweep_file():
    paragraph = paragraph_of("demo")
    assert "The settings of the training differ between trials." in paragraph
    assert "learning rate" not in paragraph


@pytest.mark.parametrize(
    ("preset", "images"),
    [
        ("demo", "two training images."),
        ("paper", "two images, as a mean over 10 samples of at most 1,000 training images."),
    ],
)
def test_samples_for_label_sharpness_are_named_only_where_training_sets_are_larger(preset, images):
    assert f"ratio of label difference to distance of {images}" in paragraph_of(preset)


def test_each_version_of_the_code_and_each_device_is_named():
    stored = [record("1.0+a", "cpu"), record("1.0+b", "NVIDIA A100"), record("1.0+a", "cpu")]
    paragraph = paragraph_of("digits-demo", stored)
    assert "Of 45 planned trainings, 3 have a result." in paragraph
    assert "isweep 1.0+a, 1.0+b and PyTorch 2.9.1 on NVIDIA A100, cpu." in paragraph


def test_nothing_is_promised_about_the_split_of_the_released_code():
    corrected = paragraph_of("paper")
    released = paragraph_of("paper-as-released")
    for promise in (NO_SPLIT_GROUPS, "nested", "the same for all train sizes"):
        assert promise in corrected
        assert promise not in released
    assert "with the known faults of the study's released code" in released
