"""Error rates of the claims in reports, and coverage of their intervals, on tables of known truth.

A world is one kind of simulated table. `blind_tables.py` draws the tables and shares no code with
the analysis. Each table is analyzed as for a report, and claims are read from the report's
sentences. A claim is false if there is no effect, or if its direction is wrong. The result compares
these claims with claims before correction: headline questions with p ≤ 0.05. Every share has
exact (Clopper-Pearson) 95 % bounds.

Predictions are made for every fourth table. With ``--into FILE``, results are added to a file, and
worlds that the file already has are skipped.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from blind_tables import WORLDS, Drawn, World, draw, share
from harness import Result, environment, run, show

from orchestrator.analysis import headline
from orchestrator.analysis.claims import ledger
from orchestrator.analysis.findings import findings
from orchestrator.analysis.fits import ScalingFits, fit_scaling_laws
from orchestrator.analysis.inference import LEVEL, Interval
from orchestrator.analysis.law_fits.estimates import correlation_interval
from orchestrator.analysis.law_fits.records import AttackFit
from orchestrator.analysis.loss_growth import fit_growth
from orchestrator.analysis.prediction import predict
from orchestrator.analysis.prediction_inputs import PilotPoint
from search_spaces.errors import DataError

TABLES_PER_FORECAST = 4
"""Predictions take most of the time, so they are made for one of four tables."""
PILOT_SIZES = (0, 2, 4)
"""Numbers of train sizes in a pilot."""
SENTENCES = {
    "loss on d_data": r"The loss (rises|falls) with d_data\.",
    "loss on K_F": r"The loss (rises|falls) with K_F\.",
    "attacks on K_F": r"Attacks (raise) the loss more where labels are sharper\.",
    "exponent": r"The loss (rises|falls) (?:(?:faster |more slowly )?with N)",
    "against the bound": r"(rises with N, which contradicts|falls (?:faster|more slowly) with N)",
}
"""Claim -> pattern of its sentence in a report, with its direction."""
BELOW = {"rises with N, which contradicts", "falls more slowly with N"}
"""Directions of an exponent below the law's bound, in the words of a report."""
ABOVE = {"falls faster with N"}
"""Direction of an exponent above the law's bound, in the words of a report."""
CLAIM_KEYS = {
    headline.DIMENSION.key: "loss on d_data",
    headline.SHARPNESS.key: "loss on K_F",
    headline.ATTACKS.key: "attacks on K_F",
    headline.EXPONENT.key: "exponent",
    headline.BELOW_BOUND.key: "against the bound",
}
"""Key of a headline question in a report -> name of the claim in a world."""


def true_claims(world: World) -> dict[str, set[str]]:
    """Return the true directions of each claim in a world; empty if there is no effect."""
    against_bound: set[str] = set()
    if world.exponent < 1:
        against_bound = BELOW
    elif world.exponent > 1:
        against_bound = ABOVE
    attacks = {"raise"} if world.on_gain > 0 else set()
    return {
        "loss on d_data": _direction(world.on_d),
        "loss on K_F": _direction(world.on_sharpness),
        "attacks on K_F": attacks,
        "exponent": _direction(-world.exponent),
        "against the bound": against_bound,
    }


def _direction(slope: float) -> set[str]:
    """Return the verb of a loss with this slope; empty for a slope of 0."""
    if slope > 0:
        return {"rises"}
    if slope < 0:
        return {"falls"}
    return set()


