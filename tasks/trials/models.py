"""Networks built from a :class:`~search_spaces.specs.ModelSpec`.

A network comes from torchvision, from timm, from :mod:`tasks.trials.networks`, or from a user's
``package.module:function``. Every model takes float pixels in [0, 255] of shape ``(num_images,
channels, height, width)``. The scaling of pixels is part of the model, so the epsilon of an attack
is in pixel units.
"""

from __future__ import annotations

import difflib
import importlib
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from search_spaces.errors import ConfigError, SweepError, plural, unknown_name
from search_spaces.models import MODELS
from search_spaces.specs import ModelSpec
from search_spaces.user_code import code_hash, source_files
from tasks.trials import networks
from tasks.trials.isolation import fixed_torch_state, seeded
from tasks.trials.networks import PoolsFirst
from tasks.trials.weights import Normalization, normalization, start_from


class PixelModel(nn.Module):
    """A network with its input scaling: ``network(pixels * input_scale)``.

    If ``normalized`` is not None, the model is ``network((pixels / 255 - mean) / std)`` instead.
    ``input_scale`` is then not used. Pretrained weights need the mean and std of their training.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, input_scale: float, normalized: Normalization | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.input_scale = input_scale
        self.normalized = normalized is not None
        if normalized is not None:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalized)
            self.register_buffer("mean", mean, persistent=False)
            self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(num_images, num_outputs)`` for float pixels in [0, 255]."""
        if self.normalized:
            pixels = (pixels / 255 - self.mean) / self.std
        elif self.input_scale != 1:
            pixels = pixels * self.input_scale
        logits: Tensor = self.network(pixels)
        return logits


