"""Predict the loss on a new dataset from the fits of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from isweep.measuring import Measurement
from isweep.sweeps import Fits, Sweep, open
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction import Prediction
    from orchestrator.analysis.prediction_inputs import Pilot


def predict(
    measured: Measurement | dict[str, Any] | str | Path | None = None,
    sweep: Sweep | Fits | pd.DataFrame | str = "demo",
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
    """Predict the test loss, or the images that a loss needs, on a dataset the sweep lacks.

    Ask for exactly one of ``train_size`` and ``target_loss``. For a sweep of one dataset, or for
    results of your own, use :func:`isweep.learning_curves`.

    Args:
        measured: A measurement of images with the sweep's side and channels, its JSON record, or
            the path of that record. None if both numbers are given.
        sweep: The sweep to predict from: a sweep, its fits, its table, or a name as
            :func:`isweep.open` takes it. It needs at least two datasets and five points.
        model: A model of the sweep; ``pooled`` takes all of them together.
        domain: ``natural`` or ``medical``; None takes all datasets.
        d_data: Intrinsic dimension, instead of the measured one.
        label_sharpness: K_F per unit of pixel distance, instead of the measured one, on the
            sweep's scale.
        train_size: Number of training images; the answer is the test loss.
        target_loss: Test loss to reach (nat); the answer is a number of images.
        pilot: Small trainings of ``model`` on the new dataset: pairs of train size and test loss,
            or the path of a CSV file with these columns.
        root: Folder that holds all results; None takes ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        The prediction with its 90 % interval, for one training. Its ``value`` is None if the
        interval is too wide to be of use; ``warning`` says why.

    Raises:
        SweepError: If a number is missing, or the sweep has too few datasets or another scale.

    Example:
        >>> import isweep, pandas as pd
        >>> results = pd.DataFrame(
        ...     {
        ...         "trial_id": [f"trial{number}" for number in range(9)],
        ...         "model": "small_cnn",
        ...         "dataset": ["digits"] * 3 + ["cells"] * 3 + ["moles"] * 3,
        ...         "domain": ["natural"] * 3 + ["medical"] * 6,
        ...         "train_size": [60, 120, 240] * 3,
        ...         "test_loss": [0.31, 0.24, 0.20, 0.52, 0.46, 0.41, 0.54, 0.49, 0.45],
        ...         "d_data_mle": [7.0] * 3 + [11.0] * 3 + [16.0] * 3,
        ...         "label_sharpness": [0.008] * 3 + [0.012] * 3 + [0.02] * 3,
        ...     }
        ... )
        >>> answer = isweep.predict(
        ...     None,
        ...     results,
        ...     d_data=9.0,
        ...     label_sharpness=0.01,
        ...     train_size=240,
        ...     pilot=[(60, 0.45), (120, 0.37)],
        ... )
        >>> 0.2 < answer.value < 0.37
        True
    """
    from orchestrator.analysis.loss_growth import fit_growth
    from orchestrator.analysis.predict_sweep import predict_sweep
    from orchestrator.analysis.prediction_inputs import read_record
    from orchestrator.analysis.report import arms_of

    numbers = {
        "d_data": d_data,
        "label_sharpness": label_sharpness,
        "train_size": train_size,
        "target_loss": target_loss,
    }
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (Real, type(None))):
            raise ConfigError(
                f"{name} is {value!r}, which is not a number", hint="Give a plain number"
            )

    def growth() -> Growth:
        if isinstance(sweep, pd.DataFrame):
            return fit_growth(sweep, model=model, domain=domain)
        if isinstance(sweep, Fits):
            return fit_growth(sweep.table, model=model, domain=domain, arms=sweep.arms)
        opened = sweep
        if not isinstance(opened, Sweep):
            opened = open(opened, root=root)
        arms = arms_of(opened.workspace)
        return fit_growth(opened.results(), model=model, domain=domain, arms=arms)

    if measured is None:
        record: dict[str, Any] = {}
    elif isinstance(measured, (str, Path)):
        record = dict(read_record(Path(measured)))
    elif isinstance(measured, Measurement):
        record = measured.to_json()
    elif isinstance(measured, dict):
        record = measured
    else:
        raise ConfigError(
            f"measured is of type {type(measured).__name__}, which is neither a measurement, nor "
            "a record, nor the path of a record",
            hint="Give what isweep.measure(images, labels) returns",
        )
    prediction, _ = predict_sweep(record, growth, _pilot(pilot, model), **numbers)
    return prediction


def _pilot(
    pilot: Sequence[tuple[float, float]] | str | Path, model: str
) -> Callable[[], Pilot] | None:
    """Return a function that reads the pilot's losses, or None if there is no pilot."""
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint, read_pilot

    if isinstance(pilot, (str, Path)):
        path = Path(pilot)
        return lambda: read_pilot(path, model)
    try:
        points = tuple(PilotPoint(float(size), float(loss)) for size, loss in pilot)
    except (TypeError, ValueError):
        raise ConfigError(
            f"pilot is {repr(pilot)[:200]}, which is neither a list of pairs nor a path",
            hint="Give pairs of train size and test loss, such as [(50, 0.6), (100, 0.5)], or the "
            "path of a CSV file",
        ) from None
    if not points:
        return None
    return lambda: Pilot(points)
