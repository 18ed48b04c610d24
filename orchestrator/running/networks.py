"""The networks of a sweep: whether they can be built, and the source of one's own for the workers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from orchestrator.planning.packing import cost_of
from orchestrator.planning.plan import SweepPlan
from search_spaces.errors import SweepError, collect
from search_spaces.own_code import source_texts
from search_spaces.specs import ModelSpec
from search_spaces.trials import NetworkSpec, TrialSpec


def check_models(plan: SweepPlan, known: Collection[str]) -> None:
    """Find every network that cannot be built before anything is prepared or trained.

    Args:
        plan: The whole grid.
        known: Ids of trials that have a result: their networks were built.

    Raises:
        ConfigError: naming all of them.
    """
    counted: dict[ModelSpec, NetworkSpec] = {}
    asked: set[tuple[ModelSpec, int, int, int, float | None]] = set()
    for trial_id, trial in plan.trials_by_id.items():
        if trial_id not in known:
            network, prepared = trial.network, trial.network.subset.prepared
            asked.add(
                (
                    network.model,
                    plan.num_outputs(network),
                    prepared.channels,
                    prepared.image_size,
                    network.recipe.dropout,
                )
            )
            if network.model.library == "own":
                counted[network.model] = network
    if not asked:
        return
    from tasks.trials.models import check_buildable

    problems: list[SweepError] = []
    for model, num_outputs, channels, image_size, dropout in sorted(asked, key=str):
        try:
            check_buildable(
                model, num_outputs=num_outputs, in_channels=channels, image_size=image_size, dropout=dropout
            )
        except SweepError as error:
            problems.append(error)
            counted.pop(model, None)
    for network in counted.values():
        # A step of training without memory: one's own network may fail only there.
        try:
            cost_of(network)
        except SweepError as error:
            problems.append(error)
    collect(problems)


def check_pretrained(plan: SweepPlan, weights: Mapping[str, bytes]) -> None:
    """See that pretrained weights fit their networks, before anything is prepared or trained.

    Args:
        plan: The whole grid.
        weights: By :attr:`ModelSpec.pretrained_key`.

    Raises:
        ConfigError: naming all that do not.
    """
    asked = {
        (trial.network.model, prepared.channels, prepared.image_size)
        for trial in plan.trials
        for prepared in (trial.network.subset.prepared,)
        if trial.network.model.pretrained and trial.network.model.pretrained_key in weights
    }
    problems: list[SweepError] = []
    for model, channels, image_size in sorted(asked, key=str):
        from tasks.trials.models import build_model

        settings = {"num_outputs": 2, "in_channels": channels, "image_size": image_size, "seed": 0}
        try:
            build_model(
                model, input_scale=1.0, dropout=None, pretrained=weights[model.pretrained_key], **settings
            )
        except SweepError as error:
            problems.append(error)
    collect(problems)


def own_code(cells: Iterable[TrialSpec]) -> dict[str, str]:
    """Return the source of one's own networks among ``cells``, by relative path, for the workers."""
    references = {cell.network.model.architecture for cell in cells if cell.network.model.library == "own"}
    return {path: text for name in sorted(references) for path, text in source_texts(name).items()}
