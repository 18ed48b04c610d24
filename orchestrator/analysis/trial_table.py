"""The report's table of trials, as data that the page itself sorts, filters and pages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from orchestrator.analysis.formats import Table, number
from orchestrator.analysis.ranking import best_models
from orchestrator.results import columns as c

TEXT_COLUMNS = {
    c.MODEL: "model",
    c.RECIPE: "recipe",
    c.DATASET: "dataset",
    c.CLASS_PAIR: "pair",
    c.STATUS: "status",
}
NUMBER_COLUMNS = {
    c.TRAIN_SIZE: "N",
    c.SEED: "seed",
    c.TEST_LOSS: "test loss",
    c.TEST_ACCURACY: "accuracy",
    c.AUC: "AUC",
    "seed_std": "seed spread",
    c.D_DATA_MLE: "d_data",
    c.LABEL_SHARPNESS: "K_F",
    c.WALL_TIME_S: "time (s)",
}
"""Columns with their headings; those that a sweep does not have, or that are empty, are left out."""

_CELL = [c.MODEL, c.RECIPE, c.DATASET, c.CLASS_PAIR, c.TRAIN_SIZE]


def trial_data(
    full: pd.DataFrame, devices: Mapping[str, str], runs: Mapping[str, str] | None = None, pages: str = ""
) -> dict[str, Any]:
    """Return header and rows of all trials, ready for JSON; numbers stay numbers.

    Rows are ordered by model, dataset, class pair, N and seed.

    Args:
        full: The results table.
        devices: What each trial ran on, by its id, as far as is known.
        runs: What the tracker calls each trial's run, by trial id, as far as is known.
        pages: What stands before that in the address of its page.
    """
    order = [name for name in (*_CELL, c.SEED) if name in full]
    rows = full.sort_values(order, kind="stable") if order else full.copy()
    if c.RECIPE in rows and rows[c.RECIPE].nunique() < 2:
        rows = rows.drop(columns=c.RECIPE)
    keys = [name for name in _CELL if name in rows]
    if len(rows):
        rows["seed_std"] = rows.groupby(keys, dropna=False)[c.TEST_LOSS].transform("std")
    rows["device"] = [devices.get(str(name), "") for name in rows[c.TRIAL_ID]]
    text = {name: title for name, title in TEXT_COLUMNS.items() if name in rows}
    numbers = {name: title for name, title in NUMBER_COLUMNS.items() if name in rows}
    ends = {"device": "device", c.TRIAL_ID: "trial"}
    columns = {name: title for name, title in (text | numbers | ends).items() if not _is_empty(rows[name])}
    cells = [[_plain(value) for value in row] for row in rows[[*columns]].itertuples(index=False, name=None)]
    numeric = [name in numbers for name in columns]
    known = runs or {}
    return {
        "header": [*columns.values()],
        "numeric": numeric,
        "rows": cells,
        "pages": pages,
        "runs": [known.get(str(name), "") for name in rows[c.TRIAL_ID]] if known else [],
    }


def best_table(full: pd.DataFrame) -> Table:
    """Return the model of lowest mean test loss per dataset and train size."""
    rows = tuple(
        (
            str(row[c.DATASET]),
            str(row[c.MODEL]) if row["num_compared"] else "models share no class pair and seed",
            f"{row[c.TRAIN_SIZE]:,}",
            number(row[c.TEST_LOSS]),
            number(row["seed_std"]),
            number(row[c.TEST_ACCURACY]),
            "" if pd.isna(row["runner_up"]) else str(row["runner_up"]),
            number(row["runner_up_loss"]),
            str(row["num_compared"]),
        )
        for row in best_models(full).to_dict("records")
    )
    header = ("dataset", "model", "N", "test loss", "seed spread", "accuracy", "next", "its loss", "cells")
    note = (
        "Lowest mean test loss over the class pairs and seeds (cells) that all models have. Seed spread is "
        "the standard deviation over seeds; without it, or within it, the order of two models means nothing."
    )
    return Table("best", "Best model per dataset and train size", note, header, rows, numeric_from=2)


def script_json(document: object) -> str:
    """Return JSON that may stand inside a ``script`` element, whatever users named things."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def point_data(points: pd.DataFrame) -> dict[str, Any]:
    """Return the points that figures draw, one row per cell, averaged over seeds."""
    cells = [[_plain(value) for value in row] for row in points.itertuples(index=False, name=None)]
    return {"columns": [str(name) for name in points.columns], "data": cells}


def _is_empty(column: pd.Series) -> bool:
    return len(column) > 0 and bool((column.isna() | (column == "")).all())


def _plain(value: Any) -> str | int | float | None:
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return None
    found = float(value)
    if not math.isfinite(found):
        return "∞" if found > 0 else "−∞"
    return int(found) if found.is_integer() and abs(found) < 1e15 else float(f"{found:.6g}")
