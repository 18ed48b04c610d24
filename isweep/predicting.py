"""Predicting scores and numbers of images: on a new dataset, or with more images of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import pandas as pd

from isweep.curves import LearningCurves, learning_curves
from isweep.measuring import Measurement
from isweep.sweeps import Fits, Sweep, open
from orchestrator.analysis.learning_curves import DEFAULT_ASSURANCE
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis.learning_curves import Metric
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction import Prediction
    from orchestrator.analysis.prediction_inputs import Pilot

DEFAULT_SWEEP = "demo"
"""Sweep whose fits predict the loss on a new dataset, if no other sweep is given."""
DEFAULT_MODEL = "pooled"
"""Name of the fit to all models of a sweep together."""
CURVE_SUFFIXES = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm", ".xls")
"""Extensions of a file of results. Any other text is the name or path of a sweep."""


# A call without a target of learning curves fits both signatures; the first one applies.
@overload
def predict(  # type: ignore[overload-overlap]
    measured: Measurement | dict[str, Any] | str | Path | None = None,
    sweep: Sweep | Fits | pd.DataFrame | str = DEFAULT_SWEEP,
    *,
    model: str = DEFAULT_MODEL,
    domain: str | None = None,
    d_data: float | None = None,
    label_sharpness: float | None = None,
    train_size: float | None = None,
    target_loss: float | None = None,
    pilot: Sequence[tuple[float, float]] | str | Path = (),
    root: str | Path | None = None,
) -> Prediction: ...


@overload
def predict(
    measured: Sweep | pd.DataFrame | str | Path,
    *,
    model: str = DEFAULT_MODEL,
    train_size: int | None = None,
    target_error: float | None = None,
    target_accuracy: float | None = None,
    target_auroc: float | None = None,
    assurance: float | None = None,
    test_size: int | None = None,
    root: str | Path | None = None,
) -> LearningCurves: ...


def predict(
    measured: Measurement | Sweep | pd.DataFrame | dict[str, Any] | str | Path | None = None,
    sweep: Sweep | Fits | pd.DataFrame | str = DEFAULT_SWEEP,
    *,
    model: str = DEFAULT_MODEL,
    domain: str | None = None,
    d_data: float | None = None,
    label_sharpness: float | None = None,
    train_size: float | None = None,
    target_loss: float | None = None,
    target_error: float | None = None,
    target_accuracy: float | None = None,
    target_auroc: float | None = None,
    assurance: float | None = None,
    test_size: int | None = None,
    pilot: Sequence[tuple[float, float]] | str | Path = (),
    root: str | Path | None = None,
) -> Prediction | LearningCurves:
    """Predict the test loss on a new dataset, or how many images of a dataset a score needs.

    This function answers two questions:

    - A new dataset, on which nothing is trained: give a measurement, and either ``train_size``
      or ``target_loss``. The prediction comes from the fits of a sweep of other datasets.
    - More images of a dataset with results: give the results as the first argument, and one of
      ``target_error``, ``target_accuracy`` and ``target_auroc``. The answer is that of
      :func:`isweep.learning_curves`, which also takes target losses.

    Args:
        measured: For a new dataset: a measurement of images with the image size and channels of
            the sweep, its JSON record, or the path of that record. None if you give ``d_data``
            and ``label_sharpness``. For more images: a sweep of one dataset, its name or path,
            a DataFrame with one row per training, or the path of a CSV file of such rows.
        sweep: The sweep with the results: a sweep, its fits, its table, or its name or path,
            as in :func:`isweep.open`. It needs at least two datasets and five points.
        model: A model of the sweep; ``pooled`` for all models together. For more images,
            ``pooled`` gives one answer per network.
        domain: ``natural`` or ``medical``; None for all datasets.
        d_data: Intrinsic dimension, in place of the measured value.
        label_sharpness: K_F per unit of pixel distance on the scale of the sweep, in place of
            the measured value.
        train_size: Number of training images, to predict the test loss at this number.
        target_loss: Test loss (nat) on a new dataset, to predict the number of images that
            reach it.
        target_error: Error rate to reach with more images, between 0 and 1.
        target_accuracy: Accuracy to reach with more images, between 0 and 1.
        target_auroc: AUROC to reach with more images, between 0 and 1.
        assurance: Probability of reaching this error rate, accuracy or AUROC. None for 0.8.
        test_size: Number of test images behind the results, which determines the noise of an
            error rate, an accuracy or an AUROC. If None, the results determine it.
        pilot: Small trainings of ``model`` on the new dataset: pairs of train size and test
            loss, or the path of a CSV file with these columns.
        root: Folder of all results; None for ``$ISWEEP_ROOT`` or ``./isweep-root``.

    Returns:
        For a new dataset, the prediction for one training, with its 90 % interval. If the
        interval is too wide to be useful, ``value`` is None and ``warning`` has the reason. For
        more images, the answers of :func:`isweep.learning_curves`.

    Raises:
        SweepError: If a number is missing, if the sweep has too few datasets or another scale
            of K_F, or if arguments of both questions are given.

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
    from orchestrator.analysis.predict_sweep import predict_sweep

    numbers = {
        "d_data": d_data,
        "label_sharpness": label_sharpness,
        "train_size": train_size,
        "target_loss": target_loss,
    }
    _check_numbers(numbers)
    curve_targets: dict[Metric, float | None] = {
        "error": target_error,
        "accuracy": target_accuracy,
        "auroc": target_auroc,
    }
    targets = {metric: target for metric, target in curve_targets.items() if target is not None}
    if targets:
        of_new_dataset = {
            "sweep": isinstance(sweep, str) and sweep == DEFAULT_SWEEP,
            "domain": domain is None,
            "d_data": d_data is None,
            "label_sharpness": label_sharpness is None,
            "target_loss": target_loss is None,
            "pilot": isinstance(pilot, Sequence) and len(pilot) == 0,
        }
        excess = [name for name, is_unset in of_new_dataset.items() if not is_unset]
        _check_one_question(targets, excess)
        (metric, target), *_ = targets.items()
        return learning_curves(
            _curve_results(measured, root),
            metric=metric,
            model=None if model == DEFAULT_MODEL else model,
            train_size=train_size,  # type: ignore[arg-type]  # its type is checked there
            target=target,
            assurance=DEFAULT_ASSURANCE if assurance is None else assurance,
            test_size=test_size,
        )
    _check_no_curve_options(assurance, test_size)
    growth = partial(_fitted_growth, sweep, model, domain, root)
    prediction, _ = predict_sweep(_record_of(measured), growth, _pilot(pilot, model), **numbers)
    return prediction


