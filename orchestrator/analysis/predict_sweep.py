"""Prediction for a new dataset from the fits of a sweep of other datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction import Prediction
    from orchestrator.analysis.prediction_inputs import Pilot


def predict_sweep(
    record: Mapping[str, Any],
    growth: Callable[[], Growth],
    pilot: Callable[[], Pilot | None] | None = None,
    *,
    d_data: float | None,
    label_sharpness: float | None,
    train_size: float | None,
    target_loss: float | None,
) -> tuple[Prediction, Pilot | None]:
    """Predict the loss at a train size, or the number of images for a target loss.

    The arguments ``d_data`` and ``label_sharpness`` replace the values of the record. The
    values of the record replace the values of the pilot. If there is a pilot, a prediction is
    possible without d_data and K_F. The functions ``growth`` and ``pilot`` may take long, so
    they are called only after the other inputs were checked.

    Args:
        record: A measurement of the dataset in the format of ``isweep measure --json``. It may
            be empty.
        growth: Function that fits how losses fall with N in the sweep.
        pilot: Function that reads or trains the pilot: trainings with few images of the new
            dataset.
        d_data: Intrinsic dimension of the dataset.
        label_sharpness: K_F of the dataset, on the scale of the sweep.
        train_size: N at which the loss is predicted; None if ``target_loss`` is given.
        target_loss: Test loss in nat for which N is predicted; None if ``train_size`` is
            given.

    Returns:
        The prediction and the pilot. The warnings of the prediction also name trainings that
        were left out of the pilot.

    Raises:
        SweepError: If a number is missing or out of range, or if the sweep has too few results
            for a fit.
    """
    from orchestrator.analysis.prediction import predict
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    numbers = values_of(record)
    if d_data is not None:
        numbers["d_data"] = d_data
    if label_sharpness is not None:
        numbers["label_sharpness"] = label_sharpness
    if pilot is None or record:
        _check_complete(numbers)
    fits = growth()  # Before the pilot: without fits of the sweep, a pilot is of no use.
    if label_sharpness is None:
        check_scale(record, fits.scale)
    trained = None if pilot is None else pilot()
    are_comparable = True
    if trained is not None:
        if "d_data" not in numbers and trained.d_data is not None:
            numbers["d_data"] = trained.d_data
            are_comparable = trained.measures_suit(fits.ranges["train_size"][1])
        if "label_sharpness" not in numbers and trained.label_sharpness is not None:
            numbers["label_sharpness"] = trained.label_sharpness
    if trained is None or not trained.points:
        _check_complete(numbers)
    prediction = predict(
        fits,
        d_data=numbers.get("d_data"),
        label_sharpness=numbers.get("label_sharpness"),
        train_size=train_size,
        target_loss=target_loss,
        pilot=() if trained is None else trained.points,
        measures_are_comparable=are_comparable,
    )
    if trained is not None:
        warnings = [*trained.notes, prediction.warning]
        prediction = replace(prediction, warning="; ".join(filter(None, warnings)))
    return prediction, trained


def _check_complete(numbers: Mapping[str, float]) -> None:
    """Raise an error if d_data or K_F is missing."""
    missing = [name for name in ("d_data", "label_sharpness") if name not in numbers]
    if missing:
        raise ConfigError(
            f"The prediction needs {' and '.join(missing)} of the new dataset",
            hint=f"Set {' and '.join(missing)}, or use a measurement with labels (--measured) or a "
            "pilot (--pilot)",
        )
