"""Error rates of the claims in reports, and coverage of their intervals, on tables of known truth.

Tables are drawn by `blind_tables.py`, which shares no code with the analysis. They are analyzed as
for a report, by `fit_scaling_laws` and `findings`. Claims are read from the finished sentences. A
claim is false if there is no effect, or if its direction is wrong. Every share has exact
(Clopper-Pearson) 95 % bounds. The other side is the claims of the same sentences without
adjustment: any headline question with p ≤ 0.05.

Predictions are made for every fourth table. ``--into FILE`` adds worlds to a result. Worlds that
are already in the result are not drawn again.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
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
from orchestrator.analysis.inference import LEVEL
from orchestrator.analysis.law_fits.estimates import correlation_interval
from orchestrator.analysis.law_fits.records import AttackFit
from orchestrator.analysis.loss_growth import fit_growth
from orchestrator.analysis.prediction import predict
from orchestrator.analysis.prediction_inputs import PilotPoint
from search_spaces.errors import DataError

SENTENCES = {
    "loss on d_data": r"The loss (rises|falls) with d_data\.",
    "loss on K_F": r"The loss (rises|falls) with K_F\.",
    "attacks on K_F": r"Attacks (raise) the loss more where labels are sharper\.",
    "exponent": r"The loss (rises|falls) (?:with N|more slowly with N than the law's bound)",
    "below the bound": r"(rises with N, which contradicts|falls more slowly with N)",
}
"""Claim -> pattern of its sentence in a report, with its direction."""
BELOW = {"rises with N, which contradicts", "falls more slowly with N"}
"""How a finished report contradicts the bound."""
CLAIM_KEYS = {
    headline.DIMENSION.key: "loss on d_data",
    headline.SHARPNESS.key: "loss on K_F",
    headline.ATTACKS.key: "attacks on K_F",
    headline.EXPONENT.key: "exponent",
    headline.BELOW_BOUND.key: "below the bound",
}


def true_claims(world: World) -> dict[str, set[str]]:
    """Return the claims that are true of a world, with their directions."""

    def signs(value: float) -> set[str]:
        return {"rises"} if value > 0 else {"falls"} if value < 0 else set()

    return {
        "loss on d_data": signs(world.on_d),
        "loss on K_F": signs(world.on_sharpness),
        "attacks on K_F": {"raise"} if world.on_gain > 0 else set(),
        "exponent": {"falls"} if world.exponent > 0 else signs(-world.exponent),
        "below the bound": BELOW if world.exponent < 1 else set(),
    }


def claims_of(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    """Return the claims in the finished sentences of decided findings."""
    text = " ".join(finding.claim for finding in findings(fits))
    for claim, pattern in SENTENCES.items():
        for match in re.finditer(pattern, text):
            yield claim, match[1]


def wrong_verdicts(drawn: Drawn, world: World) -> int:
    """Count the verdicts of the ledger of claims that are false for a world."""
    truth = {"Fig. 2a": world.on_d, "Eq. 2": world.on_sharpness, "Thm 3": world.on_gain}
    truth["Thm 1"] = world.exponent - 1
    if not world.on_sharpness and not world.on_d:
        truth["Fig. 2b"] = world.on_label
    entries = ledger(drawn.table, sweep=world.name, compare=False).entries
    verdicts = {entry.question.source: entry.verdict for entry in entries if entry.is_decided}
    right = {
        number: "supported" if value > 0 else "contradicted"
        for number, value in truth.items()
        if value
    }
    return sum(verdicts.get(number) not in (None, right.get(number)) for number in truth)


def intervals_of(
    fits: ScalingFits, world: World
) -> Iterator[tuple[str, tuple[float, float] | None, float]]:
    """Yield the 95 % intervals in the sentences, each with the true value."""
    exponent = fits.exponent().estimate("exponent")
    if exponent is not None:
        yield "exponent · d", exponent.interval, world.exponent
    heights = fits.headline()
    dimension, sharpness = (heights.estimate(name) for name in ("inverse_d", "log_sharpness"))
    if dimension is not None and not world.on_d:
        yield "loss on 1/d", dimension.interval, 0.0
    if sharpness is not None and not world.on_d:
        yield "loss on log K_F", sharpness.interval, world.on_sharpness
    gap = fits.height("is_medical").estimate("is_medical")
    if gap is not None and not world.on_sharpness and not world.on_d:
        yield "loss on the label", gap.interval, world.on_label


def forecasts_of(drawn: Drawn) -> Iterator[tuple[str, bool, float | None]]:
    """Yield whether 90 % intervals contain the loss of a dataset that no fit has used.

    The loss at its largest N is predicted from pilots of its smaller sizes.
    """
    mine = drawn.kept_back[drawn.kept_back["model"] == "a"].sort_values("train_size")
    last = mine.iloc[-1]
    try:
        growth = fit_growth(drawn.table, model="a")
    except DataError:
        return
    for size in (0, 2, 4):
        if size >= len(mine):
            continue
        pilot = [
            PilotPoint(row["train_size"], row["test_loss"]) for _, row in mine.head(size).iterrows()
        ]
        forecast = predict(
            growth,
            d_data=last["d_data_mle"],
            label_sharpness=last["label_sharpness"],
            train_size=last["train_size"],
            pilot=pilot,
        )
        if forecast.interval is not None:
            low, high = forecast.interval
            is_held = low <= last["test_loss"] <= high
            yield f"pilot of {size}" if size else "no pilot", is_held, forecast.shorter


def judge(request: tuple[str, int]) -> tuple[str, Result]:
    """Draw tables of a world. Count false and true claims, and intervals that contain the truth."""
    name, num = request
    seed, world = next((k, world) for k, world in enumerate(WORLDS) if world.name == name)
    counts: Counter[str] = Counter({"any false headline claim": 0, "any unadjusted (before)": 0})
    intervals: dict[str, list[bool]] = {}
    forecasts: dict[str, list[tuple[bool, float]]] = {}
    truth = true_claims(world)
    rng = np.random.default_rng([20260301, seed])
    for k in range(num):
        drawn = draw(world, rng)
        fits = fit_scaling_laws(drawn.table)
        claims = set(claims_of(fits))
        false = {claim for claim, direction in claims if direction not in truth[claim]}
        counts.update(f"false: {claim}" for claim in false)
        counts["any false headline claim"] += bool(false)
        counts["any unadjusted (before)"] += any(
            answer.p_value <= LEVEL and not truth[CLAIM_KEYS[answer.question.key]]
            for answer in fits.answers
            if answer.p_value is not None
        )
        counts["any wrong verdict of the ledger"] += wrong_verdicts(drawn, world) > 0
        counts.update(f"true: {claim}" for claim, direction in claims if direction in truth[claim])
        for estimand, bounds, value in intervals_of(fits, world):
            if bounds is not None:
                intervals.setdefault(estimand, []).append(bounds[0] <= value <= bounds[1])
        for pilot, is_held, shorter in forecasts_of(drawn) if k % 4 == 0 else ():
            forecasts.setdefault(pilot, []).append((is_held, shorter or 0.0))
    return name, {
        "claims": {claim: share(count, num) for claim, count in sorted(counts.items())},
        "95 % intervals": {
            estimand: share(sum(is_held), len(is_held)) for estimand, is_held in intervals.items()
        },
        "90 % forecasts": {
            pilot: share(sum(is_held for is_held, _ in rows), len(rows))
            | {"shorter": float(np.median([shorter for _, shorter in rows]))}
            for pilot, rows in forecasts.items()
        },
    }


def report_truth(
    *, tables: int = 200, world: tuple[str, ...] = (), workers: int = 1, into: Path | None = None
) -> Result:
    """Test reports on ``tables`` tables of each world, or of the given worlds."""
    ours = json.loads(into.read_text(encoding="utf-8"))["ours"] if into and into.exists() else {}
    names = [candidate.name for candidate in WORLDS if not world or candidate.name in world]
    left = [(name, tables) for name in names if name not in ours]
    with Pool(workers) as pool:
        for name, counts in pool.imap_unordered(judge, left):
            ours[name] = counts
            if into:
                document = {"name": "report_truth", **result(ours), "environment": environment()}
                into.write_text(
                    json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
                )
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
            counts.update(
                {
                    "tables": 1,
                    "attacks": attacks,
                    "attacks before": before,
                    "any": bool(false),
                    "any before": bool(false) or before,
                }
            )
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
