"""A question about one dataset, answered from the fits of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.prediction import Growth, Prediction
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint

NUMBERS = ("d_data", "label_sharpness")
"""The two numbers of a dataset from which its loss is predicted."""


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
    """Predict the loss at a train size, or the number of images for a loss.

    Numbers that are given replace measured ones, and these replace the pilot's. ``growth`` and
    ``pilot`` are called only once it is known that they help: both may take minutes.

    Args:
        record: What ``isweep measure --json`` writes of the dataset; empty if it was not measured.
        growth: Fits how the losses of the sweep depend on the train size.
        pilot: Reads or trains small trainings on the dataset itself; None if there is none.
        d_data: Intrinsic dimension.
        label_sharpness: K_F, on the scale of the sweep.
        train_size: Number of training images whose loss is asked for.
        target_loss: Test loss (nat) whose number of images is asked for.

    Returns:
        The prediction, whose warning names what was left out of the pilot, and the pilot.

    Raises:
        SweepError: A number is absent, or the sweep's fits cannot answer.
    """
    # These import pandas, which takes a second.
    from orchestrator.analysis.prediction import predict
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    numbers = dict(values_of(record))
    if d_data is not None:
        numbers["d_data"] = d_data
    if label_sharpness is not None:
        numbers["label_sharpness"] = label_sharpness
    if pilot is None or record:
        _check_complete(numbers)
    fitted = growth()  # before the pilot, which is of no use without it
    if label_sharpness is None:
        check_scale(record, fitted.scale)
    trained = None if pilot is None else pilot()
    points: tuple[PilotPoint, ...] = ()
    notes: tuple[str, ...] = ()
    if trained is not None:
        points = trained.points
        notes = trained.notes
        for name in NUMBERS:
            value = getattr(trained, name)
            if value is not None:
                numbers.setdefault(name, value)
    _check_complete(numbers)
    prediction = predict(
        fitted,
        d_data=float(numbers["d_data"]),
        label_sharpness=float(numbers["label_sharpness"]),
        train_size=train_size,
        target_loss=target_loss,
        pilot=points,
    )
    warnings = filter(None, (*notes, prediction.warning))
    return replace(prediction, warning="; ".join(warnings)), trained


def _check_complete(numbers: Mapping[str, float]) -> None:
    """Refuse a prediction without both numbers of the dataset."""
    missing = [f"no {name}" for name in NUMBERS if name not in numbers]
    if missing:
        raise ConfigError(
            "A prediction needs d_data and label_sharpness",
            " and ".join(missing),
            "give the numbers, a measurement with labels (--measured), or a pilot that has both",
        )
