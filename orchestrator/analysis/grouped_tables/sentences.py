"""Sentences on the fit of a user's table: slopes, their uncertainty and their limits."""

from __future__ import annotations

from orchestrator.analysis.grouped_tables.design import Design
from orchestrator.analysis.grouped_tables.pooled import PooledCorrelation
from orchestrator.analysis.grouped_tables.scatter import MeanScatter
from orchestrator.analysis.grouped_tables.slopes import Slope
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.number_formats import (
    ADJUSTED_P_DECIDES,
    adjusted_p_equals,
    interval,
    listing,
    number,
    p_equals,
)
from orchestrator.analysis.sentences.of_power import detectable_slope
from search_spaces.errors import plural

MIN_SHARE_SHOWN = 0.005
"""Smallest share of scatter for which a sentence is written, as in :class:`MeanScatter`."""


def answer(
    design: Design,
    num_groups: int,
    within: Slope,
    between: Slope,
    scatter: MeanScatter | None,
) -> str:
    """Return the sentences on the slopes on one column: within groups, then between groups."""
    texts = [
        _level(design, within, f"within one {listing(design.groups)}"),
        _level(design, between, f"between {_units(design, num_groups)}"),
    ]
    if scatter is not None and scatter.share >= MIN_SHARE_SHOWN:
        texts.append(_scatter(design, num_groups, scatter))
    return " ".join(texts)


def _units(design: Design, num_groups: int) -> str:
    """Return the number of groups in words. Crossed groups are counted as combinations."""
    if len(design.groups) > 1:
        return f"{num_groups:,} combinations of {listing(design.groups)}"
    return f"{num_groups:,} groups"


def _level(design: Design, slope: Slope, place: str) -> str:
    """Return the sentences on the slope at one level."""
    start = f"{place[:1].upper()}{place[1:]}"
    if design.within:
        start = f"At equal {listing(design.within)}, {place}"
    if slope.value is None:
        return f"{start}, the slope on {slope.on} cannot be estimated: {slope.reason}."
    if slope.is_significant:
        verb = "rises" if slope.value > 0 else "falls"
        claim = f"{design.response} {verb} with {slope.on}"
    else:
        claim = f"no relation of {design.response} with {slope.on} was detected"
    return f"{start}, {claim} ({_numbers(slope)}).{_limits(slope)}"


def _numbers(slope: Slope) -> str:
    """Return the slope, the interval if there is a claim, and the adjusted p-value in words."""
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
    """Return sentences on slopes that agree with the data, and on the most influential group."""
    text = ""
    if not slope.is_significant and slope.interval is not None:
        text += (
            f" Slopes from {interval(slope.interval)} (95 % interval) are compatible with "
            "these data."
        )
        text += _why_no_claim(slope, slope.interval)
        power = detectable_slope(slope.test, slope.num_tests)
        if power:
            text += f" {power}"
    group = slope.most_influential
    if group is not None:
        without = slope.left_out[group]
        if number(without) != number(slope.value):
            text += f" Without {group} the slope is {number(without)}."
    return text


def _why_no_claim(slope: Slope, bounds: Interval) -> str:
    """Return why there is no claim although the interval excludes 0; empty if it includes 0."""
    low, high = bounds
    if slope.p_value is None or low <= 0 <= high:
        return ""
    if slope.p_value <= LEVEL:
        return f" This interval excludes 0, but it {ADJUSTED_P_DECIDES}"
    return (
        " This interval excludes 0, but it comes from one analysis of this slope, and a second "
        f"analysis gives {p_equals(slope.p_value)}. isweep makes a claim only if both analyses "
        "support it."
    )


def _scatter(design: Design, num_groups: int, scatter: MeanScatter) -> str:
    """Return the share of the variance between groups that comes from scatter, in words."""
    share = f"{scatter.share:.1%}" if scatter.share < 0.1 else f"{scatter.share:.0%}"
    text = (
        f"{share} of the variance of {scatter.on} between {_units(design, num_groups)} comes from "
        "the scatter of rows within groups."
    )
    if scatter.slope is None:
        return f"{text} With so much scatter, no claim is made between groups."
    return (
        f"{text} Without this scatter, the slope between groups is {number(scatter.slope)} "
        f"(95 % interval {interval(scatter.interval)})."
    )


def pooled_answer(
    design: Design,
    num_rows: int,
    num_groups: int,
    pooled: PooledCorrelation,
) -> str:
    """Return the sentences on a pooled correlation, and on the relations that it mixes."""
    response_share, column_share = (f"{share:.0%}" for share in pooled.shares)
    mixture = {
        "0%": "r shows almost only the relation within groups",
        "100%": "r shows almost only the relation between groups",
    }.get(column_share, "r mixes the relations within and between groups")
    return (
        f"Over all rows, the correlation r with {pooled.on} is {number(pooled.r)} "
        f"({_small_p(pooled.p_value)}). This p counts the {plural(num_rows, 'row')} of "
        f"{_units(design, num_groups)} as independent. {response_share} of the variance of "
        f"{design.response} and {column_share} of the variance of {pooled.on} lie between "
        f"groups, so {mixture}.{_by_group(pooled)}"
    )


def _small_p(p: float) -> str:
    """Return a p-value in words, with its order of magnitude if it is below 0.001."""
    if p < 1e-300:
        return "p < 1e-300"
    return p_equals(p) if p >= 1e-3 else f"p = {p:.0e}"


def _by_group(pooled: PooledCorrelation) -> str:
    """Return the range of the correlations within single groups, in words."""
    if not pooled.by_group:
        return ""
    lowest = number(min(pooled.by_group.values()))
    highest = number(max(pooled.by_group.values()))
    if lowest == highest:
        return f" Within each group, r is {lowest}."
    return f" Within single groups, r ranges from {lowest} to {highest}."
