"""What is known of a prepared dataset, as one record that goes into its marker, logs, MLflow and reports."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class PreparedRecord:
    """What a prepared dataset is and how it came to be; holds nothing that identifies a person.

    Attributes:
        fingerprint: SHA-256 of the content: pixels, labels, who shares a group, splits, label names, dtype.
            It does not depend on sharding, worker count, hash key or when and where it was made.
        prepared_id: Identity of the spec it was made from.
        raw_id: Hash of the raw listing with file sizes and times, to notice that your own data changed.
        origin: ``real``, ``derived``, ``semi-synthetic`` or ``generated``.
        label_rule: How labels were made where nobody gave them.
        num_images_per_label: Label name to number of images.
        num_groups_per_label: Label name to number of groups with such an image.
        num_listed: Items found in the raw download.
        excluded: Items left out by the dataset's own rules, by reason.
        skipped: Items that could not be used, by reason.
        skipped_items: First pairs (keyed hash of the locator, reason) of those.
        conversions: What was done to pixels, and to how many images.
        flags: What is doubtful, and how often.
        num_duplicates: Images whose pixels equal an earlier image's; their groups were joined.
        num_conflicts: Images whose pixels equal those of an image with another label.
        intensity: How raw values became pixels.
        seconds: Time of the preparation that published it.
    """

    fingerprint: str
    prepared_id: str
    raw_id: str
    dataset: str
    source: str
    title: str
    modality: str
    domain: str | None
    task: str
    data_mode: str
    faults: tuple[str, ...]
    label_names: tuple[str, ...]
    num_images: int
    num_groups: int
    num_images_per_label: dict[str, int]
    num_groups_per_label: dict[str, int]
    num_listed: int
    num_skipped: int
    excluded: dict[str, int]
    skipped: dict[str, int]
    skipped_items: tuple[tuple[str, str], ...]
    conversions: dict[str, int]
    flags: dict[str, int]
    num_duplicates: int
    num_conflicts: int
    intensity: str
    pixel_range: tuple[float, float]
    dtype: str
    shape: tuple[int, ...]
    seconds: float
    origin: str = "real"
    label_rule: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self), allow_nan=False))
        return plain

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Rebuild a record.

        Raises:
            KeyError: when a field without a default is missing, or one is unknown.
        """
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not needed <= set(values) <= names:
            raise KeyError(f"fields {sorted((needed - set(values)) | (set(values) - names))}")
        return cls(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
