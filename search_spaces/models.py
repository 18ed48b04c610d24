"""The table of models, and the networks that a sweep file chooses.

Each architecture has the name that its library uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from search_spaces.errors import ConfigError, pydantic_error, unknown_name
from search_spaces.specs import Library, ModelSpec
from search_spaces.sweeps import ModelChoice
from search_spaces.user_code import code_hash

_PAPER_SIZES = {
    "resnet18": "11 million parameters",
    "resnet34": "21 million parameters",
    "resnet50": "24 million parameters",
    "vgg13": "129 million parameters, no batch norm",
    "vgg16": "134 million parameters, no batch norm",
    "vgg19": "140 million parameters, no batch norm",
}
PAPER_MODELS = tuple(_PAPER_SIZES)
"""The six networks of Konz & Mazurowski: torchvision's architectures with random initial
weights."""
LIBRARIES = ("torchvision", "timm")
"""A sweep file can use every architecture of these libraries."""


@dataclass(frozen=True)
class ModelRow:
    """One row of the table of models.

    Attributes:
        spec: the architecture and its library.
        about: description in one line, for people who choose a network.
    """

    spec: ModelSpec
    about: str


def _row(name: str, library: Library, architecture: str, about: str) -> ModelRow:
    try:
        spec = ModelSpec(name=name, library=library, architecture=architecture)
    except ValidationError as error:
        problem = pydantic_error(error)
        raise ConfigError(
            f"search_spaces/models.py, _ROWS, row {name!r}: {problem.problem}",
            hint="Correct the row",
        ) from None
    return ModelRow(spec, about)


def _paper_rows() -> Iterable[ModelRow]:
    """Yield a row for each of the paper's six models, then a row for each timm version."""
    for name, size in _PAPER_SIZES.items():
        yield _row(name, "torchvision", name, f"network of the study; {size}")
    for name, size in _PAPER_SIZES.items():
        yield _row(f"timm_{name}", "timm", name, f"timm version of this network; {size}")


_ROWS = (
    *_paper_rows(),
    _row("resnet10t", "timm", "resnet10t", "timm's ResNet-10, 5 million parameters"),
    _row(
        # It has four stages of one block each, so it trains on a CPU.
        "resnet_tiny",
        "timm",
        "test_resnet",
        "timm's smallest ResNet, 0.4 million parameters; trains on a CPU",
    ),
    _row(
        "small_cnn",
        "isweep",
        "small_cnn",
        "three convolutions, 7 thousand parameters; trains in seconds on a CPU",
    ),
    _row(
        "small_mlp",
        "isweep",
        "small_mlp",
        "two hidden layers, no convolution; trains in seconds on a CPU",
    ),
)

MODELS = {row.spec.name: row.spec for row in _ROWS}
"""Networks by name, as in sweep files. In a row of the library ``isweep``, the architecture is
the name of a function in :mod:`tasks.trials.networks`."""
ABOUT = {row.spec.name: row.about for row in _ROWS}
"""Description of each network in one line, for people who choose a network."""


def model_spec(choice: ModelChoice | str) -> ModelSpec:
    """Return the spec of the network that a sweep file chooses.

    This function does not build the network, so building it may still fail later.

    Raises:
        ConfigError: the name is unknown, the module of a user's function was not found, or the
            network accepts no arguments or has no pretrained weights.
    """
    if isinstance(choice, str):
        choice = ModelChoice.model_validate(choice)
    library, colon, architecture = choice.from_.partition(":")
    if colon and library not in LIBRARIES:
        spec = ModelSpec(
            name=choice.name or as_name(architecture),
            library="own",
            architecture=choice.from_,
            arguments=choice.arguments,
            code=code_hash(choice.from_),
        )
    elif colon and architecture:
        spec = _with_changes(_library_spec(library, architecture), choice)
    else:
        spec = _with_changes(_table_spec(choice.from_), choice)
    if not choice.pretrained:
        return spec
    if spec.library not in LIBRARIES:
        raise ConfigError(
            f"`pretrained` is set for {choice.from_}, but only networks of torchvision and "
            "timm have pretrained weights",
            hint="Remove `pretrained`. A function of yours can load weights itself",
        )
    # A name has at most 64 characters, and the suffix needs 11 of them.
    name = choice.name or f"{spec.name[:52]}_pretrained"
    return spec.model_copy(update={"name": name, "pretrained": True})


def _table_spec(name: str) -> ModelSpec:
    if name not in MODELS:
        error = unknown_name("model", name, MODELS)
        other_ways = "or write torchvision:NAME, timm:NAME or package.module:function"
        raise ConfigError(error.problem, hint=f"{error.hint}, {other_ways}")
    return MODELS[name]


def _library_spec(library: str, architecture: str) -> ModelSpec:
    name = as_name(architecture)
    if library == "timm":
        name = as_name(f"timm_{architecture}")
    return ModelSpec.model_validate(
        {"name": name, "library": library, "architecture": architecture}
    )


def _with_changes(base: ModelSpec, choice: ModelChoice) -> ModelSpec:
    """Return ``base`` with the arguments and the name in ``choice``.

    If ``choice`` has neither, return the table's network with the same architecture. If the
    table has no such network, return ``base``.

    Raises:
        ConfigError: ``choice`` has arguments for a network of isweep, which accepts none.
    """
    if choice.arguments and base.library == "isweep":
        names = ", ".join(key for key, _ in choice.arguments)
        raise ConfigError(
            f"{base.name} accepts no arguments, but the sweep file sets {names}",
            hint="Remove the key `arguments` from this model",
        )
    if not choice.arguments and choice.name is None:
        # Ids must not depend on whether a sweep file says resnet18 or torchvision:resnet18.
        for spec in MODELS.values():
            if (spec.library, spec.architecture) == (base.library, base.architecture):
                return spec
        return base
    suffix = "".join(f"_{key}_{value}" for key, value in choice.arguments)
    name = choice.name or as_name(base.name + suffix)
    return base.model_copy(update={"name": name, "arguments": choice.arguments})


def as_name(text: str) -> str:
    """Convert text to a valid name: at most 64 letters, digits, ``-`` and ``_``.

    Example:
        >>> as_name("timm_resnet50.a1_in1k")
        'timm_resnet50_a1_in1k'
    """
    name = re.sub(r"[^a-z0-9_-]+", "_", text.lower()).strip("_")
    if not name[:1].isalpha():
        name = f"m_{name}"
    return name[:64]
