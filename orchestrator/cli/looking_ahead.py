"""Commands that predict scores, numbers of images and the power of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from orchestrator.cli.options import (
    NAMED,
    File,
    FromStore,
    Place,
    Positive,
    Sizes,
    Sweep,
    Work,
    real,
    whole,
)
from orchestrator.cli.printing import emit, progress, report_tables, waiting
from orchestrator.cli.stored_results import read_table
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd

    from orchestrator.analysis.curve_answers import CurveQuestion, CurveReport
    from orchestrator.analysis.learning_curves import Metric
    from orchestrator.analysis.loss_growth import Growth
    from orchestrator.analysis.prediction_inputs import Pilot
    from search_spaces.specs import Domain

Finite = Annotated[float, real()]
Share = Annotated[float, real(share=True)]
GOAL = Group("Goal", sort_key=1)
PILOT = Group("Pilot", sort_key=2)
CURVES = Group("Learning curves of one dataset", sort_key=3)
PRIOR_SOURCES = {
    "LCDB": "the Learning Curve Database (LCDB)",
    "base datasets": "base datasets of isweep's experiments",
    "published": "the published study",
}
"""Names in sentences for the sources of priors, by stored name. Other sources have the same
name in sentences."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PilotOptions:
    """Options for a pilot: a few small trainings on the images that the prediction is for.

    Attributes:
        pilot: Your images (a folder, a file or a dataset's name), or a CSV file of finished
            trainings with the columns `train_size` and `test_loss`. For images, isweep trains
            the network of --model with the sweep's recipe.
        pilot_sizes: Train sizes of the pilot (default: the sweep's three smallest train sizes).
        pilot_test_size: Number of test images of the pilot (default: as in the sweep).
    """

    pilot: Annotated[str | None, NAMED, Parameter(group=PILOT, metavar="SOURCE")] = None
    pilot_sizes: Annotated[Sizes, whole(2), Parameter(group=PILOT)] = ()
    pilot_test_size: Annotated[int | None, whole(2), Parameter(group=PILOT, metavar="N")] = None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CurveOptions:
    """Options for the learning curves of one dataset.

    Attributes:
        curve: A CSV file of your results, with one row per training, instead of a sweep. The
            file needs the column `train_size` (or `N`) and a column of scores: `test_loss`,
            `test_error`, `test_accuracy` or `auc`. The columns `model`, `seed`, `test_size` and
            `num_classes` are optional.
        target_error: Error rate to reach, such as 0.1 or 10%.
        target_accuracy: Accuracy to reach, such as 0.9 or 90%.
        target_auroc: AUROC to reach, such as 0.9.
        assurance: Probability with which the predicted number of images reaches the target
            (default 0.8).
        test_size: Number of images in your test set. This number determines the noise of scores.
    """

    curve: Annotated[File, Parameter(group=CURVES)] = None
    target_error: Annotated[Share | None, Parameter(group=GOAL)] = None
    target_accuracy: Annotated[Share | None, Parameter(group=GOAL)] = None
    target_auroc: Annotated[Share | None, Parameter(group=GOAL)] = None
    assurance: Annotated[Share, Parameter(group=CURVES)] = 0.8
    test_size: Annotated[int | None, whole(2), Parameter(group=CURVES, metavar="N")] = None


@dataclass(frozen=True)
class Goal:
    """The goal of a prediction: a train size or a target loss.

    Attributes:
        train_size: Number of training images. None if the user did not give it.
        target_loss: Test loss in nat. None if the user did not give it.
    """

    train_size: int | None
    target_loss: float | None


