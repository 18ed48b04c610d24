"""All numbers of ``docs/findings.md``, computed from the committed tables with numpy only.

This script imports nothing of the product. It implements the definitions of
``docs/preregistration.md`` a second time. ``python benchmarks/findings_numbers.py`` prints the
numbers as JSON.
"""

from __future__ import annotations

import csv
import gzip
import json
from bisect import bisect_left
from collections import defaultdict
from copy import copy
from functools import cache
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).with_name("results")
PAIRS = {"digit_pairs": "UCI digits", "mnist_pairs": "MNIST", "fashion_pairs": "Fashion-MNIST"}
TRAINING_SWEEPS = ("interventions_training", "interventions_digits_training")
SMOOTHNESS = 4.5
CHANCE = float(np.log(2))
NUM_PERMUTATIONS = 10_000
"""Orders of the classes in a permutation test: the observed order and 9,999 random ones."""
Rows = list[dict[str, str]]


def read(path: Path) -> Rows:
    """Return the rows of a compressed or plain CSV file as text."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def t_tail(t: float, degrees: int) -> float:
    """Return the two-sided tail probability of Student's t.

    The density is integrated by Simpson's rule, after the substitution tan u = t / √degrees.
    """
    u = np.linspace(np.arctan(abs(t) / np.sqrt(degrees)), np.pi / 2, 2_001)
    return float(_simpson(np.cos(u) ** (degrees - 1), u) / _both_tails(degrees))


@cache
def _both_tails(degrees: int) -> float:
    u = np.linspace(0, np.pi / 2, 2_001)
    return _simpson(np.cos(u) ** (degrees - 1), u)


def _simpson(values: np.ndarray, at: np.ndarray) -> float:
    weights = np.ones(len(at))
    weights[1:-1:2], weights[2:-1:2] = 4, 2
    return float(weights @ values * (at[1] - at[0]) / 3)


@cache
def t_quantile(degrees: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if t_tail(middle, degrees) > 0.05 else (low, middle)
    return low


def share_no_class(classes: np.ndarray) -> np.ndarray:
    """Return which pairs of class pairs have no class in common, ``(pairs, pairs)``.

    Args:
        classes: The two classes of each pair, ``(pairs, 2)``.
    """
    equal = classes[:, None, :, None] == classes[None, :, None, :]
    return ~equal.any((2, 3))


def free_of(given: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the residuals of values, ``(pairs, …)``, on given columns, ``(pairs, columns)``."""
    return values - given @ np.linalg.lstsq(given, values, rcond=None)[0]


def judged(value: float, error: float, degrees: int, null: float = 0.0) -> dict[str, float]:
    """Return a number with its 95 % interval and p-value."""
    reach = t_quantile(degrees) * error
    return {
        "value": value,
        "low": value - reach,
        "high": value + reach,
        "std_error": error,
        "p": t_tail((value - null) / error, degrees),
    }


