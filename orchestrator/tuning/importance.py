"""Which searched parameters matter: how much of the losses' ranks each explains, beside what chance gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.tuning.search import CellSearch, rungs_of
from tasks.trials.search_result import capped

PARAMETERS = ("learning_rate", "weight_decay", "batch_size")
FEWEST_FOR_IMPORTANCE = 12
"""Points of a model, over its datasets. With twelve a rate that alone decides is told from chance in four
searches of five, with 18 in nearly all."""
NUM_GROUPS = 3
NUM_SHUFFLES = 999
ERROR = 0.05
"""How often chance alone tells any parameter of a model apart."""


def importance_table(cells: Sequence[CellSearch], seed: int = 0) -> pd.DataFrame:
    """Return how much each parameter decides the loss at the first rung, one row per model and parameter.

    The points of a model's datasets are taken together, by the rank of their loss within the dataset, at the
    first rung, because all trials come to it. A parameter explains the share of the ranks' variance that lies
    between its lowest, middle and highest third of points, or between batch sizes: the ε² of Kruskal and
    Wallis's test, without its ties. Models of fewer than ``FEWEST_FOR_IMPORTANCE`` points are left out, and
    those whose points are all alike.

    Args:
        cells: The search's.
        seed: Of the shuffles.

    Returns:
        Columns ``model``, ``parameter``, ``num_points``, ``share``, and ``by_chance``: what the shares stay
        below when losses are shuffled among the points of each dataset, for all parameters of a model in
        all but ``ERROR`` of the shuffles (Bonferroni).
    """
    rows = []
    for model in dict.fromkeys(search.cell.key[0] for search in cells):
        found = [_points(search) for search in cells if search.cell.key[0] == model]
        table = pd.concat([one for one in found if not one.empty] or [pd.DataFrame(columns=["rank"])])
        if len(table) < FEWEST_FOR_IMPORTANCE or table["rank"].nunique() == 1:
            continue
        rng = np.random.default_rng(seed)
        ranks = [one["rank"].to_numpy() for one in found]
        shuffled = np.stack(
            [np.concatenate([rng.permutation(some) for some in ranks]) for _ in range(NUM_SHUFFLES)]
        )
        for name in PARAMETERS:
            groups = _groups(table[name].to_numpy(dtype=float), split=name != "batch_size")
            limit = np.quantile(explained(shuffled, groups), 1 - ERROR / len(PARAMETERS), method="higher")
            share = explained(np.concatenate(ranks)[None], groups)[0]
            rows.append((model, name, len(table), float(share), float(limit)))
    return pd.DataFrame(rows, columns=["model", "parameter", "num_points", "share", "by_chance"])


def explained(ranks: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of the variance that lies between groups.

    Args:
        ranks: ``(num_shuffles, num_points)``, not all equal.
        groups: ``(num_points,)``.
    """
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    between = np.zeros(len(ranks))
    for group in np.unique(groups):
        inside = centred[:, groups == group]
        between += inside.sum(axis=1) ** 2 / inside.shape[1]
    return np.asarray(between / (centred**2).sum(axis=1))


def _groups(values: NDArray[np.float64], *, split: bool) -> NDArray[np.int64]:
    """Return the third of each value by its place in their order, or its place among the distinct ones."""
    if not split:
        return np.unique(values, return_inverse=True)[1]
    places = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return places * NUM_GROUPS // len(values)


def _points(search: CellSearch) -> pd.DataFrame:
    """Return the points of a cell with the ranks of their losses at the first rung."""
    rung = (rungs_of(search.cell) or (search.cell.num_epochs,))[0]
    rows = []
    for (point, run), result in search.results.items():
        if run == 0 and search.cell.contains(point):
            reached = [score.loss for score in result.curve if score.epoch == rung]
            rows.append(
                {**point.model_dump(), "loss": capped(reached[0] if reached else None, result.chance_loss)}
            )
    table = pd.DataFrame(rows, columns=[*PARAMETERS, "loss"])
    return table.assign(rank=table["loss"].rank(pct=True))
