"""The table of models. Architectures keep their library's own names."""

from __future__ import annotations

from dataclasses import dataclass

from search_spaces.errors import unknown_name
from search_spaces.specs import ModelSpec

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


def model_spec(name: str) -> ModelSpec:
    """Return the row of ``name``.

    Raises:
        ConfigError: for a name that is in no table, with the nearest and all known names.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


@dataclass(frozen=True)
class ModelCost:
    """What one image of 3 x 224 x 224 costs, for estimates only.

    Attributes:
        giga_macs: Multiply-adds of a forward pass, in 1e9.
        mega_parameters: Parameters, in 1e6.
        mega_activations: Activations of a forward pass, in 1e6.
    """

    giga_macs: float
    mega_parameters: float
    mega_activations: float


_COSTS = {
    "resnet18": ModelCost(1.82, 11.7, 2.5),
    "resnet34": ModelCost(3.67, 21.8, 3.7),
    "resnet50": ModelCost(4.11, 25.6, 11.1),
    "vgg13": ModelCost(11.3, 133.0, 12.3),
    "vgg16": ModelCost(15.5, 138.4, 13.6),
    "vgg19": ModelCost(19.6, 143.7, 14.9),
}
MODEL_COSTS: dict[str, ModelCost] = {
    **_COSTS,
    **{f"timm_{name}": cost for name, cost in _COSTS.items()},
    "resnet10t": ModelCost(1.10, 5.4, 2.4),
    "resnet_tiny": ModelCost(0.3, 0.4, 1.0),
    "small_cnn": ModelCost(0.6, 0.1, 3.0),
    "small_mlp": ModelCost(0.01, 10.0, 0.01),
}
"""Published costs of torchvision's and timm's models; those of our small ones are orders of magnitude."""
