"""Measure the phases of a trial. Define the exception that ends a trial early."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Diverged(Exception):
    """A loss is NaN or infinite. This exception ends the trial, and its text is the reason."""


class PhaseTimer:
    """A timer of the phases of a trial on one device.

    Attributes:
        seconds: Duration of each finished phase in seconds. The keys are the names of the
            phases.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self._device = device

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the duration of a ``with`` block, until the GPU has finished its work."""
        start = time.perf_counter()
        # The duration of a phase that diverged is recorded too. After any other error, no
        # duration is recorded, because waiting for a failed GPU would raise a second error.
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
