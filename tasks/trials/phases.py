"""A timer for the phases of a trial, and the exception that ends a trial early."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Diverged(Exception):
    """A loss is NaN or infinite, so the trial ends. The text is the reason."""


class PhaseTimer:
    """A timer of the phases of a trial on one device.

    Attributes:
        seconds: seconds of each finished phase, by its name.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the seconds of a block, until the GPU has finished its work."""
        start = time.perf_counter()
        # A phase that diverged is timed too. After any other error, no time is recorded,
        # because waiting for a failed GPU would raise a second error.
        diverged = None
        try:
            yield
        except Diverged as error:
            diverged = error
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.seconds[name] = time.perf_counter() - start
        if diverged is not None:
            raise diverged
