"""Anybody's table: does a response go with a column, within groups and between them?

Rows of one group share what is peculiar to it, so both slopes are estimated, with intervals that
count groups, beside the pooled number and why it misleads. Groups may cross: a pair of classes
belongs to both. Shape letters: n rows, q regressors, U units (combinations of groups), G groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from textwrap import wrap
from typing import Literal

import numpy as np
import pandas as pd

from orchestrator.analysis import inference as i
from orchestrator.analysis.inference import LEVEL, Array, Interval
from orchestrator.analysis.table import (
    decided,
    established,
    interval,
    listing,
    number,
    p_value,
    plural,
)
from search_spaces.errors import ConfigError, collect, nearest_path, unknown_name
from tasks.sources.tables import READERS, TableError, read_text

MOST_LEFT_OUT = 0.05
"""Share of rows that may lack a value or repeat another row; beyond it a table says nothing of its
source."""
MOST = 1e100
"""Larger numbers, and smaller ones than its inverse, have no square."""
STEPS = 1e4
"""Steps of rounding that a column spreads over at least, so that its slope keeps four digits."""
MOST_CELLS = 200
"""Kinds of ``within``: each is a column of a matrix that is solved once per group."""
MOST_PERMUTED = 1_000
"""Of more groups a permutation says what t says, and takes a gigabyte."""
DETECTED = 0.5 * (1 + 0.84 / 1.96)
"""By the normal approximation, the slope that 80 % of studies with a 95 % interval of length 1
establish."""
SUFFIXES = (".csv", ".tsv", ".txt", *READERS)
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "-", "."})
#: Codes for a missing value (netCDF's fill too), and words of rows that sum up others: fitted, and
#: told.
NINES = (sign * (10.0**k - 1) for k in (3, 4, 5, 6) for sign in (-1, 1))
CODES = (-1.0, -9.0, -8.0, -88.0, -99.0, -99.9, 99.0, -32768.0, 65535.0, 9.96921e36, 1e20, *NINES)
SUMS = {
    "all",
    "average",
    "avg",
    "gesamt",
    "mean",
    "median",
    "overall",
    "pooled",
    "subtotal",
    "sum",
    "total",
}

Level = Literal["within", "between"]
LEVELS: tuple[Level, Level] = ("within", "between")


@dataclass(frozen=True, slots=True)
class Design:
    """What is asked of a table: which column of numbers is explained, by which (each at equal
    others), which columns say what rows belong together (all of them), and what is equal where two
    rows are compared.
    """

    response: str
    on: tuple[str, ...]
    groups: tuple[str, ...]
    within: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All of them, in that order."""
        return (self.response, *self.on, *self.groups, *self.within)


@dataclass(frozen=True, slots=True)
class Slope:
    """How the response goes with ``on`` within groups, or between them (one effect per group), at
    equal others; without a value, or an interval, for the ``reason`` given.

    Interval and p are by t of the jackknife over groups (CR3); between groups by least squares and
    permutation too: the wider interval, the larger p. ``adjusted_p`` is Holm's over all slopes.
    """

    level: Level
    on: str
    value: float | None = None
    interval: Interval | None = None
    p_value: float | None = None
    adjusted_p: float | None = None
    num_groups: int = 0
    left_out: dict[str, float] = field(default_factory=dict)
    reason: str = ""

    def times(self, factor: float) -> Slope:
        """Return it in other units."""
        if self.value is None:
            return self
        bounds = self.interval and (self.interval[0] * factor, self.interval[1] * factor)
        left_out = {name: value * factor for name, value in self.left_out.items()}
        return replace(self, value=self.value * factor, interval=bounds, left_out=left_out)

    @property
    def hangs_on(self) -> str:
        """The group that the slope hangs on most, with the slope without it, where that shows."""
        value, left_out = self.value or 0.0, self.left_out
        name = max(left_out, key=lambda group: abs(left_out[group] - value), default=None)
        without = "" if name is None else number(left_out[name])
        return "" if without in ("", number(value)) else f"; {without} without {name}"

    @property
    def established(self) -> bool:
        """Whether the slope is claimed: the adjusted p-value holds, and the interval excludes
        zero.
        """
        return established(self.adjusted_p, self.interval)

    @property
    def numbers(self) -> str:
        """The slope, its interval, what decides, and what it hangs on."""
        parts = [f"slope {number(self.value)}"]
        parts += [f"95 % interval {interval(self.interval)}"] if self.interval else []
        if self.adjusted_p is not None:
            parts.append(decided(self.p_value, self.adjusted_p, self.interval))
        if self.interval and not self.established:
            shown = number(DETECTED * (self.interval[1] - self.interval[0]))
            parts.append(f"about 80% of such studies would show {shown} alone")
        return ", ".join([*parts, *([self.reason] if self.reason else [])]) + self.hangs_on


