"""Weights of a network as bytes: of a trained network, and pretrained ones of a library.

The format is safetensors, which holds no code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from search_spaces.errors import ConfigError, CorruptStoreError, SetupError
from search_spaces.specs import ModelSpec

ANSWER_TIMEOUT_S = 5.0
"""Seconds that the server of pretrained weights has to answer a first request."""

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels in [0, 1]."""


def to_bytes(model: nn.Module) -> bytes:
    """Return all parameters and buffers of ``model``, bit by bit, as a safetensors file.

    A tensor that layers share is written once per layer: safetensors allows no shared memory.
    """
    state: dict[str, Tensor] = {}
    addresses: set[int] = set()
    for name, value in model.state_dict().items():
        tensor = value.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        if address in addresses:
            tensor = tensor.clone()
        state[name] = tensor
        addresses.add(address)
    return bytes(save(state, metadata={"format": "pt"}))


def load_into(model: nn.Module, data: bytes) -> None:
    """Load weights of :func:`to_bytes` into ``model``, which was built from the same spec.

    Raises:
        CorruptStoreError: they are not the weights of this network.
    """
    try:
        model.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptStoreError(f"Kept weights are not those of the network: {reason}") from error


# Pretrained weights, which the driver downloads once.


def download(spec: ModelSpec) -> bytes:
    """Return the library's pretrained weights of an architecture, as a safetensors file.

    The libraries look into their caches first (``TORCH_HOME``, ``HF_HOME``).

    Raises:
        ConfigError: the library has no weights for the architecture.
        SetupError: the weights cannot be downloaded.
    """
    normalization(spec)  # raises if the library has no weights
    try:
        if spec.library == "timm":
            import timm

            with _offline_if_unreachable():
                network: nn.Module = timm.create_model(spec.architecture, pretrained=True)
        else:
            import torchvision

            network = torchvision.models.get_model(spec.architecture, weights="DEFAULT")
    except OSError as error:  # of urllib, of the hub, of a full disk
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SetupError(
            f"The pretrained weights of {spec.library} {spec.architecture} cannot be downloaded: "
            f"{lines[0][:300]}",
            hint="Run the sweep once where there is a connection and copy the folder pretrained of "
            "its root here, or leave pretrained out",
        ) from error
    return to_bytes(network)


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Let the hub's client use its cache alone if its server does not answer one request.

    Otherwise the client asks for every name that a file may have, six times each with growing
    pauses: 46 s without a connection.
    """
    from huggingface_hub import constants, get_session

    was_offline = constants.HF_HUB_OFFLINE
    reason = ""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT_S)
    # The client's own errors, and those of a proxy's or a certificate's settings.
    except Exception as error:
        reason = f"{constants.ENDPOINT}: {type(error).__name__}: {str(error)[:200]}"
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise OSError(reason or str(error)) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def normalization(spec: ModelSpec, in_channels: int = 3) -> Normalization:
    """Return the mean and standard deviation that the library's pretrained weights expect.

    For one channel they are the means over the three colors.

    Raises:
        ConfigError: the library has no weights for the architecture.
    """
    three_channels = _library_normalization(spec)
    if three_channels is None:
        raise ConfigError(
            f"{spec.library} has no pretrained weights for {spec.architecture}",
            hint="Leave pretrained out for this model",
        )
    if in_channels != 1:
        return three_channels
    mean, std = three_channels
    return (sum(mean) / len(mean),), (sum(std) / len(std),)


def _library_normalization(spec: ModelSpec) -> Normalization | None:
    """Return mean and standard deviation for three channels; None without pretrained weights."""
    if spec.library == "timm":
        import timm

        if not timm.is_model(spec.architecture):
            return None
        config = timm.get_pretrained_cfg(spec.architecture)
        if config is None or not config.has_weights:
            return None
        return tuple(config.mean), tuple(config.std)
    import torchvision

    if spec.architecture not in torchvision.models.list_models(module=torchvision.models):
        return None
    transforms = torchvision.models.get_model_weights(spec.architecture).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


def start_from(network: nn.Module, data: bytes, spec: ModelSpec) -> None:
    """Load pretrained weights into a network.

    The classifier stays random if its number of outputs differs. For one-channel images the first
    convolution takes the sum over the three colors, as timm does: the output for a gray image is
    that for the same image in color.

    Raises:
        ConfigError: the weights do not fit, e.g. those of a transformer for another image size.
    """
    try:
        pretrained = load(data)
    except SafetensorError as error:
        raise ConfigError(f"Pretrained weights are not a safetensors file: {error}") from error
    state = network.state_dict()
    layers: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            layers.append(name)
    first_weight = f"{layers[0]}.weight"
    head = layers[-1]
    if first_weight in pretrained:
        has_colors = pretrained[first_weight].shape[1] == 3
        if has_colors and state[first_weight].shape[1] == 1:
            pretrained[first_weight] = pretrained[first_weight].sum(1, keepdim=True)
    fitting: dict[str, Tensor] = {}
    misfits: list[str] = []
    for name, value in state.items():
        if name in pretrained and pretrained[name].shape == value.shape:
            fitting[name] = pretrained[name]
        elif name.rpartition(".")[0] != head:
            misfits.append(name)
    if misfits:
        names = ", ".join(sorted(misfits)[:3])
        raise ConfigError(
            f"The pretrained weights do not fit {spec.library} {spec.architecture}: {names} differ "
            "in shape or are missing",
            hint="Choose the image_size and arguments that the weights were trained with, or leave "
            "pretrained out",
        )
    network.load_state_dict(fitting, strict=False)
