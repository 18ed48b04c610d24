"""The table of datasets. One row says what a dataset is; its source module says how the download is read."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from typing import Any

from search_spaces.errors import unknown_name
from search_spaces.interventions import KINDS, MadeSpec
from search_spaces.specs import DatasetSpec
from search_spaces.sweeps import OwnSourceSpec

IMAGENET_CLASSES = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02099601": "golden retriever",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}
"""Ten of the thousand, in the order of their ids. Tench and goldfish are what the released code always
used."""

_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    (files("search_spaces") / "datasets.toml").read_text(encoding="utf-8")
)
_MARKS = ("of", "study", "packaged")


def _row(name: str) -> DatasetSpec:
    """Return a row of the table; one ``of`` another takes what it does not say itself from there."""
    own = _TABLE[name]
    whole = _TABLE.get(own.get("of", ""), {}) | own | {"name": name}
    return DatasetSpec.model_validate_json(json.dumps({k: v for k, v in whole.items() if k not in _MARKS}))


def _manifold(dimension: int) -> DatasetSpec:
    return DatasetSpec(
        name=f"manifold_d{dimension}",
        title=f"Generated manifold, d = {dimension}",
        domain="natural",
        modality="generated images",
        label_names=("below", "above"),
        channels=1,
        source="manifold",
        description=(
            f"GENERATED: 3,000 smooth images on a manifold of intrinsic dimension {dimension} with two "
            "classes kept a known distance apart. For smoke tests and calibration; it is no natural dataset."
        ),
        terms="none: generated",
        raw_layout="nothing to download: generated",
        origin="generated",
        label_rule="the side of a band on the manifold",
    )


STUDY_DATASETS = tuple(name for name, row in _TABLE.items() if row.get("study"))
"""The eleven of Konz & Mazurowski."""
DATASETS: dict[str, DatasetSpec] = {name: _row(name) for name in _TABLE}
DATASETS |= {row.name: row for row in map(_manifold, (4, 12))}
PACKAGED = tuple(DATASETS[name] for name, row in _TABLE.items() if row.get("packaged"))
"""What installed packages ship."""


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of ``name``.

    Raises:
        ConfigError: for a name that is in no table, with the nearest and all known names.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def own_dataset_spec(name: str, own: OwnSourceSpec) -> DatasetSpec:
    """Return a row for your own data; label names not given are read when the data are prepared."""
    return DatasetSpec(
        name=name,
        title=own.title or name,
        domain=own.domain,
        modality=own.modality,
        label_names=own.class_names,
        channels=own.channels,
        source=own.kind,
        description="own data",
        terms="own data",
        raw_layout="see docs/datasets.md, your own data",
        groups="as given by the source",
        label_map=tuple(sorted(own.label_map.items())),
        label_columns=own.label_columns,
        layout=own.layout,
        pixel_range=own.pixel_range,
    )


def made_dataset_spec(name: str, made: MadeSpec) -> DatasetSpec:
    """Return a row for a dataset that is made, with its dials."""
    kind = KINDS[made.from_]
    turned = ", ".join(f"{dial} {value:g}" for dial, value in made.own_dials)
    return DatasetSpec(
        name=name,
        title=name,
        domain=kind.domain,
        modality=kind.modality,
        label_names=kind.label_names,
        channels=1,
        source=made.from_,
        description=f"{kind.what} ({turned or 'dials as they stand'})",
        terms="none: made for this experiment",
        raw_layout="nothing to download: made",
        groups=kind.groups,
        origin="generated" if made.from_ == "generated" else "semi-synthetic",
        dials=made.own_dials,
    )
