"""From fitted laws to answers: what loss to expect at N images, and how many images a target loss needs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from orchestrator.analysis import points as t
from orchestrator.analysis.curve import Curve, PilotPoint
from orchestrator.analysis.fit_records import ALL, POOLED, ScalingFits
from orchestrator.analysis.growth import HEIGHT
from orchestrator.analysis.growth_records import Growth
from orchestrator.analysis.table_checks import LARGEST_VALUE
from orchestrator.analysis.words import few_domain_datasets
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, DataError, unknown_name

WAYS_OUT = {
    "d_data": "measure the dataset first",
    "label_sharpness": "measure the dataset first",
    "train_size": "give a number of images, e.g. 1000",
    "target_loss": "give a test loss in nat, e.g. 0.3",
    "pilot train size": "give what was trained",
    "pilot loss": "give the test loss of a finished training",
}
SIZES = ("train_size", "pilot train size")

FAR = 2.0
"""A pilot's train size beyond the sweep's by more than this factor is said to be far from them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted loss (nat) or a needed train size (images), with a 90 % interval for a dataset not yet
    seen.

    Attributes:
        value: None where it cannot be told, with the reason in ``warning``.
        interval: None where the fit has too few datasets for one, or where it would be no answer.
        shorter: by which share the interval (in log loss) is shorter than one that knows nothing of the
        dataset;
            None without an interval.
    """

    quantity: str
    value: float | None
    interval: tuple[float, float] | None
    extrapolating: bool
    warning: str
    shorter: float | None = None
    num_pilot: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with its value under the name of its quantity."""
        return {
            self.quantity: self.value,
            "interval": None if self.interval is None else list(self.interval),
            "extrapolating": self.extrapolating,
            "warning": self.warning,
            "shorter": self.shorter,
            "num_pilot": self.num_pilot,
        }


def predict(
    fits: ScalingFits,
    *,
    model: str,
    domain: str | None,
    d_data: float,
    label_sharpness: float,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[PilotPoint] = (),
) -> Prediction:
    """Predict from how losses grew in a sweep, and from a pilot where there is one.

    Args:
        fits: fits of a sweep.
        model: a fitted model, or ``pooled``.
        domain: use the fit of this domain alone where there is one (else all datasets, with a warning); None
            for all datasets.
        d_data: intrinsic dimension of the dataset, maximum-likelihood estimate.
        label_sharpness: K_F of the dataset, on the scale of the fitted ones.
        train_size: number of images to predict the loss for; or
        target_loss: loss in nat to predict the needed number of images for.
        pilot: losses of small trainings of this model on the dataset itself; those of one size are averaged.

    Raises:
        ConfigError: if an argument is out of its range, or not exactly one of the last two is given.
        DataError: if the sweep had too little data for this fit, with the reason.
    """
    _check(domain, d_data, label_sharpness, train_size, target_loss, pilot)
    growth, warnings = usable_growth(fits, model, domain)
    pilot = _one_per_size(pilot)
    curve = Curve(growth, d_data, label_sharpness, pilot)
    asked = {c.D_DATA_MLE: d_data, c.LABEL_SHARPNESS: label_sharpness}
    warnings += [*_doubts(growth, domain), *_doubts_of_pilot(growth, pilot)]
    if train_size is not None:
        return _loss(curve, train_size, warnings + _outside(growth, {**asked, c.TRAIN_SIZE: train_size}))
    return _size(curve, float(target_loss or 0.0), growth, asked, warnings)


def _loss(curve: Curve, train_size: float, warnings: list[str]) -> Prediction:
    value, bounds, why = curve.loss_at(train_size)
    warnings = [*why, *warnings, *curve.advice(train_size)]
    return Prediction(
        quantity="loss",
        value=value,
        interval=bounds,
        extrapolating=_is_outside(warnings),
        warning="; ".join(warnings),
        shorter=None if bounds is None else curve.shorter(train_size),
        num_pilot=curve.num_pilot,
    )


def _size(
    curve: Curve, target: float, growth: Growth, asked: dict[str, float], warnings: list[str]
) -> Prediction:
    size, bounds, why = curve.size_for(target)
    why = [*why, *curve.advice(curve.growth.ranges[c.TRAIN_SIZE][1] if size is None else size)]
    outside = _outside(growth, {**asked, **({} if size is None else {c.TRAIN_SIZE: size})})
    return Prediction(
        quantity="train_size",
        value=size,
        interval=bounds,
        extrapolating=bool(outside) or size is None,
        warning="; ".join([*why, *warnings, *outside]),
        shorter=None if size is None else curve.shorter(size),
        num_pilot=curve.num_pilot,
    )