@dataclass(frozen=True)
class _BuildOptions:
    """The input and output sizes of a network, and its dropout.

    Attributes:
        num_outputs: number of logits.
        in_channels: number of channels of an image.
        image_size: side of the square images, in pixels.
        dropout: probability in all dropout layers; None for the default of the library.
    """

    num_outputs: int
    in_channels: int
    image_size: int
    dropout: float | None

    def input(self, num_images: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch of images."""
        return (num_images, self.in_channels, self.image_size, self.image_size)


def build_model(
    spec: ModelSpec,
    *,
    num_outputs: int,
    in_channels: int,
    input_scale: float,
    dropout: float | None,
    seed: int,
    image_size: int,
    pretrained: bytes | None = None,
) -> PixelModel:
    """Build a network whose random weights depend only on ``seed`` and the other arguments.

    The architecture may be any classification architecture of torchvision or timm. For one-channel
    images, the first convolution of a torchvision network is replaced. The new convolution has
    PyTorch's default initialization, as in the released code of Konz & Mazurowski (ICLR 2024).

    Args:
        spec: library, architecture and arguments.
        num_outputs: number of logits.
        in_channels: 1 or 3.
        input_scale: factor on pixels in [0, 255], which becomes part of the model.
        dropout: probability in all dropout layers; None for the default of the library.
        seed: seed of the random weights.
        image_size: side of the square images, in pixels.
        pretrained: initial weights of a pretrained network, as the content of a safetensors file;
            None for random weights.

    Raises:
        ConfigError: the library has no such architecture, the image is too small for it, or the
            recipe has dropout and the network has no dropout layers.
    """
    shape = _BuildOptions(num_outputs, in_channels, image_size, dropout)
    with seeded(seed):
        network = _BUILDERS[spec.library](spec, shape)
    if dropout is not None and spec.library != "timm":  # timm takes dropout as an argument
        _set_dropout(spec, network, dropout)
    if pretrained is not None:
        start_from(network, pretrained, spec)
    normalized = normalization(spec, in_channels) if spec.pretrained else None
    model = PixelModel(network, input_scale, normalized)
    _check_forward(spec, model, shape)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            # Convolutions are fastest in this layout, both on a CPU and on a GPU.
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _build_torchvision(spec: ModelSpec, shape: _BuildOptions) -> nn.Module:
    """Build a classifier of torchvision without pretrained weights."""
    import torchvision

    architectures = torchvision.models.list_models(module=torchvision.models)
    if spec.architecture not in architectures:
        raise unknown_name("torchvision architecture", spec.architecture, architectures)
    options: dict[str, object] = {}
    if spec.architecture in ("googlenet", "inception_v3"):
        # The first option switches off auxiliary outputs. The second prevents a warning about a
        # changed default.
        options = {"aux_logits": False, "init_weights": True}
    elif spec.architecture.startswith("vit_"):
        options = {"image_size": shape.image_size}
    network = _construct(
        spec,
        shape,
        torchvision.models.get_model,
        options,
        weights=None,
        num_classes=shape.num_outputs,
    )
    _set_input_channels(network, shape.in_channels)
    return network


def _build_timm(spec: ModelSpec, shape: _BuildOptions) -> nn.Module:
    """Build a classifier of timm without pretrained weights."""
    import timm

    if not timm.is_model(spec.architecture):
        hint = "Choose a name from timm.list_models()"
        similar = difflib.get_close_matches(spec.architecture, timm.list_models(), n=5)
        if similar:
            hint = f"Choose a name from timm.list_models(), for example {', '.join(similar)}"
        raise ConfigError(f"timm has no architecture {spec.architecture!r}", hint=hint)
    options: dict[str, object] = {}
    if shape.dropout is not None:
        options["drop_rate"] = shape.dropout
    if timm.get_pretrained_cfg(spec.architecture).fixed_input_size:
        options["img_size"] = shape.image_size
    return _construct(
        spec,
        shape,
        timm.create_model,
        options,
        pretrained=False,
        in_chans=shape.in_channels,
        num_classes=shape.num_outputs,
    )


def _build_isweep(spec: ModelSpec, shape: _BuildOptions) -> nn.Module:
    """Build a network of :mod:`tasks.trials.networks`."""
    function = getattr(networks, spec.architecture, None)
    if function is None:
        architectures = [row.architecture for row in MODELS.values() if row.library == "isweep"]
        raise unknown_name("isweep architecture", spec.architecture, architectures)
    network: nn.Module = function(
        num_outputs=shape.num_outputs, in_channels=shape.in_channels, image_size=shape.image_size
    )
    return network


def _arguments(spec: ModelSpec) -> dict[str, object]:
    """Return the arguments of a spec as keyword arguments, with lists in place of tuples."""
    arguments: dict[str, object] = {}
    for key, value in spec.arguments:
        arguments[key] = list(value) if isinstance(value, tuple) else value
    return arguments


def _set_input_channels(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution if it has another number of input channels."""
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.in_channels != in_channels:
            parent, _, attribute = name.rpartition(".")
            replacement = nn.Conv2d(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            setattr(network.get_submodule(parent), attribute, replacement)
        return


def _set_dropout(spec: ModelSpec, network: nn.Module, probability: float) -> None:
    """Set the probability of all dropout layers of a network."""
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if probability > 0 and not layers:
        raise ConfigError(
            f"The recipe has dropout {probability}, but {spec.name} has no dropout layers",
            hint="Remove dropout from the recipe for this model",
        )
    for layer in layers:
        layer.p = probability


def _construct(
    spec: ModelSpec,
    shape: _BuildOptions,
    constructor: Callable[..., nn.Module],
    defaults: dict[str, object],
    **fixed: object,
) -> nn.Module:
    """Return a library's network.

    Args:
        spec: architecture and arguments.
        shape: sizes, for messages.
        constructor: the library's function.
        defaults: arguments that ``spec`` may replace.
        fixed: arguments that ``spec`` must not replace.

    Raises:
        ConfigError: the arguments or the image size do not fit the network.
    """
    try:
        network = constructor(spec.architecture, **fixed, **defaults | _arguments(spec))
    except (AssertionError, ValueError) as error:  # transformers check the image size here
        raise _does_not_fit(spec, shape, error) from error
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{spec.library} {spec.architecture} does not accept the arguments "
            f"{dict(spec.arguments)}: {reason}",
            hint="Correct the arguments of this model",
        ) from error
    if type(network).__name__ == "VGG":
        # During training, the network then runs each max-pooling before its ReLU, which is faster.
        network.features.__class__ = PoolsFirst
    return network


def _check_forward(spec: ModelSpec, model: PixelModel, shape: _BuildOptions) -> None:
    """Raise a ConfigError if the model does not return one row of logits per image.

    A forward pass also fails if the image is too small. No library has a table of the smallest
    image size of each architecture.
    """
    # A user's network is tested with two images, because it may mix the images of a batch.
    num_images = 2 if spec.library == "own" else 1
    input_shape = shape.input(num_images)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(input_shape))
    except (Exception, SystemExit) as error:
        # A library's network fails if the image is too small. A user's network may fail in any way.
        if spec.library == "own":
            if may_work_on_other_images(error, model, input_shape):
                return
            raise ConfigError(
                f"Your network {spec.architecture} raised {one_line(error)} on a float32 "
                f"batch of shape {input_shape}",
                hint="Correct the forward method of your network",
            ) from error
        if not isinstance(error, AssertionError | RuntimeError | ValueError):
            raise
        raise _does_not_fit(spec, shape, error) from error
    finally:
        model.train()
    if isinstance(logits, Tensor) and logits.shape == (num_images, shape.num_outputs):
        return
    returned = type(logits).__name__
    if isinstance(logits, Tensor):
        returned = str(tuple(logits.shape))
    network_name = f"{spec.library} {spec.architecture}"
    hint = "Choose an architecture for classification"
    if spec.library == "own":
        network_name = f"Your network {spec.architecture}"
        hint = "Correct the forward method of your network"
    raise ConfigError(
        f"{network_name} returned {returned} for {plural(num_images, 'image')}, but should return "
        f"logits of the shape ({num_images}, {shape.num_outputs})",
        hint=hint,
    )


