"""The networks of a run: checks that they can be built, users' code and pretrained weights.

Each check collects all problems. It raises them as one
:class:`~search_spaces.errors.SweepError`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from orchestrator.planning.costs.networks import cost_of, is_in_preset
from orchestrator.planning.paths import RootPaths
from orchestrator.planning.plan import SweepPlan
from orchestrator.results.records import TrialRecord
from search_spaces.errors import ConfigError, SweepError, plural, raise_all
from search_spaces.specs import ModelSpec, NetworkSpec, TrialSpec
from search_spaces.user_code import source_texts
from tasks.atomic import write_atomic


@dataclass(frozen=True)
class _BuildSizes:
    """The values that decide whether a network of a given model can be built."""

    num_outputs: int
    channels: int
    image_size: int
    dropout: float | None


def check_models(plan: SweepPlan, done: Collection[str]) -> None:
    """Check that the networks of all remaining trials can be built.

    Args:
        plan: The plan.
        done: Ids of trials with a result. Their networks are not checked.

    Raises:
        SweepError: Some networks cannot be built. One error lists all problems.
    """
    networks: dict[tuple[ModelSpec, _BuildSizes], NetworkSpec] = {}
    for trial_id, trial in plan.trials_by_id.items():
        network = trial.network
        num_outputs = plan.num_outputs(network)
        if trial_id in done or is_in_preset(network, num_outputs):
            continue
        prepared = network.subset.prepared
        dropout = network.recipe.dropout
        sizes = _BuildSizes(num_outputs, prepared.channels, prepared.image_size, dropout)
        networks[network.model, sizes] = network
    if not networks:
        return  # without the import of torch, which takes seconds
    from tasks.trials.models import check_buildable

    problems: list[SweepError] = []
    for (model, sizes), network in sorted(networks.items(), key=str):
        try:
            check_buildable(
                model,
                num_outputs=sizes.num_outputs,
                in_channels=sizes.channels,
                image_size=sizes.image_size,
                dropout=sizes.dropout,
            )
            if model.library == "own":
                # This call trains one step, because some networks fail only in training.
                cost_of(network)
        except SweepError as error:
            problems.append(error)
    raise_all(problems)


def user_code(trials: Iterable[TrialSpec]) -> dict[str, str]:
    """Return the source code of the trials' user-defined networks, by relative path."""
    references: set[str] = set()
    for trial in trials:
        model = trial.network.model
        if model.library == "own":
            references.add(model.architecture)
    code: dict[str, str] = {}
    for reference in sorted(references):
        code.update(source_texts(reference))
    return code


def fetch_pretrained(
    plan: SweepPlan, done: Collection[str], paths: RootPaths, note: Callable[[str], None]
) -> dict[str, bytes]:
    """Return the weights that networks start from, and check that the weights fit the networks.

    Downloaded weights are stored below the root, so that all trainings start from the same
    weights.

    Args:
        plan: The plan.
        done: Ids of trials with a result. They need no weights.
        paths: Paths below the root.
        note: Function that prints a message for the user.

    Returns:
        Weights by :attr:`ModelSpec.pretrained_key`.

    Raises:
        SweepError: Some weights are missing or do not fit. One error lists all problems.
    """
    input_sizes: dict[ModelSpec, set[tuple[int, int]]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        model = trial.network.model
        prepared = trial.network.subset.prepared
        if model.pretrained and trial_id not in done:
            input_sizes.setdefault(model, set()).add((prepared.channels, prepared.image_size))
    weights: dict[str, bytes] = {}
    problems: list[SweepError] = []
    for model, sizes in input_sizes.items():
        from tasks.trials.models import build_model  # imports torch, which takes seconds

        try:
            data = _pretrained_weights(model, paths, note)
            weights[model.pretrained_key] = data
            for channels, side in sorted(sizes):
                build_model(
                    model,
                    num_outputs=2,
                    in_channels=channels,
                    image_size=side,
                    input_scale=1.0,
                    dropout=None,
                    seed=0,
                    pretrained=data,
                )
        except SweepError as error:
            problems.append(error)
    if problems:
        raise_all(problems, type(problems[0]))
    return weights


def _pretrained_weights(model: ModelSpec, paths: RootPaths, note: Callable[[str], None]) -> bytes:
    """Return the weights of a model from the root. If the root lacks them, download them."""
    path = paths.pretrained(model.pretrained_key)
    if not path.is_file():
        from tasks.trials.weights import download

        note(f"Downloading the pretrained weights of {model.library} {model.architecture}")
        data = download(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    return path.read_bytes()


def check_same_start(
    records: Mapping[str, TrialRecord], plan: SweepPlan, weights: Mapping[str, bytes]
) -> None:
    """Check that all trials start from the same weights as the stored results.

    Args:
        records: Results by trial id.
        plan: The plan.
        weights: Weights for the remaining trials, by :attr:`ModelSpec.pretrained_key`.

    Raises:
        ConfigError: Stored results started from other weights with the same key.
    """
    hashes = {key: hashlib.sha256(data).hexdigest() for key, data in weights.items()}
    other_starts: dict[str, Counter[str]] = {}
    for trial_id, trial in plan.trials_by_id.items():
        key = trial.network.model.pretrained_key
        start = records[trial_id].result.pretrained if trial_id in records else ""
        if start and start != hashes.get(key, start):
            other_starts.setdefault(key, Counter())[start] += 1
    problems: list[SweepError] = []
    for key, numbers in other_starts.items():
        results = ", ".join(
            f"{start[:16]}… in {plural(number, 'result')}" for start, number in numbers.items()
        )
        problems.append(
            ConfigError(
                f"The pretrained weights of {key} in this root are not the weights from which "
                f"stored results started. In this root, their SHA-256 is {hashes[key][:16]}…, but "
                f"it is {results}",
                hint=f"Copy the file `pretrained/{key}.safetensors` from the root in which the "
                "results were computed. Or give the sweep another name. isweep then trains all "
                "trials again",
            )
        )
    raise_all(problems)
