"""The table of models. Architectures keep their library's own names."""

from __future__ import annotations

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
