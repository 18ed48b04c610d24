"""The table of datasets.

A row describes a dataset, and names the source that reads the downloaded files.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from pydantic import ValidationError

from search_spaces.errors import ConfigError, pydantic_error, unknown_name
from search_spaces.interventions import ControlledDatasetSpec
from search_spaces.specs import DatasetParameters, DatasetSpec
from search_spaces.sweeps import UserSourceSpec

FILE = "search_spaces/datasets.toml"
"""Path of the table's file, for messages."""


def read_table(text: str) -> dict[str, dict[str, Any]]:
    """Parse the TOML text of the table, and return its rows by name.

    Raises:
        ConfigError: the text is not valid TOML, two rows have the same name, or a key is in no
        row.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            f"{FILE} cannot be read: {error}",
            hint="Correct this place. The names of all rows must differ, and so must the keys "
            "within a row",
        ) from None
    for name, row in table.items():
        if not isinstance(row, dict):
            raise ConfigError(
                f"{FILE}: {name!r} is not a row",
                hint="Move this key into a row. A row begins with its name in brackets, such as "
                "[mnist]",
            )
    return table


_TABLE = read_table((files("search_spaces") / "datasets.toml").read_text(encoding="utf-8"))
_TABLE_KEYS = ("of", "made", "collection", "cut_from")
"""Keys of a row that are not fields of a DatasetSpec. ``datasets.toml`` explains them."""


@dataclass(frozen=True, slots=True)
class ImageOrigin:
    """The reason why images are not independent of each other or of another dataset's images.

    Attributes:
        collection: The subject or origin that several datasets have in common; empty if there
            is none.
        cut_from: The few pictures from which all images of the dataset are cut; empty if the
            images are not cut from a few pictures.
    """

    collection: str = ""
    cut_from: str = ""


def row_of(table: dict[str, dict[str, Any]], name: str) -> DatasetSpec:
    """Return the spec that a row of the table describes.

    If the row has the key ``of``, missing fields are copied from the row with this name.

    Raises:
        ConfigError: the key ``of`` names no row, or a field is missing, unknown or not valid.
    """
    row = table[name]
    fields = dict(row)
    if "of" in row:
        if not isinstance(row["of"], str) or row["of"] not in table:
            error = unknown_name("row", row["of"], table)
            raise ConfigError(f"{FILE}, row [{name}], `of`: {error.problem}", hint=error.hint)
        fields = table[row["of"]] | fields
    for key in _TABLE_KEYS:
        fields.pop(key, None)
    try:
        # JSON has no dates, so a TOML date becomes text. pydantic rejects it if the field is
        # not text.
        text = json.dumps(fields | {"name": name}, default=str)
        return DatasetSpec.model_validate_json(text)
    except ValidationError as error:
        fields_by_type: dict[str, list[str]] = {"missing": [], "extra_forbidden": []}
        for problem in error.errors():
            # pydantic also reports a tuple that is too short as "missing", but with a longer
            # "loc".
            if problem["type"] in fields_by_type and len(problem["loc"]) == 1:
                fields_by_type[problem["type"]].append(f"`{problem['loc'][0]}`")
        problems = []
        if fields_by_type["missing"]:
            problems.append(f"these fields are missing: {', '.join(fields_by_type['missing'])}")
        if fields_by_type["extra_forbidden"]:
            unknown = ", ".join(fields_by_type["extra_forbidden"])
            problems.append(f"there are no such fields: {unknown}")
        raise ConfigError(
            f"{FILE}, row [{name}]: {'; '.join(problems) or pydantic_error(error).problem}",
            hint="Correct the row. DatasetSpec in search_spaces/specs.py explains the fields",
        ) from None


DATASETS = {name: row_of(_TABLE, name) for name, row in _TABLE.items() if "made" not in row}
"""Datasets by name, as in sweep files."""
GENERATED = {name: row_of(_TABLE, name) for name, row in _TABLE.items() if "made" in row}
"""Rows for generated or changed datasets, by kind of images. A row contains the fields that
all datasets of its kind have in common."""


ORIGINS: dict[str, ImageOrigin] = {
    name: ImageOrigin(collection=row.get("collection", ""), cut_from=row.get("cut_from", ""))
    for name, row in _TABLE.items()
    if row.get("collection") or row.get("cut_from")
}
"""Origin of the images, by dataset. Datasets with independent images are not in this table."""


def dataset_spec(name: str) -> DatasetSpec:
    """Return the row of the dataset ``name``.

    Raises:
        ConfigError: the table has no such row. The message contains a similar name and all
            names.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, DATASETS)
    return DATASETS[name]


def user_dataset_spec(name: str, user_data: UserSourceSpec) -> DatasetSpec:
    """Return a row for a user's data.

    If ``user_data`` has no class names, preparation reads them from the data.
    """
    return DatasetSpec(
        domain=user_data.domain,
        modality=user_data.modality,
        channels=user_data.channels,
        label_columns=user_data.label_columns,
        layout=user_data.layout,
        pixel_range=user_data.pixel_range,
        name=name,
        title=user_data.title or name,
        label_names=user_data.class_names,
        source=user_data.kind,
        description="user data",
        terms="terms of the user data",
        raw_layout="see docs/reference/data-formats.md",
        groups="groups in the user data",
        label_map=tuple(sorted(user_data.label_map.items())),
    )


def generated_dataset_spec(
    name: str, images: ControlledDatasetSpec, condition: DatasetParameters = ()
) -> DatasetSpec:
    """Return a row for a generated or changed dataset.

    Args:
        name: the dataset's name in plans and results.
        images: kind and parameters of the images.
        condition: parameters that change the training images after the split.
    """
    row = GENERATED[images.kind]
    parameters = _parameter_list(images.changed_parameters) or "default parameters"
    description = f"{row.description} ({parameters})"
    if condition:
        description += (
            f"; training images changed after the split ({_parameter_list(condition)}), "
            "test images unchanged"
        )
    return row.model_copy(
        update={
            "name": name,
            "title": name,
            "description": description,
            "dials": images.changed_parameters,
        }
    )


def _parameter_list(parameters: DatasetParameters) -> str:
    return ", ".join(f"{parameter} {value:g}" for parameter, value in parameters)
