"""Weights of a trained network as bytes (safetensors: no code in them), and back."""

from __future__ import annotations

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from search_spaces.errors import CorruptStoreError


def to_bytes(model: nn.Module) -> bytes:
    """Return all parameters and buffers of ``model``, bit by bit, as a safetensors file.

    What layers share is written once per layer: safetensors has no tensors that share memory.
    """
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        kept = value.detach().cpu().contiguous()
        place = kept.untyped_storage().data_ptr()
        state[name] = kept.clone() if place in seen else kept
        seen.add(place)
    return bytes(save(state, metadata={"format": "pt"}))


def load_into(model: nn.Module, data: bytes) -> None:
    """Put weights from :func:`to_bytes` into ``model``, which was built from the same spec.

    Raises:
        CorruptStoreError: when they are no weights of this network.
    """
    try:
        model.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CorruptStoreError("Kept weights must be those of the network", first) from error
