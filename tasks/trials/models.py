"""Build networks from a :class:`~search_spaces.specs.ModelSpec`.

A network comes from torchvision, from timm, from :mod:`tasks.trials.networks`, or from a
user's ``package.module:function``. Every model takes float pixels in [0, 255] of shape
``(num_images, channels, height, width)``. The model itself scales the pixels, so the epsilon
of an attack has the unit of the pixels.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from search_spaces.errors import ConfigError, plural, unknown_name
from search_spaces.specs import ModelSpec
from tasks.trials import networks
from tasks.trials.isolation import fixed_torch_state, seeded
from tasks.trials.networks import PoolsFirst
from tasks.trials.user_networks import CORRECT_FORWARD, build_user_network, check_user_failure
from tasks.trials.weights import Normalization, normalization, start_from


class PixelModel(nn.Module):
    """A network with its input scaling: ``network(pixels * input_scale)``.

    Pretrained weights expect pixels that are normalized as in their own training. So if
    ``normalized`` is not None, the model computes ``network((pixels / 255 - mean) / std)``
    instead.
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
    """The input and output sizes of a network, and its dropout probability.

    Attributes:
        num_outputs: Number of logits.
        in_channels: Number of channels of an image.
        image_size: Side of the square images, in pixels.
        dropout: Dropout probability of all dropout layers; None for the default of the
            library.
    """

    num_outputs: int
    in_channels: int
    image_size: int
    dropout: float | None

    def batch_shape(self, num_images: int) -> tuple[int, int, int, int]:
        """Return the shape of a batch with this number of images."""
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

    The architecture may be any classification architecture of torchvision or timm. For
    one-channel images, the function replaces the first convolution of a torchvision network.
    The new convolution has PyTorch's default initialization, as in the released code of Konz &
    Mazurowski (ICLR 2024).

    Args:
        spec: The spec of the network: library, architecture and arguments.
        num_outputs: Number of logits.
        in_channels: Number of channels of an image, 1 or 3.
        input_scale: Factor by which the model multiplies pixels in [0, 255].
        dropout: Dropout probability of all dropout layers; None for the default of the
            library.
        seed: Seed of the random weights.
        image_size: Side of the square images, in pixels.
        pretrained: Content of a safetensors file with the initial weights; None for random
            weights.

    Raises:
        ConfigError: The library has no such architecture. Or the image is too small for the
            architecture. Or the recipe has dropout, but the network has no dropout layers.
    """
    options = _BuildOptions(num_outputs, in_channels, image_size, dropout)
    with seeded(seed):
        network = _BUILDERS[spec.library](spec, options)
    if dropout is not None and spec.library != "timm":  # timm takes dropout as an argument
        _set_dropout(spec, network, dropout)
    if pretrained is not None:
        start_from(network, pretrained, spec)
    normalized = normalization(spec, in_channels) if spec.pretrained else None
    model = PixelModel(network, input_scale, normalized)
    _check_forward(spec, model, options)
    for parameter in model.parameters():
        if parameter.dim() == 4:
            # Convolutions are fastest in this layout, both on a CPU and on a GPU.
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def num_parameters(model: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _build_torchvision(spec: ModelSpec, options: _BuildOptions) -> nn.Module:
    """Build a torchvision classifier with random weights."""
    import torchvision

    architectures = torchvision.models.list_models(module=torchvision.models)
    if spec.architecture not in architectures:
        raise unknown_name("torchvision architecture", spec.architecture, architectures)
    defaults: dict[str, object] = {}
    if spec.architecture in ("googlenet", "inception_v3"):
        # `aux_logits` switches off auxiliary outputs. `init_weights` prevents a warning about
        # a changed default.
        defaults = {"aux_logits": False, "init_weights": True}
    elif spec.architecture.startswith("vit_"):
        defaults = {"image_size": options.image_size}
    network = _construct(
        spec,
        options,
        torchvision.models.get_model,
        defaults,
        weights=None,
        num_classes=options.num_outputs,
    )
    _set_input_channels(network, options.in_channels)
    return network


def _build_timm(spec: ModelSpec, options: _BuildOptions) -> nn.Module:
    """Build a timm classifier with random weights."""
    import timm

    if not timm.is_model(spec.architecture):
        hint = "Choose a name from timm.list_models()"
        similar = difflib.get_close_matches(spec.architecture, timm.list_models(), n=5)
        if similar:
            hint = f"Choose a name from timm.list_models(), for example {', '.join(similar)}"
        raise ConfigError(f"timm has no architecture {spec.architecture!r}", hint=hint)
    defaults: dict[str, object] = {}
    if options.dropout is not None:
        defaults["drop_rate"] = options.dropout
    if timm.get_pretrained_cfg(spec.architecture).fixed_input_size:
        defaults["img_size"] = options.image_size
    return _construct(
        spec,
        options,
        timm.create_model,
        defaults,
        pretrained=False,
        in_chans=options.in_channels,
        num_classes=options.num_outputs,
    )


def _build_isweep(spec: ModelSpec, options: _BuildOptions) -> nn.Module:
    """Build a network of :mod:`tasks.trials.networks`."""
    function = getattr(networks, spec.architecture, None)
    if function is None:
        architectures = [
            name
            for name, member in inspect.getmembers(networks, inspect.isfunction)
            if not name.startswith("_")
        ]
        raise unknown_name("isweep architecture", spec.architecture, architectures)
    in_file = f"{spec.architecture} in tasks/trials/networks.py"
    arguments = {
        "num_outputs": options.num_outputs,
        "in_channels": options.in_channels,
        "image_size": options.image_size,
    }
    own_arguments = inspect.signature(function).parameters
    if own_arguments.keys() != arguments.keys():
        raise ConfigError(
            f"The function {in_file} has the arguments {', '.join(own_arguments)}, but isweep "
            "passes other arguments",
            hint=f"Give the function the arguments {', '.join(arguments)}",
        )
    network = function(**arguments)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"The function {in_file} returned an object of type {type(network).__name__}, which is "
            "not a network",
            hint="Return a torch.nn.Module",
        )
    return network


def _build_user(spec: ModelSpec, options: _BuildOptions) -> nn.Module:
    """Build a network by calling a user's function."""
    return build_user_network(
        spec,
        num_outputs=options.num_outputs,
        in_channels=options.in_channels,
        image_size=options.image_size,
    )


