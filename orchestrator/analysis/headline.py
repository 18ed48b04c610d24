"""What a sweep found as plain numbers by name, for a tracker: best losses and every fitted coefficient."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pandas as pd

from orchestrator.analysis.fit_records import Interval, ScalingFits

Named = tuple[str, float | None, Interval | None]

_UNUSUAL = re.compile(r"[^\w\-. :/]+")


def headline(table: pd.DataFrame, fits: ScalingFits) -> dict[str, float]:
    """Return the best test loss of each dataset, and each fitted value with the ends of its 95 % interval.

    Args:
        table: One row per trial.
        fits: Its fits.

    Returns:
        Values by path, such as ``best_test_loss/digits``, ``law/predicted/pooled/all/intercept`` and, where
        there is an interval, the same with ``/low`` and ``/high``.
    """
    found: dict[str, float] = {}
    if "test_loss" in table:
        best = table.dropna(subset=["test_loss"]).groupby("dataset")["test_loss"].min()
        found.update({f"best_test_loss/{name}": float(loss) for name, loss in best.items()})
    for name, value, interval in _fitted(fits):
        if value is None:
            continue
        # What MLflow takes in a metric's name.
        path = _UNUSUAL.sub(" ", name)
        found[path] = value
        if interval is not None:
            found[f"{path}/low"], found[f"{path}/high"] = interval
    return found


def _fitted(fits: ScalingFits) -> Iterator[Named]:
    for law in fits.laws:
        for one in law.coefficients:
            yield f"law/{law.law}/{law.model}/{law.subset}/{one.name}", one.value, one.interval
    for level in fits.levels:
        where = f"level/{level.response}/{' '.join(level.terms)}/{level.model}/{level.subset}"
        for mean in level.coefficients:
            yield f"{where}/{mean.name}", mean.value, mean.interval
    for exponent in fits.exponents:
        where = f"exponent/{exponent.response}/{exponent.model}/{exponent.subset}"
        yield where, exponent.value, exponent.interval
    for curve in fits.train_size:
        yield f"train_size_exponent/{curve.model}/{curve.dataset}", curve.exponent, curve.interval
    for attack in fits.attacks:
        for association in (attack.on_sharpness, attack.on_d_data):
            slope = association.slope
            if slope is not None:
                where = f"attack/{attack.attack}_{attack.epsilon:g}/{attack.model}/slope on {association.x}"
                yield where, slope.value, slope.interval
