"""Rows of ``isweep datasets``: one row for each dataset of the table of datasets."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from orchestrator.planning.paths import RootPaths
from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import CorruptStoreError
from tasks.prepared.store import PreparedDataset


def list_datasets(root: str | None, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per dataset with its properties and its prepared datasets.

    Args:
        root: The root with the prepared datasets.
        name: Name of a dataset of the table. If it is None, return all datasets.

    Raises:
        ConfigError: The table has no dataset with this name.
    """
    prepared: dict[str, list[str]] = {}
    for folder in sorted((RootPaths.at(root).root / "prepared").glob("[!.]*")):
        with suppress(CorruptStoreError):
            dataset = PreparedDataset.open(folder).record.dataset
            prepared.setdefault(dataset, []).append(folder.name)
    specs = [dataset_spec(name)] if name else list(DATASETS.values())
    rows = []
    for spec in specs:
        row: dict[str, Any] = json.loads(spec.model_dump_json())
        row["prepared"] = prepared.get(spec.name, [])
        row["status"] = "prepared" if spec.name in prepared else "not prepared"
        rows.append(row)
    return rows
