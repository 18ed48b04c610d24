"""The network and the settings with which a GPU is tested. This module does not import torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from search_spaces.models import model_spec
from search_spaces.specs import ModelSpec, NetworkSpec

NUM_IMAGES = 100
"""Approximate number of images in the full batches of an epoch. It is enough for three warm-up
steps, a capture and several replays."""

PASSED_LINE = "The GPU was compared with the CPU."
"""Line that the process of a self-test prints when the GPU has passed the comparison with the
CPU. If the process is killed later, this line shows that the GPU computes correctly."""


@dataclass(frozen=True)
class Case:
    """A network for the self-test, with the settings of a trial.

    Attributes:
        model: the network.
        batch_size: batch size of the recipe.
        num_images: number of training images. It is chosen so that the last batch is smaller
            than the others.
        image_size: height and width of the images in pixels.
        channels: number of channels of the images.
        precision: precision of the recipe.
        optimizer: optimizer of the recipe.
        num_threads: number of CPU threads of the test. A test in a worker uses the number of
            its trial, so that other trials can use the other cores.
    """

    model: ModelSpec
    batch_size: int
    num_images: int = 110
    image_size: int = 224
    channels: int = 1
    precision: str = "bfloat16"
    optimizer: str = "adam"
    num_threads: int = 1

    @classmethod
    def of_network(cls, network: NetworkSpec, num_threads: int = 1) -> Case:
        """Return the case for a trial's network.

        If the network is user-defined, the case contains a ResNet-18 instead. A user-defined
        network may draw random numbers or fail in unknown ways.

        Args:
            network: the trial's network.
            num_threads: number of CPU threads of the test.
        """
        recipe = network.recipe
        if network.model.library == "own":
            return cls(
                model_spec("resnet18"),
                batch_size=40,
                precision=recipe.precision,
                num_threads=num_threads,
            )
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
            num_threads=num_threads,
        )

    def to_json(self) -> str:
        """Return the case as JSON text for the command line of the process that runs the test."""
        return json.dumps(asdict(self) | {"model": self.model.model_dump_json()})

    @classmethod
    def from_json(cls, text: str) -> Case:
        """Return the case that :meth:`to_json` converted to text."""
        fields: dict[str, Any] = json.loads(text)
        model = ModelSpec.model_validate_json(fields.pop("model"))
        return cls(model=model, **fields)


SMALL_CASES = (
    Case(model_spec("resnet18"), 8, num_images=18, image_size=32),
    Case(model_spec("small_cnn"), 8, num_images=18, image_size=32),
)
"""Cases for a CPU, which has no CUDA graphs. They test only the code of the self-test."""
