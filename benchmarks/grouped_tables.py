"""Error rates and power of `isweep fit TABLE` on simulated tables.

``nulls`` draws tables of known designs without a relation. It counts the tables with any claim, at
both levels, after Holm's correction. Designs of scatter have a slope within groups, so only claims
between groups are false there. ``powers`` does the same for tables with a slope. ``panels`` fits
Grunfeld's panel. All tables are drawn here, without the analysis, and table *k* of a design is
always the same. In ``results/grouped_tables.json``, ``before`` has the results of commit 11d42bf1
on the same tables. That commit used a jackknife (CR3) with 1 / Σ share² − 1 degrees of freedom.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from harness import Result, run

from orchestrator.analysis.grouped_tables.design import LEVELS, Design
from orchestrator.analysis.grouped_tables.fit import GroupedFit, fit_user_table
from orchestrator.analysis.grouped_tables.user_table import read_user_table

Rng = np.random.Generator
Drawn = Callable[[Rng, float], pd.DataFrame]
PLAIN = Design("y", ("x",), ("group",))
TWO = Design("y", ("x", "z"), ("group",))


def rows(
    rng: Rng,
    slope: float,
    *,
    sizes: np.ndarray,
    scales: np.ndarray | None = None,
    slopes: float = 0.0,
    noises: np.ndarray | None = None,
    heavy: bool = False,
    memory: float = 0.0,
) -> pd.DataFrame:
    """Draw rows of groups with different heights of both columns.

    Args:
        rng: Source of random numbers.
        slope: Common slope within groups.
        sizes: Number of rows of each group.
        scales: Standard deviation of x within each group.
        slopes: Standard deviation of the deviations of the groups' slopes from ``slope``.
        noises: Standard deviation of the error of y in each group.
        heavy: Whether errors have Student's t distribution with 2 degrees of freedom.
        memory: Correlation of the x and the error of a row with those of the row before.
    """
    num_groups = len(sizes)
    group = np.repeat(np.arange(num_groups), sizes)
    inside = rng.normal(size=len(group))
    error = rng.standard_t(2, size=len(group)) if heavy else rng.normal(size=len(group))
    for series in (inside, error):
        for row in range(1, len(group)):
            if memory and group[row] == group[row - 1]:
                series[row] = memory * series[row - 1] + (1 - memory**2) ** 0.5 * series[row]
    if scales is not None:
        inside = inside * scales[group]
    if noises is not None:
        error = error * noises[group]
    slopes_of_groups = slope + slopes * rng.normal(size=num_groups)
    heights = rng.normal(size=(2, num_groups)) * 2
    return pd.DataFrame(
        {
            "group": [f"g{code}" for code in group],
            "x": heights[0][group] + inside,
            "y": heights[1][group] + slopes_of_groups[group] * inside + error,
            "z": 0.5 * inside + rng.normal(size=len(group)),
        }
    )


def uneven(rng: Rng, num_groups: int) -> np.ndarray:
    return rng.integers(4, 60, num_groups)


def few(rng: Rng, slope: float, **kinds: float) -> pd.DataFrame:
    num_groups = int(rng.integers(4, 7))
    return rows(rng, slope, sizes=uneven(rng, num_groups), **kinds)


def unequal(rng: Rng, slope: float, num_groups: int = 10, **kinds: float) -> pd.DataFrame:
    scales = rng.exponential(size=num_groups) + 0.05
    return rows(rng, slope, sizes=uneven(rng, num_groups), scales=scales, **kinds)


def dominated(rng: Rng, slope: float, **kinds: float) -> pd.DataFrame:
    return rows(rng, slope, sizes=np.array([300] + [10] * 9), **kinds)


def grunfeld_like(rng: Rng, slope: float) -> pd.DataFrame:
    scales = np.array([20, 10, 5, 3, 1, 1, 0.5, 0.5, 0.3, 0.1])
    return rows(rng, slope, sizes=np.full(10, 20), scales=scales, noises=scales)


def heteroscedastic(rng: Rng, slope: float) -> pd.DataFrame:
    return rows(rng, slope, sizes=uneven(rng, 10), noises=np.exp(rng.normal(size=10)))


def small_groups(
    rng: Rng, slope: float, num_groups: int = 30, size: int = 3, within: float = 1.0
) -> pd.DataFrame:
    """Draw groups of few rows.

    ``within`` is the slope within groups, and ``slope`` is the slope between their true means.
    """
    group = np.repeat(np.arange(num_groups), size)
    true_mean, height = rng.normal(size=(2, num_groups))
    inside, error = rng.normal(size=(2, len(group)))
    y = slope * true_mean[group] + 0.5 * height[group] + within * inside + 0.5 * error
    names = [f"g{code}" for code in group]
    return pd.DataFrame({"group": names, "x": true_mean[group] + inside, "y": y})


def crossed(
    rng: Rng,
    slope: float,
    *,
    num_groups: int = 11,
    num_values: int = 20,
    shock: float = 1.0,
    slopes: float = 0.0,
    missing: float = 0.0,
    repeats: int = 1,
    numeric: bool = False,
    heights: float = 1.0,
) -> pd.DataFrame:
    """Draw groups × values of a crossing column, whose shocks to x and y are equal in all groups.

    Args:
        rng: Source of random numbers.
        slope: Slope at equal group and value.
        num_groups: Number of groups.
        num_values: Number of values of the crossing column.
        shock: Standard deviation of the shocks to x and y, which are independent of each other.
        slopes: Standard deviation of the slopes of values.
        missing: Share of combinations without a row.
        repeats: Number of rows per combination.
        numeric: Whether the values are whole numbers, as years are.
        heights: Standard deviation of the groups' heights.
    """
    group, value = (codes.ravel() for codes in np.indices((num_groups, num_values)))
    is_present = rng.random(len(group)) >= missing
    group, value = group[is_present].repeat(repeats), value[is_present].repeat(repeats)
    shocks = rng.normal(size=(2, num_values)) * shock
    offsets = heights * rng.normal(size=(2, num_groups))
    inside, error = rng.normal(size=(2, len(group)))
    slopes_of = slope + slopes * rng.normal(size=num_values)
    names = 2001 + value if numeric else [f"m{code}" for code in value]
    return pd.DataFrame(
        {
            "group": [f"g{code}" for code in group],
            "name": names,
            "x": offsets[0][group] + shocks[0][value] + inside,
            "y": offsets[1][group] + shocks[1][value] + slopes_of[value] * inside + error,
        }
    )


def of_name(rng: Rng, slope: float) -> pd.DataFrame:
    """Draw a column that is a function of the crossing value, as size is a function of a network."""
    table = crossed(rng, slope)
    size = dict(zip(table["name"].unique(), rng.normal(size=20), strict=True))
    return table.assign(x=table["name"].map(size))


WEIGHTS: dict[str, tuple[Drawn, Design]] = {
    "10 equal groups": (partial(rows, sizes=np.full(10, 20)), PLAIN),
    "3 equal groups": (partial(rows, sizes=np.full(3, 20)), PLAIN),
    "4 to 6 groups": (few, PLAIN),
    "4 to 6 groups, slopes differ": (partial(few, slopes=1.0), PLAIN),
    "4 to 6 groups, two columns, slopes differ": (partial(few, slopes=1.0), TWO),
    "slopes differ": (partial(rows, sizes=np.full(10, 20), slopes=1.0), PLAIN),
    "slopes differ, unbalanced": (partial(unequal, slopes=1.0), PLAIN),
    "slopes differ, 20 unbalanced": (partial(unequal, num_groups=20, slopes=1.0), PLAIN),
    "slopes differ, unbalanced, two columns": (partial(unequal, slopes=1.0), TWO),
    "one group of 300 rows": (dominated, PLAIN),
    "one group of 300 rows, slopes differ": (partial(dominated, slopes=1.0), PLAIN),
    "heteroscedastic": (heteroscedastic, PLAIN),
    "weights as in Grunfeld": (grunfeld_like, PLAIN),
    "heavy tails, unbalanced": (partial(unequal, heavy=True), PLAIN),
    "autocorrelated 0.9, unbalanced": (partial(unequal, memory=0.9), PLAIN),
}
SCATTER: dict[str, tuple[Drawn, Design]] = {
    "30 groups of 3 rows, slope 1 within": (small_groups, PLAIN),
    "12 groups of 3 rows, slope 1 within": (partial(small_groups, num_groups=12), PLAIN),
    "100 groups of 3 rows, slope 1 within": (partial(small_groups, num_groups=100), PLAIN),
    "30 groups of 2 rows, slope −1 within": (partial(small_groups, size=2, within=-1.0), PLAIN),
    "30 groups of 10 rows, slope 1 within": (partial(small_groups, size=10), PLAIN),
    "30 groups of 3 rows, none within": (partial(small_groups, within=0.0), PLAIN),
}
CROSSING: dict[str, tuple[Drawn, Design]] = {
    "shocks of 20 models": (crossed, PLAIN),
    "shocks of 37 models": (partial(crossed, num_values=37), PLAIN),
    "shocks of 20 models, 30 % missing": (partial(crossed, missing=0.3), PLAIN),
    "the same, groups of one height": (partial(crossed, missing=0.3, heights=0.0), PLAIN),
    "shocks of 20 years": (partial(crossed, numeric=True), PLAIN),
    "shocks of 6 seeds": (partial(crossed, num_values=6, numeric=True, repeats=4), PLAIN),
    "slopes of 20 models": (partial(crossed, shock=0.0, slopes=1.0), PLAIN),
    "a column of 20 models": (of_name, PLAIN),
    "no shocks of 20 models": (partial(crossed, shock=0.0), PLAIN),
}
DESIGNS = WEIGHTS | SCATTER | CROSSING


def fit(table: pd.DataFrame, design: Design) -> GroupedFit:
    """Write a table to a file with all digits, and fit the file as a user would."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        table.to_csv(path, index=False)
        return fit_user_table(read_user_table(path, design), design)


