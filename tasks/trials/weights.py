"""Convert weights to the bytes of a file and back: trained weights, and pretrained weights.

The format of the file is safetensors. Unlike a pickle file, a safetensors file cannot contain
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from search_spaces.errors import ConfigError, CorruptStoreError, SetupError
from search_spaces.specs import ModelSpec

ANSWER_TIMEOUT_S = 5.0
"""Seconds after which the server of pretrained weights counts as unreachable."""


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, for pixels that are scaled to [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def to_bytes(model: nn.Module) -> bytes:
    """Return the content of a safetensors file with all parameters and buffers of ``model``.

    The numbers are not rounded. If several layers share a tensor, the file contains the tensor
    once per layer, because safetensors does not allow shared memory.
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
    """Load weights that :func:`to_bytes` returned into ``model``.

    Raises:
        CorruptStoreError: The weights do not fit the network, or ``data`` is not the content
            of a safetensors file.
    """
    try:
        model.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CorruptStoreError(
            f"The stored weights do not fit this network: {reason}",
            hint="Run the sweep again. isweep then trains the network again",
        ) from error


# The functions below concern pretrained weights. The driver downloads these weights once.


def download(spec: ModelSpec) -> bytes:
    """Return the content of a safetensors file with a library's pretrained weights.

    If the cache of the library (``TORCH_HOME``, ``HF_HOME``) contains the weights, nothing is
    downloaded.

    Raises:
        ConfigError: The library has no pretrained weights for the architecture.
        SetupError: The weights cannot be downloaded.
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
    except OSError as error:  # from urllib, from the Hugging Face Hub, or from a full disk
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise SetupError(
            f"The pretrained weights of {spec.library} {spec.architecture} cannot be "
            f"downloaded: {lines[0][:300]}",
            hint="Run the sweep once on a machine with an internet connection. Then copy the "
            "folder `pretrained/` of its root folder (isweep-root) into the root folder of "
            "this machine. Or remove the key `pretrained` from the model",
        ) from error
    return to_bytes(network)


@contextmanager
def _offline_if_unreachable() -> Iterator[None]:
    """Run a ``with`` block that uses the Hugging Face Hub only if its server is reachable.

    If the server is not reachable, the client of the Hub uses only its cache. Otherwise, the
    client would request every possible file name six times, with longer and longer pauses.
    Without a connection, this would take 46 s.
    """
    from huggingface_hub import constants, get_session

    was_offline = constants.HF_HUB_OFFLINE
    reason = ""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT_S)
    # The client may raise any error, for example if a proxy or a certificate is set up
    # wrongly.
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
    """Return the mean and standard deviation of pixels that pretrained weights expect.

    For images with one channel, the result contains the means of the numbers of the three
    colors.

    Raises:
        ConfigError: The library has no pretrained weights for the architecture.
    """
    three_channels = _library_normalization(spec)
    if three_channels is None:
        raise ConfigError(
            f"{spec.library} has no pretrained weights for {spec.architecture}",
            hint="Remove the key `pretrained` from this model",
        )
    if in_channels != 1:
        return three_channels
    mean, std = three_channels
    return Normalization((sum(mean) / len(mean),), (sum(std) / len(std),))


def _library_normalization(spec: ModelSpec) -> Normalization | None:
    """Return the library's mean and standard deviation of pixels for three channels.

    Returns:
        The normalization; None if the library has no pretrained weights for the architecture.
    """
    if spec.library == "timm":
        import timm

        if not timm.is_model(spec.architecture):
            return None
        config = timm.get_pretrained_cfg(spec.architecture)
        if config is None or not config.has_weights:
            return None
        return Normalization(tuple(config.mean), tuple(config.std))
    import torchvision

    if spec.architecture not in torchvision.models.list_models(module=torchvision.models):
        return None
    transforms = torchvision.models.get_model_weights(spec.architecture).DEFAULT.transforms()
    return Normalization(tuple(transforms.mean), tuple(transforms.std))


def start_from(network: nn.Module, data: bytes, spec: ModelSpec) -> None:
    """Load pretrained weights into a network.

    If the classifier of the network has another number of outputs than the pretrained
    classifier, its weights stay random. For one-channel images, the weights of the first
    convolution are summed over the three colors, as in timm. So a gray image has the same
    output as an RGB image with three equal channels.

    Raises:
        ConfigError: The weights do not fit the network, for example because a transformer was
            trained on another image size.
    """
    try:
        pretrained = load(data)
    except SafetensorError as error:
        raise ConfigError(
            f"The pretrained weights of {spec.library} {spec.architecture} are not a valid "
            f"safetensors file: {error}",
            hint=f"Delete the file pretrained/{spec.pretrained_key}.safetensors in the root. "
            "The next run downloads the weights again",
        ) from error
    state = network.state_dict()
    modules = network.named_modules()
    layers = [name for name, module in modules if isinstance(module, nn.Linear | nn.Conv2d)]
    first_weight = f"{layers[0]}.weight"
    classifier = layers[-1]
    if first_weight in pretrained:
        has_colors = pretrained[first_weight].shape[1] == 3
        if has_colors and state[first_weight].shape[1] == 1:
            pretrained[first_weight] = pretrained[first_weight].sum(1, keepdim=True)
    used_weights: dict[str, Tensor] = {}
    misfits: list[str] = []
    for name, value in state.items():
        if name in pretrained and pretrained[name].shape == value.shape:
            used_weights[name] = pretrained[name]
        elif name.rpartition(".")[0] != classifier:
            misfits.append(name)
    if misfits:
        names = ", ".join(sorted(misfits)[:3])
        raise ConfigError(
            f"The pretrained weights do not fit {spec.library} {spec.architecture}. For example, "
            f"these tensors are missing or have another shape: {names}",
            hint="Use the `image_size` and the arguments with which the weights were trained, "
            "or remove the key `pretrained` from the model",
        )
    network.load_state_dict(used_weights, strict=False)
