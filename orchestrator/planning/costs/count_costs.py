"""Count the costs of a network's passes by running them on tensors without data.

PyTorch's fake tensors have shapes, types and lifetimes, but no values. With these tensors,
isweep counts kernels, memory traffic and memory without a GPU.
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
from tasks.trials.models import build_model, num_parameters
from tasks.trials.records import EVALUATION_PASS
from tasks.trials.steps import Step
from tasks.trials.user_networks import depends_on_pixels, one_line

ALLOCATION_BYTES = 512
"""PyTorch's CUDA allocator rounds the size of every block up to a multiple of this number of
bytes."""
WHITE = 255.0
"""Largest pixel value of the random images on which a network is run."""
BLACK = 0.0
"""Largest pixel value of black images. They are tried because some networks fail on noise, but
not on black images."""
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
"""Operations that start no kernel: they change shapes, or allocate memory without writing to
it."""
IN_PLACE_ADAM = (0, 2, 3)
"""Positions of the arguments that the fused Adam kernel updates: weights and both moments."""


def convolution_backward_flops(
    output_gradient: Tensor, pixels: Tensor, weight: Tensor, *settings: Any, out_val: Any
) -> int:
    """Return the operations of the gradients of a convolution, which may be grouped.

    The gradient by the pixels and the gradient by the weights each need as many operations as
    the convolution itself. PyTorch's formula ignores the groups in the gradient by the
    weights: it counts the depthwise convolution of 64 channels as 65 convolutions instead of
    2.

    Args:
        output_gradient: ``(batch, out_channels, ...)`` gradient by the output.
        pixels: ``(batch, in_channels, ...)`` input of the convolution.
        weight: ``(out_channels, in_channels / groups, ...)`` weights.
        settings: the other arguments of ``aten.convolution_backward``. The last argument says
            which gradients are computed: by the pixels, by the weights and by the bias.
        out_val: the three gradients, which are not used.
    """
    _, _, _, _, is_transposed, _, _, (by_pixels, by_weight, _) = settings
    positions = (pixels if is_transposed else output_gradient).shape[2:]
    forward = 2 * len(pixels) * math.prod(positions) * weight.numel()
    return int(forward * (by_pixels + by_weight))


FLOP_FORMULAS = {**flop_registry, torch.ops.aten.convolution_backward: convolution_backward_flops}
"""Functions that count the arithmetic operations of a kernel, by kernel. Any other kernel
counts as 0 operations."""


@dataclass(frozen=True)
class _Network:
    """A network to build and run.

    ``num_outputs`` is the number of logits if the recipe does not set this number.
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


def count_costs(
    model: ModelSpec, recipe: RecipeSpec, channels: int, image_size: int, num_outputs: int
) -> NetworkCost:
    """Count the costs of a network's passes, see ``costs.networks.network_cost``."""
    # torch logs a traceback of every failure. This is not needed, because the failure is also
    # raised as an error.
    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)
    network = _Network(model, recipe, channels, image_size, num_outputs)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with fixed_torch_state():
            module = _build_fake(network, mode)
            with mode:
                return _count(network, module, WHITE)
    except (Exception, SystemExit) as error:
        if model.library != "own":
            raise
        return _count_with_data(network, error)


def _build_fake(network: _Network, mode: FakeTensorMode) -> nn.Module:
    """Build a network whose tensors have no data."""
    try:
        with mode, warnings.catch_warnings():
            # torch warns when nn.TransformerEncoder copies its first layer.
            warnings.filterwarnings("ignore", message="Accessing the data pointer of Fake")
            return network.build()
    except DataDependentOutputException:
        # Some transformer and Inception networks of timm and torchvision read values of
        # tensors while they are built.
        module = network.build()
        with FakeCopyMode(mode):
            return copy.deepcopy(module)


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run attention as single operations, because PyTorch does not count a fused transformer layer.

    With torch's fused layers, the count had only two thirds of the operations of a forward
    pass of ViT-B/16. For a small ViT, it had only 0.4 % of the operations.
    """
    was_enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was_enabled)


@_unfused_attention()
def _count(network: _Network, module: nn.Module, brightest: float) -> NetworkCost:
    """Count the costs of a network's passes on images with pixel values up to ``brightest``."""
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
        step=_count_step(network, module, brightest),
        evaluation=evaluation.cost(),
        attack=attack.cost(),
        evaluation_batch=EVALUATION_PASS,
        attack_batch=attack_batch,
    )


def _count_step(network: _Network, module: nn.Module, brightest: float) -> PassCost:
    """Count the cost of a training step after the first."""
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
        # The first step of the optimizer creates its moments. Only the next step is counted.
        step.optimizer.step()
        counter.kernels.clear()
        step(rows)
    return counter.cost()


def _count_with_data(network: _Network, error: BaseException) -> NetworkCost:
    """Count the costs of your own network on tensors with data.

    A network may fail on noise and on black images, but work on the images of a sweep. So if
    its computation depends on pixel values, the network is not refused. Its costs are guessed:
    they are the costs of one dense layer with the same number of weights.

    Args:
        network: The network.
        error: The exception that the network raised on tensors without data.
    """
    for brightest in (WHITE, BLACK):
        try:
            with fixed_torch_state():
                return _count(network, network.build(), brightest)
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
        cost = _count(network, dense, WHITE)
    return replace(
        cost,
        num_parameters=num_weights,
        state_bytes=_state_bytes(module),
        uncounted=one_line(failure),
    )


class _PassCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch has no types for dispatch modes
    """Count the kernels, memory traffic and memory of all passes inside a ``with`` block.

    Args:
        network: The network. Its parameters and buffers count as memory from the start.
        held_tensors: Other tensors that count as memory from the start.
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
            formula = FLOP_FORMULAS.get(func._overloadpacket)
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