def check_buildable(
    spec: ModelSpec, *, num_outputs: int, in_channels: int, image_size: int, dropout: float | None
) -> None:
    """Check that a network can be built, before data are prepared or a network is trained.

    Networks of libraries are built on torch's meta device, which needs no memory. The first forward
    pass on this device imports compilers, which takes two seconds. So the small networks of isweep,
    and networks of users, are built on the CPU.

    Raises:
        ConfigError: see :func:`build_model`.
    """
    device = "cpu" if spec.library in ("own", "isweep") else "meta"
    with fixed_torch_state(), torch.device(device):
        build_model(
            spec,
            num_outputs=num_outputs,
            in_channels=in_channels,
            input_scale=1.0,
            dropout=dropout,
            seed=0,
            image_size=image_size,
        )


def _does_not_fit(spec: ModelSpec, shape: _BuildOptions, error: Exception) -> ConfigError:
    """Return the error for a network that cannot be built for images of this size."""
    reason = type(error).__name__
    if str(error):
        reason = str(error).splitlines()[0]
    image = f"{shape.in_channels}x{shape.image_size}x{shape.image_size}"
    return ConfigError(
        f"{spec.library} {spec.architecture} cannot be used with images of {image} ({reason})",
        hint="Choose a larger image_size (VGG networks need at least 32), or another model",
    )


# The rest of this module: networks of users. The driver sends their source code to every machine
# that runs a trial.

_SIGNATURE = "(*, num_outputs, in_channels, image_size) and the arguments of the sweep file"


def install_code(texts: Mapping[str, str]) -> None:
    """Make source code from the driver importable. It replaces other modules of the same name.

    Args:
        texts: source code by relative path, from :func:`search_spaces.user_code.source_texts`.
    """
    if not texts:
        return
    folder = str(_code_folder(tuple(sorted(texts.items()))))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


@cache
def _code_folder(texts: tuple[tuple[str, str], ...]) -> Path:
    """Write source code into a new folder, and return the folder. No other user can write to it."""
    folder = Path(tempfile.mkdtemp(prefix="isweep-code-"))
    for relative, text in texts:
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _build_own(spec: ModelSpec, shape: _BuildOptions) -> nn.Module:
    """Call a user's function, ``package.module:function``, and return its network.

    ``spec.code`` is the hash of the source code at the time of planning. If it is empty, the source
    code is not checked.

    Raises:
        ConfigError: the source code has changed or cannot be imported, the function does not exist
            or fails, or the returned network cannot be trained.
    """
    reference = spec.architecture
    if spec.code and code_hash(reference) != spec.code:
        raise ConfigError(
            f"The source code of your network {reference} has changed since the sweep was planned",
            hint="Run the sweep again",
        )
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(_import_hashed(module_name, reference), name, None)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"Your network {reference} cannot be imported: {one_line(error)}",
            hint=f"Correct the error. `python -c 'import {module_name}'` shows its traceback",
        ) from error
    if function is None:
        raise ConfigError(
            f"Your network {reference} was not found: the module {module_name} has no function "
            f"{name}",
            hint="Correct the name",
        )
    try:
        network = function(
            num_outputs=shape.num_outputs,
            in_channels=shape.in_channels,
            image_size=shape.image_size,
            **_arguments(spec),
        )
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"Your function {reference} raised {one_line(error)}",
            hint=f"Correct the function. It must accept the arguments {_SIGNATURE}",
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"Your function {reference} returned {type(network).__name__}, which is not a "
            "torch.nn.Module",
            hint="Return the network from the function",
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError(
            f"Your network {reference} has no parameters to train",
            hint="Set requires_grad to True for its parameters",
        )
    return network


def _import_hashed(module_name: str, reference: str) -> object:
    """Import a module from the files whose source code was hashed.

    If a module of the same name was imported from another file, it is replaced.
    """
    for name, path in source_files(reference).items():
        loaded = sys.modules.get(name)
        if loaded is None:
            continue
        loaded_path = Path(getattr(loaded, "__file__", None) or "")
        if loaded_path.resolve() != path.resolve():
            del sys.modules[name]
    return importlib.import_module(module_name)


def may_work_on_other_images(
    error: BaseException, model: nn.Module, input_shape: tuple[int, ...]
) -> bool:
    """Return whether a network that failed on black images may work on other images.

    The result is True if the failure depends on pixel values: the network asked for values, or
    it runs on tensors without values. Such a network is accepted. A trial then fails only if
    its own images cause an error.
    """
    if depends_on_pixels(error):
        return True
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.empty(input_shape))
    except (Exception, SystemExit) as fake_error:
        return depends_on_pixels(fake_error)
    return True


def depends_on_pixels(error: BaseException) -> bool:
    """Return whether a forward pass on fake tensors failed because it needs pixel values."""
    while not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause
    return True


def one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message, up to 300 characters."""
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[0][:300]}"


_BUILDERS: dict[str, Callable[[ModelSpec, _BuildOptions], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "isweep": _build_isweep,
    "own": _build_own,
}
