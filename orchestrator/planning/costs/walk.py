"""Costs of a network, counted by a walk over its passes with tensors that hold no data.

PyTorch's fake tensors have shapes, types and lifetimes, but no values. So kernels, the bytes that
they move, and memory are counted without a GPU.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from tasks.trials.isolation import fixed_torch_state
from tasks.trials.models import build_model, depends_on_pixels, num_parameters, one_line
from tasks.trials.records import EVALUATION_PASS
from tasks.trials.training import Step

ALLOCATION_BYTES = 512
"""CUDA's caching allocator rounds every block up to a multiple of this."""
WHITE = 255.0
"""Largest pixel value of the random images that a network is walked over with."""
BLACK = 0.0
"""The same for black images: some networks fail on noise only."""
SHAPE_ONLY = frozenset(
    (
        "alias",
        "as_strided",
        "detach",
        "empty",
        "empty_like",
        "empty_strided",
        "expand",
        "permute",
        "select",
        "slice",
        "split",
        "squeeze",
        "t",
        "transpose",
        "_unsafe_view",
        "unsqueeze",
        "view",
    )
)
"""Operations that start no kernel: they change shapes, or take memory without writing to it."""
IN_PLACE_ADAM = (0, 2, 3)
"""Arguments of the fused Adam kernel that are written in place: weights and both moments."""


@dataclass(frozen=True)
class _Network:
    """A network that can be built and walked over.

    ``num_outputs`` logits are built if the recipe names no number.
    """

    model: ModelSpec
    recipe: RecipeSpec
    channels: int
    image_size: int
    num_outputs: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.image_size, self.image_size

    def build(self) -> nn.Module:
        return build_model(
            self.model,
            num_outputs=self.recipe.num_outputs or self.num_outputs,
            in_channels=self.channels,
            input_scale=self.recipe.input_scale,
            dropout=self.recipe.dropout,
            seed=0,
            image_size=self.image_size,
        )


def walk_network(
    model: ModelSpec, recipe: RecipeSpec, channels: int, image_size: int, num_outputs: int
) -> NetworkCost:
    """Return the costs of a network's passes; see ``costs.networks.network_cost``."""
    # It logs a traceback of every failure inside it. Failures are raised as errors anyway.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    network = _Network(model, recipe, channels, image_size, num_outputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fixed_torch_state():
            module = _build_fake(network, mode)
            with mode:
                return _walk(network, module, WHITE)
    except (Exception, SystemExit) as error:
        if model.library != "own":
            raise
        return _walk_with_memory(network, error)


def _build_fake(network: _Network, mode: FakeTensorMode) -> nn.Module:
    """Build a network whose tensors hold no data."""
    try:
        with mode, warnings.catch_warnings():
            # nn.TransformerEncoder copies its first layer, of which torch warns here.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of Fake")
            return network.build()
    except DataDependentOutputException:
        # Transformers and Inceptions of timm and torchvision read numbers while they are built.
        module = network.build()
        with FakeCopyMode(mode):
            return copy.deepcopy(module)


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run attention as operators that can be counted, instead of one that counts as none.

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
def _walk(network: _Network, module: nn.Module, brightest: float) -> NetworkCost:
    """Return the costs of the passes of a network, on images with values up to ``brightest``."""
    module.eval()
    evaluation = _PassCounter(module)
    pixels = torch.rand(EVALUATION_PASS, *network.shape) * brightest
    with torch.no_grad(), evaluation:
        module(pixels)
    attack_batch = attack_batch_size(network.recipe)
    labels = torch.zeros(attack_batch, dtype=torch.int64)
    pixels = (torch.rand(attack_batch, *network.shape) * brightest).requires_grad_()
    attack = _PassCounter(module, pixels)
    with attack:
        loss = F.cross_entropy(module(pixels), labels, reduction="sum")
        torch.autograd.grad(loss, pixels)
    return NetworkCost(
        num_parameters=num_parameters(module),
        state_bytes=_state_bytes(module),
        forward_flops=evaluation.cost().flops / EVALUATION_PASS,
        step=_walk_step(network, module, brightest),
        evaluation=evaluation.cost(),
        attack=attack.cost(),
        evaluation_batch=EVALUATION_PASS,
        attack_batch=attack_batch,
    )


