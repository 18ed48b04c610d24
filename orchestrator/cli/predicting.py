"""The command that answers "how many images": predictions from a sweep's fits and a pilot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from cyclopts import ArgumentCollection, Group, Parameter
from rich.markup import escape

from orchestrator.cli.options import NAMED, SEVERAL, FromStore, Positive, Sweep, Work, real, whole
from orchestrator.cli.printing import emit, grid, line, stderr, stdout, waited
from orchestrator.cli.results import arms, read_table
from search_spaces.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.analysis import Prediction
    from orchestrator.analysis.prediction import Growth
    from orchestrator.analysis.prediction_inputs import Pilot
    from orchestrator.commands import Question
    from search_spaces.specs import Domain

Finite = Annotated[float, real()]
PILOT = Group("Pilot", sort_key=2)


def _one_goal(arguments: ArgumentCollection) -> None:
    given = [argument.name for argument in arguments if argument.tokens]
    if len(given) != 1:
        raise ValueError(f"one of --train-size and --target-loss must be given, got {len(given)}")


GOAL = Group("Goal (one of the two)", validator=_one_goal, sort_key=1)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PilotOptions:
    """A few small trainings on the data that the prediction is for.

    Attributes:
        pilot: Your images (a folder, a file or a dataset's name), on which --model is trained now as the
            sweep trains; or a CSV file of results that are there (columns train_size and test_loss).
        pilot_sizes: Train sizes of the pilot (default: the sweep's smallest three).
        pilot_test_size: Images that the pilot is tested on (default: the sweep's).
    """

    pilot: Annotated[str | None, NAMED, Parameter(group=PILOT, metavar="SOURCE")] = None
    pilot_sizes: Annotated[
        tuple[int, ...], whole(2), Parameter(group=PILOT, consume_multiple=SEVERAL, metavar="N...")
    ] = ()
    pilot_test_size: Annotated[int | None, whole(2), Parameter(group=PILOT, metavar="N")] = None


def predict(
    sweep: Sweep,
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
    work: Work = Work(),
) -> None:
    """Print the loss to expect at a size, or the size for a loss, from a sweep's fits.

    Args:
        model: A model of the sweep; pooled (default) for all of them together.
        domain: Domain of your training set.
        d_data: Intrinsic dimension of your training set.
        label_sharpness: K_F of your training set.
        measured: Take both from a record that isweep measure --json wrote, or measure these images now.
        train_size: How many images you train on.
        target_loss: Test loss to reach.
    """
    from orchestrator.analysis import fit_growth
    from orchestrator.commands import Question, predicted

    record = {} if measured is None else _record(measured, (d_data, label_sharpness), sweep, work)
    question = Question(model, domain, d_data, label_sharpness, train_size, target_loss)

    def growth(model: str, domain: str | None) -> Growth:
        table = read_table(sweep, work, from_store=from_store)
        return fit_growth(table, model=model, domain=domain, arms=arms(sweep, work))

    found, pilot = predicted(question, record, growth, _pilot(sweep, trained, question, work))
    points = [] if pilot is None else [asdict(point) for point in pilot.points]
    emit(work, {**found.to_json(), "pilot": points}, lambda: _show_prediction(found, model, domain, pilot))


def _pilot(sweep: str, trained: PilotOptions, question: Question, work: Work) -> Callable[[], Pilot] | None:
    """Return what reads or trains the pilot that was asked for."""
    from orchestrator.analysis.prediction_inputs import is_pilot_table, read_pilot

    if trained.pilot is None:
        if trained.pilot_sizes or trained.pilot_test_size:
            flag = "--pilot-sizes" if trained.pilot_sizes else "--pilot-test-size"
            raise ConfigError(f"{flag} is for a pilot", "no --pilot", "say on which images: --pilot SOURCE")
        return None
    source, path = trained.pilot, Path(trained.pilot).expanduser()
    if is_pilot_table(path):
        return lambda: read_pilot(path, question.model)

    def train() -> Pilot:
        from orchestrator.running.measuring import PilotRequest, run_pilot
        from orchestrator.running.progress import Progress

        waited()  # trainings have a display of their own
        sizes, domain = trained.pilot_sizes, cast("Domain | None", question.domain)
        request = PilotRequest(source, question.model, sizes, trained.pilot_test_size, domain)
        progress = Progress(console=None if work.quiet else stderr)
        return run_pilot(work.open(sweep).plan.sweep, request, work.options({}), progress)

    return train


def _show_prediction(found: Prediction, model: str, domain: str | None, pilot: Pilot | None) -> None:
    from orchestrator.analysis.prediction import LEVEL
    from orchestrator.analysis.table import number

    table = grid(found.quantity.replace("_", " "), f"{LEVEL:.0%} interval", "model", "domain")
    low, high = found.interval or (None, None)
    bounds = "none" if found.interval is None else f"{number(low) or '–'} to {number(high) or '–'}"
    table.add_row(number(found.value) or "none", bounds, escape(model), domain or "all")
    stdout.print(table)
    if pilot is not None:
        losses = ", ".join(f"{number(p.test_loss)} at {number(p.train_size)}" for p in pilot.points)
        line(f"Pilot: test loss {losses} images.")
    if found.shorter is not None:
        how = f"{abs(found.shorter):.0%} {'shorter' if found.shorter >= 0 else 'longer'}"
        line(f"The interval is {how} than one that knows nothing of the dataset.")
    if found.warning:
        line(f"Beware: {found.warning}.")


def _record(
    source: str, given: tuple[float | None, float | None], sweep: str, work: Work
) -> Mapping[str, Any]:
    """Return the record that was named, or that of images measured now at the sweep's side and channels."""
    from orchestrator.analysis.prediction_inputs import read_record
    from orchestrator.running.measuring import MeasureRequest, measure_source
    from tasks.remote import InlineExecutor

    if None not in given:
        raise ConfigError(
            "--measured is for numbers that are not given",
            f"--d-data and --label-sharpness beside --measured {source}",
            "leave the one or the other out",
        )
    if source.endswith(".json"):
        return read_record(Path(source))
    spec = work.open(sweep).plan.sweep
    request = MeasureRequest(source=source, image_size=spec.image_size, channels=spec.channels or 1)
    return measure_source(request, InlineExecutor(), work.paths).record.to_json()