def _set_input_channels(network: nn.Module, in_channels: int) -> None:
    """Replace the first convolution if its number of input channels is not ``in_channels``."""
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
    """Set the dropout probability of all dropout layers of a network."""
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
    options: _BuildOptions,
    constructor: Callable[..., nn.Module],
    defaults: dict[str, object],
    **fixed: object,
) -> nn.Module:
    """Build a library's network.

    In a VGG, each max-pooling runs before its ReLU during training, see :class:`PoolsFirst`.

    Args:
        spec: The spec, with the architecture and its arguments.
        options: Sizes of the network, for messages.
        constructor: The library's function that builds a network.
        defaults: Keyword arguments that ``spec`` may replace.
        fixed: Keyword arguments that ``spec`` must not contain. If ``spec`` contains one of
            them, Python raises a TypeError. This function converts it to a ConfigError.

    Raises:
        ConfigError: The arguments or the image size do not fit the network.
    """
    try:
        keywords = {**defaults, **spec.keyword_arguments}
        network = constructor(spec.architecture, **fixed, **keywords)
    except (AssertionError, ValueError) as error:  # transformers check the image size here
        raise _does_not_fit(spec, options, error) from error
    except TypeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"{spec.library} {spec.architecture} does not accept the arguments "
            f"{dict(spec.arguments)}: {reason}",
            hint="Correct the arguments of this model",
        ) from error
    if type(network).__name__ == "VGG":
        network.features.__class__ = PoolsFirst
    return network


def _check_forward(spec: ModelSpec, model: PixelModel, options: _BuildOptions) -> None:
    """Raise a ConfigError if the model does not return one row of logits per image.

    A forward pass fails if the image is too small. This is the only way to check the image
    size, because no library has a table of the smallest image size of each architecture.
    """
    is_user_network = spec.library == "own"
    # A user's network is tested with two images, because it may wrongly mix the images of a
    # batch.
    num_images = 2 if is_user_network else 1
    images = torch.zeros(options.batch_shape(num_images))
    model.eval()
    try:
        with torch.no_grad():
            logits = model(images)
    except (Exception, SystemExit) as error:
        # A user's network may raise any error. A library's network raises an error if the
        # image is too small.
        if is_user_network:
            check_user_failure(spec, model, images, error)
            # The network may work on other images, so this function does not reject it.
            return
        if isinstance(error, AssertionError | RuntimeError | ValueError):
            raise _does_not_fit(spec, options, error) from error
        raise
    finally:
        model.train()
    if isinstance(logits, Tensor) and logits.shape == (num_images, options.num_outputs):
        return
    returned = type(logits).__name__
    if isinstance(logits, Tensor):
        returned = str(tuple(logits.shape))
    network_name = f"{spec.library} {spec.architecture}"
    hint = "Choose an architecture for classification"
    if spec.library == "isweep":
        hint = f"Correct the function {spec.architecture} in tasks/trials/networks.py"
    if is_user_network:
        network_name = f"Your network {spec.architecture}"
        hint = CORRECT_FORWARD
    raise ConfigError(
        f"{network_name} returned {returned} for {plural(num_images, 'image')}, but should "
        f"return logits of the shape ({num_images}, {options.num_outputs})",
        hint=hint,
    )


def check_buildable(
    spec: ModelSpec,
    *,
    num_outputs: int,
    in_channels: int,
    image_size: int,
    dropout: float | None,
) -> None:
    """Check that a network can be built. A run does this before it prepares data or trains
    networks.

    The networks of a library are built on torch's meta device, which needs no memory. The
    first forward pass on this device imports compilers, which takes two seconds. So isweep's
    small networks, and the networks of users, are built on the CPU.

    Raises:
        ConfigError: See :func:`build_model`.
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


def _does_not_fit(spec: ModelSpec, options: _BuildOptions, error: Exception) -> ConfigError:
    """Return the error for a network that cannot be built for images of this size."""
    reason = type(error).__name__
    if str(error):
        reason = str(error).splitlines()[0]
    image = f"{options.in_channels}x{options.image_size}x{options.image_size}"
    return ConfigError(
        f"{spec.library} {spec.architecture} cannot be used with images of {image} ({reason})",
        hint="Choose a larger `image_size` (VGG networks need at least 32), or another model",
    )


_BUILDERS: dict[str, Callable[[ModelSpec, _BuildOptions], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "isweep": _build_isweep,
    "own": _build_user,
}
