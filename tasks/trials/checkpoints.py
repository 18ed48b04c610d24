"""Interval checkpoints: where a long training leaves off, so that a killed one goes on as if undisturbed.

A checkpoint holds weights, the optimiser's state, the generators of batch order and dropout, and the epochs
so far. It is written between epochs; what comes after is the same to the last bit on a CPU.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from tasks.trials.result import EpochRecord
from tasks.trials.seeding import set_states_outside_torch, states_outside_torch

INTERVAL_S = 300.0
"""Seconds between checkpoints: a trial shorter than that writes none."""


class Checkpoints:
    """Saves a training's state now and then, and gives it back.

    Args:
        read: returns the latest state; None where there is none that is whole.
        save: keeps a state, whole or not at all.
        interval_s: seconds between two.
        clock: tells the time, in seconds.
    """

    def __init__(
        self,
        read: Callable[[], bytes | None],
        save: Callable[[bytes], object],
        *,
        interval_s: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._save, self._interval, self._clock = read, save, interval_s, clock
        self._last = clock()
        self.notes: list[dict[str, Any]] = []
        """What else belongs to the training so far; plain values, kept and given back with it."""

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, order: torch.Generator, device: torch.device
    ) -> list[EpochRecord]:
        """Put the latest state in place; return the epochs that it has behind it, none for a fresh start."""
        data = self._read()
        if data is None:
            return []
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return []
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        order.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        if "outside_torch" in state:
            set_states_outside_torch(*state["outside_torch"])
        self.notes[:] = state["notes"]
        return [EpochRecord(**record) for record in state["history"]]

    def offer(
        self,
        history: list[EpochRecord],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order: torch.Generator,
        device: torch.device,
    ) -> None:
        """Save the state after the last epoch of ``history``, if the last save is long enough ago."""
        if self._clock() - self._last < self._interval:
            return
        buffer = io.BytesIO()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "outside_torch": states_outside_torch(),
            "history": [asdict(record) for record in history],
            "notes": self.notes,
        }
        torch.save(state, buffer)
        self._save(buffer.getvalue())
        self._last = self._clock()
