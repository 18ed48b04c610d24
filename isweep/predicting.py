"""From a measured set of images to the loss to expect, or the number of images that a loss needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from isweep.measuring import Measurement
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from isweep.sweeps import Fits, Sweep
    from orchestrator.analysis.prediction import Growth, Prediction
    from orchestrator.analysis.prediction_inputs import Pilot


def predict(
    measured: Measurement | dict[str, Any] | str | Path | None = None,
    sweep: Sweep | Fits | str = "demo",
    *,
    model: str = "pooled",
    domain: str | None = None,
    d_data: float | None = None,
    label_sharpness: float | None = None,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[tuple[float, float]] | str | Path = (),
    root: str | Path | None = None,
) -> Prediction:
    """Predict from a sweep's fits; exactly one of ``train_size`` and ``target_loss`` is the question.

    Args:
        measured: A measurement of images on the sweep's scale, its JSON record or the path of that; None
            where the two numbers are given.
        sweep: Whose fits to use: a sweep, its fits, or what :func:`isweep.open` takes.
        model: A model of the sweep; ``pooled`` for all of them together.
        domain: ``natural`` or ``medical``; None for all datasets.
        d_data: Intrinsic dimension, in place of the measured one.
        label_sharpness: K_F, in place of the measured one, on the scale of the sweep.
        train_size: Images to train on: what will the loss be?
        target_loss: Test loss in nat to reach: how many images are needed?
        pilot: Small trainings of ``model`` on the dataset: pairs of train size and test loss, or a CSV file.
        root: See :func:`isweep.run`.
    """
    from isweep.sweeps import Fits, Sweep, open
    from orchestrator.analysis.prediction import fit_growth
    from orchestrator.commands import predicted

    asked = {"d_data": d_data, "label_sharpness": label_sharpness}
    asked |= {"train_size": train_size, "target_loss": target_loss}
    for name, value in asked.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise ConfigError(f"{name} must be a number", repr(value), "give a plain one")

    def growth() -> Growth:
        whose = sweep if isinstance(sweep, (Sweep, Fits)) else open(sweep, root=root)
        fits = whose.fits if isinstance(whose, Sweep) else whose
        return fit_growth(fits.table, model=model, domain=domain, arms=fits.arms)

    trained, record = _pilot(pilot, model), _record(measured)
    return predicted(record, growth, trained, **asked)[0]


def _pilot(pilot: Sequence[tuple[float, float]] | str | Path, model: str) -> Callable[[], Pilot] | None:
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint, read_pilot

    if isinstance(pilot, (str, Path)):
        return lambda: read_pilot(Path(pilot), model)
    try:
        points = tuple(PilotPoint(float(size), float(loss)) for size, loss in pilot)
    except (TypeError, ValueError):
        rule = "pilot must be pairs of train size and test loss, or a file of them"
        raise ConfigError(rule, repr(pilot)[:200], "e.g. [(50, 0.6), (100, 0.5)]") from None
    return (lambda: Pilot(points)) if points else None


def _record(measured: Measurement | dict[str, Any] | str | Path | None) -> dict[str, Any]:
    from orchestrator.analysis.prediction_inputs import read_record

    if isinstance(measured, (str, Path)):
        return read_record(Path(measured))
    if isinstance(measured, Measurement):
        return measured.to_json()
    if not isinstance(measured, (dict, NoneType)):
        rule = "measured must be a measurement, a record or the path of one"
        raise ConfigError(rule, type(measured).__name__, "isweep.measure(images, labels) makes one")
    return measured or {}
