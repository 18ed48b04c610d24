"""Save the state of a training from time to time, so that it can continue after an
interruption.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import nn

from tasks.trials.isolation import set_states_outside_torch, states_outside_torch
from tasks.trials.records import EpochRecord, EpochScore

CHECKPOINT_INTERVAL_S = 300.0
"""Seconds between two checkpoints. A training that takes less time saves no checkpoint."""


class Checkpoints:
    """The checkpoints of one training. They are saved between epochs, and read at the start.

    A checkpoint contains the weights, the state of the optimizer, the random states of the
    batch order and of dropout, and the records of the finished epochs. On a CPU, a training
    that was interrupted has exactly the same results as a training that was not. A training
    that began on a CPU does not continue on a GPU, because its results would belong to neither
    device. The training then starts again from the beginning. Likewise, a training that began
    on a GPU does not continue on a CPU.

    Args:
        read: Function that returns the latest complete state, or None if there is no state.
        save: Function that stores a state, either completely or not at all.
        interval_s: Smallest time between two checkpoints, in seconds.

    Attributes:
        test_history: Scores on the test images so far. The caller appends new scores to this
            list. Each checkpoint contains the list.
    """

    def __init__(
        self,
        read: Callable[[], bytes | None],
        save: Callable[[bytes], object],
        *,
        interval_s: float = CHECKPOINT_INTERVAL_S,
    ) -> None:
        self.test_history: list[EpochScore] = []
        self._read = read
        self._save = save
        self._interval_s = interval_s
        self._saved_at = time.monotonic()

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order_generator: torch.Generator,
        device: torch.device,
    ) -> list[EpochRecord]:
        """Restore the latest state of the model, the optimizer and the random generators, in
        place.

        Args:
            model: The network.
            optimizer: The optimizer of the training.
            order_generator: The random generator of the batch order.
            device: The device of the training.

        Returns:
            The records of the finished epochs. The list is empty if the training must start
            from the beginning.
        """
        data = self._read()
        if data is None:
            return []
        try:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError):
            return []
        # "dropout" and "dropout_cuda" are torch's random states on the CPU and on the GPU.
        was_on_gpu = state["dropout_cuda"] is not None
        if was_on_gpu != (device.type == "cuda"):
            return []
        model.load_state_dict(state["model"])
        # Restore only the optimizer's state (its moments), and not its options, because the
        # option ``capturable`` may have changed since the checkpoint.
        moments = {"state": state["optimizer"]["state"]}
        optimizer.load_state_dict(optimizer.state_dict() | moments)
        order_generator.set_state(state["order"])
        torch.set_rng_state(state["dropout"])
        if was_on_gpu:
            torch.cuda.set_rng_state(state["dropout_cuda"], device)
        set_states_outside_torch(*state["outside_torch"])
        # The key "notes" contains the test history. Do not rename the key, because stored
        # checkpoints use it.
        self.test_history[:] = [EpochScore.model_validate(score) for score in state["notes"]]
        return [EpochRecord(**record) for record in state["history"]]

    def save_if_due(
        self,
        history: list[EpochRecord],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        order_generator: torch.Generator,
        device: torch.device,
    ) -> None:
        """Save the state if the last checkpoint is at least ``interval_s`` seconds old.

        Before the first checkpoint, the time counts from the creation of this object.

        Args:
            history: Records of the finished epochs.
            model: The network.
            optimizer: The optimizer of the training.
            order_generator: The random generator of the batch order.
            device: The device of the training.
        """
        if time.monotonic() - self._saved_at < self._interval_s:
            return
        dropout_cuda = None
        if device.type == "cuda":
            dropout_cuda = torch.cuda.get_rng_state(device)
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "order": order_generator.get_state(),
            "dropout": torch.get_rng_state(),
            "dropout_cuda": dropout_cuda,
            "outside_torch": states_outside_torch(),
            "history": [asdict(record) for record in history],
            "notes": [score.plain() for score in self.test_history],
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._save(buffer.getvalue())
        self._saved_at = time.monotonic()
