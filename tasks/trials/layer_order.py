"""An order of a network's layers that computes the same numbers at less cost, for as long as it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

from torch import nn

_LIBRARIES = ("torch", "torchvision", "timm", "tasks")
_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d)


def is_of_libraries(model: nn.Module) -> bool:
    """Tell whether all layers of ``model`` are libraries' or our own, so that what they do is known."""
    return all(map(_is_a_librarys, model.modules()))


def _is_a_librarys(module: nn.Module) -> bool:
    """Tell whether a layer is what its library made it: no other class, forward pass or hooks."""
    hooks: list[Any] = [
        module._forward_pre_hooks,
        module._forward_hooks,
        module._backward_pre_hooks,
        module._backward_hooks,
    ]
    for parameter in module.parameters(recurse=False):
        hooks += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    library = type(module).__module__.partition(".")[0]
    return library in _LIBRARIES and "forward" not in vars(module) and not any(hooks)


@contextmanager
def pools_before_relus(model: nn.Module) -> Iterator[None]:
    """Put each ReLU that a maximum pool follows behind it, where it has a quarter as many numbers to read.

    Both orders give the same numbers and the same gradients: a ReLU keeps the order of numbers, and where the
    largest is not above 0 no gradient passes either way. Only in ``nn.Sequential``, whose order is what it
    computes, and in networks of libraries' layers: somebody's own forward pass may take layers one by one.
    Afterwards the library's order is back, for whoever reads activations by the names of layers.
    """
    swapped = list(_relus_before_pools(model)) if is_of_libraries(model) else []
    for stack, place in swapped:
        _swap(stack, place)
    try:
        yield
    finally:
        for stack, place in swapped:
            _swap(stack, place)


def _relus_before_pools(model: nn.Module) -> Iterator[tuple[nn.Sequential, int]]:
    for stack in model.modules():
        if isinstance(stack, nn.Sequential) and type(stack).forward is nn.Sequential.forward:
            for place, (first, second) in enumerate(pairwise(stack)):
                if isinstance(first, nn.ReLU) and isinstance(second, _POOLS) and not second.return_indices:
                    yield stack, place


def _swap(stack: nn.Sequential, place: int) -> None:
    stack[place], stack[place + 1] = stack[place + 1], stack[place]
