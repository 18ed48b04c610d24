"""A question about one dataset, answered from the fits of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from search_spaces.errors import (
    ConfigError,
)

if TYPE_CHECKING:
    from orchestrator.analysis.prediction import Growth, Prediction
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
    """Answer from a sweep's fits, or raise a SweepError; the warning says what was left out of the
    pilot.

    What will the loss be at ``train_size``, or how many images are needed for ``target_loss``?
    Given d_data and K_F (on the scale of the sweep) go before measured ones (``record`` as ``isweep
    measure --json`` writes it, or empty), and these before the pilot's. ``growth`` fits how losses
    grow, and ``pilot`` reads or trains small trainings on the dataset itself: each is asked once it
    is known to help.
    """
    from orchestrator.analysis.prediction import predict
    from orchestrator.analysis.prediction_inputs import check_scale, values_of

    def complete(numbers: Mapping[str, float]) -> None:
        if missing := [name for name in asked if name not in numbers]:
            hint = "give both numbers, a measurement with labels, or a pilot that has both"
            found = f"no {' and no '.join(missing)}"
            raise ConfigError("A prediction needs d_data and label_sharpness", found, hint)

    asked = {"d_data": d_data, "label_sharpness": label_sharpness}
    numbers = values_of(record) | {
        name: value for name, value in asked.items() if value is not None
    }
    if pilot is None or record:
        complete(numbers)
    known = growth()  # first: no pilot makes up for a sweep
    if label_sharpness is None:
        check_scale(record, known.scale)
    trained = None if pilot is None else pilot()
    if trained is not None:
        own = {name: getattr(trained, name) for name in asked}
        numbers = {name: value for name, value in own.items() if value is not None} | numbers
    complete(numbers)
    prediction = predict(
        known,
        d_data=float(numbers["d_data"]),
        label_sharpness=float(numbers["label_sharpness"]),
        train_size=train_size,
        target_loss=target_loss,
        pilot=() if trained is None else trained.points,
    )
    notes = () if trained is None else trained.notes
    return replace(
        prediction, warning="; ".join(filter(None, (*notes, prediction.warning)))
    ), trained
