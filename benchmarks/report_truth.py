"""What does a report claim on tables whose truth is known, and how often do its intervals hold it?

Tables are drawn by `blind_tables.py`, which shares no code with the analysis, and go the whole way of a
report: `fit_scaling_laws`, `findings`. Claims are read out of the finished sentences; a claim is false where
nothing is, or where it names the wrong direction. Every share has its exact (Clopper-Pearson) 95 % bounds.
The other side is what the same sentences would claim without adjustment: any headline question with p ≤ 0.05.

Permutations: at most 5,040 tried in full, else 999 drawn (the fits try up to 200,000). Fits that no claim
rests on (single models, single datasets, forms compared, published regressions) are left out to save time.

Usage: python benchmarks/report_truth.py [--json] [--tables 200] [--world NAME] [--workers 2] [--into FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from blind_tables import GROWTH, WORLDS, Drawn, World, draw
from scipy import stats

from orchestrator.analysis import fit_scaling_laws, inference, laws, predict
from orchestrator.analysis import fits as fits_module
from orchestrator.analysis import laws as k
from orchestrator.analysis import table as t
from orchestrator.analysis.findings import findings
from orchestrator.analysis.fit_records import ALL, POOLED, Association, AttackFit, ScalingFits
from orchestrator.analysis.laws import PAST_GUESSING, fit_exponent
from orchestrator.analysis.prediction import PilotPoint, fit_growth
from orchestrator.results import table as c
from search_spaces.errors import DataError

inference.MOST_EXACT, inference.NUM_DRAWN = 5_040, 999


def leave_out_what_no_claim_rests_on() -> None:
    """Replace the exploratory fits by none, where :func:`fit_scaling_laws` looks them up."""

    def of_pooled(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda points, *, model, **rest: (
            function(points, model=model, **rest) if model == POOLED else ()
        )

    def past_guessing(points: pd.DataFrame, full: pd.DataFrame) -> tuple[Any, ...]:
        return (fit_exponent(t.past_guessing(points, full), label=PAST_GUESSING),)

    def attacks(points: pd.DataFrame, *, model: str, **_: Any) -> tuple[AttackFit, ...]:
        # The family of attacks is tested over dataset effects, not by these.
        blank = Association(x="", y="", model=model, status="not_enough_data", reason="left out")
        return tuple(
            AttackFit(attack=name, epsilon=epsilon, model=model, on_sharpness=blank, on_d_data=blank)
            for _, name, epsilon in c.attack_columns(points.columns)
        )

    nothing: Callable[..., Any] = lambda *_, **__: ()  # noqa: E731
    changes: dict[str, Callable[..., Any]] = {
        "_train_sizes": nothing, "_laws": nothing, "compare_forms": nothing, "fit_sensitivity": past_guessing,
        "fit_attacks": attacks, "fit_exponents": of_pooled(fits_module.fit_exponents),
        "fit_levels": of_pooled(fits_module.fit_levels),
        "_growths": lambda points, _, scale: (fit_growth(points, model="a", subset=ALL, scale=scale),),
    }  # fmt: skip
    for name, function in changes.items():
        setattr(fits_module, name, function)
    laws.RIVALS = tuple(terms for terms in laws.RIVALS if terms in SAID)


SAID = ((t.IS_MEDICAL,), (t.INVERSE_D, t.LOG_SHARPNESS), laws.HEADLINE)
"""Level regressions over both domains that a sentence rests on."""
SENTENCES = {
    "loss on d_data": r"Among \d+ (?:natural|medical) datasets?, [^.]*?log test loss (rises|falls) by",
    "loss on K_F": r"given 1/d and the domain label, log test loss (rises|falls) by",
    "attacks on K_F": r"loss gained by an attack (correlates) with K_F",
    "exponent": r"log test loss on −log N / d has slope [^:]*: it (falls|rises) with N",
    "below the bound": r"log test loss on −log N / d has slope [^:]*: [^.]*(contradicts it)",
    "better than the label (exploratory)": r"predicts (better|worse) than",
}
"""Claim -> how a finished report says it, with its direction."""
CLAIM_KEYS = {
    **dict.fromkeys(k.LOSS_ON_D_DATA.values(), "loss on d_data"), k.SHARPNESS: "loss on K_F",
    k.ATTACKS: "attacks on K_F", k.EXPONENT: "exponent", k.BELOW_BOUND: "below the bound",
}  # fmt: skip


def true_claims(world: World) -> dict[str, set[str]]:
    """Return what may be said of a world, by claim: directions that are true."""

    def signs(value: float) -> set[str]:
        return {"rises"} if value > 0 else {"falls"} if value < 0 else set()

    better = {"better", "worse"} if world.on_sharpness or world.on_d or world.on_label else {"worse"}
    # A narrow range of both: where the loss hangs on K_F and K_F on d, it hangs on d as well.
    return {
        "loss on d_data": signs(world.on_d),
        "loss on K_F": signs(world.on_sharpness),
        "attacks on K_F": {"correlates"} if world.on_gain else set(),
        "exponent": {"falls"} if world.exponent > 0 else signs(-world.exponent),
        "below the bound": {"contradicts it"} if world.exponent < 1 else set(),
        "better than the label (exploratory)": better,
    }


def claims_of(fits: ScalingFits) -> Iterator[tuple[str, str]]:
    """Read the claims out of the finished sentences."""
    text = " ".join(finding.answer for finding in findings(fits))
    for claim, pattern in SENTENCES.items():
        for match in re.finditer(pattern, text):
            yield claim, match[1]


def intervals_of(fits: ScalingFits, world: World) -> Iterator[tuple[str, tuple[float, float] | None, float]]:
    """The 95 % intervals that the sentences show, each with what it should hold."""
    yield "exponent · d", fits.exponent().interval, world.exponent
    sizes = np.array(world.sizes, dtype=float)
    shrunk = float(((sizes / sizes[-1]) ** GROWTH).mean())
    for domain in ("natural", "medical"):
        fit = fits.level("d_data_mle", subset=domain)
        if fit.status == "ok" and not world.on_sharpness:
            yield f"loss on d_data, {domain}", fit.coefficient("d_data_mle").interval, world.on_d / shrunk
    fit = fits.level("inverse_d", "log_sharpness", "is_medical")
    if fit.status == "ok" and not world.on_d:
        yield "loss on log K_F", fit.coefficient("log_sharpness").interval, world.on_sharpness
    gap = fits.level("is_medical")
    if gap.status == "ok" and not world.on_sharpness and not world.on_d:
        yield "loss on the label", gap.coefficient("is_medical").interval, world.on_label


def forecasts_of(fits: ScalingFits, drawn: Drawn) -> Iterator[tuple[str, bool, float | None]]:
    """90 % intervals for the dataset kept back, at its largest N, with pilots of its smaller sizes."""
    mine = drawn.kept_back[drawn.kept_back["model"] == "a"].sort_values("train_size")
    last = mine.iloc[-1]
    for size in (0, 2, 4):
        if size >= len(mine):
            continue
        pilot = [PilotPoint(row["train_size"], row["test_loss"]) for _, row in mine.head(size).iterrows()]
        try:
            found = predict(
                fits, model="a", domain=None, d_data=last["d_data_mle"],
                label_sharpness=last["label_sharpness"], train_size=last["train_size"], pilot=pilot,
            )  # fmt: skip
        except DataError:
            continue
        if found.interval is not None:
            held = found.interval[0] <= last["test_loss"] <= found.interval[1]
            yield f"pilot of {size}" if size else "no pilot", held, found.shorter


def judge(world: World, num: int, seed: int) -> dict[str, object]:
    """Draw ``num`` tables of a world and count false claims, true ones, and intervals that hold the truth."""
    said: Counter[str] = Counter()
    shown: dict[str, list[bool]] = {}
    forecasts: dict[str, list[tuple[bool, float]]] = {}
    truth = true_claims(world)
    rng = np.random.default_rng([20260301, seed])
    for _ in range(num):
        drawn = draw(world, rng)
        fits = fit_scaling_laws(drawn.table)
        found = set(claims_of(fits))
        headline = {(claim, way) for claim, way in found if "exploratory" not in claim}
        false = {claim for claim, way in found if way not in truth[claim]}
        said.update(f"false: {claim}" for claim in false)
        said["any false headline claim"] += any(way not in truth[claim] for claim, way in headline)
        said["any unadjusted (before)"] += any(
            claim.p_value <= k.LEVEL and not truth[CLAIM_KEYS[claim.key]] for claim in fits.claims
        )
        said.update(f"true: {claim}" for claim, way in found if way in truth[claim])
        for name, bounds, value in intervals_of(fits, world):
            if bounds is not None:
                shown.setdefault(name, []).append(bounds[0] <= value <= bounds[1])
        for name, held, shorter in forecasts_of(fits, drawn):
            forecasts.setdefault(name, []).append((held, shorter or 0.0))
    said["any false headline claim"] += 0
    said["any unadjusted (before)"] += 0
    return {
        "said": {name: share(count, num) for name, count in sorted(said.items())},
        "95 % intervals": {name: share(sum(held), len(held)) for name, held in shown.items()},
        "90 % forecasts": {
            name: share(sum(held for held, _ in rows), len(rows))
            | {"shorter": float(np.median([shorter for _, shorter in rows]))}
            for name, rows in forecasts.items()
        },
    }


def share(count: int, num: int) -> dict[str, float]:
    """A share with its exact 95 % bounds."""
    bounds = stats.binomtest(count, num).proportion_ci(0.95, method="exact")
    numbers = {"share": count / num, "low": float(bounds.low), "high": float(bounds.high)}
    return {**{name: round(value, 4) for name, value in numbers.items()}, "tables": num}


def environment() -> dict[str, object]:
    packages = {name: version(name) for name in ("numpy", "scipy", "pandas")}
    return {"python": platform.python_version(), "num_cpus": os.cpu_count(), **packages}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tables", type=int, default=200, help="tables drawn of each world")
    parser.add_argument("--world", action="append", help="only this world; may be given for several")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--into", type=Path, help="JSON file to add worlds to; those in it are not drawn")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    kept = arguments.into is not None and arguments.into.exists()
    ours = json.loads(arguments.into.read_text())["ours"] if kept else {}
    wanted = [world.name for world in WORLDS if world.name in (arguments.world or [world.name])]
    left = [(name, arguments.tables) for name in wanted if name not in ours]
    with Pool(arguments.workers) as pool:
        for name, found in pool.imap_unordered(judge_named, left):
            ours[name] = found
            if arguments.into:
                text = json.dumps(result(ours), indent=1, ensure_ascii=False)
                arguments.into.write_text(text + "\n")
            if not arguments.json:
                show(name, found)
    whole = result(ours)
    if arguments.json:
        print(json.dumps(whole, indent=1, ensure_ascii=False))
    else:
        show("all worlds together", whole["all worlds together"])


def judge_named(asked: tuple[str, int]) -> tuple[str, dict[str, Any]]:
    leave_out_what_no_claim_rests_on()
    name, num = asked
    seed, world = next((k, world) for k, world in enumerate(WORLDS) if world.name == name)
    return name, judge(world, num, seed)


def result(ours: dict[str, dict[str, Any]]) -> dict[str, Any]:
    ours = {world.name: ours[world.name] for world in WORLDS if world.name in ours}
    nulls = {name: found for name, found in ours.items() if name.startswith("noise")}
    return {
        "name": "report_truth",
        "tables": {
            name: found["said"]["any false headline claim"]["tables"] for name, found in ours.items()
        },
        "ours": ours,
        "all worlds of noise together": together(nulls), "all worlds together": together(ours),
        "theirs": {name: found["said"]["any unadjusted (before)"]["share"] for name, found in ours.items()},
        "ratio": together(ours)["said"]["any false headline claim"]["share"] / k.LEVEL,
        "environment": environment(),
    }  # fmt: skip


def together(ours: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Shares over the tables of several worlds, with their exact bounds."""
    counts: dict[tuple[str, str], list[int]] = {}
    for found in ours.values():
        for part, rows in found.items():
            for name, row in rows.items():
                count = counts.setdefault((part, name), [0, 0])
                count[0] += round(row["share"] * row["tables"])
                count[1] += row["tables"]
    pooled: dict[str, dict[str, Any]] = {"said": {}, "95 % intervals": {}, "90 % forecasts": {}}
    every = sum(found["said"]["any false headline claim"]["tables"] for found in ours.values())
    for (part, name), (count, num) in sorted(counts.items()):
        # A claim that a world's reports never made has no row there.
        pooled[part][name] = share(count, every if part == "said" else num)
    return pooled


def show(name: str, found: dict[str, object]) -> None:
    print(name, flush=True)
    for part, rows in found.items():
        for what, row in rows.items():
            more = f", {row['shorter']:.0%} shorter" if "shorter" in row else ""
            print(
                f"  {part}: {row['share']:6.1%} ({row['low']:.1%} to {row['high']:.1%}){more}  {what}",
                flush=True,
            )


if __name__ == "__main__":
    main()