def _check_numbers(numbers: Mapping[str, object]) -> None:
    """Check that all given arguments are numbers, by their names. None is no given argument."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (Real, type(None))):
            raise ConfigError(f"{name} is {value!r}, which is not a number", hint="Pass a number")


def _check_no_curve_options(assurance: float | None, test_size: int | None) -> None:
    """Check that no option of learning curves is given for a new dataset."""
    if assurance is not None or test_size is not None:
        raise ConfigError(
            "assurance and test_size have no effect without target_error, target_accuracy or "
            "target_auroc",
            hint="Add one of these targets, or remove assurance and test_size",
        )


def _fitted_growth(
    sweep: Sweep | Fits | pd.DataFrame | str,
    model: str,
    domain: str | None,
    root: str | Path | None,
) -> Growth:
    """Fit the growth of the test loss to the results of a sweep."""
    from orchestrator.analysis.loss_growth import fit_growth
    from orchestrator.analysis.report import arms_of

    if isinstance(sweep, pd.DataFrame):
        return fit_growth(sweep, model=model, domain=domain)
    if isinstance(sweep, Fits):
        return fit_growth(sweep.table, model=model, domain=domain, arms=sweep.arms)
    opened = sweep
    if not isinstance(opened, Sweep):
        opened = open(opened, root=root)
    arms = arms_of(opened.workspace)
    return fit_growth(opened.results(), model=model, domain=domain, arms=arms)


def _record_of(measured: object) -> dict[str, Any]:
    """Return the record of a measurement; empty without a measurement.

    Raises:
        ConfigError: If the measurement is of another type, or a file that is no record.
    """
    from orchestrator.analysis.prediction_inputs import read_record

    if measured is None:
        return {}
    if isinstance(measured, (str, Path)):
        return dict(read_record(Path(measured)))
    if isinstance(measured, Measurement):
        return measured.to_json()
    if isinstance(measured, dict):
        return measured
    raise ConfigError(
        f"measured is of type {type(measured).__name__}, but must be a measurement, a "
        "record, or the path of a record",
        hint="Pass the result of isweep.measure(images, labels). To predict scores from a "
        "table or a sweep of one dataset, use isweep.learning_curves(results, target=0.9)",
    )


def _check_one_question(targets: Mapping[Metric, float], excess: Sequence[str]) -> None:
    """Check that the arguments ask one question about more images.

    Args:
        targets: The given targets of learning curves, by metric.
        excess: Names of the given arguments that apply only to a new dataset.

    Raises:
        ConfigError: If there are several targets, or an argument for a new dataset.
    """
    names = [f"target_{metric}" for metric in targets]
    if len(names) > 1:
        raise ConfigError(
            f"{' and '.join(names)} cannot be used together",
            hint="Choose one of these targets, and remove the others",
        )
    if excess:
        raise ConfigError(
            f"{names[0]} cannot be used together with {', '.join(excess)}: {names[0]} applies to "
            "more images of a dataset with results, all others to a new dataset",
            hint=f"Remove {', '.join(excess)}, and pass the results as the first argument",
        )


def _curve_results(results: object, root: str | Path | None) -> Sweep | pd.DataFrame | Path:
    """Return results for learning curves. Text is the path of a file, or a sweep to open.

    Raises:
        SweepError: If the results are of another type, or if there is no such sweep.
    """
    if isinstance(results, (Sweep, pd.DataFrame)):
        return results
    if isinstance(results, (str, Path)):
        if Path(results).suffix.lower() in CURVE_SUFFIXES:
            return Path(results)
        return open(str(results), root=root)
    raise ConfigError(
        f"The first argument is of type {type(results).__name__}, but learning curves need the "
        "results of trainings",
        hint="Pass a sweep of one dataset, a DataFrame, or the path of a CSV file of results",
    )


def _pilot(
    pilot: Sequence[tuple[float, float]] | str | Path, model: str
) -> Callable[[], Pilot] | None:
    """Return a function that reads the losses of the pilot; None without a pilot."""
    from orchestrator.analysis.prediction_inputs import Pilot, PilotPoint, read_pilot

    if isinstance(pilot, (str, Path)):
        path = Path(pilot)
        return lambda: read_pilot(path, model)
    try:
        points = tuple(PilotPoint(float(size), float(loss)) for size, loss in pilot)
    except (TypeError, ValueError):
        raise ConfigError(
            f"pilot is {repr(pilot)[:200]}, which is neither a list of pairs nor a path",
            hint="Pass pairs of train size and test loss, such as [(50, 0.6), (100, 0.5)], "
            "or the path of a CSV file",
        ) from None
    if not points:
        return None
    return lambda: Pilot(points)
