"""bfloat16 weights that Adam's own kernel writes, for networks on a card that wait for their weights.

Autocast casts every weight to bfloat16 on the way forward and its gradient to float32 on the way back; with
the 28 bytes of Adam's update that is 40 bytes a weight and step. Here convolutions and linear layers compute
with copies that the update writes beside the weights, and it reads the copies' bfloat16 gradients as they
are: 28 bytes in all (:mod:`tasks.trials.adam_kernel`).

The model's parameters stay its float32 weights all the time, and are what is evaluated, kept and resumed.
Only under autocast does a layer take its copies, which are what autocast would have cast there: with torch's
own update (:func:`torch_update`) training gives the same weights as without copies, to the last bit.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adam import adam

from search_spaces.errors import SetupError

log = logging.getLogger(__name__)

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
TOLERANCE = 8 * 2.0**-23
"""Of weights and moments to those of torch, relative to the largest: an update rounds each about ten times,
by half of 2^-23 of what is rounded, and a compiler may leave out some of these."""


@dataclass(frozen=True)
class AdamRates:
    """What one update goes by.

    Attributes:
        rate: learning rate.
        decay: weight decay.
        decoupled: whether the decay is AdamW's, rather than a term of the gradient.
        beta1: of the mean of gradients.
        beta2: of the mean of their squares.
        eps: added to the root.
        step: 1 for the first update of a weight.
    """

    rate: float
    decay: float
    decoupled: bool
    beta1: float
    beta2: float
    eps: float
    step: int


Update = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, AdamRates], None]
"""Adam's update of a weight, with its gradient, the means of gradients and of their squares, and its bfloat16
copy, in place. All five have one size and the same strides without gaps; weight and moments are float32, the
gradient is bfloat16, or float32 where parts of a batch were summed."""


def torch_update(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, copy: Tensor, rates: AdamRates
) -> None:
    """Update by torch's fused Adam: what a kernel is held to. It saves no traffic."""
    before = torch.tensor(float(rates.step - 1), device=weight.device)
    adam(
        [weight],
        [gradient.float()],
        [mean],
        [square],
        [],
        [before],
        fused=True,
        decoupled_weight_decay=rates.decoupled,
        amsgrad=False,
        beta1=rates.beta1,
        beta2=rates.beta2,
        lr=rates.rate,
        weight_decay=rates.decay,
        eps=rates.eps,
        maximize=False,
    )
    copy.copy_(weight)


class HalfWeights:
    """The copies of a model's weights, and the step of an Adam over it that writes them.

    Args:
        model: in the state that training begins or goes on with.
        optimizer: Adam or AdamW over all its parameters; holds the moments, as without copies.
        update: of one weight.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, update: Update) -> None:
        self._optimizer, self._update = optimizer, update
        self._copies: dict[nn.Parameter, Tensor] = {}
        # A weight that an embedding has too: autocast casts it once for all uses, and the copy would not see
        # what else is done to it.
        others = [module for module in model.modules() if not _takes_copies(module)]
        self._elsewhere = {weight for module in others for weight in module.parameters(recurse=False)}
        self._layers = [module for module in model.modules() if self._copy(module)]
        for layer in self._layers:
            layer.forward = self._forward_of(layer)
        states = {weight: optimizer.state.get(weight) for weight in self._copies}
        # Counted here, so that no step asks the device; a training that goes on has a count already.
        self._taken = {weight: int(state["step"]) if state else 0 for weight, state in states.items()}

    def _copy(self, module: nn.Module) -> bool:
        """Copy what autocast would cast for ``module``; tell whether there is anything."""
        own = set(module.parameters(recurse=False))
        if not _takes_copies(module) or own & self._elsewhere:
            return False
        for weight in module.parameters(recurse=False):  # one that two layers share has one copy
            if weight not in self._copies:
                self._copies[weight] = weight.detach().to(torch.bfloat16).requires_grad_()
        return True

    def _forward_of(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        own = dict(layer.named_parameters(recurse=False))
        weight = self._copies[own["weight"]]
        bias = self._copies[own["bias"]] if "bias" in own else None
        plain: Callable[[Tensor], Tensor] = layer.forward

        def forward(images: Tensor) -> Tensor:
            kind = images.device.type
            if not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != torch.bfloat16:
                return plain(images)
            if isinstance(layer, nn.Linear):
                return F.linear(images, weight, bias)
            product: Tensor = layer._conv_forward(images, weight, bias)  # type: ignore[operator]
            return product

        return forward

    @torch.no_grad()
    def sum_parts(self) -> None:
        """Add the copies' gradients to the weights' in float32, where parts of a batch are to be summed."""
        for weight in self._copies:
            self._sum_part(weight)

    def _sum_part(self, weight: nn.Parameter) -> None:
        copy = self._copies[weight]
        if copy.grad is not None:
            part = copy.grad.float()
            weight.grad = part if weight.grad is None else weight.grad.add_(part)
            copy.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update all parameters that have a gradient, and the copies with them."""
        counts = []
        for group in self._optimizer.param_groups:
            for weight in filter(self._copies.__contains__, group["params"]):
                gradient = self._take_gradient(weight)
                if gradient is not None:
                    state = self._state(weight)
                    self._taken[weight] += 1
                    counts.append(state["step"])
                    moments = state["exp_avg"], state["exp_avg_sq"]
                    rates = _rates(group, self._taken[weight])
                    self._update(weight, gradient, *moments, self._copies[weight], rates)
        if counts:
            torch._foreach_add_(counts, 1)
        self._optimizer.step()  # the parameters without a copy

    def _take_gradient(self, weight: nn.Parameter) -> Tensor | None:
        copy = self._copies[weight]
        if weight.grad is not None:  # summed parts, or a use outside of its layer
            self._sum_part(weight)
        gradient = copy.grad if weight.grad is None else weight.grad
        weight.grad = copy.grad = None
        if gradient is not None and gradient.stride() != weight.stride():
            gradient = torch.empty_like(weight, dtype=gradient.dtype).copy_(gradient)
        return gradient

    def _state(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """Return the optimiser's state of a weight, made as its first step would make it."""
        state: dict[str, Tensor] = self._optimizer.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)
            state["exp_avg"] = torch.zeros_like(weight)
            state["exp_avg_sq"] = torch.zeros_like(weight)
        return state

    def release(self) -> None:
        """Let the layers compute with the weights again."""
        for layer in self._layers:
            del layer.forward