def predict(
    sweep: Sweep = "",
    /,
    *,
    model: str = "pooled",
    domain: Literal["natural", "medical"] | None = None,
    d_data: Finite | None = None,
    label_sharpness: Finite | None = None,
    measured: Annotated[str | None, NAMED, Parameter(metavar="SOURCE")] = None,
    train_size: Annotated[Positive | None, Parameter(group=GOAL, metavar="N")] = None,
    target_loss: Annotated[Finite | None, Parameter(group=GOAL)] = None,
    from_store: FromStore = False,
    trained: PilotOptions = PilotOptions(),
    alone: CurveOptions = CurveOptions(),
    work: Work = Work(),
) -> None:
    """Predict the score at a train size, and the train size that a target needs.

    For a sweep of one dataset, or a CSV file of results (--curve), the prediction extrapolates
    the learning curves. For a sweep of several datasets, the prediction is for a new dataset,
    and needs d_data and K_F of the new dataset, or a pilot.

    Args:
        model: A model of the sweep, or pooled (default) for all models together.
        domain: Domain of your training set.
        d_data: Intrinsic dimension of your training set.
        label_sharpness: K_F of your training set.
        measured: A JSON file from `isweep measure --json`, or images to measure now. --measured
            replaces --d-data and --label-sharpness.
        train_size: Number of training images.
        target_loss: Test loss to reach (nat).
    """
    from orchestrator.analysis.curve_tables import read_curve

    goal = Goal(train_size, target_loss)
    question = _curve_question(alone, goal)
    is_of_new_dataset = (d_data, label_sharpness, measured, trained.pilot) != (None,) * 4
    _check_source(alone.curve, sweep, is_of_new_dataset or domain is not None)
    if alone.curve is not None:
        with waiting("fitting learning curves", slow=True):
            _print_curves(read_curve(alone.curve), question, str(alone.curve), model, work)
        return
    if is_of_new_dataset:
        _check_one_goal(goal)
        _check_no_curve_options(alone)
    _check_measured(measured, d_data, label_sharpness)
    pilot = _pilot(sweep, trained, model, domain, work)
    numbers = {
        "d_data": d_data,
        "label_sharpness": label_sharpness,
        "train_size": train_size,
        "target_loss": target_loss,
    }

    @cache
    def growth() -> Growth:
        from orchestrator.analysis.loss_growth import fit_growth

        table, arms = read_table(sweep, work, from_store=from_store)
        return fit_growth(table, model=model, domain=domain, arms=arms)

    work_in_words = "fitting results" if measured is None else "measuring images, fitting results"
    with waiting(work_in_words, slow=True):
        if not is_of_new_dataset:
            table, _ = read_table(sweep, work, from_store=from_store)
            if table["dataset"].nunique() == 1:
                _print_curves(table, question, f"sweep {sweep}", model, work)
                return
            _check_no_curve_options(alone)
        record: Mapping[str, Any] = {}
        if measured is not None:
            if not measured.endswith(".json"):
                growth()  # raises an error for a wrong name before images are measured
            record = _record(measured, sweep, work)
        basis = f"Prediction from sweep {sweep} (model: {model}; datasets: {domain or 'all'}):"
        _print_prediction(record, growth, pilot, numbers, basis, work)


def _check_source(curve: Path | None, sweep: str, has_options_of_sweeps: bool) -> None:
    """Check that either a sweep or --curve is given.

    With --curve, no option of sweeps may be given.
    """
    if curve is None:
        if not sweep:
            raise ConfigError(
                "The command line contains neither a sweep nor --curve",
                hint="Give a sweep, for example `isweep predict demo`, or a file of results, for "
                "example `isweep predict --curve results.csv`",
            )
        return
    if not sweep and not has_options_of_sweeps:
        return
    conflict = "--domain, --d-data, --label-sharpness, --measured or --pilot"
    if sweep:
        conflict = f"the sweep {sweep}"
    raise ConfigError(
        f"--curve {curve} cannot be used together with {conflict}",
        hint=f"Remove --curve, or remove {conflict}",
    )


def _print_prediction(
    record: Mapping[str, Any],
    growth: Callable[[], Growth],
    pilot_source: Callable[[], Pilot] | None,
    numbers: Mapping[str, float | None],
    basis: str,
    work: Work,
) -> None:
    """Print the prediction for a new dataset from a sweep of several datasets."""
    from orchestrator.analysis.predict_sweep import predict_sweep

    prediction, pilot = predict_sweep(record, growth, pilot_source, **numbers)
    document = {**prediction.to_json(), "pilot": []}
    if pilot is not None:
        document["pilot"] = [asdict(point) for point in pilot.points]
    emit(work, document, basis, prediction.lines(), _pilot_lines(pilot))


