"""The table of datasets.

A row describes a dataset and names its source, which reads the download.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from search_spaces.errors import unknown_name
from search_spaces.interventions import MadeSpec
from search_spaces.specs import DatasetParameters, DatasetSpec
from search_spaces.sweeps import OwnSourceSpec

_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    (files("search_spaces") / "datasets.toml").read_text(encoding="utf-8")
)
_TABLE_KEYS = ("of", "study", "packaged", "made", "collection", "cut_from")
"""Keys of a row that are not fields of a DatasetSpec; ``datasets.toml`` explains them."""


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """The origin of a dataset's images, as far as it makes them depend on others.

    Attributes:
        collection: What the sets of one collection show or come from in common; empty for none.
        cut_from: The few pictures that training and test images are cut from; empty for none.
    """

    collection: str = ""
    cut_from: str = ""


def _row(name: str) -> DatasetSpec:
    """Return a row of the table. A row ``of`` another takes all other fields from there."""
    row = _TABLE[name]
    other_row = _TABLE.get(row.get("of", ""), {})
    fields = {**other_row, **row, "name": name}
    for key in _TABLE_KEYS:
        fields.pop(key, None)
    return DatasetSpec.model_validate_json(json.dumps(fields))


def _names_with(key: str) -> tuple[str, ...]:
    return tuple(name for name, row in _TABLE.items() if row.get(key))


STUDY_DATASETS = _names_with("study")
"""The eleven datasets of Konz & Mazurowski."""
DATASETS: dict[str, DatasetSpec] = {
    name: _row(name) for name, row in _TABLE.items() if not row.get("made")
}
MADE: dict[str, DatasetSpec] = {name: _row(name) for name in _names_with("made")}
"""Fields that all generated or changed datasets of a kind share, by kind."""
PACKAGED = tuple(DATASETS[name] for name in _names_with("packaged"))
"""Datasets that installed packages contain."""


ORIGINS: dict[str, ImageOrigin] = {
    name: ImageOrigin(collection=row.get("collection", ""), cut_from=row.get("cut_from", ""))
    for name, row in _TABLE.items()
    if row.get("collection") or row.get("cut_from")
}
"""Datasets whose images are not independent of those of others, or of each other."""


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of ``name``.

    Raises:
        ConfigError: there is no such row. The message has the nearest and all known names.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def own_dataset_spec(name: str, own: OwnSourceSpec) -> DatasetSpec:
    """Return a row for a user's own data.

    Preparation reads the names of the labels if ``own`` has none.
    """
    return DatasetSpec(
        domain=own.domain,
        modality=own.modality,
        channels=own.channels,
        label_columns=own.label_columns,
        layout=own.layout,
        pixel_range=own.pixel_range,
        name=name,
        title=own.title or name,
        label_names=own.class_names,
        source=own.kind,
        description="own data",
        terms="own data",
        raw_layout="see docs/datasets.md, your own data",
        groups="as given by the source",
        label_map=tuple(sorted(own.label_map.items())),
    )


def made_dataset_spec(name: str, made: MadeSpec, condition: DatasetParameters = ()) -> DatasetSpec:
    """Return a row for a generated or changed dataset.

    Args:
        name: under which it is prepared.
        made: its kind and parameters.
        condition: parameters that change its training images after the split.
    """
    kind = MADE[made.from_]
    parameters = _listed(made.changed_parameters) or "dials as they stand"
    description = f"{kind.description} ({parameters})"
    if condition:
        description += (
            f"; training images moved after the split ({_listed(condition)}), "
            "test images as they are"
        )
    return kind.model_copy(
        update={
            "name": name,
            "title": name,
            "description": description,
            "dials": made.changed_parameters,
        }
    )


def _listed(parameters: DatasetParameters) -> str:
    return ", ".join(f"{parameter} {value:g}" for parameter, value in parameters)
