"""Extrapolate the learning curves of one dataset to predict scores and numbers of images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from isweep.display import Displayed
from orchestrator.analysis.curve_answers import CurveAnswer, CurveQuestion, answers
from orchestrator.analysis.curve_tables import errors_with_source, metric_of, read_curve
from orchestrator.analysis.learning_curves import DEFAULT_ASSURANCE, Metric
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from isweep.sweeps import Sweep


@dataclass(frozen=True, repr=False)
class LearningCurves(Displayed):
    """Answers from the learning curves of one dataset.

    Attributes:
        answers: One answer for each network and class pair.
        remarks: Remarks on excluded or doubtful results, one sentence each.
    """

    answers: tuple[CurveAnswer, ...]
    remarks: tuple[str, ...] = ()

    def __repr__(self) -> str:
        lines: list[str] = []
        for curve in self.answers:
            lines += curve.lines()
        return "\n".join([*lines, *self.remarks])

    def displayed(self) -> pd.DataFrame:
        """Return one row per curve: the score at N with its interval, and the needed train size."""
        rows = []
        for curve in self.answers:
            needed_low, needed_high = curve.needed_interval
            rows.append(
                {
                    "curve": curve.name,
                    "train_size": curve.asked_size,
                    curve.question.metric: curve.score.value,
                    "low": curve.score.low,
                    "high": curve.score.high,
                    "probability_flat": curve.probability_flat,
                    "needed_train_size": curve.images.assured if curve.images else None,
                    "needed_low": needed_low,
                    "needed_high": needed_high,
                }
            )
        return pd.DataFrame(rows)


def learning_curves(
    results: Sweep | pd.DataFrame | str | Path,
    *,
    metric: Metric | None = None,
    model: str | None = None,
    train_size: int | None = None,
    target: float | None = None,
    assurance: float = DEFAULT_ASSURANCE,
    test_size: int | None = None,
) -> LearningCurves:
    """Extrapolate the learning curves of one dataset, with a prior from other datasets' curves.

    Args:
        results: A sweep of one dataset, a DataFrame with one row per training (``train_size``
            and a score), or the path of a CSV file of such rows.
        metric: ``loss`` (nat), ``error``, ``accuracy`` or ``auroc`` (shares in [0, 1]). None
            uses the first of these four scores that the results contain.
        model: Name of one network of the results. If it is None, return one answer for each
            network. In both cases, an answer also uses the curves of other networks on the
            same images.
        train_size: N at which the score is predicted. If it is None, N is twice the largest
            train size.
        target: Score to reach. If it is None, no number of images is predicted.
        assurance: Probability of reaching the target, between 0 and 1.
        test_size: Number of test images, which determines the noise of scores. If it is None,
            the noise comes from the prior.

    Returns:
        One answer per network and class pair.

    Raises:
        SweepError: The results are of another type, lack the score, or have too few train
            sizes.

    Example:
        >>> import isweep, pandas as pd
        >>> table = pd.DataFrame({"train_size": [60, 120, 240], "accuracy": [0.71, 0.78, 0.83]})
        >>> curves = isweep.learning_curves(table, target=0.86, test_size=200)
        >>> 240 < curves.answers[0].images.assured < 4000
        True
    """
    from isweep.sweeps import Sweep

    if isinstance(results, (str, Path)):
        try:
            exists = Path(results).exists()
        except OSError as error:  # A folder that may not be searched, or a name that is too long.
            raise ConfigError(
                f"The CSV file {results} cannot be read: {error.strerror}",
                hint="Correct the path, or the permissions of the folder that contains the file",
            ) from None
        if not exists:
            raise ConfigError(
                f"The CSV file {results} does not exist",
                hint=f"Correct the path. If {results} is the name of a sweep, pass "
                f"isweep.open({str(results)!r})",
            )
        table = read_curve(Path(results))
        source = str(results)
    elif isinstance(results, pd.DataFrame):
        table = results
        source = "results"
    elif isinstance(results, Sweep):
        table = results.table
        source = f"sweep {results.name}"
    else:
        raise ConfigError(
            f"`results` has the type {type(results).__name__}, but must be a sweep, a DataFrame, "
            "or the path of a CSV file",
            hint="Pass, for example, isweep.open('demo') or pandas.DataFrame({'train_size': "
            "[60, 120, 240], 'test_accuracy': [0.71, 0.78, 0.83]})",
        )
    with errors_with_source(source):
        if metric is None:
            metric = metric_of(table)
        question = CurveQuestion(metric, train_size, target, assurance, test_size)
        report = answers(table, question, model)
    return LearningCurves(report.curves, report.remarks)
