"""A network's costs read off the network itself: a walk over its passes with tensors that hold no
data.

PyTorch's fake tensors know shapes, types and lifetimes: kernels, what they move, and memory,
without a GPU.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from orchestrator.planning.costs.kernels import Kernel, NetworkCost, PassCost
from search_spaces.specs import ModelSpec, RecipeSpec
from tasks.trials.attacks import attack_batch_size
from tasks.trials.isolation import contained
from tasks.trials.models import build_model, depends_on_pixels, num_parameters, one_line
from tasks.trials.records import EVALUATION_PASS
from tasks.trials.training import Step

ALLOCATION_BYTES = 512
"""CUDA's caching allocator rounds every block up to a multiple of this."""
_SHAPE_ONLY = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "expand",
    "detach",
    "slice",
    "alias",
}
_SHAPE_ONLY |= {"as_strided", "select", "split", "unsqueeze", "squeeze"}
_SHAPE_ONLY |= {"empty", "empty_like", "empty_strided"}


def walk_network(
    model: ModelSpec, recipe: RecipeSpec, channels: int, image_size: int, num_outputs: int
) -> NetworkCost:
    """See :func:`orchestrator.planning.costs.networks.network_cost`."""
    # It logs a traceback of what fails in it; what fails is told as an error.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    shape = (channels, image_size, image_size)

    def built() -> nn.Module:
        return build_model(
            model,
            num_outputs=recipe.num_outputs or num_outputs,
            in_channels=channels,
            input_scale=recipe.input_scale,
            dropout=recipe.dropout,
            seed=0,
            image_size=image_size,
        )

    walked = partial(_walked, recipe, shape)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with contained():
            try:
                with mode, warnings.catch_warnings():
                    # nn.TransformerEncoder copies its first layer, of which torch warns here.
                    warnings.filterwarnings("ignore", message="Accessing the data pointer of Fake")
                    network = built()
            except DataDependentOutputException:
                # Transformers and Inceptions of timm and torchvision ask for numbers while they are
                # made.
                network = built()
                with FakeCopyMode(mode):
                    network = copy.deepcopy(network)
            with mode:
                return walked(network)
    except (Exception, SystemExit) as error:
        if model.library != "own":
            raise
        return _walked_with_memory(error, built, walked, math.prod(shape))


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Let attention run as operators that can be counted, in place of one that counts as none.

    In evaluation torch may fuse a whole transformer layer: a forward pass of ViT-B/16 then had two
    thirds of its operations, one of a small ViT 0.4 % of them.
    """
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@_unfused_attention()
def _walked(
    recipe: RecipeSpec, shape: tuple[int, int, int], network: nn.Module, brightest: float = 255.0
) -> NetworkCost:
    network.eval()
    evaluation = _Walk(network)
    pixels = torch.rand(EVALUATION_PASS, *shape) * brightest
    with torch.no_grad(), evaluation:
        network(pixels)
    attack_batch = attack_batch_size(recipe)
    labels = torch.zeros(attack_batch, dtype=torch.int64)
    pixels = (torch.rand(attack_batch, *shape) * brightest).requires_grad_()
    attack = _Walk(network, pixels)
    with attack:
        loss = F.cross_entropy(network(pixels), labels, reduction="sum")
        torch.autograd.grad(loss, pixels)
    return NetworkCost(
        num_parameters=num_parameters(network),
        state_bytes=_state_bytes(network),
        forward_flops=evaluation.cost().flops / EVALUATION_PASS,
        step=_step(network, recipe, shape, brightest).cost(),
        evaluation=evaluation.cost(),
        attack=attack.cost(),
        evaluation_batch=EVALUATION_PASS,
        attack_batch=attack_batch,
    )


def _walked_with_memory(
    error: BaseException,
    built: Callable[[], nn.Module],
    walked: Callable[..., NetworkCost],
    num_pixels: int,
) -> NetworkCost:
    """Walk over somebody's own network with real tensors: ``error`` came of those that hold no
    data.

    What fails on noise and on black images may yet work on a sweep's, where it depends on values of
    pixels.
    """
    for brightest in (255.0, 0.0):
        try:
            with contained():
                return walked(built(), brightest)
        except (Exception, SystemExit) as found:
            failure = found
    if not depends_on_pixels(error):
        raise failure
    with contained():
        network = built()
    weights, state = num_parameters(network), _state_bytes(network)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels, max(2, weights // num_pixels)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        counted = walked(dense)
    return replace(counted, num_parameters=weights, state_bytes=state, uncounted=one_line(failure))


class _Walk(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no dispatch modes
    """Counts operations, bytes and living memory of the passes made within it."""

    def __init__(self, network: nn.Module, *given: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self._alive = self._peak = self._workspace = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in (*network.parameters(), *network.buffers(), *given):
            self._hold(tensor)

    def cost(self) -> PassCost:
        return PassCost(tuple(self.kernels), self._peak, self._workspace)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._hold(tensor)
        space, _, name = func._schema.name.partition("::")
        if space == "aten" and name not in _SHAPE_ONLY:
            self._count(func, name, args, kwargs or {}, out, outputs)
        return out

    def _count(
        self, func: Any, name: str, args: Any, kwargs: Any, out: Any, outputs: list[Tensor]
    ) -> None:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        formula = flop_registry.get(func._overloadpacket)
        flops = float(formula(*args, **kwargs, out_val=out)) if formula else 0.0
        moved = sum(tensor.nbytes for tensor in (*inputs, *outputs))
        if name.startswith("_fused_adam"):
            # Weights and both moments are written in place too.
            moved += sum(tensor.nbytes for index in (0, 2, 3) for tensor in args[index])
        self.kernels.append(Kernel(name, flops, float(moved)))
        if name == "convolution":
            self._workspace = max(self._workspace, moved)

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = -(-storage.nbytes() // ALLOCATION_BYTES) * ALLOCATION_BYTES
        self._known[storage] = size
        self._alive += size
        self._peak = max(self._peak, self._alive)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._alive -= size


def _step(
    network: nn.Module, recipe: RecipeSpec, shape: tuple[int, int, int], brightest: float
) -> _Walk:
    """Walk over a step of a training that goes on: moments are there, as after any step."""
    network.train()
    size = recipe.batch_size
    images = (torch.rand(size, *shape) * brightest).to(torch.uint8)
    labels, rows = torch.zeros(size, dtype=torch.int64), torch.arange(size)
    walk = _Walk(network, labels, rows)
    with walk:
        step = Step(network, images, labels, recipe)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        step.optimizer.step()
        walk.kernels.clear()
        step.take(rows)
    return walk


def _state_bytes(network: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in network.state_dict().values())
