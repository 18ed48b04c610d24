"""Adam's update of a float32 weight and its bfloat16 copy, as one kernel of a card.

Nothing but :mod:`tasks.trials.half_weights` imports this module: Triton comes with torch's CUDA builds alone.
Per weight 28 bytes are moved: read are the weight, its bfloat16 gradient and both moments, written are the
weight, both moments and the copy. Quotients and roots are rounded as torch's are; Triton's own are not.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from tasks.trials.half_weights import AdamRates

BLOCK = 1024
"""Weights of one program."""


def update(
    weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, copy: Tensor, rates: AdamRates
) -> None:
    """See :data:`tasks.trials.half_weights.Update`.

    Raises:
        ValueError: for tensors that do not lie in memory alike, which the kernel reads as rows of numbers.
    """
    layouts = {tensor.stride() for tensor in (weight, gradient, mean, square, copy)}
    if len(layouts) > 1:
        raise ValueError(f"tensors of an update must have the same strides, not {sorted(layouts)}")
    grid = (triton.cdiv(weight.numel(), BLOCK),)
    arguments = (
        weight,
        gradient,
        mean,
        square,
        copy,
        weight.numel(),
        # Their differences from 1 are taken in double precision: in float32 they would lose digits.
        rates.beta1,
        1 - rates.beta1,
        rates.beta2,
        1 - rates.beta2,
        rates.rate / (1 - rates.beta1**rates.step),
        (1 - rates.beta2**rates.step) ** 0.5,
        rates.eps,
        rates.decay,
        1 - rates.rate * rates.decay,
    )
    with torch.cuda.device_of(weight):  # type: ignore[no-untyped-call]  # kernels start on the current card
        _update[grid](*arguments, DECOUPLED=rates.decoupled, BLOCK=BLOCK)


@triton.jit  # type: ignore[untyped-decorator]
def _update(  # type: ignore[no-untyped-def]
    weights, gradients, means, squares, copies, numel,
    beta1, new1, beta2, new2, rate, correction, eps, decay, kept,
    DECOUPLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    weight = tl.load(weights + at, mask=inside)
    gradient = tl.load(gradients + at, mask=inside).to(tl.float32)
    if DECOUPLED:
        weight = weight * kept
    else:
        gradient = gradient + decay * weight
    mean = beta1 * tl.load(means + at, mask=inside) + new1 * gradient
    square = beta2 * tl.load(squares + at, mask=inside) + new2 * gradient * gradient
    weight = weight - tl.div_rn(rate * mean, tl.div_rn(tl.sqrt_rn(square), correction) + eps)
    tl.store(weights + at, weight, mask=inside)
    tl.store(means + at, mean, mask=inside)
    tl.store(squares + at, square, mask=inside)
    tl.store(copies + at, weight.to(tl.bfloat16), mask=inside)