@dataclass(frozen=True, slots=True)
class PooledCorrelation:
    """r over all rows as if independent, shares of spread between groups, and r within groups."""

    on: str
    r: float
    p_value: float
    shares: tuple[float, float]
    by_group: dict[str, float]


@dataclass(frozen=True, slots=True)
class GroupedFit:
    """Slopes of a table within and between its groups, the pooled numbers, and what was left
    out.
    """

    design: Design
    num_rows: int
    num_groups: int
    slopes: tuple[Slope, ...]
    pooled: tuple[PooledCorrelation, ...]
    remarks: tuple[str, ...]

    def find(self, level: Level, on: str) -> Slope:
        """Return one slope."""
        return next(slope for slope in self.slopes if (slope.level, slope.on) == (level, on))

    def sentence(self, on: str) -> str:
        """Say what can be said of one column: what is claimed at each level, and nothing else."""
        equal = f"At equal {listing(self.design.within)}: " if self.design.within else ""
        text = f"{equal}{'; '.join(self._said(self.find(level, on)) for level in LEVELS)}."
        return text[:1].upper() + text[1:]

    @property
    def units(self) -> str:
        """How many groups there are, or combinations of several."""
        several = f"combinations of {listing(self.design.groups)}"
        return f"{self.num_groups:,} {several if len(self.design.groups) > 1 else 'groups'}"

    def _said(self, slope: Slope) -> str:
        within = f"within one {listing(self.design.groups)}"
        where = within if slope.level == "within" else f"between {self.units}"
        if slope.value is None:
            return f"{where}, nothing can be said of {slope.on} ({slope.reason})"
        found = f"no relation with {slope.on} is established"
        if slope.established:
            found = (
                f"{self.design.response} {'rises' if slope.value > 0 else 'falls'} with {slope.on}"
            )
        return f"{where}, {found} ({slope.numbers})"

    def why_pooled_misleads(self, pooled: PooledCorrelation) -> str:
        """Say what the pooled correlation is, and what it mixes."""
        p = "= " + (p_value(pooled.p_value) if pooled.p_value >= 1e-3 else f"{pooled.p_value:.0e}")
        p = "< 1e-300" if pooled.p_value < 1e-300 else p
        own, column = (f"{share:.0%}" for share in pooled.shares)
        by_group = ""
        if pooled.by_group:
            low, high = (number(end(pooled.by_group.values())) for end in (min, max))
            by_group = (
                f" Group by group r {f'is {low}' if low == high else f'runs from {low} to {high}'}."
            )
        ends = {
            "0%": "it is nearly the slope within them",
            "100%": "it is nearly the slope between them",
        }
        return (
            f"Pooled over all rows, r with {pooled.on} is {number(pooled.r)} (p {p}). That takes "
            f"{plural(self.num_rows, 'row')} of {self.units} for independent. Of the "
            f"spread of {self.design.response} {own} and of {pooled.on} {column} lie between "
            "groups, so "
            f"{ends.get(column, 'it mixes both slopes')}.{by_group}"
        )

    def lines(self) -> Iterator[str]:
        """What a terminal shows."""
        said = [*map(self.sentence, self.design.on), *map(self.why_pooled_misleads, self.pooled)]
        for text in (*said, *self.remarks):
            yield from wrap(text, 80, subsequent_indent="  ", break_long_words=False)

    def to_json(self) -> dict[str, object]:
        """All numbers, with the sentences."""
        return {
            **asdict(self),
            "slopes": [
                {**asdict(slope), "established": slope.established} for slope in self.slopes
            ],
            "sentences": [self.sentence(on) for on in self.design.on],
        }


