"""How often do the intervals of the fits hold the truth, and how often do headline claims arise where
nothing is?

Tables of the study's shape (4 natural datasets with 5 class pairs, 7 medical ones, 6 models, 6 train
sizes; effects of dataset, pair, model and training subset; d_data and K_F with error), drawn by
`orchestrator.analysis.power` with fixed seeds and analysed by the functions of the fits. The other
side is what was said before: ordinary least squares over points, and the claim wherever one interval
excludes zero.

Permutations: at most 5,040 tried in full, else 999 drawn (the fits try up to 200,000), so that all runs in
minutes.

Usage: python benchmarks/fit_coverage.py [--json] [--tables 2000]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections import Counter
from importlib.metadata import version

import numpy as np
from scipy import stats

from orchestrator.analysis import inference
from orchestrator.analysis import laws as k
from orchestrator.analysis.inference import Problem, max_correlation_test, mean_interval, solve
from orchestrator.analysis.laws import held_out_errors, versus
from orchestrator.analysis.power import (
    STUDY,
    Sample,
    Truth,
    claim_p_values,
    draw,
    effects,
    exponent_fit,
    level_slopes,
)

inference.MOST_EXACT, inference.NUM_DRAWN = 5_040, 999
AT = STUDY.layout
LABEL = AT.medical[AT.dataset].astype(float)

NULLS = {
    "no effect": Truth(exponent=0, sharpness=0),
    "only the label": Truth(exponent=0, sharpness=0, label=1.0),
    "no exponent": Truth(exponent=0, sharpness=0, inverse_d=-10.0),
    "K_F a function of d": Truth(exponent=1, sharpness=0, sharpness_of_d=True),
}
#: Claims that are true in a null and therefore no error there.
TRUE = {
    "no effect": {k.BELOW_BOUND},
    "only the label": {k.BELOW_BOUND},
    "no exponent": {k.BELOW_BOUND, *k.LOSS_ON_D_DATA.values()},
    "K_F a function of d": {k.EXPONENT, *k.LOSS_ON_D_DATA.values()},
}


def interval_coverage(num: int) -> dict[str, float]:
    """Share of tables in which each interval holds the truth."""
    held: Counter[str] = Counter()
    rng = np.random.default_rng(20260101)
    law, on_d = Truth(), Truth(exponent=0, sharpness=0, d_slope=0.1)
    varied = Truth(exponent_std=0.3)
    differences = []
    for _ in range(num):
        sample = draw(STUDY, law, rng)
        at_level = level_slopes(STUDY, sample, [1 / sample.d_reference, sample.log_sharpness, LABEL])
        true_inverse = -AT.log_size.mean() * np.exp(0.05 * (AT.log_size.max() - np.log(1000)))
        for name, slope, true in zip(
            ("1/d", "log K_F", "label"), at_level, (true_inverse, 1.0, 0.0), strict=True
        ):
            held[f"height on {name} (t, 7 degrees of freedom)"] += _in(slope.interval, true)
        (gap,) = level_slopes(STUDY, draw(STUDY, NULLS["only the label"], rng), [LABEL])
        held["height on the label alone (t, 9)"] += _in(gap.interval, 1.0)
        drawn = draw(STUDY, on_d, rng)
        # d grows with N as 0.05 log N, so the true slope on the measured d at equal N is that of its mean
        # growth.
        growth = np.exp(0.05 * (AT.log_size - np.log(1000))).mean()
        for domain in ("natural", "medical"):
            (slope,) = level_slopes(STUDY, drawn, [drawn.d_data], domain)
            held[f"height on d_data, {domain} (t)"] += _in(slope.interval, 0.1 / growth)
            held[f"height on d_data, {domain}, points at equal N (jackknife)"] += _in(
                jackknife(drawn, domain), 0.1 / growth
            )
            held[f"height on d_data, {domain}, points as independent (before)"] += _in(
                ols(drawn, domain), 0.1 / growth
            )
        held["exponent · d (jackknife)"] += _in(exponent_fit(STUDY, sample).interval, reference_exponent(1.0))
        held["exponent · d, varying by 0.3 between datasets (jackknife)"] += _in(
            exponent_fit(STUDY, draw(STUDY, varied, rng)).interval, reference_exponent(1.0)
        )
        held["exponent within one dataset, all models (t over subsets)"] += _in(
            one_dataset(sample), -1 / true_d(sample)
        )
        r, share = correlation(rng), shares(rng)
        held["r over dataset effects (Fisher z)"] += _in(*r)
        held["share of points, mean over datasets (t)"] += _in(*share)
        differences.append(label_difference(sample))
    values = np.array([d[0] for d in differences])
    held["difference in squared error from the label (t)"] += sum(
        _in(d[1], values.mean()) for d in differences
    )
    return {name: count / num for name, count in held.items()}


def _in(interval: tuple[float, float] | None, true: float) -> bool:
    return interval is not None and interval[0] <= true <= interval[1]


def reference_exponent(exponent: float) -> float:
    """The slope on −log N / d̂ that belongs to the true d: d̂ at the largest N is larger by its growth."""
    return exponent * float(np.exp(0.05 * (AT.log_size.max() - np.log(1000.0))))


def jackknife(sample: Sample, domain: str) -> tuple[float, float] | None:
    rows = AT.medical[AT.dataset] == (domain == "medical")
    solution = solve(
        Problem(
            sample.log_loss[rows], sample.d_data[rows, None], AT.cell[rows].astype(str),
            AT.dataset[rows].astype(str), AT.weights[rows],
        )
    )  # fmt: skip
    bounds = None if solution is None else solution.intervals()
    return None if bounds is None else (bounds[1, 0], bounds[1, 1])


def ols(sample: Sample, domain: str) -> tuple[float, float]:
    rows = AT.medical[AT.dataset] == (domain == "medical")
    found = stats.linregress(sample.d_data[rows], sample.log_loss[rows])
    reach = stats.t.ppf(0.975, rows.sum() - 2) * found.stderr
    return found.slope - reach, found.slope + reach


def true_d(sample: Sample) -> float:
    """Return d of the last medical dataset: the measured one without the estimate's growth."""
    return float(
        sample.d_reference[AT.dataset == 10][0] / np.exp(0.05 * (AT.log_size.max() - np.log(1000.0)))
    )


