"""What was measured of a source, beside the study's eleven datasets: as JSON, in words, as a picture."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError, DataError
from search_spaces.published import read_published
from tasks.measures.label_sharpness import SharpnessConvention, convert
from tasks.measures.measure import MeasureResult

PUBLISHED_SIDE = (224, 224)
PUBLISHED_RANGE = (0.0, 255.0)
MAX_PANEL_SIDE = 512


@dataclass(frozen=True)
class Measured:
    """A measured source.

    Attributes:
        record: The numbers.
        pair_images: The two differently labelled images that are closest, or None.
        pair_labels: What their labels mean, in words.
        label_names: What the labels mean.
        preparation: Record of what was read and skipped, or None for arrays.
        taken: What people should see of arrays: classes, what was left out, what is doubtful.
    """

    record: MeasureResult
    pair_images: tuple[npt.NDArray[Any], npt.NDArray[Any]] | None
    pair_labels: tuple[str, str] | None
    label_names: tuple[str, ...]
    preparation: dict[str, Any] | None
    taken: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return what ``isweep measure --json`` prints."""
        return {
            **self.record.to_json(),
            "label_names": list(self.label_names),
            "preparation": self.preparation,
            "published": published_rows(self.record),
        }


def published_rows(record: MeasureResult) -> list[dict[str, Any]]:
    """Return the study's eleven datasets at the nearest train size, K_F in this record's convention.

    Published K_F is a maximum over about 2,000 sampled pairs on [0, 255] images of 224 x 224, natural ones on
    three channels; it is rescaled by range, side and channels. None where this record's convention is not
    known.
    """
    size = record.sizes[-1].train_size
    nearest: dict[str, dict[str, str]] = {}
    for row in read_published("d_data"):
        best = nearest.get(row["dataset"])
        if best is None or abs(int(row["train_size"]) - size) < abs(int(best["train_size"]) - size):
            nearest[row["dataset"]] = row
    sharpness = {row["dataset"]: float(row["label_sharpness"]) for row in read_published("label_sharpness")}
    return [
        {
            "dataset": name,
            "domain": DATASETS[name].domain,
            "train_size": int(row["train_size"]),
            "d_data": float(row["d_data"]),
            "label_sharpness": _rescaled(sharpness[name], name, record),
        }
        for name, row in nearest.items()
    ]


def _rescaled(value: float, name: str, record: MeasureResult) -> float | None:
    own = record.label_sharpness
    if own is None or own.convention.pixel_range is None or own.convention.side is None:
        return None
    channels = 3 if name in ("cifar10", "svhn", "imagenet") else 1
    published = SharpnessConvention(PUBLISHED_RANGE, PUBLISHED_SIDE, channels, own.convention.sample)
    return convert(replace(own, value=value, convention=published), own.convention).value


def describe(measured: Measured) -> list[str]:
    """Say in plain words how the two numbers compare with the study's datasets."""
    record = measured.record
    rows = published_rows(record)
    lines = []
    estimate = record.d_data.get("mle")
    if estimate is not None and estimate.value is not None:
        below = sum(row["d_data"] < estimate.value for row in rows)
        lines.append(
            f"Intrinsic dimension {estimate.value:.1f} is {_level(below, len(rows))}: higher than {below} of "
            f"the {len(rows)} published datasets (at their train size nearest to yours). The law expects a "
            "higher dimension to need more images for the same loss."
        )
    sharpness = record.label_sharpness
    known = [row["label_sharpness"] for row in rows if row["label_sharpness"] is not None]
    if sharpness is not None and sharpness.value is not None and known:
        below = sum(value < sharpness.value for value in known)
        lines.append(
            f"Label sharpness {sharpness.value:.3g} is {_level(below, len(known))}: higher than {below} of "
            f"the {len(known)} published values, rescaled to your pixel range, side and channels. The law "
            "expects sharper labels to give a higher loss and a model that is easier to fool. Published "
            "values come from a sample of pairs, so read this as an order of magnitude."
        )
    return lines + list(record.notes)


def _level(below: int, total: int) -> str:
    share = below / total
    return "low" if share < 1 / 3 else "high" if share > 2 / 3 else "in the middle"


def save_pair(measured: Measured, path: Path) -> None:
    """Draw the two differently labelled images that are closest, side by side, to ``path`` (PNG).

    Raises:
        DataError: when there is no such pair.
        ConfigError: when the file cannot be written.
    """
    from PIL import Image, ImageDraw

    sharpness = measured.record.label_sharpness
    if sharpness is None or sharpness.pair is None or not (measured.pair_images and measured.pair_labels):
        raise DataError("--show-pair needs two images with different labels", "there are none")
    panels = [_panel(image) for image in measured.pair_images]
    width, height = panels[0].size
    sheet = Image.new("RGB", (2 * width + 24, height + 40), "white")
    draw = ImageDraw.Draw(sheet)
    for place, panel in enumerate(panels):
        left = 8 + place * (width + 8)
        sheet.paste(panel, (left, 32))
        draw.text((left, 10), f"image {sharpness.pair[place]}: {measured.pair_labels[place]}", fill="black")
    try:
        sheet.save(path, format="PNG")
    except OSError as error:
        raise ConfigError("--show-pair must be a file that can be written", f"{path}: {error}") from None


def _panel(image: npt.NDArray[Any]) -> Any:
    from PIL import Image

    pixels = np.asarray(image, np.float64)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3):
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels.squeeze()
    low, high = pixels.min(), pixels.max()
    scaled = ((pixels - low) * (255 / (high - low)) if high > low else pixels * 0).astype(np.uint8)
    panel = Image.fromarray(scaled).convert("RGB")
    factor = max(1, MAX_PANEL_SIDE // 2 // max(panel.size))
    return panel.resize((panel.width * factor, panel.height * factor), Image.Resampling.NEAREST)
