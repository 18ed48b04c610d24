"""The report's tables as plain rows of text; the template only lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from orchestrator.analysis.fit_records import ScalingFits
from orchestrator.analysis.fit_tables import fit_tables
from orchestrator.analysis.formats import Table, number, with_range
from orchestrator.analysis.published import side_by_side

MEASURES_NOTE = (
    "d_data by every estimator: mle is maximum likelihood, twonn from two nearest neighbours, gride from "
    "up to sixteen. label_sharpness is K_F, label_sharpness_p99 what 99 % of the images stay below."
)


def all_tables(full: pd.DataFrame, fits: ScalingFits, summary: Mapping[str, Any]) -> dict[str, list[Table]]:
    """Return all tables that have rows, by section of the report."""
    sections = {
        "datasets": [_datasets(fits, summary)],
        "fits": fit_tables(fits),
        "published": [_published(full)],
        "measures": [_records("measures", "Measures", summary.get("measures", ()), MEASURES_NOTE, 2)],
        "unreadable": [
            _records("unreadable", "Stored results that cannot be read", summary.get("unreadable", ()))
        ],
        "failures": [_records("failures", "Failed trials", summary.get("failures", ()))],
    }
    return {name: [table for table in tables if table.rows] for name, tables in sections.items()}


def _datasets(fits: ScalingFits, summary: Mapping[str, Any]) -> Table:
    about = summary.get("datasets", {})
    rows = tuple(
        (
            d.dataset,
            d.domain,
            _describe(about.get(d.dataset)),
            f"{d.num_trials:,}",
            ", ".join(f"{n:,}" for n in d.train_sizes),
            with_range(d.d_data, d.d_data_range),
            with_range(d.label_sharpness, d.label_sharpness_range),
            "mixed" if d.image_size is None or d.channels is None else f"{d.image_size}² × {d.channels}",
        )
        for d in fits.datasets
    )
    return Table(
        "datasets",
        "Datasets",
        "d_data by maximum likelihood; ranges are over train sizes and class pairs.",
        ("dataset", "domain", "what it is", "trials", "train sizes", "d_data", "K_F", "side² × channels"),
        rows,
        numeric_from=3,
    )


def _describe(entry: object) -> str:
    if isinstance(entry, Mapping):
        return ". ".join(str(entry[key]).rstrip(".") for key in ("title", "description") if entry.get(key))
    return "" if entry is None else str(entry)


def synthetic_data(fits: ScalingFits, summary: Mapping[str, Any]) -> list[str]:
    """Return one sentence per dataset that is described as synthetic in any degree."""
    about = {d.dataset: _describe(summary.get("datasets", {}).get(d.dataset)) for d in fits.datasets}
    return [f"{name}: {text.rstrip('.')}." for name, text in about.items() if "synthetic" in text.lower()]


def _published(full: pd.DataFrame) -> Table:
    both = side_by_side(full)
    rows = tuple(
        (
            str(row["dataset"]),
            f"{row['train_size']:,.0f}",
            *(
                number(row[name + twin])
                for name in ("d_data", "label_sharpness", "test_loss")
                for twin in ("", "_published")
            ),
        )
        for _, row in both.iterrows()
    )
    return Table(
        "published",
        "Side by side with the published numbers",
        "At equal dataset and train size; losses are geometric means over the models that both have. The "
        "published data mode, class pairs, channels and image size differ from the corrected ones.",
        ("dataset", "train size", "d_data", "published", "K_F", "published", "test loss", "published"),
        rows,
    )


def _records(
    key: str,
    title: str,
    records: Iterable[Mapping[str, Any]],
    note: str = "",
    numeric_from: int | None = None,
) -> Table:
    """Lay out flat records under the union of their keys, in order of first appearance; as text throughout
    unless ``numeric_from`` says where numbers start.
    """
    found = list(records)
    names = tuple(dict.fromkeys(name for record in found for name in record))
    cells = tuple(tuple(_cell(record.get(name)) for name in names) for record in found)
    return Table(key, title, note, names, cells, len(names) if numeric_from is None else numeric_from)


def _cell(value: object) -> str:
    return number(value) if isinstance(value, float) else "" if value is None else str(value)