def _takes_copies(module: nn.Module) -> bool:
    """Tell whether a layer may compute with copies, which have no gaps: its weights must have none either."""
    own = dict(module.named_parameters(recurse=False))
    return (
        type(module) in _LAYERS
        and "weight" in own
        and all(weight.requires_grad and weight.dtype == torch.float32 for weight in own.values())
        and all(torch.empty_like(weight).stride() == weight.stride() for weight in own.values())
    )


def _rates(group: dict[str, Any], step: int) -> AdamRates:
    (beta1, beta2), decoupled = group["betas"], group["decoupled_weight_decay"]
    return AdamRates(group["lr"], group["weight_decay"], decoupled, beta1, beta2, group["eps"], step)


@contextmanager
def half_weights(model: nn.Module, optimizer: torch.optim.Optimizer, update: Update) -> Iterator[HalfWeights]:
    """Let a model compute with copies within a block; see :class:`HalfWeights`."""
    weights = HalfWeights(model, optimizer, update)
    try:
        yield weights
    finally:
        weights.release()


@cache
def card_update(device: torch.device) -> tuple[Update | None, str]:
    """Return the kernel of a card, or None and why it cannot be had; looked for once in a process.

    Raises:
        SetupError: when it computes something else than torch.
        torch.OutOfMemoryError: when the card has no room for it.
    """
    try:
        from tasks.trials.adam_kernel import update

        found = differences(update, device)
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # no Triton, no compiler for what starts its kernels, a card it does not know
        if "out of memory" in str(error):  # Triton's own word for it: there may be more the next time
            raise torch.OutOfMemoryError(str(error)) from error
        cause = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        note = f"weights were cast in every step: the kernel that saves it cannot be built ({cause[:200]})"
        log.warning(note)
        return None, note
    check(found)
    return update, ""


def check(found: dict[str, float]) -> None:
    """See that an update does what torch's does.

    Args:
        found: from :func:`differences`.

    Raises:
        SetupError: when it does not.
    """
    worst = max(found, key=found.__getitem__)
    if not found[worst] <= TOLERANCE:
        raise SetupError(
            "The kernel that updates weights on a card must compute what torch's Adam does",
            f"node {socket.gethostname()}: its {worst} differs by {found[worst]:.1e} of the largest",
            "install torch and Triton of constraints-cuda.txt; without Triton, torch's own is taken",
        )


def differences(update: Update, device: torch.device) -> dict[str, float]:
    """Return how far an update is from torch's, relative to the largest value; infinite where not finite.

    The copy's is that to the update's own weight, rounded: none may be left.
    """
    found = dict.fromkeys(("weight", "mean", "square", "copy"), 0.0)
    for size, decoupled, dtype in product(_SIZES, (False, True), (torch.bfloat16, torch.float32)):
        rates = AdamRates(0.1, 0.1, decoupled, 0.9, 0.999, 1e-8, step=3)
        tensors, expected = _drawn(size, dtype, device), _drawn(size, dtype, device)
        with torch.no_grad():
            update(*tensors, rates)
            torch_update(*expected, rates)
        (weight, _, mean, square, copy), (right, _, *moments, _) = tensors, expected
        pairs = (weight, right), (mean, moments[0]), (square, moments[1]), (copy, weight.bfloat16())
        for name, (ours, theirs) in zip(found, pairs, strict=True):
            distance = float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
            found[name] = max(found[name], distance if math.isfinite(distance) else math.inf)
    return found


_SIZES = (3, 1009), (3, 1040)
"""No multiples of any block. Triton compiles for multiples of 16, which most weights are, another kernel than
for all others: it moves 16 bytes at once."""


def _drawn(
    size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw what an update is given; gradients from 1 to 1e-8, where the term beside the root decides."""
    draw = torch.Generator().manual_seed(0)
    weight, signs, scales = (torch.randn(size, generator=draw) for _ in range(3))
    gradient = (signs * 10 ** (-4 + 2 * scales).clamp(-8, 0)).to(dtype)
    mean = gradient.float() * torch.rand(size, generator=draw)
    square = (gradient.float() * torch.rand(size, generator=draw)) ** 2
    tensors = (weight, gradient, mean, square, torch.zeros(size, dtype=torch.bfloat16))
    return tuple(tensor.to(device) for tensor in tensors)  # type: ignore[return-value]
