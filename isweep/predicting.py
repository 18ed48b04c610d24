"""Predict the loss on a new dataset from the fits of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never

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
    **others: Never,
) -> Prediction:
    """Predict the test loss on a new dataset, or the number of images that a test loss needs.

    Give either ``train_size`` or ``target_loss``. For a sweep of one dataset, or for your own
    results, use :func:`isweep.learning_curves`.

    Args:
        measured: A measurement of images with the image size and channels of the sweep, its
            JSON record, or the path of that record. None if you give ``d_data`` and
            ``label_sharpness``.
        sweep: The sweep with the results: a sweep, its fits, its table, or its name or path,
            as in :func:`isweep.open`. It needs at least two datasets and five points.
        model: A model of the sweep, or ``pooled`` for all models together.
        domain: ``natural`` or ``medical``. If it is None, use all datasets.
        d_data: Intrinsic dimension of the training images, in place of the measured value.
        label_sharpness: K_F per unit of pixel distance on the scale of the sweep, in place of
            the measured value.
        train_size: Number of training images, to predict the test loss at this number.
        target_loss: Test loss (nat), to predict the number of images that reach it.
        pilot: Small trainings of ``model`` on the new dataset: pairs of train size and test
            loss, or the path of a CSV file with these columns.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.
        **others: No further arguments exist. The targets of ``isweep predict`` for accuracies
            are arguments of :func:`isweep.learning_curves`.

    Returns:
        The prediction for one training, with its 90 % interval. If the interval is too wide to
        be useful, ``value`` is None, and ``warning`` says why.

    Raises:
        SweepError: A number is missing, or the sweep has too few datasets or another scale of
            K_F.

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
    _check_no_others(others)
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
            raise ConfigError(f"`{name}` is {value!r}, but must be a number", hint="Pass a number")

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
            f"`measured` has the type {type(measured).__name__}, but must be a measurement, its "
            "JSON record, or the path of the JSON record",
            hint="Pass the result of isweep.measure(images, labels). If you have a table, or a "
            "sweep of one dataset, use isweep.learning_curves(results, target=0.9)",
        )
    prediction, _ = predict_sweep(record, growth, _pilot(pilot, model), **numbers)
    return prediction


def _check_no_others(others: Iterable[str]) -> None:
    """Raise a TypeError for an unknown argument, such as an option of the command line."""
    for name in others:
        raise TypeError(
            f"predict() got an unexpected keyword argument {name!r}. isweep.predict predicts test "
            "losses: use `train_size` or `target_loss`. For a target of another score, use, for "
            "example, isweep.learning_curves(sweep, metric='accuracy', target=0.9)"
        )


def _pilot(
    pilot: Sequence[tuple[float, float]] | str | Path, model: str
) -> Callable[[], Pilot] | None:
    """Return a function that reads the losses of the pilot, or None if there is no pilot."""
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint, read_pilot

    if isinstance(pilot, (str, Path)):
        path = Path(pilot)
        return lambda: read_pilot(path, model)
    try:
        points = tuple(PilotPoint(float(size), float(loss)) for size, loss in pilot)
    except (TypeError, ValueError):
        raise ConfigError(
            f"`pilot` is {repr(pilot)[:200]}, but must be a list of pairs or a path",
            hint="Pass pairs of train size and test loss, for example pilot=[(50, 0.6), (100, "
            "0.5)], or the path of a CSV file with the columns `train_size` and `test_loss`",
        ) from None
    if not points:
        return None
    return lambda: Pilot(points)
