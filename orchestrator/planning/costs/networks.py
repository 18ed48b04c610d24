"""Costs of a network: from the package's table, from the user's cache, or counted now."""

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
from search_spaces.fingerprint import IdentityKey, fingerprint
from search_spaces.specs import ModelSpec, NetworkSpec, RecipeSpec
from tasks.atomic import write_atomic

PRESET_COSTS = Path(__file__).with_name("preset_costs.json")
"""File with the costs of the networks of all presets. The keys come from :func:`cost_key`.
Because of this file, planning a preset does not import torch."""


@cache
def _shipped_costs() -> dict[str, dict[str, Any]]:
    costs: dict[str, dict[str, Any]] = json.loads(PRESET_COSTS.read_text(encoding="utf-8"))
    return costs


def cost_key(
    model: ModelSpec, recipe: RecipeSpec, channels: int, image_size: int, num_outputs: int
) -> str:
    """Return the key under which files store a network's costs.

    The arguments are those of :func:`network_cost`.
    """
    return fingerprint([model, recipe, [channels, image_size, num_outputs]])[:16]


@lru_cache(maxsize=256)
def network_cost(
    model: ModelSpec, recipe: RecipeSpec, *, channels: int, image_size: int, num_outputs: int = 2
) -> NetworkCost:
    """Return the costs of a network's passes on square images.

    The function caches its results, because many networks of a sweep have the same costs.
    ``image_size`` is the side of the images in pixels. ``num_outputs`` is the number of logits
    if the recipe does not set this number.

    Raises:
        ConfigError: The network cannot be built with these sizes.
    """
    key = cost_key(model, recipe, channels, image_size, num_outputs)
    if key in _shipped_costs():
        return _cost_from_plain(_shipped_costs()[key])
    # The costs of a user's network are not stored, because the user may change its code.
    can_be_stored = model.library != "own"
    file = user_cache("costs") / f"{key}-{_code_version()}.json"
    if can_be_stored:
        with suppress(OSError, ValueError, TypeError, KeyError):
            return _cost_from_plain(json.loads(file.read_text(encoding="utf-8")))
    # Imports torch, which takes seconds.
    from orchestrator.planning.costs.count_costs import count_costs

    cost = count_costs(model, recipe, channels, image_size, num_outputs)
    if can_be_stored:
        with suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, json.dumps(plain_cost(cost)).encode(), durable=False)
    return cost


@cache
def _code_version() -> str:
    """Return a hash of the code that counts costs: torch's packages and our source files."""
    versions = " ".join(map(metadata.version, ("torch", "torchvision", "timm")))
    code = hashlib.sha256(versions.encode())
    trials = Path(__file__).parents[3] / "tasks" / "trials"
    for path in (Path(__file__).with_name("count_costs.py"), *sorted(trials.glob("*.py"))):
        code.update(path.read_bytes())
    return code.hexdigest()[:16]


def plain_cost(cost: NetworkCost) -> dict[str, Any]:
    """Return costs as plain values for JSON.

    If several kernels are equal, they are stored as one kernel and their number.
    """
    plain = asdict(cost)
    for name in PASSES:
        kernels = getattr(cost, name).kernels
        numbers = Counter((kernel.name, kernel.flops, kernel.num_bytes) for kernel in kernels)
        plain[name]["kernels"] = [[*kernel, number] for kernel, number in numbers.items()]
    return plain


def _cost_from_plain(plain: dict[str, Any]) -> NetworkCost:
    """Restore costs from the plain values of :func:`plain_cost`."""
    passes = {}
    for name in PASSES:
        kernels: list[Kernel] = []
        for *kernel, number in plain[name]["kernels"]:
            kernels += [Kernel(*kernel)] * number
        passes[name] = PassCost(**plain[name] | {"kernels": tuple(kernels)})
    return NetworkCost(**plain | passes)


def cost_of(network: NetworkSpec) -> NetworkCost:
    """Return the costs of a network with its recipe.

    Raises:
        ConfigError: The network cannot be built, or it failed on every image that was tried.
    """
    return _cost_of_key(IdentityKey(network))


@lru_cache(maxsize=4096)
def _cost_of_key(key: IdentityKey[NetworkSpec]) -> NetworkCost:
    """Return the costs of the network in ``key``, see :func:`cost_of`.

    Planning needs the costs of each network many times. If the cache compared the whole
    content of networks each time, this would take longer than the rest of the planning.
    """
    network = key.spec
    prepared = network.subset.prepared
    try:
        return network_cost(
            network.model,
            cost_recipe(network.recipe),
            channels=prepared.channels,
            image_size=prepared.image_size,
        )
    except SweepError:
        raise
    except (Exception, SystemExit) as error:  # code of the user's network may raise anything
        first_line = str(error).partition("\n")[0]
        raise ConfigError(
            f"{network.model.library} {network.model.architecture} fails with every image that "
            "isweep tried, in training, in evaluation or in an attack: "
            f"{type(error).__name__}: {first_line}",
            hint="Choose another model. Or run the model alone in Python to find the error",
        ) from error


def cost_recipe(recipe: RecipeSpec) -> RecipeSpec:
    """Return a copy of a recipe. Keys that do not change the costs get fixed values."""
    # Adam's kernel includes the weight decay. SGD adds the weight decay to copies of all
    # gradients, so its costs depend on it.
    has_decay = recipe.optimizer == "sgd" and recipe.weight_decay > 0
    return recipe.model_copy(
        update={
            "name": "cost",
            "learning_rate": 1e-3,
            "weight_decay": 1e-4 if has_decay else 0.0,
            "epochs": 1,
            "input_scale": 1.0,
        }
    )


def is_in_preset(network: NetworkSpec, num_outputs: int) -> bool:
    """Return whether a preset contains a network.

    The costs of such a network are in the package, so the network was built before.
    """
    prepared = network.subset.prepared
    recipe = cost_recipe(network.recipe)
    key = cost_key(network.model, recipe, prepared.channels, prepared.image_size, num_outputs)
    return key in _shipped_costs()


def is_counted(network: NetworkSpec) -> bool:
    """Return whether the costs of a network were counted instead of guessed from its weights."""
    try:
        return not cost_of(network).uncounted
    except SweepError:
        return False


def has_batch_norm(network: NetworkSpec) -> bool:
    """Return whether a network may have batch norm.

    If the operations of the network could not be counted, return True.
    """
    cost = cost_of(network)
    if cost.uncounted:
        return True
    return any("batch_norm" in kernel.name for kernel in cost.step.kernels)
