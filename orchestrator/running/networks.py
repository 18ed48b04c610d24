"""The networks of a sweep: whether they can be built, and the source of one's own for the workers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.predict import cost_of
from orchestrator.results.records import TrialRecord
from search_spaces.errors import ConfigError, SweepError, collect
from search_spaces.models import source_texts
from search_spaces.specs import ModelSpec, NetworkSpec, TrialSpec
from tasks.atomic import write_atomic


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


# Pretrained weights of a sweep's networks: downloaded by the driver, once per root, before all else.


def fetch_pretrained(
    plan: SweepPlan, known: Collection[str], paths: RootPaths, say: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the weights that networks start from, by library and architecture.

    Args:
        plan: The whole grid.
        known: Ids of trials that have a result: these need none.
        paths: What was downloaded is kept here, so that all trainings of a root start from the same.
        say: Told of downloads.

    Raises:
        SweepError: naming all that are not there and cannot be downloaded, or do not fit.
    """
    models = {
        trial.network.model.pretrained_key: trial.network.model
        for trial_id, trial in plan.trials_by_id.items()
        if trial.network.model.pretrained and trial_id not in known
    }
    found: dict[str, bytes] = {}
    problems: list[SweepError] = []
    for key, model in sorted(models.items()):
        try:
            found[key] = _fetched(model, paths, say)
        except SweepError as error:
            problems.append(error)
    collect(problems, type(problems[0]) if problems else SweepError)
    return found


def _fetched(model: ModelSpec, paths: RootPaths, say: Callable[[str], None]) -> bytes:
    path = paths.pretrained(model.pretrained_key)
    if path.is_file():
        return path.read_bytes()
    from tasks.trials.pretrained import download

    say(f"Downloading the pretrained weights of {model.library} {model.architecture}")
    data = download(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)
    return data


def check_same_start(
    records: Mapping[str, TrialRecord], plan: SweepPlan, weights: Mapping[str, bytes]
) -> None:
    """Refuse to start networks of one sweep from different weights of one name.

    A library gives its names to other weights in other versions, and ids of trials hold the name alone.

    Args:
        records: Results so far, by trial id.
        plan: The whole grid.
        weights: What the networks that are left would start from, by :attr:`ModelSpec.pretrained_key`.

    Raises:
        ConfigError: naming all keys whose results started from others.
    """
    here = {key: hashlib.sha256(data).hexdigest() for key, data in weights.items()}
    others: dict[str, Counter[str]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        key = trial.network.model.pretrained_key
        start = records[trial_id].result.pretrained if trial_id in records else ""
        if start and start != here.get(key, start):
            others.setdefault(key, Counter())[start] += 1
    collect(
        [
            ConfigError(
                "Networks of a sweep must start from the same pretrained weights",
                f"{key}: SHA-256 {here[key][:16]}… here, "
                + ", ".join(f"{start[:16]}… in {number} results" for start, number in found.items()),
                f"copy pretrained/{key}.safetensors from the root that made them, or rename the sweep",
            )
            for key, found in others.items()
        ]
    )
