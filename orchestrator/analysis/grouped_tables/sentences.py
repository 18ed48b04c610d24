"""Sentences on a fitted table: what was found, how sure it is, and what limits it."""

from __future__ import annotations

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.pooled import PooledCorrelation
from orchestrator.analysis.grouped_tables.scatter import MeanScatter
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.number_formats import (
    adjusted_p_equals,
    interval,
    listing,
    number,
    p_equals,
    per_cent_of,
)
from search_spaces.errors import plural

MIN_SHARE_SHOWN = 0.005
"""Smallest share of scatter in the groups' means that is worth a sentence."""


def answer(
    design: Design,
    num_groups: int,
    within: Slope,
    between: Slope,
    scatter: MeanScatter | None,
) -> str:
    """Say what is claimed of one column, within groups first and then between them."""
    texts = [
        _level(design, within, f"within one {listing(design.groups)}"),
        _level(design, between, f"between {_units(design, num_groups)}"),
    ]
    if scatter is not None and scatter.share >= MIN_SHARE_SHOWN:
        texts.append(_scatter(design, num_groups, scatter))
    return " ".join(texts)


def _units(design: Design, num_groups: int) -> str:
    """Say how many groups there are, or combinations of several."""
    if len(design.groups) > 1:
        return f"{num_groups:,} combinations of {listing(design.groups)}"
    return f"{num_groups:,} groups"


def _level(design: Design, slope: Slope, place: str) -> str:
    """Say what a slope shows at one level."""
    start = f"{place[:1].upper()}{place[1:]}"
    if design.within:
        start = f"At equal {listing(design.within)}, {place}"
    if slope.value is None:
        return f"{start}, nothing can be said of {slope.on}: {slope.reason}."
    if slope.is_significant:
        verb = "rises" if slope.value > 0 else "falls"
        claim = f"{design.response} {verb} with {slope.on}"
    else:
        claim = f"no relation of {design.response} with {slope.on} was detected"
    return f"{start}, {claim} ({_numbers(slope)}).{_limits(slope)}"


def _numbers(slope: Slope) -> str:
    """Write the slope, the interval of a claim, and what decides."""
    parts = [f"slope {number(slope.value)}"]
    if slope.is_significant:
        parts.append(f"95 % interval {interval(slope.interval)}")
    if slope.adjusted_p is not None:
        parts.append(adjusted_p_equals(slope.adjusted_p, slope.num_tests))
        if slope.adjusted_p <= LEVEL and not slope.is_significant:
            parts.append("but the interval includes 0")
    if slope.reason:
        parts.append(slope.reason)
    return ", ".join(parts)


def _limits(slope: Slope) -> str:
    """Say which slopes are possible where none is claimed, and which group matters most."""
    text = ""
    if not slope.is_significant and slope.interval is not None and slope.detectable:
        text += (
            f" Slopes from {interval(slope.interval)} (95 % interval) are compatible with these "
            f"data. At a significance level of {per_cent_of(slope.test_level)}, 80 of 100 such "
            f"studies would detect a slope of {number(slope.detectable)}."
        )
    group = slope.most_influential
    if group is not None:
        without = slope.left_out[group]
        if number(without) != number(slope.value):
            text += f" Without {group} the slope is {number(without)}."
    return text


def _scatter(design: Design, num_groups: int, scatter: MeanScatter) -> str:
    """Say how much of the spread between groups is the scatter of rows within them."""
    share = f"{scatter.share:.1%}" if scatter.share < 0.1 else f"{scatter.share:.0%}"
    text = (
        f"Of the variance of {scatter.on} between {_units(design, num_groups)}, {share} is the "
        "scatter of rows within them, divided by their number."
    )
    if scatter.slope is None:
        return f"{text} That is too much to tell both apart, so nothing is claimed between groups."
    return (
        f"{text} Without it the slope between groups is {number(scatter.slope)} "
        f"(95 % interval {interval(scatter.interval)})."
    )


def pooled_answer(
    design: Design,
    num_rows: int,
    num_groups: int,
    pooled: PooledCorrelation,
) -> str:
    """Say what the pooled correlation is, and what it mixes."""
    response_share, column_share = (f"{share:.0%}" for share in pooled.shares)
    mixture = {
        "0%": "it is nearly the slope within them",
        "100%": "it is nearly the slope between them",
    }.get(column_share, "it mixes both slopes")
    return (
        f"Pooled over all rows, r with {pooled.on} is {number(pooled.r)} "
        f"({_small_p(pooled.p_value)}). That takes {plural(num_rows, 'row')} of "
        f"{_units(design, num_groups)} for independent. Of the spread of {design.response} "
        f"{response_share} and of {pooled.on} {column_share} lie between groups, so "
        f"{mixture}.{_by_group(pooled)}"
    )


def _small_p(p: float) -> str:
    """Write a p-value with its order of magnitude: pooled ones are often absurdly small."""
    if p < 1e-300:
        return "p < 1e-300"
    return p_equals(p) if p >= 1e-3 else f"p = {p:.0e}"


def _by_group(pooled: PooledCorrelation) -> str:
    """Say from where to where correlations of single groups run."""
    if not pooled.by_group:
        return ""
    lowest = number(min(pooled.by_group.values()))
    highest = number(max(pooled.by_group.values()))
    if lowest == highest:
        return f" Group by group r is {lowest}."
    return f" Group by group r runs from {lowest} to {highest}."
