"""Costs of a network: from the shipped table, from the user's cache, or by walking over it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.planning.costs.kernels import PASSES, Kernel, NetworkCost, PassCost
from orchestrator.planning.paths import user_cache
from search_spaces.errors import ConfigError, SweepError
from search_spaces.fingerprint import fingerprint
from search_spaces.specs import ModelSpec, NetworkSpec, RecipeSpec, Spec
from tasks.atomic import write_atomic

WALKED = Path(__file__).with_name("walked.json")
"""Costs of the presets' networks by :func:`cost_key`, so that a plan of them needs no torch and no
walk."""


@cache
def _walked() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads(WALKED.read_text(encoding="utf-8"))
    return found


def cost_key(model: ModelSpec, recipe: RecipeSpec, *sizes: int) -> str:
    """Return by what a network's costs are kept; sizes are channels, side in pixels and logits."""
    return fingerprint([model, recipe, sizes])[:16]


@lru_cache(maxsize=256)
def network_cost(
    model: ModelSpec, recipe: RecipeSpec, *, channels: int, image_size: int, num_outputs: int = 2
) -> NetworkCost:
    """Return the costs of a network's passes on square images of ``image_size`` pixels.

    ``num_outputs`` logits hold where the recipe names none. ConfigError where it cannot be built
    so.
    """
    key, keeps = cost_key(model, recipe, channels, image_size, num_outputs), model.library != "own"
    if key in _walked():
        return _cost_of_plain(_walked()[key])
    file = user_cache("costs") / f"{key}-{_walked_with()}.json"
    if keeps:  # files of one's own network may change
        with suppress(OSError, ValueError, TypeError, KeyError):
            return _cost_of_plain(json.loads(file.read_text(encoding="utf-8")))
    from orchestrator.planning.costs.walk import walk_network

    found = walk_network(model, recipe, channels, image_size, num_outputs)
    if keeps:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(plain_cost(found)).encode(), durable=False)
    return found


@cache
def _walked_with() -> str:
    """Return a hash of what a walk depends on beside its network: PyTorch's packages and our
    source.
    """
    found = hashlib.sha256(
        " ".join(map(metadata.version, ("torch", "torchvision", "timm"))).encode()
    )
    trials = Path(__file__).parents[3] / "tasks" / "trials"
    for path in (Path(__file__).with_name("walk.py"), *sorted(trials.glob("*.py"))):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def plain_cost(cost: NetworkCost) -> dict[str, Any]:
    """Return costs as they are kept: kernels that are alike once, with their number."""
    plain = asdict(cost)
    for name in PASSES:
        kernels = Counter((k.name, k.flops, k.num_bytes) for k in getattr(cost, name).kernels)
        plain[name]["kernels"] = [[*kernel, number] for kernel, number in kernels.items()]
    return plain


def _cost_of_plain(known: dict[str, Any]) -> NetworkCost:
    passes = {}
    for name in PASSES:
        counted = known[name]["kernels"]
        kernels = tuple(Kernel(*kernel) for *kernel, number in counted for _ in range(number))
        passes[name] = PassCost(**{**known[name], "kernels": kernels})
    return NetworkCost(**{**known, **passes})


_KNOWN_COSTS: dict[tuple[int, ...], tuple[tuple[Spec, ...], NetworkCost]] = {}
"""By the identity of the parts of a spec, which are held so that no others can have it: the trials
of a plan share them, and hashing their content for each takes longer than all the rest of a
plan."""


def cost_of(network: NetworkSpec) -> NetworkCost:
    """Return the costs of a network in its recipe; ConfigError where it cannot be built or fails on
    all.
    """
    prepared = network.subset.prepared
    parts = (network.model, network.recipe, prepared)
    key = tuple(map(id, parts))
    if key in _KNOWN_COSTS:
        return _KNOWN_COSTS[key][1]
    recipe, channels = recipe_of_costs(network), prepared.channels
    try:
        cost = network_cost(
            network.model, recipe, channels=channels, image_size=prepared.image_size
        )
    except SweepError:
        raise
    except (Exception, SystemExit) as error:  # whatever a network does
        raise ConfigError(
            "A network must take a training step, an evaluation and an attack on some image",
            f"{network.model.library} {network.model.architecture}: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}",
        ) from error
    if len(_KNOWN_COSTS) >= 4096:
        _KNOWN_COSTS.clear()
    _KNOWN_COSTS[key] = parts, cost
    return cost


def recipe_of_costs(network: NetworkSpec) -> RecipeSpec:
    """Return the recipe of a network without what changes no cost."""
    # Adam's kernel decays weights by the way; SGD adds them to copies of all gradients.
    decay = 1e-4 if network.recipe.optimizer == "sgd" and network.recipe.weight_decay else 0.0
    return network.recipe.model_copy(
        update={
            "name": "cost",
            "learning_rate": 1e-3,
            "weight_decay": decay,
            "epochs": 1,
            "input_scale": 1.0,
        }
    )


def was_built(network: NetworkSpec, num_outputs: int) -> bool:
    """Tell whether a network is of a preset, whose costs are kept: it was built to count them."""
    sizes = network.subset.prepared.channels, network.subset.prepared.image_size, num_outputs
    return cost_key(network.model, recipe_of_costs(network), *sizes) in _walked()


def has_cost(network: NetworkSpec) -> bool:
    """Tell whether :func:`cost_of` counts a network, rather than guesses from its weights."""
    try:
        return not cost_of(network).uncounted
    except SweepError:
        return False


def has_batch_norm(network: NetworkSpec) -> bool:
    """Tell whether a network may normalise over the batch; what cannot be counted may have any
    kernel.
    """
    cost = cost_of(network)
    return bool(cost.uncounted) or any("batch_norm" in kernel.name for kernel in cost.step.kernels)
