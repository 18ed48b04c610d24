"""From fitted laws to answers: what loss to expect at N images, and how many images a target loss needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy import stats

from orchestrator.analysis.fit_records import ALL, POOLED, LawFit, PredictionBasis, ScalingFits
from orchestrator.analysis.laws import PREDICTED_FORM
from orchestrator.results import columns as c
from search_spaces.errors import ConfigError, DataError, unknown_name

#: Train sizes beyond this are reported as "no size": no dataset has so many images.
LARGEST_TRAIN_SIZE = 1e15

WAYS_OUT = {
    "d_data": "measure the dataset first",
    "label_sharpness": "measure the dataset first",
    "train_size": "give a number of images, e.g. 1000",
    "target_loss": "give a test loss in nat, e.g. 0.3",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A predicted loss (nat) or a needed train size (images), with a 95 % interval for a dataset not yet
    seen.

    ``interval`` is None where the fit has too few datasets for one; a bound of it is None where the size has
    no such bound.
    """

    quantity: str
    value: float | None
    interval: tuple[float | None, float | None] | None
    extrapolating: bool
    warning: str

    def to_json(self) -> dict[str, Any]:
        """Return the prediction with its value under the name of its quantity."""
        interval = None if self.interval is None else list(self.interval)
        return {
            self.quantity: self.value,
            "interval": interval,
            "extrapolating": self.extrapolating,
            "warning": self.warning,
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
) -> Prediction:
    """Predict from the fitted form log L = a + b₁ (−log N / d_data) + b₂ log K_F.

    Args:
        fits: fits of a sweep.
        model: a fitted model, or ``pooled``.
        domain: use the fit of this domain alone where there is one (else all datasets, with a warning); None
        for
            all datasets.
        d_data: intrinsic dimension of the dataset, maximum-likelihood estimate.
        label_sharpness: K_F of the dataset, on the scale of the fitted ones.
        train_size: number of images to predict the loss for; or
        target_loss: loss in nat to predict the needed number of images for.

    Raises:
        ConfigError: if an argument is out of its range, or not exactly one of the last two is given.
        DataError: if the sweep had too little data for this fit, with the reason.
    """
    _check(fits, model, domain, d_data, label_sharpness, train_size, target_loss)
    fit, warnings = _fit(fits, model, domain)
    curve = _Curve(fit, d_data, label_sharpness)
    asked = {c.D_DATA_MLE: d_data, c.LABEL_SHARPNESS: label_sharpness}
    if train_size is not None:
        outside = _outside(fit, {**asked, c.TRAIN_SIZE: train_size})
        log_loss, reach = curve.at(train_size)
        bounds = None if reach is None else (float(np.exp(log_loss - reach)), float(np.exp(log_loss + reach)))
        return Prediction(
            quantity="loss",
            value=float(np.exp(log_loss)),
            interval=bounds,
            extrapolating=bool(outside),
            warning=_join(warnings + outside + _doubts(fit)),
        )
    size, interval, notes = curve.size_for(cast(float, target_loss))  # one of the two is given, see _check
    outside = _outside(fit, {**asked, **({} if size is None else {c.TRAIN_SIZE: size})})
    return Prediction(
        quantity="train_size",
        value=size,
        interval=interval,
        extrapolating=bool(outside) or size is None,
        warning=_join(warnings + notes + outside + _doubts(fit)),
    )


