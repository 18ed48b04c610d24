"""Sentences about what few datasets cannot show; kept in one place so that every output says the same."""

from __future__ import annotations

import pandas as pd

from orchestrator.results import columns as c

#: With fewer datasets than this in a domain, a trend over its datasets is a remark, not a finding. The
#: study's own medical slope, with seven datasets, rests on one of them.
MIN_CONVINCING_DATASETS = 5


def few_datasets(rows: pd.DataFrame) -> tuple[str, ...]:
    """Return one sentence per domain in ``rows`` that has too few datasets to conclude from."""
    counts = rows.groupby(c.DOMAIN)[c.DATASET].nunique()
    return tuple(
        sentence
        for domain, number in counts.items()
        for sentence in few_domain_datasets(str(domain), int(number))
    )


def few_domain_datasets(domain: str, number: int) -> list[str]:
    """Return a sentence where a domain has too few datasets to conclude from, or nothing."""
    if number >= MIN_CONVINCING_DATASETS:
        return []
    return [
        f"{plural(number, f'{domain} dataset')}: a trend over {domain} datasets cannot be told from the "
        f"peculiarities of {'that one' if number == 1 else 'these'}; "
        f"at least {MIN_CONVINCING_DATASETS} are needed."
    ]


def no_trial(model: str, subset: str) -> str:
    """Say that nothing was there to fit, of which model and domain where it is not all of them."""
    whose = "" if model == "pooled" else f" of {model}"
    where = "" if subset == "all" else f" on a {subset} dataset"
    return f"no usable trial{whose}{where}"


def plural(count: int, noun: str) -> str:
    """Return ``1 dataset``, ``2 datasets``."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listing(names: list[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
