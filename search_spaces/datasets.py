"""The table of datasets. One row says what a dataset is; its source module says how the download is
read.
"""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from typing import Any

from search_spaces.errors import unknown_name
from search_spaces.interventions import MadeSpec
from search_spaces.specs import DatasetSpec, Dials
from search_spaces.sweeps import OwnSourceSpec

_TABLE: dict[str, dict[str, Any]] = tomllib.loads(
    (files("search_spaces") / "datasets.toml").read_text(encoding="utf-8")
)
_MARKS = ("of", "study", "packaged", "made")


def _row(name: str) -> DatasetSpec:
    """Return a row of the table; one ``of`` another takes what it does not say itself from
    there.
    """
    own = _TABLE[name]
    whole = _TABLE.get(own.get("of", ""), {}) | own | {"name": name}
    return DatasetSpec.model_validate_json(
        json.dumps({k: v for k, v in whole.items() if k not in _MARKS})
    )


STUDY_DATASETS = tuple(name for name, row in _TABLE.items() if row.get("study"))
"""The eleven of Konz & Mazurowski."""
DATASETS: dict[str, DatasetSpec] = {
    name: _row(name) for name, row in _TABLE.items() if not row.get("made")
}
MADE: dict[str, DatasetSpec] = {name: _row(name) for name, row in _TABLE.items() if row.get("made")}
"""Kind of world -> what is the same for all its datasets."""
PACKAGED = tuple(DATASETS[name] for name, row in _TABLE.items() if row.get("packaged"))
"""What installed packages ship."""


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of ``name``; for one in no table a ConfigError says the nearest and all known
    names.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def own_dataset_spec(name: str, own: OwnSourceSpec) -> DatasetSpec:
    """Return a row for your own data; label names not given are read when the data are prepared."""
    alike = {"domain", "modality", "channels", "label_columns", "layout", "pixel_range"}
    return DatasetSpec(
        **own.model_dump(include=alike),
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


def made_dataset_spec(name: str, made: MadeSpec, condition: Dials = ()) -> DatasetSpec:
    """Return a row for a dataset that is made, with its dials.

    ``condition`` are the parameters that move its training images after the split, if any.
    """
    kind = MADE[made.from_]
    turned = ", ".join(f"{dial} {value:g}" for dial, value in made.own_dials)
    about = f"{kind.description} ({turned or 'dials as they stand'})"
    if condition:
        moved = ", ".join(f"{name} {value:g}" for name, value in condition)
        about += f"; training images moved after the split ({moved}), test images as they are"
    return kind.model_copy(
        update={"name": name, "title": name, "description": about, "dials": made.own_dials}
    )