def read_own_table(path: Path, design: Design) -> pd.DataFrame:
    """Read the columns of a design: numbers as float64, groups and ``within`` as text;
    ``attrs["remarks"]`` says which rows are left out, and what looks like no measurement.
    ConfigError with all that is wrong.
    """
    if not path.is_file():
        way_out = "that is a folder: name a file in it" if path.is_dir() else nearest_path(path)
        raise ConfigError("The table must be a file that exists", str(path), way_out)
    if path.suffix.lower() not in SUFFIXES:
        rule, way_out = "The table must be a file of a known kind", f"known: {', '.join(SUFFIXES)}"
        raise ConfigError(rule, path.name, way_out)
    read, what = READERS.get(path.suffix.lower(), (read_text, "UTF-8 text"))
    way_out = "save it as CSV in UTF-8 with one line of column names"
    try:
        names, *rows = read(path.read_bytes()).rows or [[]]
    except TableError as error:
        found = str(error.args[1]).removesuffix("; save it as .csv in UTF-8")  # the way out says so
        raise ConfigError(f"The table {error.args[0]}", f"{path.name}: {found}", way_out) from None
    except Exception as error:  # readers raise almost anything on damaged files
        raise ConfigError(f"The table must be {what}", f"{path.name}: {error}", way_out) from None
    names = [name.strip() for name in names]
    if not names:
        raise ConfigError(
            "The table must have a line of column names", f"{path.name} is empty", way_out
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            "Column names must differ", f"{listing(twice)} more than once", "rename one"
        )
    uneven = pd.Series([len(row) != len(names) for row in rows], dtype=bool)
    if uneven.any():
        found = f"{plural(int(uneven.sum()), 'row')} of another length ({_rows(uneven)})"
        rule = f"Every row must have {plural(len(names), 'cell')}, as the header"
        raise ConfigError(rule, found, way_out)
    table = pd.DataFrame(rows, columns=names, dtype=str)
    absent = [name for name in design.columns if name not in table]
    collect(
        unknown_name(f"column of {path.name}", name, map(str, table.columns)) for name in absent
    )
    if len(set(design.columns)) < len(design.columns):
        found = next(name for name in design.columns if design.columns.count(name) > 1)
        rule, way_out = "A column has one part in a design", "name another column for one"
        raise ConfigError(rule, f"{found} twice", way_out)
    doubled = table.duplicated()
    own: pd.DataFrame = table[list(design.columns)].apply(lambda column: column.str.strip())
    blank = own.apply(lambda column: column.str.lower().isin(_MISSING))
    numbers = own[[design.response, *design.on]].apply(pd.to_numeric, errors="coerce").astype(float)
    sizes = numbers.abs()
    odd = ~((sizes < MOST) & (sizes > 1 / MOST) | (sizes == 0) | blank[numbers.columns])
    kept = ~(blank.any(axis=1) | doubled)
    masks = {}
    for name, mask in blank.items():
        texts = listing([repr(text) for text in own[name][mask].unique() if text])
        masks[f"without {name}" + f", as {texts} reads" * bool(texts)] = mask
    masks["equal to an earlier row in every column"] = doubled
    own[numbers.columns] = numbers
    lost = [
        f"{plural(int(of.sum()), 'row')} {why} ({_rows(of)})"
        for why, of in masks.items()
        if of.any()
    ]
    collect(_faults(own, odd, kept, lost, design))
    kept_rows: pd.DataFrame = own[kept].reset_index(drop=True)
    remarks = (*(f"Left out: {text}." for text in lost), *_doubts(kept_rows, design))
    kept_rows.attrs["remarks"] = [*dict.fromkeys(remarks)]
    return kept_rows