def _check_one_goal(goal: Goal) -> None:
    """Check that the user gives either a train size or a target loss for a new dataset."""
    if goal.train_size is None and goal.target_loss is None:
        raise ConfigError(
            "The prediction for a new dataset needs a train size or a target loss",
            hint="Add, for example, `--train-size 200` or `--target-loss 0.3`",
        )
    if goal.train_size is not None and goal.target_loss is not None:
        raise ConfigError(
            "For a new dataset, --train-size and --target-loss cannot be used together",
            hint="Remove --train-size or --target-loss",
        )


def _check_no_curve_options(alone: CurveOptions) -> None:
    """Check that the user gives no option of learning curves for a new dataset."""
    if alone != CurveOptions():
        raise ConfigError(
            "--target-error, --target-accuracy, --target-auroc, --assurance and --test-size "
            "are only for learning curves of one dataset, but the prediction is for a new dataset",
            hint="Remove these options",
        )


def _pilot_lines(pilot: Pilot | None) -> list[str]:
    """Return a line with the losses of a pilot, or no line if there is no pilot."""
    from orchestrator.analysis.number_formats import number

    if pilot is None or not pilot.points:
        return []
    losses = [f"{number(p.test_loss)} at {number(p.train_size)}" for p in pilot.points]
    return [f"Pilot: test loss {', '.join(losses)} images."]


def _curve_question(options: CurveOptions, goal: Goal) -> CurveQuestion:
    """Return the question for the learning curves, with the metric of the given target."""
    from orchestrator.analysis.curve_answers import CurveQuestion

    targets: dict[Metric, float | None] = {
        "loss": goal.target_loss,
        "error": options.target_error,
        "accuracy": options.target_accuracy,
        "auroc": options.target_auroc,
    }
    chosen = {metric: target for metric, target in targets.items() if target is not None}
    if len(chosen) > 1:
        names = " and ".join(f"--target-{metric}" for metric in chosen)
        raise ConfigError(
            f"{names} cannot be used together",
            hint="Choose one of these targets, and remove the others",
        )
    for metric, target in chosen.items():
        return CurveQuestion(metric, goal.train_size, target, options.assurance, options.test_size)
    return CurveQuestion("loss", goal.train_size, None, options.assurance, options.test_size)


def _print_curves(
    table: pd.DataFrame,
    question: CurveQuestion,
    source: str,
    model: str,
    work: Work,
) -> None:
    """Print the answers of the learning curves of one dataset, one per network.

    If the user gives no target, the question is about the table's first score.
    """
    from orchestrator.analysis.curve_answers import answers
    from orchestrator.analysis.curve_tables import errors_with_source, metric_of

    network: str | None = model
    if model == "pooled":
        network = None
    with errors_with_source(source):
        if question.target is None:
            question = replace(question, metric=metric_of(table))
        report = answers(table, question, network)
    lines = [f"Learning curves of {source}:"]
    for curve in report.curves:
        lines += curve.lines()
    lines += report.remarks
    if question.target is None:
        lines += _target_hint(table, question, network, report)
    lines.append(prior_in_words(report.curves[0].prior_sources))
    cautions = [f"{curve.name}: {curve.caution}" for curve in report.curves if curve.caution]
    document = {
        "curves": [curve.to_json() for curve in report.curves],
        "remarks": [*cautions, *report.remarks],
    }
    emit(work, document, lines)


def _target_hint(
    table: pd.DataFrame, question: CurveQuestion, network: str | None, report: CurveReport
) -> list[str]:
    """Return a line with an example of a target, or no line if no better score is expected.

    If the table contains the accuracy of every training, the target is an accuracy.
    """
    from orchestrator.analysis.curve_answers import answers
    from orchestrator.analysis.curve_tables import SCORE_COLUMNS

    metric = question.metric
    accuracies = table[table.columns.intersection([*SCORE_COLUMNS["accuracy"]])]
    if accuracies.notna().all(axis=1).all() and not accuracies.empty:
        metric = "accuracy"
        report = answers(table, replace(question, metric=metric), network)
    example = report.example_target()
    if example is None:
        return []
    option = f"--target-{metric} {example:g}"
    return [f"To see how many images a target needs, add, for example, `{option}`."]