def claims_of(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    """Yield each claim in the sentences of a report, with its direction."""
    text = " ".join(finding.claim for finding in findings(fits))
    for claim, pattern in SENTENCES.items():
        for match in re.finditer(pattern, text):
            yield claim, match[1]


def num_wrong_verdicts(drawn: Drawn, world: World) -> int:
    """Return the number of verdicts in the ledger of claims that are false in a world."""
    effects = {
        "Fig. 2a": world.on_d,
        "Eq. 2": world.on_sharpness,
        "Thm 3": world.on_gain,
        "Thm 1": world.exponent - 1,
    }
    if not world.on_sharpness and not world.on_d:
        # Otherwise the domains differ in K_F or d, and the offset between them is not the label's.
        effects["Fig. 2b"] = world.on_label
    num_wrong = 0
    for entry in ledger(drawn.table, sweep=world.name, compare=False).entries:
        effect = effects.get(entry.question.source)
        if effect is None or not entry.is_decided:
            continue
        is_supported = entry.verdict == "supported"
        is_right = effect > 0 if is_supported else effect < 0
        num_wrong += not is_right
    return num_wrong


def intervals_of(fits: ScalingFits, world: World) -> Iterator[tuple[str, Interval | None, float]]:
    """Yield each 95 % interval of a report, with its estimand and the true value."""
    exponent = fits.exponent().estimate("exponent")
    if exponent is not None:
        yield "exponent · d", exponent.interval, world.exponent
    heights = fits.headline()
    dimension = heights.estimate("inverse_d")
    sharpness = heights.estimate("log_sharpness")
    # With an effect of d, the fit on 1/d is not the world's formula, so it has no true value.
    if dimension is not None and not world.on_d:
        yield "loss on 1/d", dimension.interval, 0.0
    if sharpness is not None and not world.on_d:
        yield "loss on log K_F", sharpness.interval, world.on_sharpness
    gap = fits.height("is_medical").estimate("is_medical")
    if gap is not None and not world.on_sharpness and not world.on_d:
        yield "loss on the label", gap.interval, world.on_label


@dataclass(frozen=True)
class Forecasted:
    """A predicted loss of a dataset that no fit has used.

    Attributes:
        pilot: Size of the pilot in words.
        is_covered: Whether the 90 % interval contains the loss.
        shorter: Share by which d_data and K_F make the interval narrower.
    """

    pilot: str
    is_covered: bool
    shorter: float


def forecasts_of(drawn: Drawn) -> Iterator[Forecasted]:
    """Predict the loss of a new dataset at its largest N, from pilots of its smaller sizes."""
    new_dataset = drawn.kept_back[drawn.kept_back["model"] == "a"].sort_values("train_size")
    last = new_dataset.iloc[-1]
    try:
        growth = fit_growth(drawn.table, model="a")
    except DataError:
        return
    for size in PILOT_SIZES:
        if size >= len(new_dataset):
            continue
        pilot = []
        for _, row in new_dataset.head(size).iterrows():
            pilot.append(PilotPoint(row["train_size"], row["test_loss"]))
        forecast = predict(
            growth,
            d_data=last["d_data_mle"],
            label_sharpness=last["label_sharpness"],
            train_size=last["train_size"],
            pilot=pilot,
        )
        if forecast.interval is None:
            continue
        low, high = forecast.interval
        yield Forecasted(
            pilot=f"pilot of {size}" if size else "no pilot",
            is_covered=low <= last["test_loss"] <= high,
            shorter=forecast.shorter or 0.0,
        )


def has_false_claim_before_correction(fits: ScalingFits, truth: dict[str, set[str]]) -> bool:
    """Return whether a question without an effect has an uncorrected p of at most 0.05."""
    for answer in fits.answers:
        if answer.p_value is None or answer.p_value > LEVEL:
            continue
        if not truth[CLAIM_KEYS[answer.question.key]]:
            return True
    return False


def judge(request: tuple[str, int]) -> tuple[str, Result]:
    """Draw tables of a world. Count false and true claims, and intervals that contain the truth.

    Args:
        request: Name of the world, and number of tables.
    """
    name, num_tables = request
    names = [world.name for world in WORLDS]
    seed = names.index(name)
    world = WORLDS[seed]
    truth = true_claims(world)
    counts: Counter[str] = Counter({"any false headline claim": 0, "any unadjusted (before)": 0})
    coverage: dict[str, list[bool]] = defaultdict(list)
    forecasts: dict[str, list[Forecasted]] = defaultdict(list)
    rng = np.random.default_rng([20260301, seed])
    for number in range(num_tables):
        drawn = draw(world, rng)
        fits = fit_scaling_laws(drawn.table)
        false_claims = set()
        for claim, direction in set(claims_of(fits)):
            is_true = direction in truth[claim]
            counts[f"{'true' if is_true else 'false'}: {claim}"] += 1
            if not is_true:
                false_claims.add(claim)
        counts["any false headline claim"] += bool(false_claims)
        counts["any unadjusted (before)"] += has_false_claim_before_correction(fits, truth)
        counts["any wrong verdict of the ledger"] += num_wrong_verdicts(drawn, world) > 0
        for estimand, bounds, value in intervals_of(fits, world):
            if bounds is not None:
                low, high = bounds
                coverage[estimand].append(low <= value <= high)
        if number % TABLES_PER_FORECAST == 0:
            for forecast in forecasts_of(drawn):
                forecasts[forecast.pilot].append(forecast)
    return name, {
        "claims": {claim: share(count, num_tables) for claim, count in sorted(counts.items())},
        "95 % intervals": {
            estimand: share(sum(is_covered), len(is_covered))
            for estimand, is_covered in coverage.items()
        },
        "90 % forecasts": {pilot: _of_forecasts(made) for pilot, made in forecasts.items()},
    }


def _of_forecasts(made: Sequence[Forecasted]) -> Result:
    """Return the coverage of forecasts, and the median share by which measures narrow them."""
    num_covering = sum(forecast.is_covered for forecast in made)
    shorter = float(np.median([forecast.shorter for forecast in made]))
    return {**share(num_covering, len(made)), "shorter": shorter}


def report_truth(
    *, tables: int = 200, world: tuple[str, ...] = (), workers: int = 1, into: Path | None = None
) -> Result:
    """Test the reports of simulated tables.

    Args:
        tables: Number of tables of each world.
        world: Names of the worlds; all worlds if empty.
        workers: Number of processes.
        into: File to which each world's result is added; worlds in the file are skipped.
    """
    ours: dict[str, Result] = {}
    if into and into.exists():
        ours = json.loads(into.read_text(encoding="utf-8"))["ours"]
    requests = []
    for candidate in WORLDS:
        is_requested = not world or candidate.name in world
        if is_requested and candidate.name not in ours:
            requests.append((candidate.name, tables))
    with Pool(workers) as pool:
        for name, counts in pool.imap_unordered(judge, requests):
            ours[name] = counts
            if into:
                document = {"name": "report_truth", **result(ours), "environment": environment()}
                text = json.dumps(document, indent=1, ensure_ascii=False)
                into.write_text(f"{text}\n", encoding="utf-8")
            if "--json" not in sys.argv:
                show({name: counts})
    return result(ours)


def selection(*, tables: int = 30) -> Result:
    """Count false claims about attacks, and any false claims, on tables of noise with two models.

    This is done with the interval of the largest correlation adjusted for its selection, as today,
    and without this adjustment.
    """
    worlds = [
        replace(candidate, models=("a", "b"))
        for candidate in WORLDS
        if candidate.name.startswith("noise")
    ]
    squashed = World(name="noise, losses at guessing", shift=2.0, models=("a", "b"))
    counts: Counter[str] = Counter()
    for world in (*worlds, squashed, squashed, squashed):
        rng = np.random.default_rng([38, len(counts), counts["tables"]])
        for _ in range(tables):
            fits = fit_scaling_laws(draw(world, rng).table)
            truth = true_claims(world)
            false = {claim for claim, direction in claims_of(fits) if direction not in truth[claim]}
            attacks = "attacks on K_F" in false
            before = attacks or _claimed_before(fits)
            counts["tables"] += 1
            counts["attacks"] += attacks
            counts["attacks before"] += before
            counts["any"] += bool(false)
            counts["any before"] += bool(false) or before
    num = counts["tables"]
    return {
        "ours": {name: share(counts[name], num) for name in ("attacks", "any")},
        "theirs": {name: share(counts[f"{name} before"], num) for name in ("attacks", "any")},
    }


def _claimed_before(fits: ScalingFits) -> bool:
    """Return whether attacks were claimed by the unadjusted interval of one correlation."""
    claim = fits.answer(headline.ATTACKS)
    if claim.adjusted_p is None or claim.adjusted_p > LEVEL:
        return False
    domains = len({dataset.domain for dataset in fits.datasets})
    largest = max((fit for fit in fits.attacks if fit.estimates), key=_correlation_of)
    bounds = correlation_interval(_correlation_of(largest), largest.num_datasets, domains - 1)
    return bounds is not None and bounds[0] > 0


def _correlation_of(fit: AttackFit) -> float:
    return fit.estimates[0].value


def result(ours: dict[str, Result]) -> Result:
    """Return the shares of each world, and of several worlds together."""
    ours = {world.name: ours[world.name] for world in WORLDS if world.name in ours}
    nulls = {name: counts for name, counts in ours.items() if name.startswith("noise")}
    of_all = together(ours)
    return {
        "tables": {
            name: counts["claims"]["any false headline claim"]["tables"]
            for name, counts in ours.items()
        },
        "ours": ours,
        "all worlds of noise together": together(nulls),
        "all worlds together": of_all,
        "theirs": {
            name: counts["claims"]["any unadjusted (before)"]["share"]
            for name, counts in ours.items()
        },
        "ratio": of_all["claims"]["any false headline claim"]["share"] / LEVEL if ours else None,
    }


def together(ours: dict[str, Result]) -> dict[str, dict[str, Any]]:
    """Return the shares over the tables of several worlds, with exact bounds."""
    counts: dict[tuple[str, str], list[int]] = {}
    for of_world in ours.values():
        for part, rows in of_world.items():
            for name, row in rows.items():
                count = counts.setdefault((part, name), [0, 0])
                count[0] += round(row["share"] * row["tables"])
                count[1] += row["tables"]
    pooled: dict[str, dict[str, Any]] = {"claims": {}, "95 % intervals": {}, "90 % forecasts": {}}
    num_tables = sum(
        of_world["claims"]["any false headline claim"]["tables"] for of_world in ours.values()
    )
    for (part, name), (count, num) in sorted(counts.items()):
        # A claim that a world's reports never made has no row there.
        pooled[part][name] = share(count, num_tables if part == "claims" else num)
    return pooled


if __name__ == "__main__":
    run(report_truth, parts=(selection,))
