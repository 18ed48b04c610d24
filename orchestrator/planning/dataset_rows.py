"""``isweep datasets``: a row for each dataset of the table."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from orchestrator.planning.paths import RootPaths
from search_spaces.datasets import DATASETS, dataset_spec
from search_spaces.errors import CorruptStoreError
from tasks.prepared.store import PreparedDataset

if TYPE_CHECKING:
    pass


def list_datasets(root: str | None, name: str | None = None) -> list[dict[str, Any]]:
    """Return one row per dataset of the table, or of ``name`` alone: what it is, needs, and where
    it stands.

    ConfigError for an unknown name.
    """
    prepared: dict[str, list[str]] = {}
    for path in sorted((RootPaths.at(root).root / "prepared").glob("[!.]*")):
        with suppress(CorruptStoreError):
            prepared.setdefault(PreparedDataset.open(path).record.dataset, []).append(path.name)
    return [
        {
            **json.loads(spec.model_dump_json()),
            "prepared": prepared.get(spec.name, []),
            "status": "prepared" if spec.name in prepared else "not prepared",
        }
        for spec in ([dataset_spec(name)] if name else DATASETS.values())
    ]
