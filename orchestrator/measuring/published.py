"""Comparison of measured numbers with the study's datasets, in plain words."""

from __future__ import annotations

from typing import Any

from orchestrator.measuring.request import Measured
from search_spaces.datasets import DATASETS
from search_spaces.published import read_published
from tasks.measures.records import MeasureResult
from tasks.measures.sharpness import LabelSharpness, SharpnessConvention, conversion

PUBLISHED_RANGE = (0.0, 255.0)
"""Pixel values of black and white of the published label sharpness."""
PUBLISHED_SIDES = (224, 224)
"""Size of the published images, pixels."""
THREE_CHANNELS = ("cifar10", "svhn", "imagenet")
"""Published datasets with three channels; all others have one."""


def published_rows(record: MeasureResult) -> list[dict[str, Any]]:
    """Return a row for each of the study's eleven datasets, at the nearest train size.

    The label sharpness is converted to the convention of the record. It was published as a maximum
    over some 2,000 sampled pairs of [0, 255] images of 224 x 224. It is None if the record does not
    tell its pixel range or side.
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
    convention = _known_convention(record.label_sharpness)
    rows: list[dict[str, Any]] = []
    for name, row in nearest.items():
        converted = None
        if convention is not None:
            converted = float(sharpness[name]) * _factor(name, convention)
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


def _known_convention(sharpness: LabelSharpness | None) -> SharpnessConvention | None:
    """Return in what a label sharpness was measured, or None if it cannot be converted."""
    if sharpness is None:
        return None
    convention = sharpness.convention
    if convention.pixel_range is None or convention.side is None:
        return None
    return convention


def _factor(dataset: str, convention: SharpnessConvention) -> float:
    """Return the factor from a published label sharpness to another convention."""
    channels = 3 if dataset in THREE_CHANNELS else 1
    published = SharpnessConvention(PUBLISHED_RANGE, PUBLISHED_SIDES, channels, convention.sample)
    return conversion(published, convention)


def describe(measured: Measured) -> list[str]:
    """Return sentences that say what the two numbers mean."""
    record = measured.record
    rows = published_rows(record)
    lines: list[str] = []
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"Intrinsic dimension {estimate.value:.1f} (mle, as in the study) is "
            f"{_level(below, len(rows))}: higher than {below} of the {len(rows)} published "
            "datasets (at their train size nearest to yours). The law expects a higher dimension "
            "to need more images for the same loss."
        )
    sharpness = record.label_sharpness
    if sharpness is not None and sharpness.value is not None:
        published = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
        if published:
            below = sum(value < sharpness.value for value in published)
            lines.append(
                f"Label sharpness {sharpness.value:.3g} is {_level(below, len(published))}: higher "
                f"than {below} of the {len(published)} published values, rescaled to your pixel "
                "range, side and channels. The law expects sharper labels to give a higher loss "
                "and a model that is easier to fool. Published values come from a sample of "
                "pairs, so read this as an order of magnitude."
            )
    return lines + list(record.notes)


def _level(below: int, total: int) -> str:
    if below / total < 1 / 3:
        return "low"
    if below / total > 2 / 3:
        return "high"
    return "in the middle"


def measured_document(measured: Measured) -> dict[str, Any]:
    """Return what ``isweep measure --json`` prints."""
    return {
        **measured.record.to_json(),
        "label_names": list(measured.label_names),
        "preparation": measured.preparation,
        "taken": list(measured.taken),
        "published": published_rows(measured.record),
    }