def _claimed(name: str, slope: float, seed: int) -> list[bool]:
    """Draw and fit one table. Return whether there is a claim on x within and between groups."""
    drawn, design = DESIGNS[name]
    table = drawn(np.random.default_rng([seed, *name.encode()]), slope)
    result = fit(table[[*design.columns, *({"name"} & set(table))]], design)
    return [any(result.find(level, on).is_significant for on in design.on) for level in LEVELS]


def claim_rates(names: list[str], slope: float, tables: int, jobs: int) -> dict[str, Result]:
    """Return the shares of tables with a claim, by design and level."""
    rates: dict[str, Result] = {}
    with ProcessPoolExecutor(jobs) as pool:
        for name in names:
            draw = partial(_claimed, name, slope)
            claims = np.array([*pool.map(draw, range(tables), chunksize=10)])
            within, between = claims.mean(axis=0).tolist()
            rates[name] = {
                "within": within,
                "between": between,
                "any": float(claims.any(axis=1).mean()),
            }
    return rates


def nulls(tables: int = 400, jobs: int = 2) -> Result:
    """Count claims on tables without a relation.

    Tables with scatter have no relation between groups.
    """
    return {"tables": tables, "claimed": claim_rates([*DESIGNS], 0.0, tables, jobs)}


def powers(tables: int = 200, jobs: int = 2, slope: float = 0.6) -> Result:
    """Count claims on tables with a slope within groups.

    Tables with scatter have the slope between groups.
    """
    return {
        "tables": tables,
        "slope": slope,
        "claimed": claim_rates([*DESIGNS], slope, tables, jobs),
    }


def panels() -> Result:
    """Fit Grunfeld's panel, which statsmodels contains, with and without its column of years."""
    import statsmodels.api as sm

    table = sm.datasets.grunfeld.load_pandas().data
    table = table[table["firm"] != "American Steel"]
    design = Design("invest", ("value", "capital"), ("firm",))
    answers = {}
    for title, columns in {
        "firms": [*design.columns],
        "firms, year in the table": [*design.columns, "year"],
    }.items():
        result = fit(table[columns], design)
        answers[title] = [
            {
                "level": slope.level,
                "on": slope.on,
                "value": slope.value,
                "interval": slope.interval,
                "p": slope.p_value,
                "adjusted p": slope.adjusted_p,
                "established": slope.is_significant,
            }
            for slope in result.slopes
        ]
    return {"Grunfeld": answers}


if __name__ == "__main__":
    run(nulls, powers, panels)
