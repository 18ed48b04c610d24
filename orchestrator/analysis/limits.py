"""Limits of a table: sentences on what it cannot show."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from orchestrator.analysis.number_formats import listing
from orchestrator.analysis.results_tables.chance_level import AT_CHANCE_SHARE, reaches
from orchestrator.analysis.results_tables.points import AT_CHANCE_LEVEL, LOG_LOSS, OF_CHANCE_LOSS
from orchestrator.results.columns import (
    DATA_MODE,
    DATASET,
    DOMAIN,
    DOMAINS,
    MODEL,
    NUM_CONFLICTS,
    SEED,
)
from search_spaces.errors import plural

MIN_CONVINCING_DATASETS = 5
"""Datasets of a domain below which a trend over them is a remark, not a finding."""
MAX_NAMED = 4
"""Datasets that a sentence names one by one."""


def few_of_domain(domain: str, number: int) -> str:
    """Say that so many datasets of a domain are too few to conclude from."""
    add_more = f"Add at least {MIN_CONVINCING_DATASETS - number}."
    if number == 1:
        return f"One {domain} dataset shows no trend across {domain} datasets. {add_more}"
    return (
        f"With only {number} {domain} datasets, a trend across them cannot be separated from "
        f"differences between these {number}. {add_more}"
    )


def limits_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[str, ...]:
    """Return what cannot be concluded from a table.

    Args:
        full: All trials.
        points: The points that are fitted.
    """
    return (
        *_at_chance_level(points),
        *_of_domains(full, points),
        *_of_modes(full),
        *_of_conflicts(full),
        *_of_repeats(full, points),
    )


def _at_chance_level(points: pd.DataFrame) -> Iterator[str]:
    """Say how many losses are at chance level, and how many networks are over-confident."""
    rows_with_loss = points[points[LOG_LOSS].notna()]
    num_points = plural(len(rows_with_loss), "point")
    is_at_chance = rows_with_loss[AT_CHANCE_LEVEL] > 0
    if is_at_chance.any():
        yield (
            f"{int(is_at_chance.sum())} of {num_points} are at chance level: their loss is "
            f"{AT_CHANCE_SHARE:g} ln n or more for n classes{_where(rows_with_loss, is_at_chance)}."
        )
    is_over_confident = reaches(rows_with_loss[OF_CHANCE_LOSS]) & ~is_at_chance
    if is_over_confident.any():
        yield (
            f"{int(is_over_confident.sum())} of {num_points} are over-confident: a loss as high as "
            "chance with an accuracy or AUROC well above it"
            f"{_where(rows_with_loss, is_over_confident)}."
        )


def _where(rows_with_loss: pd.DataFrame, is_affected: pd.Series) -> str:
    """Name the datasets of the affected points, if they are few."""
    counts = is_affected.groupby(rows_with_loss[DATASET]).agg(["sum", "size"])
    affected = counts[counts["sum"] > 0]
    if len(affected) > MAX_NAMED:
        return ""
    names = []
    for name, row in affected.iterrows():
        names.append(f"{name} {row['sum']} of {row['size']}")
    return f" ({listing(names)})"


def _of_domains(full: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    """Say which domains have too few datasets, or none; nothing of a table of one dataset."""
    if full[DATASET].nunique() == 1:
        return
    num_datasets = points.groupby(DOMAIN)[DATASET].nunique()
    for domain, number in num_datasets.items():
        if number < MIN_CONVINCING_DATASETS:
            yield few_of_domain(str(domain), int(number))
    for domain in DOMAINS:
        if domain not in num_datasets:
            yield f"No {domain} dataset: nothing can be said about differences between domains."


def _of_modes(full: pd.DataFrame) -> Iterator[str]:
    """Say that trials of several data modes are fitted together."""
    modes = sorted(full[DATA_MODE].unique())
    if len(modes) > 1:
        yield f"Trials of several data modes ({listing(modes)}) are fitted together."


def _of_conflicts(full: pd.DataFrame) -> Iterator[str]:
    """Say where identical images have different labels."""
    conflicting = sorted(full.loc[full[NUM_CONFLICTS] > 0, DATASET].unique())
    if conflicting:
        names = listing(conflicting)
        yield f"Identical images with different labels in {names}: there K_F has no finite value."


def _of_repeats(full: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    """Say that there is one model, or one seed."""
    counts = {"model": points[MODEL].nunique(), "seed": full[SEED].nunique()}
    single = [name for name, count in counts.items() if count == 1]
    if single:
        yield f"There is only one {listing(single)}: another one could give other results."
