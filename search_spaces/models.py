"""The table of models. Architectures keep their library's own names."""

from __future__ import annotations

import re

from search_spaces.errors import ConfigError, unknown_name
from search_spaces.own_code import code_hash
from search_spaces.specs import ModelSpec
from search_spaces.sweeps import ModelChoice

PAPER_MODELS = ("resnet18", "resnet34", "resnet50", "vgg13", "vgg16", "vgg19")
"""The six models of Konz & Mazurowski: torchvision's, randomly initialised, VGGs without batch norm."""


def _row(name: str, library: str, architecture: str) -> ModelSpec:
    return ModelSpec.model_validate({"name": name, "library": library, "architecture": architecture})


MODELS: dict[str, ModelSpec] = {
    row.name: row
    for row in (
        *(_row(name, "torchvision", name) for name in PAPER_MODELS),
        *(_row(f"timm_{name}", "timm", name) for name in PAPER_MODELS),
        _row("resnet10t", "timm", "resnet10t"),
        # timm's smallest ResNet (four stages of one block, 0.4 million parameters): a real ResNet for CPUs.
        _row("resnet_tiny", "timm", "test_resnet"),
        _row("small_cnn", "isweep", "small_cnn"),
        _row("small_mlp", "isweep", "small_mlp"),
    )
}


LIBRARIES = ("torchvision", "timm")


def model_spec(choice: ModelChoice | str) -> ModelSpec:
    """Return the network that ``choice`` names.

    Whether a library knows the architecture, and whether a network of one's own can be built, is found out
    where it is built: this package imports no library.

    Raises:
        ConfigError: for a name that is in no table, with the nearest and all known names; for one's own
            function whose module is not found; for arguments that a network of the table does not take.
    """
    if isinstance(choice, str):
        choice = ModelChoice.model_validate(choice)
    spec = _random(choice)
    if not choice.pretrained:
        return spec
    if spec.library not in LIBRARIES:
        rule = "pretrained needs a network of torchvision or timm"
        raise ConfigError(rule, choice.from_, "leave it out: your own function may load weights itself")
    return spec.model_copy(update={"name": choice.name or f"{spec.name[:52]}_pretrained", "pretrained": True})


def _random(choice: ModelChoice) -> ModelSpec:
    library, colon, architecture = choice.from_.partition(":")
    if not colon:
        return _of_table(choice)
    if library not in LIBRARIES:
        name = choice.name or as_name(architecture)
        return ModelSpec(
            name=name,
            library="own",
            architecture=choice.from_,
            arguments=choice.arguments,
            code=code_hash(choice.from_),
        )
    if not choice.arguments and choice.name is None:
        known = (row for row in MODELS.values() if (row.library, row.architecture) == (library, architecture))
        row = next(known, None)
        if row is not None:
            return row
    prefix = "timm_" if library == "timm" else ""
    suffix = "".join(f"_{key}_{value}" for key, value in choice.arguments)
    return ModelSpec.model_validate(
        {
            "name": choice.name or as_name(f"{prefix}{architecture}{suffix}"),
            "library": library,
            "architecture": architecture,
            "arguments": choice.arguments,
        }
    )


def _of_table(choice: ModelChoice) -> ModelSpec:
    if choice.from_ not in MODELS:
        way_out = "or torchvision:NAME, timm:NAME, or package.module:function of your own"
        error = unknown_name("model", choice.from_, MODELS)
        raise ConfigError(error.rule, error.value, f"{error.way_out}; {way_out}")
    row = MODELS[choice.from_]
    if choice.arguments and row.library == "isweep":
        raise ConfigError(
            "Networks of isweep's own take no arguments",
            f"{', '.join(key for key, _ in choice.arguments)} for {row.name}",
            "leave arguments out",
        )
    if not choice.arguments and choice.name is None:
        return row
    suffix = "".join(f"_{key}_{value}" for key, value in choice.arguments)
    return row.model_copy(
        update={"name": choice.name or as_name(row.name + suffix), "arguments": choice.arguments}
    )


def as_name(text: str) -> str:
    """Return ``text`` with what may not stand in a name replaced.

    Example:
        >>> as_name("timm_resnet50.a1_in1k")
        'timm_resnet50_a1_in1k'
    """
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_")
    return (name if name[:1].isalpha() else f"m_{name}")[:64]
