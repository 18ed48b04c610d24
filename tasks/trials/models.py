"""Networks with random initial weights, built from a :class:`~search_spaces.specs.ModelSpec`.

They are of a library, small ones of ours, or one's own: ``package.module:function``. Every model
takes float pixels in [0, 255] of shape ``(num_images, channels, height, width)``: scaling is part
of the model, so that attacks keep pixel units.
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

from search_spaces.errors import ConfigError, SweepError, unknown_name
from search_spaces.models import code_hash, source_files
from search_spaces.specs import ModelSpec
from tasks.trials.isolation import contained, seeded
from tasks.trials.weights import Normalisation, normalisation, start_from


class PixelModel(nn.Module):
    """A network behind its input scaling: ``network(pixels * input_scale)``.

    With ``normalised`` it is ``network((pixels / 255 - mean) / std)``, whatever ``input_scale``
    says: what a pretrained network's weights were made for.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, input_scale: float, normalised: Normalisation | None = None
    ) -> None:
        super().__init__()
        self.network = network
        self.input_scale = input_scale
        self.normalised = normalised is not None
        if normalised is not None:
            mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in normalised)
            self.register_buffer("mean", mean, persistent=False)
            self.register_buffer("std", std, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(num_images, num_outputs)`` for float pixels in [0, 255]."""
        if self.normalised:
            normal: Tensor = self.network((pixels / 255 - self.mean) / self.std)
            return normal
        logits: Tensor = self.network(
            pixels if self.input_scale == 1 else pixels * self.input_scale
        )
        return logits


@dataclass(frozen=True)
class _Shape:
    num_outputs: int
    in_channels: int
    image_size: int
    dropout: float | None


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
    """Build a network with random weights that depend on ``seed`` and the arguments alone.

    Any classification architecture of torchvision or timm works by its name there; ``isweep`` has
    ``small_cnn`` and ``small_mlp`` for short CPU trainings. Where torchvision's first convolution
    has to be replaced for one-channel images, the new one keeps PyTorch's default initialisation,
    as in the released code of Konz & Mazurowski (ICLR 2024).

    Scaling by ``input_scale`` is part of the model. ``dropout`` is the probability in all dropout
    layers, None keeps the library's. A network whose ``spec`` is pretrained starts from the weights
    in ``pretrained``; without them it has random ones, for kept weights to be put in.

    Raises:
        ConfigError: for an architecture its library does not know, an image too small for the
            architecture, or dropout asked of a network that has none.
    """
    shape = _Shape(num_outputs, in_channels, image_size, dropout)
    with seeded(seed):
        network = _BUILDERS[spec.library](spec, shape)
    if dropout is not None and spec.library != "timm":  # which sets its own
        _set_dropout(spec, network, dropout)
    if pretrained is not None:
        start_from(network, pretrained, spec)
    shown = normalisation(spec, in_channels) if spec.pretrained else None
    model = PixelModel(network, input_scale, shown)
    _check_forward(spec, model, shape)
    for parameter in model.parameters():
        if (
            parameter.dim() == 4
        ):  # the layout that convolutions are fastest with, on a CPU and on a GPU
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return model


def num_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _build_torchvision(spec: ModelSpec, shape: _Shape) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if spec.architecture not in known:
        raise unknown_name("torchvision architecture", spec.architecture, known)
    options: dict[str, object] = {}
    if spec.architecture in ("googlenet", "inception_v3"):
        # One output, and no warning about a new default.
        options = {"aux_logits": False, "init_weights": True}
    elif spec.architecture.startswith("vit_"):
        options = {"image_size": shape.image_size}
    network = _construct(
        spec,
        shape,
        lambda: torchvision.models.get_model(
            spec.architecture,
            weights=None,
            num_classes=shape.num_outputs,
            **options | _arguments(spec),
        ),
    )
    _set_input_channels(network, shape.in_channels)
    return network


def _build_timm(spec: ModelSpec, shape: _Shape) -> nn.Module:
    import timm

    if not timm.is_model(spec.architecture):
        near = difflib.get_close_matches(spec.architecture, timm.list_models(), n=5)
        hint = f"nearest names: {', '.join(near)}" if near else "timm.list_models() lists the names"
        raise ConfigError("Unknown timm architecture", repr(spec.architecture), hint)
    options: dict[str, object] = {} if shape.dropout is None else {"drop_rate": shape.dropout}
    if timm.get_pretrained_cfg(spec.architecture).fixed_input_size:
        options["img_size"] = shape.image_size
    return _construct(
        spec,
        shape,
        lambda: timm.create_model(
            spec.architecture,
            pretrained=False,
            in_chans=shape.in_channels,
            num_classes=shape.num_outputs,
            **options | _arguments(spec),
        ),
    )


def _build_small(spec: ModelSpec, shape: _Shape) -> nn.Module:
    if spec.architecture not in _SMALL:
        raise unknown_name("isweep architecture", spec.architecture, _SMALL)
    return _SMALL[spec.architecture](shape)


class _SmallCnn(nn.Sequential):
    """In training each ReLU comes behind the pool after it: the same numbers of a quarter of the
    places.
    """

    def forward(self, images: Tensor) -> Tensor:
        layers = list(self)
        for place in (2, 6, 10) if self.training else ():
            layers[place : place + 2] = layers[place + 1], layers[place]
        for layer in layers:
            images = layer(images)
        return images


def _small_cnn(shape: _Shape) -> nn.Module:
    def stage(num_in: int, num_out: int, pool: nn.Module) -> list[nn.Module]:
        convolution = nn.Conv2d(num_in, num_out, 3, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(num_out), nn.ReLU(inplace=True), pool]

    return _SmallCnn(
        *stage(shape.in_channels, 8, nn.MaxPool2d(2)),
        *stage(8, 16, nn.MaxPool2d(2)),
        # A maximum over coarse places, not a mean over all: a small lesion must not be averaged
        # away.
        *stage(16, 32, nn.AdaptiveMaxPool2d(4)),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(16 * 32, shape.num_outputs),
    )


def _small_mlp(shape: _Shape) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(shape.in_channels * shape.image_size**2, 128),
        nn.ReLU(inplace=True),
        nn.Linear(128, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
        nn.Linear(64, shape.num_outputs),
    )


def _arguments(spec: ModelSpec) -> dict[str, object]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in spec.arguments
    }


_SMALL: dict[str, Callable[[_Shape], nn.Module]] = {
    "small_cnn": _small_cnn,
    "small_mlp": _small_mlp,
}


def _set_input_channels(network: nn.Module, in_channels: int) -> None:
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if module.in_channels != in_channels:
            parent, _, attribute = name.rpartition(".")
            first = nn.Conv2d(
                in_channels,
                module.out_channels,
                module.kernel_size,  # type: ignore[arg-type]
                module.stride,  # type: ignore[arg-type]
                module.padding,  # type: ignore[arg-type]
                bias=module.bias is not None,
            )
            setattr(network.get_submodule(parent), attribute, first)
        return


def _set_dropout(spec: ModelSpec, network: nn.Module, probability: float) -> None:
    layers = [module for module in network.modules() if isinstance(module, nn.Dropout)]
    if probability > 0 and not layers:
        raise ConfigError(
            "A recipe with dropout needs a network that has dropout layers",
            f"dropout {probability} for {spec.name}",
            "leave dropout out of the recipe for this model",
        )
    for layer in layers:
        layer.p = probability


def _construct(spec: ModelSpec, shape: _Shape, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except (
        AssertionError,
        ValueError,
    ) as error:  # transformers check the image size when they are made
        raise _does_not_fit(spec, shape, error) from error
    except TypeError as error:
        raise ConfigError(
            "The arguments of a network must be those that its library takes",
            (
                f"{spec.library} {spec.architecture} {dict(spec.arguments)}: "
                f"{str(error).splitlines()[0]}"
            ),
        ) from error


def _check_forward(spec: ModelSpec, model: PixelModel, shape: _Shape) -> None:
    # One forward pass finds out what no table of minimal sizes could know for every architecture.
    # One's own network might mix up the images of a batch.
    num_images = 2 if spec.library == "own" else 1
    shown = (num_images, shape.in_channels, shape.image_size, shape.image_size)
    model.eval()
    try:
        with torch.no_grad():
            logits = model(torch.zeros(shown))
    except (Exception, SystemExit) as error:
        # A library's network fails where an image is too small for it; one's own may fail in any
        # way.
        if spec.library == "own":
            if fails_by_pixels(error, model, shown):
                return
            raise ConfigError(
                "Your own network must take a batch of images",
                f"{spec.architecture} raised {one_line(error)} on {shown} float32",
            ) from error
        if not isinstance(error, AssertionError | RuntimeError | ValueError):
            raise
        raise _does_not_fit(spec, shape, error) from error
    finally:
        model.train()
    if not isinstance(logits, Tensor) or logits.shape != (num_images, shape.num_outputs):
        returned = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ConfigError(
            "A model returns one row of logits per image",
            f"{spec.library} {spec.architecture} returned {returned} for {num_images} "
            f"image{'s'[: num_images - 1]} and {shape.num_outputs} outputs",
            "choose a classification architecture",
        )


def check_buildable(
    spec: ModelSpec, *, num_outputs: int, in_channels: int, image_size: int, dropout: float | None
) -> None:
    """Find out whether a network can be built, before anything is prepared or trained.

    Libraries' networks are built without memory, on torch's meta device, whose first pass imports
    compilers for two seconds; small ones, and one's own, as they will be.

    Raises:
        ConfigError: see :func:`build_model`.
    """
    with contained(), torch.device("cpu" if spec.library in ("own", "isweep") else "meta"):
        build_model(
            spec,
            num_outputs=num_outputs,
            in_channels=in_channels,
            input_scale=1.0,
            dropout=dropout,
            seed=0,
            image_size=image_size,
        )


def _does_not_fit(spec: ModelSpec, shape: _Shape, error: Exception) -> ConfigError:
    return ConfigError(
        "An image must be large enough, and of a size that fits, for the architecture",
        f"{shape.in_channels}x{shape.image_size}x{shape.image_size} for {spec.library} "
        f"{spec.architecture} "
        f"({str(error).splitlines()[0] if str(error) else type(error).__name__})",
        "choose a larger image_size (VGGs need at least 32) or another model",
    )


# Networks of one's own, on whatever machine a trial runs.

_SIGNATURE = "(*, num_outputs, in_channels, image_size) and the arguments of the sweep file"


def install_code(texts: Mapping[str, str]) -> None:
    """Make source that was sent here importable, before anything of the same name.

    ``texts`` come from :func:`search_spaces.models.source_texts`, by relative path.
    """
    if not texts:
        return
    folder = str(_written(tuple(sorted(texts.items()))))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


@cache
def _written(texts: tuple[tuple[str, str], ...]) -> Path:
    """Write source into a folder that this process alone has, so that nobody else can put code
    there.
    """
    folder = Path(tempfile.mkdtemp(prefix="isweep-code-"))
    for relative, text in texts:
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def _build_own(spec: ModelSpec, shape: _Shape) -> nn.Module:
    """Call one's own function and return its network.

    ``spec.architecture`` is ``package.module:function``, ``spec.code`` the hash of its source when
    the sweep was planned, empty to take it as it is.

    Raises:
        ConfigError: when the source is another one now, cannot be imported, has no such function,
            raises, or returns no network.
    """
    reference = spec.architecture
    if spec.code and code_hash(reference) != spec.code:
        raise ConfigError(
            "The source of your own network must stay as it was planned",
            reference,
            "run the sweep again",
        )
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(_fresh(module_name, reference), name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            "Your own network must be importable", f"{reference}: {one_line(error)}"
        ) from error
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
            "Your own function must build a network",
            f"{reference} raised {one_line(error)}",
            f"it is called with {_SIGNATURE}",
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            "Your own function must return a torch.nn.Module",
            f"{reference}: {type(network).__name__}",
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("Your own network must have parameters to train", f"{reference}: none")
    return network


def _fresh(module: str, reference: str) -> object:
    """Import the module from the files that were hashed, even where an older one was imported
    before.
    """
    for name, path in source_files(reference).items():
        loaded = sys.modules.get(name)
        if (
            loaded is not None
            and Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve()
        ):
            del sys.modules[name]
    return importlib.import_module(module)


def fails_by_pixels(error: BaseException, model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell whether a pass that failed on black images may work on others: then only its cells may
    fail.
    """
    if depends_on_pixels(error):
        return True
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.empty(shape))
    except (Exception, SystemExit) as fake:
        return depends_on_pixels(fake)
    return True


def depends_on_pixels(error: BaseException) -> bool:
    """Tell whether a pass with tensors that hold no data failed because it asked for their
    values.
    """
    while not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        if error.__cause__ is None and error.__context__ is None:
            return False
        error = error.__cause__ or error.__context__ or error
    return True


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line of at most 300 characters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


_BUILDERS: dict[str, Callable[[ModelSpec, _Shape], nn.Module]] = {
    "torchvision": _build_torchvision,
    "timm": _build_timm,
    "isweep": _build_small,
    "own": _build_own,
}