def prior_in_words(sources: Sequence[str]) -> str:
    """Return sentences about the prior of the learning curves and about its sources."""
    from orchestrator.analysis.number_formats import listing

    names = [PRIOR_SOURCES.get(source, source) for source in sources]
    return (
        f"The prediction combines your scores with learning curves of {listing(names)}. These "
        "curves give the prior for the rate of improvement and for the best reachable score."
    )


def _pilot(
    sweep: str, trained: PilotOptions, model: str, domain: Domain | None, work: Work
) -> Callable[[], Pilot] | None:
    """Return a function that reads or trains the pilot, or None if there is no pilot."""
    from orchestrator.analysis.prediction_inputs import is_pilot_table, read_pilot

    if trained.pilot is None:
        for flag, value in (
            ("--pilot-sizes", trained.pilot_sizes),
            ("--pilot-test-size", trained.pilot_test_size),
        ):
            if value:
                raise ConfigError(
                    f"{flag} is only for a pilot, but --pilot is missing",
                    hint=f"Add --pilot, for example `--pilot ./my-images`, or remove {flag}",
                )
        return None
    source = trained.pilot
    path = Path(source).expanduser()
    if is_pilot_table(path):
        return lambda: read_pilot(path, model)

    def train() -> Pilot:
        from orchestrator.running.pilot import run_pilot

        return run_pilot(
            work.open(sweep).plan.sweep,
            source,
            model,
            work.options({}),
            progress(work),
            train_sizes=trained.pilot_sizes,
            test_size=trained.pilot_test_size,
            domain=domain,
        )

    return train


def _check_measured(
    measured: str | None, d_data: float | None, label_sharpness: float | None
) -> None:
    """Check that the user does not give --measured together with both numbers that it replaces."""
    if None not in (measured, d_data, label_sharpness):
        raise ConfigError(
            f"--d-data, --label-sharpness and --measured {measured} cannot be used together",
            hint="Remove --measured, or remove --d-data and --label-sharpness",
        )


def _record(source: str, sweep: str, work: Work) -> Mapping[str, Any]:
    """Return the measures of a dataset.

    Args:
        source: A record that ``isweep measure --json`` wrote, or images to measure now, at the
            image size and channels of the sweep.
        sweep: Name of the sweep.
        work: Options of the command.
    """
    from orchestrator.analysis.prediction_inputs import read_record
    from orchestrator.measuring.request import MeasureRequest
    from orchestrator.measuring.sources import measure_source
    from tasks.remote import InlineExecutor

    if source.endswith(".json"):
        return read_record(Path(source))
    spec = work.open(sweep).plan.sweep
    request = MeasureRequest(source=source, image_size=spec.image_size, channels=spec.channels or 1)
    return measure_source(request, InlineExecutor(), work.paths).record.to_json()


def power(
    sweep: Sweep,
    /,
    *,
    effect: Literal["law", "sharpness", "exponent", "d_data"] = "law",
    num_tables: Annotated[int, whole(20), Parameter(metavar="N")] = 200,
    seed: Annotated[int, whole(0)] = 0,
    place: Place = Place(),
) -> None:
    """Simulate sweeps without training, and print how often the analysis answers each question.

    Args:
        effect: The effect that exists in the simulation: the law (default), or one part of the
            law.
        num_tables: Number N of simulated sweeps (default 200). The standard error of each
            printed share is at most 0.5 / √N.
        seed: Seed of the simulation (default 0).
    """
    from orchestrator.analysis.power import planned_power

    plan = place.open(sweep, prefer_root=False).plan
    power_record = planned_power(plan, effect=effect, num_tables=num_tables, seed=seed)
    emit(place, asdict(power_record), report_tables(power_record.table()), power_record.lines())