def _doubts(own: pd.DataFrame, design: Design) -> Iterator[str]:
    """What is fitted as it stands, and may be no measurement or no group: a known code that lies
    further from every other number than their standard deviation, or alone below zero; rows that
    sum up; spellings.
    """
    for name in (design.response, *design.on):
        for code in CODES:
            there = np.isclose(own[name], code, rtol=1e-6, atol=0)
            rest = own[name][~there]
            apart = (rest - code).abs().min() > rest.std() or code < 0 <= rest.min()
            if there.any() and rest.nunique() > 2 and apart:
                yield (
                    f"Beware: {name} is {code:g} in {plural(int(there.sum()), 'row')}, fitted as a "
                    "number; "
                    "leave the cell empty where it stands for a missing value."
                )
    for name in (*design.groups, *design.within):
        counts = own[name].value_counts()
        words = {one: re.findall(r"[^\W\d_]+", one.casefold()) for one in counts.index}
        for group in [one for one in words if not SUMS.isdisjoint(words[one])]:
            yield (
                f"Beware: {name} is {group} in {plural(int(counts[group]), 'row')}, fitted like "
                "any other; "
                "leave them out where they sum up the rest."
            )
        numbers = pd.to_numeric(counts.index.to_series(), errors="coerce")
        read_as = [
            n if n == n else text.casefold() for text, n in zip(counts.index, numbers, strict=True)
        ]
        if alike := sorted(counts.index[pd.Index(read_as, dtype=object).duplicated(keep=False)]):
            yield f"Beware: {name} holds {listing(alike[:6])}, which spelling alone tells apart."


def _rows(mask: pd.Series) -> str:
    """Name the first marked rows by their numbers; the first below the header is row 1."""
    places = np.flatnonzero(mask) + 1
    return (
        f"row{'s' * (len(places) > 1)} "
        f"{', '.join([*map(str, places[:3]), *['…'] * (len(places) > 3)])}"
    )


def _faults(
    own: pd.DataFrame, odd: pd.DataFrame, kept: pd.Series, lost: Sequence[str], design: Design
) -> Iterator[ConfigError]:
    """What is wrong with the rows of a table, and those of them that are kept."""
    for name, mask in odd.items():
        if mask.any():
            yield ConfigError(
                (
                    f"Column {name} must hold finite numbers, of a size between {1 / MOST:g} and "
                    f"{MOST:g}"
                ),
                (
                    f"something else in {plural(int(mask.sum()), 'cell')} ({_rows(mask)} below the "
                    "header)"
                ),
                (
                    "write 1234.5, without comma, unit or word; leave a cell empty where the value "
                    "is "
                    "missing"
                ),
            )
    if (share := 1 - kept.mean()) > MOST_LEFT_OUT:
        yield ConfigError(
            f"At most {MOST_LEFT_OUT:.0%} of the rows may lack a value or repeat another",
            f"{share:.0%}: {'; '.join(lost)}",
            "drop those rows yourself where that is right, add a column that tells them apart, or "
            "spell "
            "otherwise what is a level of its own",
        )
    own = own[kept]
    for name in design.groups:
        if (num_groups := own[name].nunique()) < 2:
            way_out = "name the column whose rows belong together, e.g. dataset or patient"
            yield ConfigError(
                f"Column {name} must name at least two groups", f"{num_groups}", way_out
            )
    for name in (design.response, *design.on):
        if odd[name].any():
            continue  # as was told
        if not own[name].std() > STEPS * np.spacing(own[name].abs().max()):
            found = f"{plural(own[name].nunique(), 'value')}, after rounding to 16 digits"
            yield ConfigError(
                f"Column {name} must vary", found, "name another one, or subtract a constant"
            )
    if (
        num_cells := len(own[[*design.within]].drop_duplicates()) if design.within else 0
    ) > MOST_CELLS:
        way_out = "name columns of fewer kinds"
        yield ConfigError(
            f"--within may make at most {MOST_CELLS:,} kinds", f"{num_cells:,}", way_out
        )