def adjusted(family: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the numbers of a family with Holm-adjusted p-values."""
    names = sorted(
        (name for name in family if "p" in family[name]), key=lambda name: family[name]["p"]
    )
    largest = 0.0
    for rank, name in enumerate(names):
        largest = max(largest, min(1.0, family[name]["p"] * (len(names) - rank)))
        family[name]["adjusted_p"] = largest
    return family


class PairTable:
    """The points of one set by pair, network and N: means over all seeds, or over the given seeds."""

    def __init__(self, name: str, seeds: str = "") -> None:
        rows = [row for row in read(RESULTS / f"{name}.csv.gz") if row["status"] == "done"]
        self.seeds = "".join(sorted({row["seed"] for row in rows}))
        rows = [row for row in rows if row["seed"] in (seeds or self.seeds)]
        self.num_trials = len(rows)
        cells: dict[tuple[str, str, int], Rows] = defaultdict(list)
        for row in rows:
            cells[row["class_pair"], row["model"], int(row["train_size"])].append(row)
        self.pairs = sorted({pair for pair, _, _ in cells})
        self.models = sorted({model for _, model, _ in cells})
        self.sizes = sorted({size for _, _, size in cells})
        shape = (len(self.pairs), len(self.models), len(self.sizes))

        def mean(of) -> np.ndarray:
            result = [
                np.mean([of(row) for row in cells[pair, model, size]])
                for pair in self.pairs
                for model in self.models
                for size in self.sizes
            ]
            return np.reshape(result, shape)

        self.loss = mean(lambda row: np.log(float(row["test_loss"])))
        self.r_hat = np.log(mean(lambda row: float(row["r_hat_pred"])))
        self.drop = mean(lambda row: float(row["accuracy_drop"]))
        self.error = mean(lambda row: 1 - float(row["test_accuracy"]))
        measured = {
            row["class_pair"]: row for row in rows if int(row["train_size"]) == self.sizes[-1]
        }
        self.d = np.array([float(measured[pair]["d_data_mle"]) for pair in self.pairs])
        self.twonn = np.array([float(measured[pair]["d_data_twonn"]) for pair in self.pairs])
        self.log_k = np.log([float(measured[pair]["label_sharpness"]) for pair in self.pairs])
        self.classes = np.array([pair.split("-") for pair in self.pairs])
        self.apart = share_no_class(self.classes)
        images = {row["class_pair"]: row for row in read(RESULTS / f"{name}_tail.csv")}
        self.tail = np.array([float(images[pair]["alpha"]) for pair in self.pairs])
        self.nearest = np.log([float(images[pair]["nearest"]) for pair in self.pairs])
        self.log_delta = np.log([float(measured[p]["mean_unlike_distance"]) for p in self.pairs])

    def without(self, name: str) -> PairTable:
        """Return the table without the pairs of one class."""
        kept_pairs = np.flatnonzero((self.classes != name).all(1))
        table = copy(self)
        for key, value in vars(self).items():
            if isinstance(value, np.ndarray):
                setattr(table, key, value[kept_pairs])
        table.pairs = [self.pairs[k] for k in kept_pairs]
        return table

    def jackknifed(self, of, null: float = 0.0) -> dict[str, float]:
        """Return a function of the pairs, with its jackknife error over classes."""
        names = np.unique(self.classes)
        without = np.array([of(np.flatnonzero((self.classes != name).all(1))) for name in names])
        value, num = of(np.arange(len(self.pairs))), len(names)
        error = float(np.sqrt((num - 1) / num * ((without - value) ** 2).sum()))
        return judged(value, error, num - 1, null)

    def exponent(self, d: np.ndarray, models=slice(None), sizes=slice(None), null: float = 0.0):
        """Return the exponent b of N^(-b/d)."""
        y, x = self.curves(models, sizes)

        def fitted(at):
            along = x / d[at, None, None]
            return float((along * y[at]).sum() / (along**2 * np.ones_like(y[at])).sum())

        return self.jackknifed(fitted, null)

    def curves(self, models=slice(None), sizes=slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """Return log loss and −log N, centered within each curve."""
        y, x = self.loss[:, models, sizes], -np.log(np.array(self.sizes, dtype=float))[sizes]
        return y - y.mean(2, keepdims=True), x - x.mean()

    def on_sharpness(
        self, response, d, models=slice(None), sizes=slice(None), beside=None, of: int = 0
    ) -> dict[str, float]:
        """Return the slope of a mean response on log K_F, given 1/d and other columns.

        The response is averaged over networks and N. ``beside`` contains the other columns. ``of``
        is the index of another column whose slope is returned.
        """
        height = response[:, models][:, :, sizes].mean((1, 2))
        columns = np.column_stack(
            [self.log_k, 1 / d, np.ones(len(d)) if beside is None else beside]
        )

        def slope(at):
            free = np.column_stack([columns[at], np.ones(len(at))])
            return float(np.linalg.lstsq(free, height[at], rcond=None)[0][of])

        return self.jackknifed(slope)

    def num_classes(self, width: float) -> dict[str, float]:
        """Return the number of classes for which the interval of the exponent has a given width.

        It is computed from the differences between exponents of pairs with a common class, and of
        pairs without one. The result is scaled to the width of the jackknife for ten classes.
        """
        y, x = self.curves()
        slopes = self.d * (x * y).sum((1, 2)) / (x**2 * np.ones_like(y)).sum((1, 2))
        first, second = np.triu_indices(len(slopes), 1)
        shared = (self.classes[first, :, None] == self.classes[second, None, :]).any((1, 2))
        half_squares = (slopes[first] - slopes[second]) ** 2 / 2
        of_class = max(0.0, float(half_squares[~shared].mean() - half_squares[shared].mean()))
        of_pair = max(0.0, float(half_squares[~shared].mean()) - 2 * of_class)

        def expected(num: int) -> float:
            return float(
                2 * t_quantile(num - 1) * np.sqrt(4 * of_class / num + 2 * of_pair / (num**2 - num))
            )

        result = self.exponent(self.d)
        scale = (result["high"] - result["low"]) / expected(len(np.unique(self.classes)))
        least = len(np.unique(self.classes))
        needed = least + bisect_left(
            range(least, 2000), True, key=lambda num: scale * expected(num) <= width
        )
        return {
            "classes": needed,
            "scale": scale,
            "of a class": of_class**0.5,
            "of a pair": of_pair**0.5,
        }

    def num_classes_without_one(self, width: float) -> list[float]:
        """Return the smallest and the largest number of classes by the same rule without one class."""
        names = np.unique(self.classes)
        result = [self.without(str(name)).num_classes(width)["classes"] for name in names]
        return [min(result), max(result)]

    def free_of_scale(self, log_length: np.ndarray, log_delta: np.ndarray) -> dict[str, float]:
        """Return the slope of log(length / δ) on log(K_F δ), given 1/d.

        δ is the mean distance to the nearest image of the other class. K_F and lengths are measured
        in units of δ, so a factor on all pixels changes neither.
        """
        height = log_length.mean((1, 2)) - log_delta
        columns = np.column_stack([self.log_k + log_delta, 1 / self.d])

        def slope(at):
            with_intercept = np.column_stack([columns[at], np.ones(len(at))])
            return float(np.linalg.lstsq(with_intercept, height[at], rcond=None)[0][0])

        return self.jackknifed(slope)

    def slope_of_fit(self, height: np.ndarray, *columns: np.ndarray) -> dict[str, float]:
        """Return the slope of ``isweep fit`` on the first column, given the other columns.

        The interval is that of the jackknife over classes. p is the larger one of two: that of the
        jackknife, and that of a permutation of classes.

        Args:
            height: Response of each pair, ``(pairs,)``.
            columns: Regressors, each ``(pairs,)``.
        """
        with_intercept = np.column_stack([*columns, np.ones(len(height))])

        def slope(at):
            return float(np.linalg.lstsq(with_intercept[at], height[at], rcond=None)[0][0])

        result = self.jackknifed(slope)
        given = with_intercept[:, 1:]
        result["p"] = max(result["p"], self.permutation_p(height, columns[0], given))
        return result

    def permutation_p(self, height: np.ndarray, column: np.ndarray, given: np.ndarray) -> float:
        """Return the p-value of a slope by permuting the classes of the regressor's residuals.

        This is the double semi-partialing of Dekker, Krackhardt & Snijders (2007).

        Args:
            height: Response of each pair, ``(pairs,)``.
            column: Regressor of each pair, ``(pairs,)``.
            given: Intercept and other regressors, ``(pairs, columns)``.
        """
        names, codes = np.unique(self.classes, return_inverse=True)
        codes = codes.reshape(self.classes.shape)
        of_pair = np.zeros((len(names), len(names)))
        of_pair[codes[:, 0], codes[:, 1]] = free_of(given, column)
        of_pair += of_pair.T
        response = free_of(given, height)
        # The seed is that of the product, so that both have the same p.
        rng = np.random.default_rng([0, len(names)])
        drawn = rng.permuted(np.tile(np.arange(len(names)), (NUM_PERMUTATIONS - 1, 1)), axis=1)
        orders = np.vstack([np.arange(len(names)), drawn])
        permuted = of_pair[orders[:, codes[:, 0]], orders[:, codes[:, 1]]]
        residuals = free_of(given, permuted.T)
        sizes = np.abs(response @ residuals) / np.linalg.norm(residuals, axis=0)
        # Equal orders of classes give equal sizes up to rounding.
        return float(np.mean(sizes >= sizes[0] * (1 - 1e-9)))

    def fitted(self) -> dict[str, dict[str, float]]:
        """Return the numbers of ``isweep fit``.

        δ, like d and K_F, is that of the training images at the largest N. The slope of log R̂ in
        pixel units is not tested, because the units alone make it −1.
        """
        loss, r_hat, drop = (part.mean((1, 2)) for part in (self.loss, self.r_hat, self.drop))
        log_k, log_delta, inverse_d = self.log_k, self.log_delta, 1 / self.d
        slope = self.slope_of_fit
        tested = {
            "exponent": self.exponent(self.d),
            "exponent against 1": self.exponent(self.d, null=1.0),
            "log loss on log K_F": slope(loss, log_k, inverse_d),
            "log R̂ on log K_F, free of scale": slope(
                r_hat - log_delta, log_k + log_delta, inverse_d
            ),
            "accuracy lost to the attack on log K_F": slope(drop, log_k, inverse_d),
            "accuracy lost to the attack on log δ": slope(drop, log_delta, inverse_d),
            "log loss on log K_F, at equal δ": slope(loss, log_k, inverse_d, log_delta),
            "log R̂ on log K_F, at equal δ": slope(r_hat, log_k, inverse_d, log_delta),
            "accuracy lost on log K_F, at equal δ": slope(drop, log_k, inverse_d, log_delta),
        }
        return adjusted(tested) | {"log R̂ on log K_F": slope(r_hat, log_k, inverse_d)}

    def explained(self, log_response: np.ndarray) -> dict[str, float]:
        """Return the share R² of the variance between pairs that 1/d explains with other columns.

        The other columns are log K_F, log δ, and both.
        """
        height = log_response.mean((1, 2))
        columns = {
            "K_F": [self.log_k],
            "mean distance": [self.nearest],
            "both": [self.log_k, self.nearest],
        }
        shares = {}
        for name, regressors in columns.items():
            design = np.column_stack([*regressors, 1 / self.d, np.ones(len(self.d))])
            residuals = height - design @ np.linalg.lstsq(design, height, rcond=None)[0]
            shares[name] = float(1 - (residuals**2).sum() / ((height - height.mean()) ** 2).sum())
        return shares

    def after(self) -> dict[str, dict[str, float]]:
        """Return the numbers that were defined after the data were seen."""
        of_class = (self.classes[:, :, None] == np.unique(self.classes)).any(1).astype(float)
        nearest = {"beside": self.nearest[:, None]}
        large = np.flatnonzero(self.loss.mean((1, 2)) > np.median(self.loss.mean((1, 2))))
        small = np.setdiff1d(np.arange(len(self.pairs)), large)
        y, x = self.curves()

        def exponent(at):
            along = x / self.d[at, None, None]
            return float((along * y[at]).sum() / (along**2 * np.ones_like(y[at])).sum())

        return {
            "log R̂ on log K_F, a height per class": self.on_sharpness(
                self.r_hat, self.d, beside=of_class
            ),
            "log R̂ on log K_F, without 1/d": self.on_sharpness(self.r_hat, np.ones(len(self.d))),
            "log R̂ on log K_F, at equal mean distance": self.on_sharpness(
                self.r_hat, self.d, **nearest
            ),
            "log R̂ on that distance": self.on_sharpness(self.r_hat, self.d, **nearest, of=2),
            "log loss on log K_F, at equal mean distance": self.on_sharpness(
                self.loss, self.d, **nearest
            ),
            "accuracy lost on log K_F, at equal mean distance": self.on_sharpness(
                self.drop, self.d, **nearest
            ),
            "log R̂ on log K_F, free of scale": self.free_of_scale(self.r_hat, self.nearest),
            "exponent, the half of pairs with larger losses": self.jackknifed(
                lambda at: exponent(np.intersect1d(at, large))
            ),
            "exponent, the other half": self.jackknifed(
                lambda at: exponent(np.intersect1d(at, small))
            ),
        }

    def rivals(self) -> dict[str, dict[str, float]]:
        """Return the squared error of each rule on pairs of unseen classes.

        It is divided by the squared error of flat curves.
        """
        y, x = self.curves()
        constant, d = np.ones(len(self.pairs)), 1 / self.d
        rules = {
            "one slope for all pairs": (constant, True),
            "no fall": (0 * constant, False),
            "1/d": (d, False),
            "4/d": (4 * d, False),
            f"s/d, s = {SMOOTHNESS:g}": (SMOOTHNESS * d, False),
            "b/d, b fitted": (d, True),
            "tail of the spectrum": (self.tail, False),
            "tail of the spectrum, scaled": (self.tail, True),
        }

        def share(rule, at):
            factors, fitted = rule
            errors = []
            for k in at:
                training_pairs = at[self.apart[k, at]]
                slope = factors[k]
                if fitted:
                    along = factors[training_pairs, None, None] * x
                    slope = (
                        slope
                        * (along * y[training_pairs]).sum()
                        / (along**2 * np.ones_like(y[training_pairs])).sum()
                    )
                errors.append(((y[k] - slope * x) ** 2).sum())
            return float(np.sum(errors) / (y[at] ** 2).sum())

        common = rules["one slope for all pairs"]
        result = {
            name: {"share": share(rule, np.arange(len(constant)))} for name, rule in rules.items()
        }
        for name, rule in rules.items():
            if rule is not common:
                result[name] |= self.jackknifed(lambda at, r=rule: share(r, at) - share(common, at))
        return adjusted(result)

    def turned(self) -> dict[str, dict[str, float]]:
        """Return the slopes on log K_F in sensitivity analyses.

        They leave out the smallest N, use one network, or use the maximum-likelihood d.
        """
        ways = {"without the smallest N": (self.d, slice(None), slice(1, None))}
        ways |= {f"{name} alone": (self.d, [k], slice(None)) for k, name in enumerate(self.models)}
        ways["TwoNN for d"] = (self.twonn, slice(None), slice(None))
        responses = {"log loss": self.loss, "log R̂": self.r_hat, "accuracy lost": self.drop}
        return {
            f"{name}, {way}": self.on_sharpness(response, *choice)
            for name, response in responses.items()
            for way, choice in ways.items()
        }

    def answers(self) -> dict[str, dict[str, float]]:
        """Return the registered single-number questions with adjusted p-values."""
        return adjusted(
            {
                "exponent": self.exponent(self.d),
                "exponent against 1": self.exponent(self.d, null=1.0),
                "log loss on log K_F": self.on_sharpness(self.loss, self.d),
                "log R̂ on log K_F": self.on_sharpness(self.r_hat, self.d),
                "accuracy lost to the attack on log K_F": self.on_sharpness(self.drop, self.d),
            }
        )

    def numbers(self) -> dict[str, object]:
        """Return all numbers of this set."""
        return {
            "trials": self.num_trials,
            "spread": {
                "d": [float(self.d.min()), float(self.d.max())],
                "r of log K_F with log mean distance": float(
                    np.corrcoef(self.log_k, self.nearest)[0, 1]
                ),
                "K_F factor": float(np.exp(np.ptp(self.log_k))),
                "median loss by N": np.exp(np.median(self.loss, axis=(0, 1))).tolist(),
            },
            **self.answers(),
            "as isweep fit asks": self.fitted(),
            "r of log δ of training images with that of all": float(
                np.corrcoef(self.log_delta, self.nearest)[0, 1]
            ),
            "classes for a width of 0.6": self.num_classes(0.6)
            | {"without one class": self.num_classes_without_one(0.6)},
            "exponent, TwoNN": self.exponent(self.twonn),
            "exponent without the smallest N": self.exponent(self.d, sizes=slice(1, None)),
            **{
                f"exponent, {m}": self.exponent(self.d, models=[k])
                for k, m in enumerate(self.models)
            },
            "rivals": self.rivals(),
            "turned": self.turned(),
            "after": self.after(),
            "explained": {
                "log R̂": self.explained(self.r_hat),
                "log loss": self.explained(self.loss),
            },
        }


def kind(world: str) -> str:
    """Return the kind of images of a world."""
    of = world.partition("_")[0]
    return {"mnist": "MNIST", "digits": "UCI digits"}.get(
        of, "generated" if of[1:].isdigit() else "other images"
    )


def interventions(*names: str) -> dict[str, object]:
    """Return the changes of log loss and log R̂ per unit of log K_F.

    They are means over worlds, also without each digit in turn.
    """
    rows = [
        row for name in names for row in read(RESULTS / f"{name}.csv.gz") if row["status"] == "done"
    ]
    cells: dict[tuple[str, str, int], Rows] = defaultdict(list)
    for row in rows:
        cells[row["dataset"], row["model"], int(row["train_size"])].append(row)
    largest = max(size for _, _, size in cells)
    measured = {
        dataset: result[0] for (dataset, _, size), result in cells.items() if size == largest
    }
    height: dict[str, float] = {}
    worlds: dict[str, dict[str, list[float]]] = {
        "loss": defaultdict(list),
        "r_hat": defaultdict(list),
    }
    num_passed = num_conditions = 0
    for dataset, row in sorted(measured.items()):
        world, arm = dataset.rsplit("_", 1)
        if arm == "base":
            continue
        num_conditions += 1
        base = measured[f"{world}_base"]
        sharpness_change = np.log(float(row["label_sharpness"]) / float(base["label_sharpness"]))
        dimension_change = np.log(float(row["d_data_mle"]) / float(base["d_data_mle"]))
        if abs(sharpness_change) < np.log(2) or abs(dimension_change) >= 0.05:
            continue
        num_passed += 1
        log_losses = [
            _mean(cells[of, model, size], "loss")
            for of, model, size in cells
            if of in (dataset, f"{world}_base")
        ]
        height[world] = float(np.mean(log_losses))
        for response, by_world in worlds.items():
            changes = []
            for (of, model, size), condition_rows in cells.items():
                if of != dataset or (f"{world}_base", model, size) not in cells:
                    continue
                base_rows = cells[f"{world}_base", model, size]
                if _mean(base_rows, "loss") >= np.log(CHANCE):
                    continue
                changes.append(_mean(condition_rows, response) - _mean(base_rows, response))
            changes = [change for change in changes if np.isfinite(change)]
            if changes:
                by_world[world].append(float(np.mean(changes)) / sharpness_change)
    result: dict[str, object] = {
        "trials": len(rows),
        "arms": num_conditions,
        "passed": num_passed,
        "by_world": {},
    }
    for response, by_world in worlds.items():
        slopes = {world: float(np.mean(of)) for world, of in by_world.items()}
        result["by_world"][response] = slopes  # type: ignore[index]
        result[response] = over(slopes)
        real = {world: slope for world, slope in slopes.items() if kind(world) != "generated"}
        result[f"{response}, real"] = over(real)
        by_height = sorted(real, key=height.__getitem__)
        for k, third in enumerate(("smallest", "middle", "largest")):
            part = np.array_split(np.array(by_height), 3)[k]
            result[f"{response}, real, {third} losses"] = over(
                {str(w): real[str(w)] for w in part}
            ) | {
                "losses of bases and arms": [
                    float(np.exp(height[str(part[end])])) for end in (0, -1)
                ]
            }
        result[f"{response}, widths"] = exchanged(real)
        for of in sorted({kind(world) for world in slopes}):
            result[f"{response}, {of}"] = over(
                {w: slope for w, slope in slopes.items() if kind(w) == of}
            )
    return result


NETWORKS = {
    "E1', trained on the condition, tested on the base": ("condition", "base"),
    "A, trained on the base, tested on the condition": ("base", "condition"),
    "B, trained and tested on the condition": ("condition", "condition"),
}
"""Estimand -> what its networks are trained and tested on."""


class TrainingWorlds:
    """The worlds whose conditions change only training images (fourth registration)."""

    def __init__(self, *names: str) -> None:
        self.rows: dict[tuple[str, str, int], dict[str, str]] = {}
        self.num_rows = 0
        for name in names:
            for row in read(RESULTS / f"{name}.csv.gz"):
                self.num_rows += 1
                if row["status"] == "done":
                    cell = row["dataset"], row["model"], int(row["train_size"])
                    self.rows[cell] = row
        self.of_dataset: dict[str, list[tuple[str, int]]] = defaultdict(list)
        for dataset, model, size in sorted(self.rows):
            self.of_dataset[dataset].append((model, size))
        self.largest = max(size for _, _, size in self.rows)
        self.models = sorted({model for _, model, _ in self.rows})
        self.worlds = sorted(
            {of.removesuffix("_base") for of, _, _ in self.rows if of.endswith("_base")}
        )
        self.moved = {world: self._moved(world) for world in self.worlds}
        self.counted = [world for world in self.worlds if self._counts(world)]

    def _moved(self, world: str) -> tuple[float, float]:
        """Return Δ log K_F and Δ log d of the training images at the largest N."""
        base, near = (
            self.rows[f"{world}_{name}", self.models[0], self.largest] for name in ("base", "near")
        )
        sharpness, dimension = (
            float(np.log(float(near[column]) / float(base[column])))
            for column in ("label_sharpness", "d_data_mle")
        )
        return sharpness, dimension

    def _counts(self, world: str) -> bool:
        sharpness, dimension = self.moved[world]
        return abs(sharpness) >= np.log(2) and abs(dimension) < 0.05

    def pairs(self, world: str, models: tuple[str, ...] = ()) -> list[tuple[dict, dict]]:
        """Return the rows of base and condition for each network and N.

        A pair counts only if the base has learned something.
        """
        result = []
        for model, size in self.of_dataset[f"{world}_base"]:
            base = self.rows[f"{world}_base", model, size]
            near = self.rows.get((f"{world}_near", model, size))
            if near is None or model not in (models or self.models):
                continue
            if float(base["test_loss"]) < CHANCE:
                result.append((base, near))
        return result

    def slopes(
        self, response: str, trained: str, tested: str, models: tuple[str, ...] = ()
    ) -> dict[str, float]:
        """Return the change of a log response per unit of Δ log K_F in each counted world."""
        result = {}
        for world in self.counted:
            changes = []
            for base, near in self.pairs(world, models):
                network = near if trained == "condition" else base
                change = logged(network, response, tested) - logged(base, response, "base")
                changes.append(change)
            changes = [change for change in changes if np.isfinite(change)]
            if changes:
                result[world] = float(np.mean(changes)) / self.moved[world][0]
        return result

    def shares(self) -> dict[str, float]:
        """Return the median share of the bases' test loss on images that the condition changes."""
        in_base, in_moved = [], []
        for world in self.counted:
            for base, _ in self.pairs(world) + self._at_chance(world):
                num = int(float(base["test_on_near_num_moved"]))
                unmoved = (NUM_TEST - num) * float(base["test_on_near_unmoved_loss"])
                in_base.append(1 - unmoved / (NUM_TEST * float(base["test_loss"])))
                in_moved.append(1 - unmoved / (NUM_TEST * float(base["test_on_near_loss"])))
        return {
            "as the base has them": float(np.median(in_base)),
            "moved": float(np.median(in_moved)),
        }

    def _at_chance(self, world: str) -> list[tuple[dict, dict]]:
        return [
            (base, base)
            for (of, _, _), base in sorted(self.rows.items())
            if of == f"{world}_base" and float(base["test_loss"]) >= CHANCE
        ]

    def numbers(self) -> dict[str, object]:
        """Return all numbers of these worlds."""
        result: dict[str, object] = {
            "trials": self.num_rows,
            "worlds": len(self.worlds),
            "counted": len(self.counted),
            "counted by kind": {
                of: sum(kind(world) == of for world in self.counted)
                for of in sorted(set(map(kind, self.worlds)))
            },
            "median moved": float(np.median([self.moved[world][0] for world in self.counted])),
            "share of the loss on moved images": self.shares(),
            "by_world": {},
        }
        heights = {
            world: float(np.mean([logged(base, "loss", "base") for base, _ in self.pairs(world)]))
            for world in self.counted
            if self.pairs(world)
        }
        for name, (trained, tested) in NETWORKS.items():
            for response in ("loss", "error", "r_hat"):
                slopes = self.slopes(response, trained, tested)
                where = f"{name}, {response}"
                result["by_world"][where] = slopes  # type: ignore[index]
                result[where] = concluded(slopes)
                real = {w: slope for w, slope in slopes.items() if kind(w) != "generated"}
                result[f"{where}, real"] = concluded(real)
                for of in sorted(set(map(kind, slopes))):
                    part = {w: slope for w, slope in slopes.items() if kind(w) == of}
                    result[f"{where}, {of}"] = concluded(part)
                for model in self.models:
                    alone = self.slopes(response, trained, tested, (model,))
                    result[f"{where}, {model}"] = concluded(alone)
                order = sorted(slopes, key=heights.__getitem__)
                for place, third in enumerate(("smallest", "middle", "largest")):
                    chosen = [str(w) for w in np.array_split(np.array(order), 3)[place]]
                    result[f"{where}, {third} losses"] = concluded({w: slopes[w] for w in chosen})
        return result


NUM_TEST = 100
"""Test images of every world of the fourth registration."""


def logged(row: dict[str, str], response: str, tested: str) -> float:
    """Return the log of a network's response on the test images of the base or of the condition."""
    columns = {"loss": "test_loss", "error": "test_accuracy", "r_hat": "r_hat_pred"}
    column = columns[response]
    if tested == "condition":
        column = "test_on_near_" + column.removeprefix("test_")
    if not row[column]:
        return float("nan")
    value = float(row[column])
    value = 1 - value if response == "error" else value
    return float(np.log(value)) if value > 0 else float("nan")


def concluded(slopes: dict[str, float]) -> dict[str, object]:
    """Return the mean over worlds, the wider of two intervals, and the conclusion.

    The conclusion follows the fourth registration.
    """
    result = over(slopes)
    by_t, by_digit = [result["low"], result["high"]], result["by digit"]
    low, high = max(by_t, by_digit, key=lambda ends: float(ends[1] - ends[0]))  # type: ignore
    return result | {
        "wider": [low, high],
        "told from 0": not low <= 0 <= high,
        "smaller than half": bool(low > -0.5 and high < 0.5),
    }


def over(slopes: dict[str, float]) -> dict[str, object]:
    """Return the mean over worlds with its t interval and its jackknife interval.

    The jackknife is over the digits that worlds share.
    """
    values = np.array(list(slopes.values()))
    mean, num = float(values.mean()), len(values)
    without = np.array(
        [
            np.mean([s for world, s in slopes.items() if digit not in _digits(world)])
            for digit in "0123456789"
        ]
    )
    reach = t_quantile(9) * float(np.sqrt(0.9 * ((without - mean) ** 2).sum()))
    return {
        "worlds": num,
        **judged(mean, float(values.std(ddof=1) / np.sqrt(num)), num - 1),
        "by digit": [mean - reach, mean + reach],
    }


def exchanged(slopes: dict[str, float], times: int = 500) -> dict[str, float]:
    """Return the width of the jackknife interval divided by the width of the t interval.

    The second number is this ratio for worlds with the same slopes that share nothing.
    """
    values = np.array(list(slopes.values()))
    remains = np.array(
        [[digit not in _digits(world) for world in slopes] for digit in "0123456789"]
    )

    def ratio(of: np.ndarray) -> float:
        scatter = (((remains @ of) / remains.sum(1) - of.mean()) ** 2).sum()
        plain = t_quantile(len(of) - 1) * of.std(ddof=1) / np.sqrt(len(of))
        return float(t_quantile(9) * np.sqrt(0.9 * scatter) / plain)

    rng, observed = np.random.default_rng(0), ratio(values)
    drawn = [ratio(rng.permutation(values)) for _ in range(times)]
    return {
        "ratio": observed,
        "median": float(np.median(drawn)),
        "p": float(np.mean(np.array(drawn) >= observed)),
    }


def _digits(world: str) -> str:
    """Return the digits in a world of real images, of MNIST or of the UCI set."""
    source, _, digits = world.partition("_")
    return digits if source in ("mnist", "digits") else ""


def _mean(rows: Rows, response: str) -> float:
    if response == "loss":
        return float(np.mean([np.log(float(row["test_loss"])) for row in rows]))
    # Where no attack of any seed reached another decision there is no R̂.
    result = [float(row["r_hat_pred"]) for row in rows if row["r_hat_pred"]]
    return float(np.log(np.mean(result))) if result else float("nan")


LAW, COMMON, HARDER = "b/d, b fitted", "one slope for all curves", "slope by how hard the curve is"


class LevelTable:
    """The points of ``dimension-moved``, with log losses averaged over seeds.

    The log losses are an array ``(pairs, levels, sizes)``. A curve is one pair at one level. Every
    rule of a curve's slope is fitted by least squares to centered curves. This is the same as
    ordinary least squares on the slopes of the curves.
    """

    def __init__(
        self, loss: np.ndarray, d: np.ndarray, log_k: np.ndarray, pairs: list[str], sizes: list[int]
    ) -> None:
        self.pairs, self.d, self.log_k = pairs, d, log_k
        self.classes = np.array([list(pair) for pair in pairs])
        self.apart = share_no_class(self.classes)
        self.height = loss.mean(axis=2)
        x = -np.log(np.array(sizes, dtype=float))
        x -= x.mean()
        y = loss - loss.mean(axis=2, keepdims=True)
        self.spread = float(x @ x)
        self.slope = (y @ x) / self.spread
        self.square = (y**2).sum(axis=2)

    def rules(self) -> dict[str, tuple[np.ndarray, bool]]:
        """Return the regressors ``(pairs, levels, terms)`` of each rule, and if they are fitted."""
        constant = np.ones_like(self.d)
        by_level = np.broadcast_to(np.eye(self.d.shape[1]), (*self.d.shape, self.d.shape[1]))
        return {
            COMMON: (constant[..., None], True),
            "no fall": (0 * constant[..., None], False),
            "1/d": (1 / self.d[..., None], False),
            "4/d": (4 / self.d[..., None], False),
            LAW: (1 / self.d[..., None], True),
            HARDER: (np.stack([constant, self.height], axis=2), True),
            "a slope for each level": (by_level, True),
        }

    def share(
        self, rule: str, at: np.ndarray, *, other_levels: bool = False, equal: bool = True
    ) -> float:
        """Return the squared error of a rule on curves of unseen classes.

        The error is divided by that of flat curves within each level, and then averaged over
        levels. Levels have equal weights in the fit, too. With ``other_levels``, the rule has not
        seen the level of the curve either. Without ``equal``, all curves have equal weights, so
        levels with steep curves have more influence.
        """
        terms, fitted = self.rules()[rule]
        num_levels = self.d.shape[1]
        scale = 1 / np.sqrt(self.square[at].sum(axis=0)) if equal else np.ones(num_levels)
        errors = np.zeros(num_levels)
        every = range(num_levels)
        for pair in at:
            training_pairs = at[self.apart[pair, at]]
            weights = np.ones(terms.shape[2])
            for level in every:
                if fitted and (other_levels or level == 0):
                    levels = [k for k in every if not other_levels or k != level]
                    regressors = terms[training_pairs][:, levels] * scale[levels][:, None]
                    slopes = (self.slope[training_pairs][:, levels] * scale[levels]).ravel()
                    weights = np.linalg.lstsq(
                        regressors.reshape(slopes.size, -1), slopes, rcond=None
                    )[0]
                slope = terms[pair, level] @ weights
                gained = slope * (2 * self.slope[pair, level] - slope)
                errors[level] += self.square[pair, level] - gained * self.spread
        weighted = (errors * scale**2).sum() / (self.square[at].sum(axis=0) * scale**2).sum()
        return float(weighted)

    def power_of_d(self, at: np.ndarray) -> float:
        """Return γ of slopes that are proportional to d^(−γ).

        It is the least-squares slope of log(mean slope) on log d over levels. It is 1 under the
        law, and 0 for a common slope.
        """
        slope = np.log(np.maximum(self.slope[at].mean(axis=0), 1e-3))
        log_d = np.log(self.d[at]).mean(axis=0)
        return -float(np.polyfit(log_d, slope, 1)[0])

    def power_at_equal_height(self, at: np.ndarray) -> float:
        """Return γ if slopes may also depend exponentially on the height of a curve.

        The height is the mean log loss. The fit uses the Gauss-Newton method, with equal weights of
        levels.
        """
        log_d, height = np.log(self.d[at]).ravel(), self.height[at].ravel()
        terms = np.column_stack([np.ones(log_d.size), log_d - log_d.mean()])
        terms = np.column_stack([terms, height - height.mean()])
        slope = self.slope[at].ravel()
        scale = np.tile(1 / np.sqrt(self.square[at].sum(axis=0)), len(at))
        weights = np.array([np.log(max(slope.mean(), 1e-3)), -self.power_of_d(at), 0.0])
        for _ in range(60):
            fitted = np.exp(terms @ weights)
            columns, residuals = terms * (fitted * scale)[:, None], (slope - fitted) * scale
            step = np.linalg.lstsq(columns, residuals, rcond=None)[0]
            weights = weights + step / max(1.0, float(np.abs(step).max()))
        return float(-weights[1])

    def exponents(self, at: np.ndarray) -> np.ndarray:
        """Return b of N^(−b/d) for each level separately."""
        return (self.slope[at] / self.d[at]).sum(axis=0) / (1 / self.d[at] ** 2).sum(axis=0)

    def jackknifed(self, of, null: float = 0.0) -> dict[str, float]:
        """Return a function of the pairs, with its jackknife error over classes."""
        names = np.unique(self.classes)
        value = of(np.arange(len(self.pairs)))
        without = np.array([of(np.flatnonzero((self.classes != name).all(1))) for name in names])
        error = float(np.sqrt((len(names) - 1) / len(names) * ((without - value) ** 2).sum()))
        return judged(value, error, len(names) - 1, null)

    def gain(self, rule: str, over: str, **how: bool) -> dict[str, float]:
        """Return the difference of two rules' shares of error.

        It is below 0 if ``rule`` predicts better than ``over``.
        """
        return self.jackknifed(lambda at: self.share(rule, at, **how) - self.share(over, at, **how))

    def answers(self) -> dict[str, dict[str, float]]:
        """Return the four registered numbers that decide, with adjusted p-values."""
        return adjusted(
            {
                "b/d less one slope, new pairs": self.gain(LAW, COMMON),
                "b/d less one slope, new pairs and level": self.gain(
                    LAW, COMMON, other_levels=True
                ),
                "power of d against 0": self.jackknifed(self.power_of_d),
                "power of d against 1": self.jackknifed(self.power_of_d, null=1.0),
            }
        )

    def stays(self) -> dict[str, dict[str, float]]:
        """Return log(b of a level / b of level 0), which is 0 under the law."""

        def ratio(at: np.ndarray, level: int) -> float:
            b = np.maximum(self.exponents(at), 1e-3)
            return float(np.log(b[level] / b[0]))

        return adjusted(
            {
                f"level {2 * level}": self.jackknifed(lambda at, k=level: ratio(at, k))
                for level in range(1, self.d.shape[1])
            }
        )

    def rivals(self) -> dict[str, dict[str, float]]:
        """Return the share of error of each rule, and its difference from a common slope."""
        every = np.arange(len(self.pairs))
        result = {name: {"share": self.share(name, every)} for name in self.rules()}
        for name in result:
            if name != "a slope for each level":
                result[name]["share, new level"] = self.share(name, every, other_levels=True)
            if name != COMMON:
                result[name] |= self.gain(name, COMMON)
        return adjusted(result)

    def numbers(self) -> dict[str, object]:
        """Return all numbers of this table except its sensitivity analyses."""
        by_level = [
            self.jackknifed(lambda at, k=level: float(self.exponents(at)[k]))
            for level in range(self.d.shape[1])
        ]
        return {
            "median d by level": np.median(self.d, axis=0).tolist(),
            "median factor of d": float(np.median(self.d[:, -1] / self.d[:, 0])),
            "median K_F by level": np.exp(np.median(self.log_k, axis=0)).tolist(),
            "median loss by level": np.exp(np.median(self.height, axis=0)).tolist(),
            "mean slope by level": self.slope.mean(axis=0).tolist(),
            "b by level": by_level,
            **self.answers(),
            "b of a level over that of level 0": self.stays(),
            "rivals": self.rivals(),
            "b/d less slope by how hard, new pairs": self.gain(LAW, HARDER),
            "b/d less slope by how hard, new pairs and level": self.gain(
                LAW, HARDER, other_levels=True
            ),
            "b/d less one slope, new pairs, curves weigh alike": self.gain(
                LAW, COMMON, equal=False
            ),
            "power of d at equal height": self.jackknifed(self.power_at_equal_height),
        }


TEST_IMAGES_OF_LEVELS = 340


def log_error(row: dict[str, str]) -> float:
    """Return the log of the test error.

    Half an image is added, so the logarithm exists without errors.
    """
    wrong = round((1 - float(row["test_accuracy"])) * TEST_IMAGES_OF_LEVELS)
    return float(np.log((wrong + 0.5) / (TEST_IMAGES_OF_LEVELS + 1)))


def log_loss(row: dict[str, str]) -> float:
    """Return the log of the test loss."""
    return float(np.log(float(row["test_loss"])))


def level_table(
    rows: Rows,
    response=log_loss,
    *,
    seed: str = "",
    skip: int = 0,
    d: str = "mle",
    levels: str = "0246",
) -> LevelTable:
    """Return the points of rows of ``dimension-moved``.

    Args:
        rows: Rows of the table of results.
        response: Function that returns log loss or log error of a row.
        seed: The only seed to use; None for all.
        skip: Number of smallest train sizes to leave out.
        d: Column of the estimate of d.
        levels: Levels to use.
    """
    done = [row for row in rows if row["status"] == "done" and row["seed"].startswith(seed)]
    cells: dict[tuple[str, str, int], Rows] = defaultdict(list)
    for row in done:
        _, pair, level = row["dataset"].split("_")
        cells[pair, level, int(row["train_size"])].append(row)
    pairs = sorted({pair for pair, _, _ in cells})
    sizes = sorted({size for _, _, size in cells})
    largest = sizes[-1]

    def measured(name: str) -> np.ndarray:
        return np.array(
            [[float(cells[p, level, largest][0][name]) for level in levels] for p in pairs]
        )

    loss = [
        [
            [np.mean([response(row) for row in cells[p, level, size]]) for size in sizes[skip:]]
            for level in levels
        ]
        for p in pairs
    ]
    dimension, log_k = measured(f"d_data_{d}"), np.log(measured("label_sharpness"))
    return LevelTable(np.array(loss), dimension, log_k, pairs, sizes[skip:])


def dimension_moved(rows: Rows) -> dict[str, object]:
    """Return all numbers of the fifth registration, with sensitivity analyses."""
    seeds = sorted({row["seed"] for row in rows})
    ways = {f"seed {seed} alone": {"seed": seed} for seed in seeds if len(seeds) > 1}
    ways |= {"without the smallest N": {"skip": 1}, "TwoNN for d": {"d": "twonn"}}
    ways |= {"without level 6": {"levels": "024"}, "without level 0": {"levels": "246"}}
    losses = np.array([float(row["test_loss"]) for row in rows if row["status"] == "done"])
    accuracy: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        accuracy[f"level {row['dataset'][-1]}"].append(float(row["train_accuracy"]))
    return {
        "trials": len(losses),
        "mean training accuracy": {level: float(np.mean(of)) for level, of in accuracy.items()},
        "share at chance level": float(np.mean(losses >= CHANCE)),
        **level_table(rows).numbers(),
        "turned": {name: level_table(rows, **way).answers() for name, way in ways.items()},
    }


def trained_longer(short: Rows, long: Rows) -> dict[str, object]:
    """Return all numbers of the sixth registration."""
    shorter, longer = level_table(short, seed="0"), level_table(long)
    accuracy: dict[str, list[float]] = defaultdict(list)
    for row in long:
        key = f"level {row['dataset'][-1]}, N {row['train_size']}"
        accuracy[key].append(float(row["train_accuracy"]))
    return {
        **dimension_moved(long),
        "training accuracy by N": {key: float(np.mean(of)) for key, of in accuracy.items()},
        "power of d, longer less shorter": longer.jackknifed(
            lambda at: longer.power_of_d(at) - shorter.power_of_d(at)
        ),
        "log error": level_table(long, log_error).answers(),
        "log error, trained shorter": level_table(short, log_error).answers(),
    }


def numbers() -> dict[str, object]:
    """Return all numbers."""
    result: dict[str, object] = {}
    for name in PAIRS:
        table, first = PairTable(name), PairTable(name, "0")
        result[name] = table.numbers() | {"seed 0": first.answers() | {"rivals": first.rivals()}}
        if other_seeds := table.seeds.replace("0", ""):
            again = PairTable(name, other_seeds)
            result[name] |= {"other seeds": again.answers() | again.after()}
    sweeps = ("interventions_many", "interventions_digits")
    result |= {name: interventions(name) for name in sweeps} | {
        "both interventions": interventions(*sweeps)
    }
    result["interventions on training images"] = TrainingWorlds(*TRAINING_SWEEPS).numbers()
    short, long = (read(RESULTS / f"dimension_moved{of}.csv.gz") for of in ("", "_longer"))
    result["dimension_moved"] = dimension_moved(short)
    result["dimension_moved_longer"] = trained_longer(short, long)
    return result


if __name__ == "__main__":
    print(json.dumps(numbers(), indent=1, ensure_ascii=False))