def _walk_step(network: _Network, module: nn.Module, brightest: float) -> PassCost:
    """Return the costs of a training step in which the optimizer's moments exist already."""
    module.train()
    batch_size = network.recipe.batch_size
    images = (torch.rand(batch_size, *network.shape) * brightest).to(torch.uint8)
    labels = torch.zeros(batch_size, dtype=torch.int64)
    rows = torch.arange(batch_size)
    counter = _PassCounter(module, labels, rows)
    with counter:
        step = Step(module, images, labels, network.recipe)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
            else:
                parameter.grad = None
        step.optimizer.step()
        counter.kernels.clear()
        step.take(rows)
    return counter.cost()


def _walk_with_memory(network: _Network, error: BaseException) -> NetworkCost:
    """Return the costs of your own network by a walk with real tensors.

    A network that fails on noise and on black images may still work on the images of a sweep, if
    it depends on the values of pixels. Its passes are then taken as those of one dense layer with
    as many weights.

    Args:
        network: The network.
        error: What it raised on tensors that hold no data.
    """
    for brightest in (WHITE, BLACK):
        try:
            with fixed_torch_state():
                return _walk(network, network.build(), brightest)
        except (Exception, SystemExit) as raised:
            failure = raised
    if not depends_on_pixels(error):
        raise failure
    with fixed_torch_state():
        module = network.build()
    num_weights = num_parameters(module)
    num_pixels = math.prod(network.shape)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(num_pixels, max(2, num_weights // num_pixels)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        cost = _walk(network, dense, WHITE)
    return replace(
        cost,
        num_parameters=num_weights,
        state_bytes=_state_bytes(module),
        uncounted=one_line(failure),
    )


class _PassCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch types no dispatch modes
    """Count operations, bytes and living memory of the passes that are made within it.

    Args:
        network: Its parameters and buffers are held from the start.
        held_tensors: Further tensors that are.
    """

    def __init__(self, network: nn.Module, *held_tensors: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: list[Kernel] = []
        self._alive_bytes = 0
        self._peak_bytes = 0
        self._workspace_bytes = 0
        self._sizes: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in (*network.parameters(), *network.buffers(), *held_tensors):
            self._hold(tensor)

    def cost(self) -> PassCost:
        return PassCost(tuple(self.kernels), self._peak_bytes, self._workspace_bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        outputs = _tensors(out)
        for tensor in outputs:
            self._hold(tensor)
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "aten" and name not in SHAPE_ONLY:
            inputs = _tensors((args, kwargs or {}))
            num_bytes = sum(tensor.nbytes for tensor in (*inputs, *outputs))
            if name.startswith("_fused_adam"):
                num_bytes += sum(tensor.nbytes for place in IN_PLACE_ADAM for tensor in args[place])
            formula = flop_registry.get(func._overloadpacket)
            flops = float(formula(*args, **(kwargs or {}), out_val=out)) if formula else 0.0
            self.kernels.append(Kernel(name, flops, float(num_bytes)))
            if name == "convolution":
                self._workspace_bytes = max(self._workspace_bytes, num_bytes)
        return out

    def _hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until its storage is freed."""
        storage = tensor.untyped_storage()
        if storage in self._sizes:
            return
        num_blocks = math.ceil(storage.nbytes() / ALLOCATION_BYTES)
        size = num_blocks * ALLOCATION_BYTES
        self._sizes[storage] = size
        self._alive_bytes += size
        self._peak_bytes = max(self._peak_bytes, self._alive_bytes)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._alive_bytes -= size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _state_bytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())
