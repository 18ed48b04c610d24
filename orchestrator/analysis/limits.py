"""Sentences on what cannot be concluded from a results table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from orchestrator.analysis.number_formats import listing, number
from orchestrator.analysis.results_tables.chance_level import (
    AT_CHANCE_SHARE,
    LEARNED_AUC,
    chance_limits_in_words,
    is_unfitted,
    reaches,
)
from orchestrator.analysis.results_tables.dataset_summaries import DatasetSummary
from orchestrator.analysis.results_tables.points import AT_CHANCE_LEVEL, LOG_LOSS, OF_CHANCE_LOSS
from orchestrator.results.columns import (
    CODE_VERSION,
    DATA_MODE,
    DATASET,
    DOMAIN,
    DOMAINS,
    MEDICAL,
    MODEL,
    NUM_CLASSES,
    NUM_CONFLICTS,
    SEED,
    TEST_ACCURACY,
    TEST_SIZE,
    TRAIN_ACCURACY,
    TRAIN_SIZE,
)
from search_spaces.datasets import ImageOrigin
from search_spaces.errors import plural

MIN_CONVINCING_DATASETS = 5
"""Smallest number of datasets of a domain for statements about the domain. If there are fewer,
a remark warns the user."""
LARGE_TEST_SET = 1_000
"""Smallest number of test images without a remark. With this number, the standard error of an
accuracy of 90 % is below one percentage point."""
MAX_NAMED = 4
"""Largest number of datasets that a sentence lists by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepFacts:
    """Facts about a sweep that limit its answers and that no results table contains.

    Attributes:
        asked_after_seeing: Keys of questions that were asked after somebody had seen the
            images.
        origins: Origins of images that are not independent, by dataset.
    """

    asked_after_seeing: tuple[str, ...] = ()
    origins: Mapping[str, ImageOrigin] = field(default_factory=dict)


def few_of_domain(domain: str, number: int) -> str:
    """Return a sentence that a domain has too few datasets."""
    verb = "is" if number == 1 else "are"
    counted = plural(number, f"{domain} dataset")
    return f"{counted} {verb} too few for a statement about {domain} datasets alone."


def limits_of(full: pd.DataFrame, points: pd.DataFrame) -> tuple[str, ...]:
    """Return sentences on what cannot be concluded from a table.

    Args:
        full: All trials, with one row per trial.
        points: The fitted points, with one row per point.
    """
    return (
        *_at_chance_level(points),
        *_unfitted(points),
        *_of_repeats(full, points),
        *_without_error(points),
        *_of_domains(full, points),
        *_of_measurement(full),
        *_of_modes(full),
        *_of_versions(full),
        *_of_conflicts(full),
    )


def _at_chance_level(points: pd.DataFrame) -> Iterator[str]:
    """Yield sentences on the number of losses near the chance loss.

    They distinguish networks that separate the classes from networks that do not.
    """
    rows_with_loss = points[points[LOG_LOSS].notna()]
    is_high = reaches(rows_with_loss[OF_CHANCE_LOSS])
    if not is_high.any():
        return
    is_at_chance = rows_with_loss[AT_CHANCE_LEVEL] > 0
    has_learned = is_high & ~is_at_chance
    num_points = plural(len(rows_with_loss), "point")
    chance_limits = chance_limits_in_words(rows_with_loss[NUM_CLASSES].fillna(0))
    yield (
        f"In {int(is_high.sum())} of {num_points} the loss is at least {AT_CHANCE_SHARE:.0%} "
        f"of the loss of guessing, that is, at least {chance_limits}."
    )
    if has_learned.any():
        yield (
            f"At {int(has_learned.sum())} of these points the network still separates the "
            f"classes: accuracy or AUROC is well above chance{_where(rows_with_loss, has_learned)}."
        )
    if is_at_chance.any():
        yield (
            f"At {int(is_at_chance.sum())} of these points, AUROC is below {LEARNED_AUC:g} and "
            "accuracy less than a third of the way from chance to 100 %. These points count as "
            f"chance level{_where(rows_with_loss, is_at_chance)}."
        )