class _Groups:
    """Units of rows (n,) and their names (U); groups' names (G,), and which of them a unit has (U,
    G).

    A name is of its own column, unless columns are places of one kind: ``pairs``, or
    :func:`_alike`.
    """

    def __init__(self, table: pd.DataFrame, columns: Sequence[str], pairs: bool) -> None:
        rows, self.remarks = table[list(columns)].astype(str), []
        kind = {
            name: next(one for one in columns if pairs or _alike(rows, one, name))
            for name in columns
        }
        for one, other in combinations(columns, 2):
            shared = set(table[one].astype(str)) & set(table[other].astype(str))
            taken = "the same group in each: write other names where it is not."
            if kind[one] != kind[other]:
                taken = (
                    "a different group in each: where it is not, swap both until each holds "
                    "nearly all."
                )
                for name in (name for name in columns if kind[name] in (kind[one], kind[other])):
                    rows[name] = rows[name].mask(
                        rows[name].isin(shared), f"{kind[name]} " + rows[name]
                    )
            told = f"{plural(len(shared), 'name')} in {one} and {other} taken for {taken}"
            self.remarks += [told] * bool(shared)
        units, self.unit = np.unique(
            np.sort(rows.to_numpy(str), axis=1), axis=0, return_inverse=True
        )
        self.unit, self.units = self.unit.reshape(-1), [" and ".join(row) for row in units.tolist()]
        self.names, self.crossed = np.unique(units), len(columns) > 1
        self.member = np.zeros((len(units), len(self.names) if self.crossed else 0))
        if self.crossed:
            np.put_along_axis(self.member, np.searchsorted(self.names, units), 1.0, axis=1)
        places = [
            rows[[name for name in columns if kind[name] == one]] for one in set(kind.values())
        ]
        self.of_kind = [
            (np.isin(self.names, of), of.shape[1] > 1 and of.nunique().min()) for of in places
        ]

    def sums(self, of_units: Array) -> Array:
        """Add up what units (U, ...) have, by group (G, ...)."""
        return np.tensordot(self.member.T, of_units, 1) if self.crossed else of_units

    def degrees(self, carried: Array) -> float:
        """Degrees of freedom, given what each group carries of what varies: those of groups of
        equal parts, 1 / Σ share² − 1 (Carter, Schnepel & Steigerwald 2017), since one that carries
        most leaves few to judge by; of pairs G − 1. Of several kinds, the one of fewest.
        """
        parts = [(carried[of] / carried[of].sum(), most) for of, most in self.of_kind]
        return min(
            min(len(part) - 1.0, most) if most else 1 / (part @ part) - 1 for part, most in parts
        )