def one_dataset(sample: Sample) -> tuple[float, float]:
    rows = AT.dataset == 10
    x = np.unique(AT.log_size[rows])
    y = np.array([sample.log_loss[rows & (AT.log_size == size)].mean() for size in x])
    found = stats.linregress(x, y)
    reach = stats.t.ppf(0.975, len(x) - 2) * found.stderr
    return found.slope - reach, found.slope + reach


def correlation(rng: np.random.Generator) -> tuple[tuple[float, float], float]:
    """Gains and log-normal K_F of 11 datasets whose correlation is 0.6."""
    log_k = rng.normal(0, 0.45, 11)
    spread = np.sqrt((np.exp(0.45**2) - 1) * np.exp(0.45**2))
    sharpness = np.exp(log_k)
    gain = 0.6 * (sharpness - np.exp(0.45**2 / 2)) / spread + 0.8 * rng.normal(0, 1, 11)
    z, reach = np.arctanh(np.corrcoef(sharpness, gain)[0, 1]), stats.norm.ppf(0.975) / np.sqrt(8)
    return (float(np.tanh(z - reach)), float(np.tanh(z + reach))), 0.6


def shares(rng: np.random.Generator) -> tuple[tuple[float, float] | None, float]:
    """Shares of 36 points each of 11 datasets, drawn around datasets' own chances."""
    chance = rng.beta(4, 1, 11)
    return mean_interval(rng.binomial(36, chance) / 36)[1], 0.8


def label_difference(sample: Sample) -> tuple[float, tuple[float, float] | None]:
    reduced = effects(STUDY, "all", sample.log_loss, 1 / sample.d_reference, sample.log_sharpness, LABEL)
    found = versus(
        held_out_errors(reduced[:, 0], reduced[:, 1:3]), held_out_errors(reduced[:, 0], reduced[:, 3:])
    )
    return found.value, found.interval


def claim_rates(num: int) -> dict[str, dict[str, float]]:
    """Under each null: share of tables with any false claim, each question's own level, and what was said
    before.
    """
    found = {}
    for j, (name, truth) in enumerate(NULLS.items()):
        rng = np.random.default_rng([20260102, j])
        counts: Counter[str] = Counter()
        for _ in range(num):
            sample = draw(STUDY, truth, rng)
            p_values = claim_p_values(STUDY, sample)
            gains, sharpness = rng.normal(0, 1, (11, 24)), rng.normal(0, 1, 11)
            gains += rng.normal(0, 1, (11, 1))
            adjusted = max_correlation_test(gains, sharpness, [""] * 11)
            p_values[k.ATTACKS] = adjusted[1].p_value
            false = {key: p for key, p in p_values.items() if key not in TRUE.get(name, set())}
            held = {claim.key for claim in k.adjust(p_values) if claim.established}
            counts["any false claim"] += bool(held & set(false))
            counts["any question without adjustment (before)"] += any(p <= 0.05 for p in false.values())
            counts["K_F better than the label"] += label_difference(sample)[1][1] < 0
            counts.update(f"p ≤ 0.05: {key}" for key, p in false.items() if p <= 0.05)
        found[name] = {key: counts[key] / num for key in sorted(counts)}
    return found


def environment() -> dict[str, object]:
    packages = {name: version(name) for name in ("numpy", "scipy")}
    return {"python": platform.python_version(), "num_cpus": os.cpu_count(), **packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", type=int, default=2000, help="tables drawn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    coverage = interval_coverage(arguments.tables)
    nulls = claim_rates(arguments.tables // 2)
    now = {name: share for name, share in coverage.items() if "(before)" not in name}
    result = {
        "name": "fit_coverage",
        "tables": arguments.tables,
        "ours": {"coverage of 95 % intervals": now, "nulls": nulls},
        "theirs": {name: share for name, share in coverage.items() if "(before)" in name},
        "ratio": min(now.values()) / 0.95,
        "environment": environment(),
    }
    if arguments.json:
        print(json.dumps(result, indent=1, ensure_ascii=False))
        return
    print(f"95 % intervals hold the truth in ({arguments.tables} tables):")
    for name, share in coverage.items():
        print(f"  {share:6.1%}  {name}")
    for null, rates in nulls.items():
        print(f"null: {null}")
        for name, share in rates.items():
            print(f"  {share:6.1%}  {name}")


if __name__ == "__main__":
    main()