class _Curve:
    """Log loss against N at one (d_data, K_F), with the half width of its prediction interval."""

    def __init__(self, fit: LawFit, d_data: float, label_sharpness: float) -> None:
        basis = _basis(fit)
        self.intercept, self.slope, self.sharpness = (k.value for k in fit.coefficients)
        self.d_data, self.log_sharpness = d_data, float(np.log(label_sharpness))
        self.centre = np.array(basis.centre)
        self.covariance = None if basis.covariance is None else np.array(basis.covariance)[1:, 1:]
        self.error, self.num_datasets = fit.held_out_rmse, fit.num_datasets

    def at(self, train_size: float) -> tuple[float, float | None]:
        """Return log loss and the half width of its interval; None without an error over datasets.

        The error on left-out datasets already holds what the coefficients' errors do near the middle of the
        data; away from the middle their growth is added.
        """
        x = np.array([-np.log(train_size) / self.d_data, self.log_sharpness])
        log_loss = float(self.intercept + self.slope * x[0] + self.sharpness * x[1])
        if self.error is None or self.covariance is None:
            return log_loss, None
        away = x - self.centre
        std_error = np.sqrt(self.error**2 + float(away @ self.covariance @ away))
        return log_loss, float(stats.t.ppf(0.975, self.num_datasets - 1) * std_error)

    def size_for(
        self, target: float
    ) -> tuple[float | None, tuple[float | None, float | None] | None, list[str]]:
        """Return the train size at which the loss reaches ``target``, its bounds, and remarks."""
        if self.slope <= 0:
            return (
                None,
                None,
                ["in this fit the loss does not fall with N, so no number of images reaches the target"],
            )
        height = self.intercept + self.sharpness * self.log_sharpness - np.log(target)
        log_size = self.d_data * height / self.slope
        sizes = np.geomspace(1, LARGEST_TRAIN_SIZE, 3001)
        values = [self.at(size) for size in sizes]
        bounds = None
        if values[0][1] is not None:
            low, high = (
                _first(sizes, [v + sign * (r or 0) for v, r in values], np.log(target)) for sign in (-1, 1)
            )
            bounds = (low, high)
        if log_size > np.log(LARGEST_TRAIN_SIZE):
            return None, bounds, [f"more than {LARGEST_TRAIN_SIZE:.0e} images would be needed"]
        return max(1.0, float(np.exp(log_size))), bounds, []


def _first(sizes: np.ndarray, log_losses: list[float], target: float) -> float | None:
    reached = np.flatnonzero(np.array(log_losses) <= target)
    return float(sizes[reached[0]]) if len(reached) else None


def _check(
    fits: ScalingFits,
    model: str,
    domain: str | None,
    d_data: float,
    label_sharpness: float,
    train_size: float | None,
    target_loss: float | None,
) -> None:
    if model not in (*fits.models, POOLED):
        raise unknown_name("fitted model", model, (*fits.models, POOLED))
    if domain is not None and domain not in c.DOMAINS:
        raise unknown_name("domain", domain, c.DOMAINS)
    if (train_size is None) == (target_loss is None):
        raise ConfigError(
            "A prediction needs either a train size or a target loss",
            "both" if train_size is not None else "neither",
            "give exactly one of them",
        )
    numbers = {
        "d_data": d_data,
        "label_sharpness": label_sharpness,
        "train_size": train_size,
        "target_loss": target_loss,
    }
    for name, value in numbers.items():
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name} must be a positive finite number", repr(value), WAYS_OUT[name])


def _fit(fits: ScalingFits, model: str, domain: str | None) -> tuple[LawFit, list[str]]:
    """Return the narrowest usable fit and what had to be given up for it."""
    warnings: list[str] = []
    for subset in ([domain] if domain else []) + [ALL]:
        fit = fits.law(PREDICTED_FORM.name, model=model, subset=subset)
        if fit.status == "ok":
            return fit, warnings
        warnings.append(f"no fit for {subset} datasets ({fit.reason}), so all datasets are used")
    raise DataError(
        "A prediction needs a fit of the predicted form",
        fit.reason,
        "run a sweep with more datasets and train sizes",
    )


def _basis(fit: LawFit) -> PredictionBasis:
    if fit.basis is None:
        raise DataError(
            "A prediction needs what the fit was made on", f"none kept for {fit.law}", "fit again"
        )
    return fit.basis


def _outside(fit: LawFit, asked: dict[str, float]) -> list[str]:
    words = {c.TRAIN_SIZE: "train size", c.D_DATA_MLE: "d_data", c.LABEL_SHARPNESS: "label sharpness"}
    return [
        f"{words[name]} {asked[name]:.4g} lies outside the fitted range {low:.4g} to {high:.4g}"
        for name, (low, high) in _basis(fit).ranges.items()
        if name in asked and not low * (1 - 1e-9) <= asked[name] <= high * (1 + 1e-9)
    ]


def _doubts(fit: LawFit) -> list[str]:
    doubts = [caveat.rstrip(".") for caveat in fit.caveats]
    if fit.basis is not None and fit.basis.covariance is None:
        doubts.append(f"with {fit.num_datasets} datasets no interval can be given")
    return doubts


def _join(parts: list[str]) -> str:
    return "; ".join(parts)
