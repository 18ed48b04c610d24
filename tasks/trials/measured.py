"""What is measured on a trained network, typed. Needs no torch to be read."""

from __future__ import annotations

from pydantic import Field

from tasks.finding import Finding


class RadiusSummary(Finding):
    """Distribution of minimal perturbations over images, L2 norms in pixel units (1/255 of the range).

    Attributes:
        num_images: images with a radius; those without are in none of the numbers.
        mean: mean radius: the robustness R of the paper's theorem.
        std_error: standard deviation over the square root of ``num_images``.
        median: median radius.
        geometric_mean: exp of the mean log radius; None where a radius is 0.
        quantiles: radius at the shares ``0.05, 0.25, 0.75, 0.95``, by share.
        mean_per_pixel: ``mean`` over the square root of the number of pixel values, for unequal image sizes.
    """

    num_images: int
    mean: float
    std_error: float | None
    median: float
    geometric_mean: float | None
    quantiles: dict[str, float]
    mean_per_pixel: float


class RadiusRecord(Finding):
    """Adversarial robustness R of one network: how far the nearest image with another decision lies.

    Attributes:
        pred: over all images, distance to another decision than the network's own; None if none was found.
        true: the same with radius 0 where the network is wrong.
        radii: one per image of ``rows``; None where no image with another decision was found.
        rows: which test images, ascending.
        wrong: one per image: whether the network's decision is not the label.
        num_not_found: images without a radius; left out of both summaries, never imputed.
        box_share: share of the images found where the pixel range binds: a smaller change would leave it.
        num_steps: gradient steps per image.
        num_bisections: bisections between an image and one with another decision.
        reason: why ``pred`` is None; empty otherwise.
    """

    pred: RadiusSummary | None
    true: RadiusSummary | None
    radii: tuple[float | None, ...] = Field(repr=False)
    rows: tuple[int, ...] = Field(repr=False)
    wrong: tuple[bool, ...] = Field(repr=False)
    num_not_found: int
    box_share: float | None
    num_steps: int
    num_bisections: int
    reason: str = ""


class ClassificationScores(Finding):
    """How well a network tells the test images' classes apart.

    Attributes:
        balanced_accuracy: mean of the classes' accuracies.
        auc: area under the ROC curve; for more than two classes the mean of each against the rest. None
            where a class is missing.
        per_class_accuracy: share of each class's images that are classified rightly; None for no images.
        calibration_error: expected calibration error of the largest probability, 15 bins.
    """

    balanced_accuracy: float
    auc: float | None
    per_class_accuracy: tuple[float | None, ...]
    calibration_error: float


class EpochScore(Finding):
    """The network on the test images after one epoch of training."""

    epoch: int
    test_loss: float
    test_accuracy: float


EVALUATION_PASS = 16
"""Images per float32 forward pass: few enough that no network needs more memory than its training does."""
NUM_EPOCHS_LOOKED_AT = 10


def epochs_to_look_at(num_epochs: int) -> frozenset[int]:
    """Return the epochs after which the test images are passed: about ten, and never the last.

    The last is evaluated anyway. An epoch trains on N images, three passes each; ten passes over the test
    images in a hundred epochs cost a few hundredths of that on a CPU, and up to a tenth on a card, which
    computes float32 slowly.
    """
    every = max(1, num_epochs // NUM_EPOCHS_LOOKED_AT)
    return frozenset(range(every, num_epochs, every))


class KeptFile(Finding):
    """A file kept beside a trial's result: the network's weights (safetensors), or its predictions (Parquet).

    Attributes:
        sha256: of the file.
        num_bytes: its size.
    """

    sha256: str
    num_bytes: int
