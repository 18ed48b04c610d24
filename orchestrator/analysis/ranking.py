"""Which model did best: per dataset and train size, over the class pairs and seeds that all models have."""

from __future__ import annotations

from typing import Any

import pandas as pd

from orchestrator.results import columns as c

COLUMNS = (
    c.DATASET,
    c.TRAIN_SIZE,
    c.MODEL,
    c.TEST_LOSS,
    "seed_std",
    c.TEST_ACCURACY,
    "runner_up",
    "runner_up_loss",
    "num_models",
    "num_compared",
)
"""``seed_std`` is the standard deviation over seeds (of means over class pairs); ``num_compared`` counts the
class pairs and seeds that every model has: the means are over these."""

_CELL = [c.CLASS_PAIR, c.SEED]


def best_models(table: pd.DataFrame) -> pd.DataFrame:
    """Return the model of lowest mean test loss per dataset and train size, with its runner-up.

    Args:
        table: One row per trial; see :mod:`orchestrator.results.columns`. Trials that diverged or have no
            loss are no candidates, and their cells are compared for no model.

    Returns:
        One row per dataset and train size, columns :data:`COLUMNS`. Where the models share no class pair and
        seed, ``num_compared`` is 0 and no model is named.
    """
    rows = table.reindex(columns=sorted({*table.columns, *_CELL, c.STATUS, c.TEST_ACCURACY, c.RECIPE}))
    rows = rows[rows[c.TEST_LOSS].notna() & rows[c.STATUS].isin([c.DONE])].fillna(
        {c.CLASS_PAIR: "", c.SEED: 0}
    )
    if rows[c.RECIPE].nunique() > 1:
        rows[c.MODEL] = rows[c.MODEL] + " (" + rows[c.RECIPE].astype(str) + ")"
    found = [_best(key, group) for key, group in rows.groupby([c.DATASET, c.TRAIN_SIZE])]
    return pd.DataFrame(found, columns=list(COLUMNS))


def _best(key: Any, group: pd.DataFrame) -> dict[str, Any]:
    num_models = group[c.MODEL].nunique()
    shared = group.groupby(_CELL)[c.MODEL].transform("nunique") == num_models
    kept = group[shared]
    row = {c.DATASET: key[0], c.TRAIN_SIZE: int(key[1]), "num_models": num_models}
    if kept.empty:
        return row | {"num_compared": 0}
    means = kept.groupby(c.MODEL)[c.TEST_LOSS].mean().sort_values(kind="stable")
    best = kept[kept[c.MODEL] == means.index[0]]
    return row | {
        "num_compared": int(kept.groupby(_CELL).ngroups),
        c.MODEL: means.index[0],
        c.TEST_LOSS: float(means.iloc[0]),
        "seed_std": float(best.groupby(c.SEED)[c.TEST_LOSS].mean().std()),
        c.TEST_ACCURACY: float(best[c.TEST_ACCURACY].mean()),
        "runner_up": means.index[1] if len(means) > 1 else None,
        "runner_up_loss": float(means.iloc[1]) if len(means) > 1 else None,
    }