def _unfitted(points: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence on the number of networks that do not fit their own training images."""
    num_unfitted = int(is_unfitted(points[TRAIN_ACCURACY], points[NUM_CLASSES]).sum())
    if num_unfitted:
        yield (
            f"In {num_unfitted} of {plural(len(points), 'point')} the network does not fit "
            "its own training images: train accuracy is less than halfway from chance to 100 "
            "%. With longer training, the losses of these networks could be lower."
        )


def _without_error(points: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if most networks make no error. Their loss measures only their confidence."""
    num_points = int(points[TEST_ACCURACY].notna().sum())
    num_perfect = num_without_error(points)
    if 2 * num_perfect > num_points:
        yield of_points_without_error(num_perfect, num_points)


def num_without_error(points: pd.DataFrame) -> int:
    """Return the number of points at which every test image is classified correctly."""
    return int((points[TEST_ACCURACY] >= 1).sum())


def of_points_without_error(num_perfect: int, num_points: int) -> str:
    """Return the sentence on points at which no test image is classified wrongly."""
    return (
        f"At {num_perfect} of {plural(num_points, 'point')}, the network classifies all test "
        "images correctly. At these points, the loss measures confidence, not errors."
    )


def _where(rows_with_loss: pd.DataFrame, is_affected: pd.Series) -> str:
    """Return the counts of affected points by dataset; empty if many datasets are affected."""
    counts = is_affected.groupby(rows_with_loss[DATASET]).agg(["sum", "size"])
    affected = counts[counts["sum"] > 0]
    if len(affected) > MAX_NAMED:
        return ""
    names = []
    for name, row in affected.iterrows():
        names.append(f"{name} {row['sum']} of {row['size']}")
    return f" ({listing(names)})"


def _of_domains(full: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if a table of several datasets has too few or no datasets of a domain."""
    if full[DATASET].nunique() == 1:
        return
    num_datasets = points.groupby(DOMAIN)[DATASET].nunique()
    for domain, num in num_datasets.items():
        if num < MIN_CONVINCING_DATASETS:
            yield few_of_domain(str(domain), int(num))
    for domain in DOMAINS:
        if domain not in num_datasets:
            yield f"There is no {domain} dataset, so domains cannot be compared."


def _of_measurement(full: pd.DataFrame) -> Iterator[str]:
    """Warn about a small test set, and about errors of d_data and K_F."""
    if full[DATASET].nunique() == 1:
        return
    smallest = full[TEST_SIZE].min()
    if smallest < LARGE_TEST_SET:
        error = 100 * math.sqrt(0.9 * 0.1 / smallest)
        yield (
            f"The smallest test set has {smallest:,.0f} images. With so few images, an accuracy "
            f"of 90 % has a standard error of {number(error, 2)} percentage points."
        )
    yield (
        "The fits use d_data and K_F as if they were measured without error. Errors in d_data and "
        "K_F usually make a relation look weaker, and the intervals do not correct for this."
    )


def shared_collections(
    origins: Mapping[str, ImageOrigin], datasets: Sequence[DatasetSummary]
) -> dict[str, tuple[str, ...]]:
    """Return the collections of images from which more than one dataset comes.

    Args:
        origins: Origin of the images, by dataset.
        datasets: The fitted datasets.

    Returns:
        Names of the datasets that come from each collection, by name of the collection. Each
        collection has at least two datasets.
    """
    names_of: dict[str, list[str]] = defaultdict(list)
    for dataset in datasets:
        origin = origins.get(dataset.dataset)
        if origin is not None and origin.collection:
            names_of[origin.collection].append(dataset.dataset)
    shared = {}
    for collection, names in names_of.items():
        if len(names) > 1:
            shared[collection] = tuple(names)
    return shared


def limits_of_origins(
    origins: Mapping[str, ImageOrigin], datasets: Sequence[DatasetSummary]
) -> tuple[str, ...]:
    """Return sentences on datasets, or training and test images, that are not independent.

    Args:
        origins: Origin of the images, by dataset.
        datasets: The fitted datasets.
    """
    cut = []
    for dataset in datasets:
        origin = origins.get(dataset.dataset)
        if origin is not None and origin.cut_from:
            cut.append(dataset)
    texts = []
    if cut:
        # This remark comes first, because it is about losses and a terminal may show only the
        # first remarks.
        texts.append(
            f"In {len(cut)} of {plural(len(datasets), 'dataset')}, training and test images "
            "come from the same few pictures."
        )
    medical = [dataset for dataset in datasets if dataset.domain == MEDICAL]
    if medical and all(dataset in cut for dataset in medical):
        texts.append(
            "No medical dataset of this sweep has several patients, so no result is about patients."
        )
    dependent = []
    for collection, names in shared_collections(origins, datasets).items():
        shared_by = "both" if len(names) == 2 else "all"
        dependent.append(f"{listing(names)} are not independent: {shared_by} show {collection}.")
    if dependent:
        num_datasets = plural(len(datasets), "dataset")
        dependent.append(f"Because of this, intervals over the {num_datasets} may be too narrow.")
    texts += dependent
    if cut:
        pictures = [f"{one.dataset} ({origins[one.dataset].cut_from})" for one in cut]
        texts.append(
            f"Images are cut from these pictures: {listing(pictures)}. Losses on new pictures "
            "are probably higher."
        )
    return tuple(texts)


def _of_modes(full: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if trials of several data modes are fitted together."""
    modes = sorted(full[DATA_MODE].unique())
    if len(modes) > 1:
        yield f"Trials of several data modes ({listing(modes)}) are fitted together."


def _of_versions(full: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if the trials ran with several versions of the code.

    An empty version is an unknown version.
    """
    num_versions = full.loc[full[CODE_VERSION] != "", CODE_VERSION].nunique()
    if num_versions > 1:
        yield f"The trials come from {num_versions} versions of the code."


def _of_conflicts(full: pd.DataFrame) -> Iterator[str]:
    """Yield a warning on datasets in which identical images have different labels."""
    conflicting = sorted(full.loc[full[NUM_CONFLICTS] > 0, DATASET].unique())
    if conflicting:
        names = listing(conflicting)
        yield f"In {names}, identical images have different labels, so K_F is infinite."


def _of_repeats(full: pd.DataFrame, points: pd.DataFrame) -> Iterator[str]:
    """Yield a warning if there is only one model, train size or seed."""
    counts = {
        "model": points[MODEL].nunique(),
        "train size": points[TRAIN_SIZE].nunique(),
        "seed": full[SEED].nunique(),
    }
    single = [name for name, count in counts.items() if count == 1]
    if single:
        yield (
            f"There is only one {listing(single)}. With another {listing(single, 'or')}, the "
            "results could be different."
        )
