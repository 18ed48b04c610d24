"""Fit of the prior of learning curves that ships with the package.

The curves come from four kinds of sets: all pairs of classes of three sets of images, the base
datasets of the interventions, the losses that the study published, and LCDB's log losses of tabular
data. ``pip install lcdb`` installs the last ones (0.5 GB).

1. The parameters of the prior maximize the mean log density of the later sizes of every curve,
   given its first two to five sizes. Each set has the same weight.
2. Then each set is left out in turn, and predicted by a prior of the other sets. From the errors
   come the shares of the two plain fits, and a widening with which 90 % intervals cover 90 % of the
   curves.

``python benchmarks/learning_curve_prior.py`` writes
``orchestrator/analysis/learning_curve_prior.json``.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize, nnls

from orchestrator.analysis.learning_curves import (
    COARSE_GRID,
    NORMAL_QUANTILE,
    CurveArrays,
    CurvePoint,
    CurvePrior,
    GridFit,
    LearningCurve,
    Metric,
)
from orchestrator.analysis.simple_curves import floored_power_law, power_law

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results")
PRIOR = ROOT / "orchestrator" / "analysis" / "learning_curve_prior.json"
PAIR_SETS = {"UCI digits": "digit_pairs", "MNIST": "mnist_pairs", "Fashion-MNIST": "fashion_pairs"}
WORLD_TABLES = ("interventions_many", "interventions_digits")
BASE_DATASETS, PUBLISHED, LCDB = "base datasets", "published", "LCDB"
LCDB_LEARNERS = ("LogisticRegression", "MLPClassifier", "RandomForestClassifier")
LCDB_SIZES = [64 * 2**k for k in range(12)]
CURVES_PER_LEARNER, LCDB_SEEDS, MIN_LCDB_SIZES = 60, 3, 6
NUM_TEST_IMAGES = 100
"""Test images of the pairs and of the base datasets."""
MIN_PUBLISHED_SIZES = 4
PILOT_SIZES = (2, 3, 4, 5)
CALIBRATED_SIZES = (3, 4, 5)
"""Pilot sizes on which shares and widening are chosen."""
MAX_CASES_PER_SET = 60
MAX_CALIBRATION_CASES = 200
LEVEL = 0.90
MAX_EVALUATIONS = 320
NUM_PROCESSES = 2
START = CurvePrior(
    log_rate_mean=-0.1,
    log_rate_sd=0.9,
    logit_floor_mean=-1.3,
    logit_floor_sd=2.0,
    log_noise=-1.3,
    noise_by_level=-0.3,
    log_misfit=-2.1,
    log_drift=-2.0,
    rate_sharing=0.5,
    floor_sharing=0.5,
    test_sharing=0.5,
)
"""Start of the search: round numbers near the maximum of the mean log density over all sets."""
PENALTY_SD = np.array([1.0, 1.0, 1.5, 1.0, 1.0, 0.3, 1.0, 1.0, 0.3, 0.3, 2.0, 2.0, 2.0])
"""Standard deviations of a weak penalty around the start, one per number that is searched."""
PENALTY = 0.02


@dataclass(frozen=True)
class Curve:
    """Scores of one network on one dataset, sorted by train size.

    Attributes:
        source: Name of the set, which is left out as a whole.
        images: Name of the dataset within the set. Curves with the same dataset are siblings.
        network: Name of the network, or of the learner for tabular data.
        points: Scores, averaged over seeds.
    """

    source: str
    images: str
    network: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True)
class Case:
    """A later size of a curve, predicted from the first sizes of the curve.

    Attributes:
        curve: The curve.
        num_points: Number of sizes that are given.
        target: The point that is predicted.
        pilot: Index of the given points in :attr:`Cases.pilots`.
        siblings: Indices of the points of siblings up to the same train size.
    """

    curve: Curve
    num_points: int
    target: CurvePoint
    pilot: int
    siblings: tuple[int, ...]


@dataclass(frozen=True)
class Cases:
    """Cases, and the given points of all their curves."""

    pilots: list[tuple[CurvePoint, ...]]
    cases: list[Case]


def pair_curves(metric: Metric) -> list[Curve]:
    """Return the curves of each class pair and network, averaged over seeds."""
    curves = []
    for source, name in PAIR_SETS.items():
        table = pd.read_csv(RESULTS / f"{name}.csv.gz")
        done = table[table["status"] == "done"]
        for (pair, model), rows in done.groupby(["class_pair", "model"]):
            curves.append(Curve(source, str(pair), str(model), points_of(rows, metric)))
    return curves


def base_curves(metric: Metric) -> list[Curve]:
    """Return the curves of the base datasets of the interventions, with three train sizes each."""
    curves = []
    for name in WORLD_TABLES:
        table = pd.read_csv(RESULTS / f"{name}.csv.gz")
        is_base = table["dataset"].str.endswith("_base")
        done = table[(table["status"] == "done") & is_base]
        for (dataset, model), rows in done.groupby(["dataset", "model"]):
            curves.append(Curve(BASE_DATASETS, str(dataset), str(model), points_of(rows, metric)))
    return curves


def published_curves() -> list[Curve]:
    """Return the curves of the published losses, which have no seeds."""
    table = pd.read_csv(ROOT / "search_spaces" / "published" / "test_loss.csv")
    curves = []
    for (model, dataset), rows in table[table["test_loss"] > 0].groupby(["model", "dataset"]):
        means = rows.groupby("train_size")["test_loss"].mean()
        if len(means) >= MIN_PUBLISHED_SIZES:
            points = tuple(CurvePoint(train_size=n, score=loss) for n, loss in means.items())
            curves.append(Curve(PUBLISHED, str(dataset), str(model), points))
    return curves


def lcdb_curves() -> list[Curve]:
    """Return LCDB's log-loss curves: geometric means of three seeds at doubling sizes.

    Without the package ``lcdb`` there are no such curves.
    """
    spec = importlib.util.find_spec("lcdb")
    if spec is None or spec.submodule_search_locations is None:
        return []
    path = Path(spec.submodule_search_locations[0]) / "database-logloss.csv"
    columns = ["openmlid", "learner", "size_train", "outer_seed", "inner_seed", "score_test"]
    table = pd.read_csv(path, usecols=columns)
    table = table[(table["score_test"] > 0) & table["size_train"].isin(LCDB_SIZES)]
    curves = []
    for learner in LCDB_LEARNERS:
        rows = table[table["learner"].str.endswith(learner)]
        of_learner = []
        for dataset, trainings in rows.groupby("openmlid"):
            points = _lcdb_points(trainings)
            if len(points) >= MIN_LCDB_SIZES:
                of_learner.append(Curve(LCDB, str(dataset), learner, points))
        curves += of_learner[:CURVES_PER_LEARNER]
    return curves


def _lcdb_points(trainings: pd.DataFrame) -> tuple[CurvePoint, ...]:
    """Return the points at which the three most complete seeds all have a loss."""
    seeds = trainings.groupby(["outer_seed", "inner_seed"])["size_train"].nunique()
    if len(seeds) < LCDB_SEEDS:
        return ()
    chosen = seeds.sort_values(ascending=False).index[:LCDB_SEEDS]
    complete = trainings.set_index(["outer_seed", "inner_seed"]).loc[list(chosen)]
    logs = np.log(complete["score_test"]).groupby(complete["size_train"]).agg(["mean", "count"])
    means = logs[logs["count"] == LCDB_SEEDS].sort_index()["mean"]
    return tuple(
        CurvePoint(train_size=float(size), score=float(np.exp(mean)), num_trainings=LCDB_SEEDS)
        for size, mean in means.items()
    )


def points_of(rows: pd.DataFrame, metric: Metric) -> tuple[CurvePoint, ...]:
    """Return the points of a curve: geometric means of losses over seeds, or mean errors."""
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


def all_curves(metric: Metric) -> list[Curve]:
    """Return all curves of a metric."""
    curves = [*pair_curves(metric), *base_curves(metric)]
    if metric == "loss":
        curves += [*published_curves(), *lcdb_curves()]
    return curves


def without(curves: Sequence[Curve], left_out: Sequence[str]) -> list[Curve]:
    """Return the curves that share no images with the left-out sets.

    The base datasets are drawn from the sets of class pairs, so they are left out with each of
    these.
    """
    excluded = set(left_out)
    if excluded & set(PAIR_SETS):
        excluded.add(BASE_DATASETS)
    return [curve for curve in curves if curve.source not in excluded]


def cases_of(curves: Sequence[Curve], pilot_sizes: Sequence[int], *, last_only: bool) -> Cases:
    """Return each later size of each curve as a case.

    Args:
        curves: The curves.
        pilot_sizes: Numbers of given sizes.
        last_only: Whether only the largest size is predicted.
    """
    pilots: list[tuple[CurvePoint, ...]] = []
    places: dict[tuple[CurvePoint, ...], int] = {}

    def place_of(points: tuple[CurvePoint, ...]) -> int:
        if points not in places:
            places[points] = len(pilots)
            pilots.append(points)
        return places[points]

    by_images: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        by_images.setdefault((curve.source, curve.images), []).append(curve)
    cases = []
    for curve in curves:
        for num_points in pilot_sizes:
            if len(curve.points) <= num_points:
                continue
            given_points = curve.points[:num_points]
            siblings = []
            for sibling in by_images[curve.source, curve.images]:
                points = tuple(
                    point
                    for point in sibling.points
                    if point.train_size <= given_points[-1].train_size
                )
                if sibling is not curve and len(points) >= 2:
                    siblings.append(place_of(points))
            targets = curve.points[-1:] if last_only else curve.points[num_points:]
            for target in targets:
                pilot = place_of(given_points)
                cases.append(Case(curve, num_points, target, pilot, tuple(siblings)))
    return Cases(pilots, cases)


def sampled(cases: Cases, num_per_set: int) -> Cases:
    """Return a sample of cases of each set, drawn with a fixed seed, with their pilots."""
    generator = np.random.default_rng(0)
    chosen: list[Case] = []
    for source in sorted({case.curve.source for case in cases.cases}):
        of_set = [case for case in cases.cases if case.curve.source == source]
        order = generator.permutation(len(of_set))[:num_per_set]
        chosen += [of_set[place] for place in order]
    needed = sorted({place for case in chosen for place in (case.pilot, *case.siblings)})
    places = {old: new for new, old in enumerate(needed)}
    renumbered = [
        replace(
            case,
            pilot=places[case.pilot],
            siblings=tuple(places[sibling] for sibling in case.siblings),
        )
        for case in chosen
    ]
    return Cases([cases.pilots[place] for place in needed], renumbered)


def set_weights(cases: Sequence[Case]) -> np.ndarray:
    """Return a weight for each case, so that all sets have the same weight, ``(num_cases,)``."""
    sources = pd.Series([case.curve.source for case in cases])
    weights = 1 / sources.map(sources.value_counts()).to_numpy(dtype=float)
    return np.asarray(weights / weights.sum())


def fit_prior(curves: Sequence[Curve], metric: Metric) -> CurvePrior:
    """Return the prior that predicts these curves best, with the same weight for each set."""
    sources = tuple(sorted({curve.source for curve in curves}))
    cases = sampled(cases_of(curves, PILOT_SIZES, last_only=False), MAX_CASES_PER_SET)
    weights = set_weights(cases.cases)
    arrays = CurveArrays(cases.pilots, metric)
    start = _as_vector(START)
    if metric == "loss":
        start = start[:-1]  # the test set's noise is part of the scatter between seeds
    penalty_sd = PENALTY_SD[: len(start)]

    def loss(vector: np.ndarray) -> float:
        fit = GridFit(arrays, _from_vector(vector, sources), COARSE_GRID)
        densities = [
            LearningCurve.of_fit(fit, case.pilot, case.siblings).log_density_at(case.target)
            for case in cases.cases
        ]
        penalty = 0.5 * PENALTY * (((vector - start) / penalty_sd) ** 2).sum()
        return float(penalty - weights @ np.array(densities))

    simplex = np.vstack([start, start + 0.3 * np.diag(penalty_sd)])
    options = {
        "maxfev": MAX_EVALUATIONS,
        "xatol": 0.02,
        "fatol": 0.001,
        "adaptive": True,
        "initial_simplex": simplex,
    }
    best = minimize(loss, start, method="Nelder-Mead", options=options)
    return _from_vector(best.x, sources)


@dataclass(frozen=True)
class Foretold:
    """Predictions of a prior and of the two plain fits for cases: log losses, ``(num_cases,)``."""

    truth: np.ndarray
    expected: np.ndarray
    power_law: np.ndarray
    floored: np.ndarray
    low: np.ndarray
    high: np.ndarray
    weights: np.ndarray
    num_points: np.ndarray
    test_variances: np.ndarray


def foretell(curves: Sequence[Curve], prior: CurvePrior, metric: Metric) -> Foretold:
    """Predict the later sizes of curves that a prior was not fitted to."""
    cases = sampled(cases_of(curves, CALIBRATED_SIZES, last_only=False), MAX_CALIBRATION_CASES)
    fit = GridFit(CurveArrays(cases.pilots, metric), prior, COARSE_GRID)
    columns: dict[str, list[float]] = {
        name: []
        for name in (
            "truth",
            "expected",
            "power_law",
            "floored",
            "low",
            "high",
            "test_variances",
        )
    }
    for case in cases.cases:
        posterior = LearningCurve.of_fit(fit, case.pilot, case.siblings)
        size = case.target.train_size
        estimate = posterior.log_estimate_at(size)
        test_variance = posterior.test_variance_at(estimate.value, case.target.num_test_images)
        test_variance *= 1 - prior.test_sharing  # known and foretold points share a test set
        sizes = np.array([point.train_size for point in posterior.points])
        log_losses = fit.curves.log_losses[case.pilot, : len(sizes)]
        columns["truth"].append(CurveArrays([[case.target]], metric).log_losses[0, 0])
        columns["expected"].append(estimate.value)
        columns["test_variances"].append(test_variance)
        columns["low"].append(estimate.low)
        columns["high"].append(estimate.high)
        columns["power_law"].append(power_law(sizes, log_losses, size))
        columns["floored"].append(floored_power_law(sizes, log_losses, size))
    arrays = {name: np.array(values) for name, values in columns.items()}
    num_points = np.array([case.num_points for case in cases.cases])
    return Foretold(**arrays, weights=set_weights(cases.cases), num_points=num_points)


def calibrated(prior: CurvePrior, foretold: Sequence[Foretold]) -> CurvePrior:
    """Return a prior with the shares and the widening that predict left-out sets best.

    Args:
        prior: The prior to calibrate.
        foretold: Predictions for each set, by a prior that was fitted without this set.
    """
    designs, targets = [], []
    for prediction in foretold:
        # Sets differ in how far off every method is: each is measured by its own error.
        error = np.sqrt((prediction.weights * (prediction.expected - prediction.truth) ** 2).sum())
        scale = np.sqrt(prediction.weights)[:, None] / error
        plain = np.column_stack([prediction.power_law, prediction.floored])
        designs.append(scale * (plain - prediction.expected[:, None]))
        targets.append(scale[:, 0] * (prediction.truth - prediction.expected))
    shares, _ = nnls(np.concatenate(designs), np.concatenate(targets))
    widening = [_widening(foretold, shares, num_points) for num_points in CALIBRATED_SIZES]
    return replace(
        prior,
        power_law_share=round(float(shares[0]), 4),
        floored_share=round(float(shares[1]), 4),
        widening=tuple(round(factor, 4) for factor in widening),
    )


def _widening(foretold: Sequence[Foretold], shares: np.ndarray, num_points: int) -> float:
    """Return the factor with which intervals cover 90 % of the cases with ``num_points`` sizes."""
    ratios, weights = [], []
    for prediction in foretold:
        plain = np.column_stack([prediction.power_law, prediction.floored])
        shift = (plain - prediction.expected[:, None]) @ shares
        distance = prediction.truth - prediction.expected - shift
        reach = np.where(
            distance > 0,
            prediction.high - prediction.expected,
            prediction.expected - prediction.low,
        )
        is_asked = prediction.num_points == num_points
        noise = NORMAL_QUANTILE**2 * prediction.test_variances
        beyond_noise = np.sqrt(np.maximum(distance**2 - noise, 0.0))
        ratios.append((beyond_noise / reach)[is_asked])
        weights.append(np.full(is_asked.sum(), 1 / is_asked.sum()))
    order = np.argsort(np.concatenate(ratios))
    cumulative = np.cumsum(np.concatenate(weights)[order]) / len(foretold)
    return float(np.concatenate(ratios)[order][np.searchsorted(cumulative, LEVEL)])


def priors_without(
    curves: Sequence[Curve], metric: Metric, sets_left_out: Sequence[tuple[str, ...]]
) -> dict[tuple[str, ...], CurvePrior]:
    """Return the prior for each choice of left-out sets, without shares and widening."""
    with ProcessPoolExecutor(NUM_PROCESSES) as pool:
        jobs = {
            left_out: pool.submit(fit_prior, without(curves, left_out), metric)
            for left_out in sets_left_out
        }
        return {left_out: job.result() for left_out, job in jobs.items()}


def calibration_sets(curves: Sequence[Curve]) -> list[str]:
    """Return the sets with enough train sizes for a choice of shares and widening."""
    return sorted({curve.source for curve in curves if len(curve.points) > min(CALIBRATED_SIZES)})


def main() -> None:
    """Fit both priors and write them to the package."""
    document = {}
    for metric in ("loss", "error"):
        curves = all_curves(metric)
        sources = calibration_sets(curves)
        priors = priors_without(curves, metric, [(), *((source,) for source in sources)])
        foretold = []
        for source in sources:
            of_set = [curve for curve in curves if curve.source == source]
            foretold.append(foretell(of_set, priors[source,], metric))
        document[metric] = asdict(calibrated(priors[()], foretold))
    PRIOR.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


def _as_vector(prior: CurvePrior) -> np.ndarray:
    sharing = np.array([prior.rate_sharing, prior.floor_sharing, prior.test_sharing])
    return np.array(
        [
            prior.log_rate_mean,
            np.log(prior.log_rate_sd),
            prior.logit_floor_mean,
            np.log(prior.logit_floor_sd),
            prior.log_noise,
            prior.noise_by_level,
            prior.log_misfit,
            prior.log_drift,
            prior.rate_by_level,
            prior.floor_by_level,
            *np.log(sharing / (1 - sharing)),
        ]
    )


def _from_vector(vector: np.ndarray, sources: Sequence[str]) -> CurvePrior:
    numbers = vector.copy()
    numbers[[1, 3]] = np.exp(numbers[[1, 3]])
    numbers[10:] = 1 / (1 + np.exp(-numbers[10:]))
    rounded = [round(number, 4) for number in numbers.tolist()]
    return CurvePrior(
        log_rate_mean=rounded[0],
        log_rate_sd=rounded[1],
        logit_floor_mean=rounded[2],
        logit_floor_sd=rounded[3],
        log_noise=rounded[4],
        noise_by_level=rounded[5],
        log_misfit=rounded[6],
        log_drift=rounded[7],
        rate_by_level=rounded[8],
        floor_by_level=rounded[9],
        rate_sharing=rounded[10],
        floor_sharing=rounded[11],
        test_sharing=rounded[12] if len(rounded) > 12 else 0.0,
        sources=tuple(sources),
    )


if __name__ == "__main__":
    main()