def _check(
    domain: str | None,
    d_data: float,
    label_sharpness: float,
    train_size: float | None,
    target_loss: float | None,
    pilot: Sequence[PilotPoint],
) -> None:
    if domain is not None and domain not in c.DOMAINS:
        raise unknown_name("domain", domain, c.DOMAINS)
    if (train_size is None) == (target_loss is None):
        raise ConfigError(
            "A prediction needs either a train size or a target loss",
            "both" if train_size is not None else "neither",
            "give exactly one of them",
        )
    numbers = [
        ("d_data", d_data),
        ("label_sharpness", label_sharpness),
        ("train_size", train_size),
        ("target_loss", target_loss),
        *(("pilot train size", point.train_size) for point in pilot),
        *(("pilot loss", point.test_loss) for point in pilot),
    ]
    for name, value in numbers:
        if value is not None:
            _check_number(name, value)


def _check_number(name: str, value: Any) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
    number: Any = value if is_number else float("nan")
    if not 0 < number <= sys.float_info.max:
        raise ConfigError(f"{name} must be a positive finite number", repr(value), WAYS_OUT[name])
    if not 1 / LARGEST_VALUE < number < LARGEST_VALUE:
        limits = f"{1 / LARGEST_VALUE:g} and {LARGEST_VALUE:g}"
        raise ConfigError(f"{name} must lie between {limits}", repr(value), WAYS_OUT[name])
    if name in SIZES and number % 1:
        raise ConfigError(f"{name} must be a whole number of images", repr(value), "round it")


def _one_per_size(pilot: Sequence[PilotPoint]) -> list[PilotPoint]:
    """Average trainings of one size, as logarithms: they share their images, and are no two."""
    losses: dict[float, list[float]] = {}
    for point in pilot:
        losses.setdefault(point.train_size, []).append(float(np.log(point.test_loss)))
    return [PilotPoint(size, float(np.exp(np.mean(found)))) for size, found in sorted(losses.items())]


def usable_growth(fits: ScalingFits, model: str, domain: str | None) -> tuple[Growth, list[str]]:
    """Return the narrowest usable prior and what had to be given up for it.

    Raises:
        ConfigError: for a model that was not fitted.
        DataError: if the sweep had too little data, with the reason.
    """
    if model not in (*fits.models, POOLED):
        raise unknown_name("fitted model", model, (*fits.models, POOLED))
    warnings: list[str] = []
    for subset in ([domain] if domain else []) + [ALL]:
        found = fits.growth_of(model=model, subset=subset)
        if found.status == "ok":
            return found, warnings
        warnings.append(f"no fit for {subset} datasets ({found.reason}), so all datasets are used")
    raise DataError(
        "A prediction needs a fit of how losses grow",
        found.reason,
        "run a sweep with more datasets and train sizes",
    )


def _doubts_of_pilot(growth: Growth, pilot: Sequence[PilotPoint]) -> list[str]:
    """Return why a pilot is not to be believed as its own trainings would have it."""
    low, high = growth.ranges[c.TRAIN_SIZE]
    far = [f"{point.train_size:.4g}" for point in pilot if not low / FAR <= point.train_size <= high * FAR]
    guessed = [f"{point.test_loss:.3g}" for point in pilot if point.test_loss > t.NEAR_CHANCE * t.CHANCE_LOSS]
    doubts = []
    if far:
        doubts.append(
            f"the pilot's train size {', '.join(far)} is far from the sweep's {low:.4g} to {high:.4g}"
        )
    if guessed:
        doubts.append(
            f"the pilot's test loss {', '.join(guessed)} is that of guessing or more, which says little"
        )
    ordered = sorted(pilot, key=lambda point: point.train_size)
    if len(ordered) > 1 and ordered[-1].test_loss > ordered[0].test_loss:
        doubts.append("the pilot's test loss rises with its train size")
    return doubts


def _outside(growth: Growth, asked: dict[str, float]) -> list[str]:
    words = {c.TRAIN_SIZE: "train size", c.D_DATA_MLE: "d_data", c.LABEL_SHARPNESS: "label sharpness"}
    return [
        f"{words[name]} {asked[name]:.4g} lies outside the fitted range {low:.4g} to {high:.4g}"
        for name, (low, high) in growth.ranges.items()
        if name in asked and not low * (1 - 1e-9) <= asked[name] <= high * (1 + 1e-9)
    ]


def _is_outside(warnings: list[str]) -> bool:
    return any("lies outside the fitted range" in text for text in warnings)


def _doubts(growth: Growth, domain: str | None) -> list[str]:
    doubts = [growth.doubt] if growth.doubt else []
    if domain is not None and growth.subset == domain:
        doubts += [text.rstrip(".") for text in few_domain_datasets(domain, growth.num_datasets)]
    missing = [name for name in HEIGHT if growth.informed and name not in growth.informed.terms]
    if missing:
        words = {t.INVERSE_D: "d_data", t.LOG_SHARPNESS: "K_F"}
        doubts.append(
            f"{' and '.join(words[name] for name in missing)} could not be related to the height of the loss"
        )
    if growth.num_datasets < 3:
        doubts.append(f"with {growth.num_datasets} datasets no interval can be given")
    return doubts