def _alike(rows: pd.DataFrame, one: str, other: str) -> bool:
    """Whether columns are one, or places of a pair: none with itself, and each lacks one name, or a
    fifth.
    """
    first, second, places = (
        set(rows[one]),
        set(rows[other]),
        set(zip(rows[one], rows[other], strict=True)),
    )
    lacks, num = max(len(first - second), len(second - first)), len(first | second)
    if (
        one == other
        or num < i.MIN_CLASSES
        or lacks > max(1, num // 5)
        or any(a == b for a, b in places)
    ):
        return one == other
    if turned := next((place for place in places if place[::-1] in places), None):
        rule = f"{one} and {other} hold the same names: each pair must stand in one order"
        both = ", ".join(map(" and ".join, (turned, turned[::-1])))
        raise ConfigError(rule, both, "or rename those that are no pair's")
    return True


def fit_groups(table: pd.DataFrame, design: Design, pairs: bool = False) -> GroupedFit:
    """Fit a table of :func:`read_own_table`: within groups by least squares with an intercept per
    unit and per kind of ``within``; between by one effect per unit at equal kinds, and least
    squares over these. ``pairs``: all columns of groups name the same things.
    """
    groups = _Groups(table, design.groups, pairs)
    cells = np.zeros(len(table), dtype=int)
    if design.within:
        cells = table.groupby(list(design.within)).ngroup().to_numpy()
    values = table[[design.response, *design.on]].to_numpy(dtype=float)
    largest = np.maximum(np.abs(values).max(axis=0), 1 / MOST)
    moved = values / largest - (values / largest).mean(axis=0)
    deviations = np.sqrt((moved**2).mean(axis=0))
    deviations[deviations == 0] = 1.0
    y, *others = (moved / deviations).T
    x, (y_scale, *x_scale) = np.column_stack(others), (deviations * largest).tolist()
    found = [*_within(y, x, cells, groups, design), *_between(y, x, cells, groups, design)]
    slopes = adjusted(
        [slope.times(y_scale / scale) for slope, scale in zip(found, x_scale * 2, strict=True)]
    )
    pooled = tuple(
        _pooled(name, y, x[:, k], groups) for k, name in enumerate(design.on) if len(y) > 2
    )
    remarks = (*table.attrs.get("remarks", ()), *groups.remarks)
    return GroupedFit(design, len(table), len(groups.units), slopes, pooled, remarks)


def adjusted(slopes: Sequence[Slope]) -> tuple[Slope, ...]:
    """Adjust the p-values of slopes for their number."""
    found = i.holm([slope.p_value for slope in slopes])
    return tuple(replace(slope, adjusted_p=p) for slope, p in zip(slopes, found, strict=True))


def _within(y: Array, x: Array, cells: i.Codes, groups: _Groups, design: Design) -> Iterator[Slope]:
    """Slopes with one intercept per unit and kind, by the products of each unit's centred
    columns.
    """
    kinds = np.arange(1, cells.max() + 1)  # the first kind's intercept is the unit's
    centred = i.centred(np.column_stack([y, x, cells[:, None] == kinds]), groups.unit)
    starts = np.cumsum(np.bincount(groups.unit))[:-1]
    parts = np.split(centred[np.argsort(groups.unit, kind="stable")], starts)
    each, total = groups.sums(np.array([part.T @ part for part in parts])), centred.T @ centred
    smallest = i.MIN_RCOND * len(y)
    for k, name in enumerate(design.on, 1):
        value, rest = _partial(total, k, smallest)
        if not np.isfinite(value):
            alone = total[k, k] > smallest and len(design.on) > 1
            what = "varies only together with the others" if alone else "does not vary"
            equal = f" at equal {listing(design.within)}" if design.within else ""
            yield Slope("within", name, reason=f"{name} {what} within groups{equal}")
            continue
        carried = groups.sums(np.bincount(groups.unit, (centred @ rest) ** 2).astype(float))
        varies, degrees = np.flatnonzero(carried > 1e-12 * carried.sum()), groups.degrees(carried)
        left_out = {str(groups.names[g]): _partial(total - each[g], k, smallest)[0] for g in varies}
        slope = Slope("within", name, value, num_groups=len(left_out))
        lost = [group for group, refit in left_out.items() if not np.isfinite(refit)]
        if len(left_out) < i.MIN_DATASETS:
            reason = f"no interval: it varies within {plural(len(left_out), 'group')} only"
            yield replace(slope, reason=reason)
        elif lost or degrees < 1:
            alone = lost[0] if lost else groups.names[carried.argmax()]
            yield replace(slope, reason=f"no interval: it hangs on {alone} alone")
        else:
            yield _judged(slope, left_out, degrees)


def _partial(products: Array, k: int, smallest: float) -> tuple[float, Array]:
    """Slope of column 0 on column k at equal others from products of columns, NaN where k hardly
    varies beside them, and the weights of all columns in what varies of it.
    """
    others, rest = [j for j in range(1, len(products)) if j != k], np.zeros(len(products))
    square, own = products[np.ix_(others, others)], products[others, k]
    rest[k], rest[others] = 1.0, -np.linalg.lstsq(square, own, rcond=1e-12)[0]
    varies = float(rest @ products[:, k])
    return float(rest @ products[:, 0]) / varies if varies > smallest else np.nan, rest


def _judged(slope: Slope, left_out: dict[str, float], degrees: float) -> Slope:
    """Return a slope with interval and p-value by t of the jackknife."""
    value = slope.value or 0.0
    error = i.jackknife_error(value, np.array([*left_out.values()]))
    bounds, p = i.t_interval(value, error, degrees), float(i.t_p_values(value, error, degrees))
    return replace(slope, interval=bounds, p_value=p, num_groups=len(left_out), left_out=left_out)


def _between(
    y: Array, x: Array, cells: i.Codes, groups: _Groups, design: Design
) -> Iterator[Slope]:
    """Slopes over one effect per unit at equal cell."""
    num = len(groups.units)
    reduced = i.dataset_effects(np.column_stack([y, x]), cells, groups.unit, np.ones(len(y)))
    effects = np.zeros((num, 1 + len(design.on))) if reduced is None else reduced[1]
    y, x = effects[:, 0], effects[:, 1:]
    found = i.ols(y, x)
    if found is None:
        reason = f"it needs {len(design.on) + 2} groups that differ in {listing(design.on)}"
        if reduced is None:
            reason = f"groups share no {listing(design.within)}"
        elif num > len(design.on) + 1 and x.any(axis=0).all():
            reason = f"{listing(design.on)} vary only together between groups"
        yield from (Slope("between", name, num_groups=num, reason=reason) for name in design.on)
        return
    rows = np.column_stack([y, x, np.ones(num)])
    products = rows[:, :, None] * rows[:, None, :]
    total, each = products.sum(axis=0), groups.sums(products)
    values, errors, degrees = found
    for k, name in enumerate(design.on):
        smallest = i.MIN_RCOND * total[k + 1, k + 1]
        refits = {
            str(group): _partial(total - own, k + 1, smallest)[0]
            for group, own in zip(groups.names, each, strict=True)
            if total[-1, -1] - own[-1, -1] > len(design.on) + 1.5
        }
        left_out = {group: slope for group, slope in refits.items() if np.isfinite(slope)}
        value, others = float(values[k]), np.delete(x, k, axis=1)
        bounds = i.t_interval(value, float(errors[k]), degrees)
        slope = Slope("between", name, value, bounds, num_groups=num, left_out=left_out)
        permuted = not groups.crossed and num <= MOST_PERMUTED
        test = i.permutation_test(y, x[:, k], others, [""] * num) if permuted else None
        if permuted and (test is None or test[1] < 1 / LEVEL):
            yield replace(slope, reason=f"too few groups for a p-value of {LEVEL:g}")
        elif len(left_out) < len(groups.names):
            yield replace(slope, interval=None, reason="it hangs on one group alone")
        else:
            carried = groups.sums((rows @ _partial(total, k + 1, smallest)[1]) ** 2)
            judged = _judged(slope, left_out, max(1.0, groups.degrees(carried)))
            if test is not None and judged.interval and judged.p_value is not None:
                ends, p = (*bounds, *judged.interval), max(test[0], judged.p_value)
                judged = replace(judged, interval=(min(ends), max(ends)), p_value=p)
            yield judged


def _pooled(name: str, y: Array, x: Array, groups: _Groups) -> PooledCorrelation:
    """Return the correlation over all rows of columns (n,) of mean 0 and deviation 1, and what it
    hides.
    """
    r, codes = float(y @ x) / len(y), groups.unit
    own_y, own_x = i.centred(np.column_stack([y, x]), codes).T
    yy, xx, xy = (np.bincount(codes, product) for product in (own_y**2, own_x**2, own_y * own_x))
    known = (np.bincount(codes) >= 3) & (yy > 0) & (xx > 0)
    found = xy[known] / np.sqrt(yy[known] * xx[known])
    by_group = dict(zip(np.array(groups.units)[known].tolist(), found.tolist(), strict=True))
    p = float(i.t_p_values(r, np.sqrt(max(1 - r**2, 1e-300) / (len(y) - 2)), len(y) - 2))
    shares = (max(0.0, 1 - float(yy.sum()) / len(y)), max(0.0, 1 - float(xx.sum()) / len(y)))
    return PooledCorrelation(name, r, p, shares, by_group)
