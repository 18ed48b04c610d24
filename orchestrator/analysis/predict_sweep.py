"""A question about one dataset, answered from the fits of a sweep of others."""

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
    """Return the loss to expect at a train size, or the images that a target needs.

    Given numbers go before measured ones, and these before the pilot's. A pilot answers without
    d_data and K_F, too. The fits are made, and the pilot is read or trained, only when it is known
    that they help.

    Args:
        record: A measurement of the dataset as ``isweep measure --json`` writes it, or empty.
        growth: Fits how losses fall with N in the sweep.
        pilot: Reads or trains small trainings on the dataset itself.
        d_data: Intrinsic dimension of the dataset.
        label_sharpness: Its K_F, on the scale of the sweep.
        train_size: N at which the loss is asked.
        target_loss: Test loss in nat whose N is asked.

    Returns:
        The prediction, whose warning says what was left out of the pilot, and the pilot.

    Raises:
        SweepError: If a number is missing or out of range, or the sweep has too little for a fit.
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
    fits = growth()  # first: no pilot makes up for a sweep
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
    """Raise a ConfigError that names the numbers which are missing."""
    missing = [name for name in ("d_data", "label_sharpness") if name not in numbers]
    if missing:
        raise ConfigError(
            f"The prediction lacks {' and '.join(missing)} of the new dataset",
            hint="Give the numbers, a measurement with labels (--measured), or a pilot (--pilot)",
        )
