"""A pilot: a few small trainings on one's own data, as a sweep trains, from which predictions can start.

It is a sweep of its own, named after the one whose recipe, side, channels and split it takes, so that it
resumes as sweeps do: asked again, it trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from orchestrator.analysis.prediction_inputs import Pilot, pilot_of
from orchestrator.analysis.report import results_table
from orchestrator.analysis.table import POOLED
from orchestrator.planning.sweep_file import load_sweep
from orchestrator.planning.workspace import Workspace
from orchestrator.running.options import RunOptions
from orchestrator.running.pipeline import run_sweep
from orchestrator.running.progress import Progress
from search_spaces.datasets import DATASETS
from search_spaces.errors import ConfigError, DataError, unknown_name
from search_spaces.models import model_spec
from search_spaces.specs import Domain
from search_spaces.sweeps import RecipeChoice, SweepSpec
from tasks.sources import OWN_KINDS, own_kind_of

DATASET = "pilot"
NUM_SIZES = 3


@dataclass(frozen=True)
class PilotRequest:
    """What to train.

    Attributes:
        source: your own data (a folder or a file), or the name of a dataset.
        model: one of the sweep's.
        train_sizes: empty takes the sweep's smallest three.
        test_size: None takes the sweep's.
        domain: of your own data; decides nothing in a training.
    """

    source: str
    model: str
    train_sizes: tuple[int, ...] = ()
    test_size: int | None = None
    domain: Domain | None = None


def run_pilot(
    sweep: SweepSpec, request: PilotRequest, options: RunOptions, progress: Progress | None = None
) -> Pilot:
    """Train what is missing of a pilot and return its losses and measures.

    Raises:
        SweepError: for a mistake in the request, data that cannot be read, or a pilot without one loss.
    """
    spec = pilot_sweep(sweep, request)
    summary = run_sweep(spec, options, progress=progress)
    table = results_table(Workspace.open(spec, options.root, options.storage))
    if table.empty:
        why = summary.failures[0]["message"] if summary.failures else "nothing was trained"
        raise DataError("A pilot needs one finished training", why, "see the failure, then ask again")
    found = pilot_of(table, request.model, where=f"of sweep {spec.name}")
    if not summary.failures:
        return found
    note = f"{len(summary.failures)} of {summary.planned} trainings of the pilot failed"
    return Pilot(found.points, found.d_data, found.label_sharpness, (*found.notes, note))


def pilot_sweep(sweep: SweepSpec, request: PilotRequest) -> SweepSpec:
    """Return the sweep that a pilot is: one model and dataset, a few sizes, no attacks.

    Raises:
        ConfigError: for a model that the sweep does not have, a recipe with an axis, or a source of no kind.
    """
    models = {model_spec(choice).name: choice for choice in sweep.models}
    if request.model == POOLED:
        way_out = f"name one: --model {' or '.join(models)}; a CSV of results has train_size and test_loss"
        raise ConfigError("A pilot is trained with one model", f"all of them ({POOLED})", way_out)
    if request.model not in models:
        raise unknown_name("model of the sweep to train a pilot with", request.model, models)
    if sweep.recipe.axes:
        rule = "A pilot needs a sweep with one recipe"
        raise ConfigError(
            rule, f"{sweep.name} varies {', '.join(sweep.recipe.axes)}", "give its losses as CSV"
        )
    whose = f"{Path(request.source).absolute()}|{request.model}"
    document = sweep.model_dump(mode="json", exclude_unset=True, by_alias=True)
    for field in ("worlds", "arms", "robustness", "tune"):
        document.pop(field, None)
    document |= {
        "name": f"{sweep.name}-pilot-{sha256(whose.encode()).hexdigest()[:8]}",
        "description": f"Pilot of sweep {sweep.name}: {request.model} on {request.source}.",
        "models": [models[request.model].model_dump(mode="json", exclude_unset=True, by_alias=True)],
        "datasets": [_dataset(sweep, request)],
        "train_sizes": list(request.train_sizes or sorted(sweep.train_sizes)[:NUM_SIZES]),
        "test_size": request.test_size or sweep.test_size,
        "recipe": _recipe(sweep.recipe, request.model),
        "attacks": {"methods": [], "epsilons": []},
        "keep_weights": "none",
    }
    return load_sweep(document)


def _recipe(recipe: RecipeChoice, model: str) -> dict[str, Any]:
    """The recipe without rows for the sweep's own datasets or for other models."""
    rows = [
        row.model_copy(update={"models": (model,)} if row.models else {})
        for row in recipe.overrides
        if not row.datasets and (not row.models or model in row.models)
    ]
    kept = recipe.model_copy(update={"overrides": tuple(rows)})
    return kept.model_dump(mode="json", exclude_unset=True, by_alias=True)


def _dataset(sweep: SweepSpec, request: PilotRequest) -> dict[str, Any]:
    path = Path(request.source).expanduser()
    if request.source in DATASETS and not path.exists():
        return {"name": request.source}
    if not path.exists():
        rule = "A pilot needs a folder or file of images, the name of a dataset, or a CSV file of results"
        raise ConfigError(rule, request.source, "give a path that exists")
    kind = own_kind_of(path)
    if kind is None:
        what = "; ".join(f"{kind}: {what}" for kind, what in OWN_KINDS.items())
        raise ConfigError("A pilot's data must be of a known kind", str(path), what)
    own = {
        "kind": kind, "path": str(path.absolute()), "domain": request.domain or "natural",
        "channels": sweep.channels or 1,
    }  # fmt: skip
    return {"name": DATASET, "own": own}
