"""The network that a GPU's self-test trains. Making a case needs no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from search_spaces.models import model_spec
from search_spaces.specs import ModelSpec, NetworkSpec

NUM_IMAGES = 100
"""Images of the full batches: enough for three warm-up steps, a capture and replays."""


@dataclass(frozen=True)
class Case:
    """A network to test, as a trial would train it.

    ``num_images`` leaves a ragged last batch. ``precision`` and ``optimizer`` are those of a
    recipe.
    """

    model: ModelSpec
    batch_size: int
    num_images: int = 110
    image_size: int = 224
    channels: int = 1
    precision: str = "bfloat16"
    optimizer: str = "adam"

    @classmethod
    def of_network(cls, network: NetworkSpec) -> Case:
        """Return the case for a trial's network.

        A user's own network may draw numbers, or fail, in any way. A ResNet-18 stands for it.
        """
        recipe = network.recipe
        if network.model.library == "own":
            return cls(model_spec("resnet18"), batch_size=40, precision=recipe.precision)
        prepared = network.subset.prepared
        num_full_batches = max(2, NUM_IMAGES // recipe.batch_size)
        ragged_batch = max(2, recipe.batch_size // 2)
        return cls(
            model=network.model,
            batch_size=recipe.batch_size,
            num_images=num_full_batches * recipe.batch_size + ragged_batch,
            image_size=prepared.image_size,
            channels=prepared.channels,
            precision=recipe.precision,
            optimizer=recipe.optimizer,
        )

    def to_json(self) -> str:
        """Return the case as an argument of the test's process."""
        return json.dumps(asdict(self) | {"model": self.model.model_dump_json()})

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return the case that :meth:`to_json` wrote."""
        fields: dict[str, Any] = json.loads(text)
        model = ModelSpec.model_validate_json(fields.pop("model"))
        return cls(model=model, **fields)


SMALL_CASES = (
    Case(model_spec("resnet18"), 8, num_images=18, image_size=32),
    Case(model_spec("small_cnn"), 8, num_images=18, image_size=32),
)
"""Cases for a CPU, which has no graphs: they try the test itself."""
