"""Compare measured numbers with the published numbers of the study's datasets."""

from __future__ import annotations

from typing import Any

from orchestrator.measuring.request import Measured
from search_spaces.datasets import DATASETS
from search_spaces.published import read_published
from tasks.measures.records import MeasureResult
from tasks.measures.sharpness import LabelSharpness, SharpnessScale, conversion_factor

PUBLISHED_RANGE = (0.0, 255.0)
"""Pixel values of black and white in the published label sharpness."""
PUBLISHED_SIDES = (224, 224)
"""Height and width of the images in the published label sharpness, pixels."""
THREE_CHANNELS = ("cifar10", "svhn", "imagenet")
"""Published datasets with three channels. All other datasets have one channel."""


def published_rows(record: MeasureResult) -> list[dict[str, Any]]:
    """Return one row for each of the study's eleven datasets, at the nearest train size.

    The published label sharpness is a maximum over about 2,000 sampled pairs of images with
    224 x 224 pixels in [0, 255]. It is converted to the pixel range, side and channels of the
    record. If the record lacks its pixel range or side, the converted value is None.
    """
    size = record.sizes[-1].train_size
    nearest: dict[str, dict[str, str]] = {}
    for row in read_published("d_data"):
        best = nearest.get(row["dataset"])
        if best is None or _distance(row, size) < _distance(best, size):
            nearest[row["dataset"]] = row
    sharpness = {
        row["dataset"]: row["label_sharpness"] for row in read_published("label_sharpness")
    }
    scale = _known_scale(record.label_sharpness)
    rows: list[dict[str, Any]] = []
    for name, row in nearest.items():
        converted = None
        if scale is not None:
            converted = float(sharpness[name]) * _factor(name, scale)
        rows.append(
            {
                "dataset": name,
                "domain": DATASETS[name].domain,
                "train_size": int(row["train_size"]),
                "d_data": float(row["d_data"]),
                "label_sharpness": converted,
            }
        )
    return rows


def _distance(row: dict[str, str], size: int) -> int:
    return abs(int(row["train_size"]) - size)


def _known_scale(sharpness: LabelSharpness | None) -> SharpnessScale | None:
    """Return the scale of a label sharpness, or None if it cannot be converted."""
    if sharpness is None:
        return None
    scale = sharpness.convention
    if scale.pixel_range is None or scale.side is None:
        return None
    return scale


def _factor(dataset: str, scale: SharpnessScale) -> float:
    """Return the factor from a published label sharpness to another scale."""
    channels = 3 if dataset in THREE_CHANNELS else 1
    published = SharpnessScale(PUBLISHED_RANGE, PUBLISHED_SIDES, channels, scale.sample)
    return conversion_factor(published, scale)


def describe(measured: Measured) -> list[str]:
    """Return sentences that compare d_data and K_F with published values."""
    record = measured.record
    rows = published_rows(record)
    lines: list[str] = []
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"The intrinsic dimension {estimate.value:.1f} (estimator mle, as in the study) is "
            f"{_level(below, len(rows))}. Published datasets with a lower intrinsic dimension: "
            f"{below} of {len(rows)}, at the published train size that is nearest to yours. By the "
            "law, a higher dimension needs more images for the same loss."
        )
    sharpness = record.label_sharpness
    if sharpness is not None and sharpness.value is not None:
        published = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
        if published:
            below = sum(value < sharpness.value for value in published)
            definition = "K_F" if sharpness.sample_range is None else "K_F of samples"
            lines.append(
                f"The label sharpness {sharpness.value:.3g} ({definition}) is "
                f"{_level(below, len(published))}. Published datasets with a lower label "
                f"sharpness: {below} of {len(published)}, after conversion to your pixel range, "
                "side and number of channels. By the law, sharper labels give a higher loss and "
                "a network that is easier to attack. The comparison is rough, because the "
                "published values are estimated from samples of pairs of images."
            )
    return lines + list(record.notes)


def _level(below: int, total: int) -> str:
    """Return low, medium or high, depending on how many published values are below a value.

    Args:
        below: Number of published values below the value.
        total: Number of published values.
    """
    if below / total < 1 / 3:
        return "low"
    if below / total > 2 / 3:
        return "high"
    return "medium"


def measured_document(measured: Measured) -> dict[str, Any]:
    """Return the document for ``isweep measure --json``."""
    return {
        **measured.record.to_json(),
        "label_names": list(measured.label_names),
        "preparation": measured.preparation,
        "taken": list(measured.image_lines),
        "published": published_rows(measured.record),
    }
