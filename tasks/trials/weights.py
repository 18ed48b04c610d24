"""Weights as bytes (safetensors: no code in them), of a trained network and of a library: kept, put
back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from search_spaces.errors import ConfigError, CorruptStoreError, SetupError
from search_spaces.specs import ModelSpec

ANSWER_TIMEOUT_S = 5.0
"""Of the server that weights come from, to a first question."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of pixels in [0, 1]."""


def to_bytes(model: nn.Module) -> bytes:
    """Return all parameters and buffers of ``model``, bit by bit, as a safetensors file.

    What layers share is written once per layer: safetensors has no tensors that share memory.
    """
    state, seen = {}, set()
    for name, value in model.state_dict().items():
        kept = value.detach().cpu().contiguous()
        place = kept.untyped_storage().data_ptr()
        state[name] = kept.clone() if place in seen else kept
        seen.add(place)
    return bytes(save(state, metadata={"format": "pt"}))


def load_into(model: nn.Module, data: bytes) -> None:
    """Put weights from :func:`to_bytes` into ``model``, which was built from the same spec.

    Raises:
        CorruptStoreError: when they are no weights of this network.
    """
    try:
        model.load_state_dict(load(data))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise CorruptStoreError("Kept weights must be those of the network", first) from error


# Weights that a library trained: downloaded once, by the driver.


def download(spec: ModelSpec) -> bytes:
    """Return the weights that the library has for an architecture, as a safetensors file.

    The libraries look into their own caches first (``TORCH_HOME``, ``HF_HOME``).

    Raises:
        ConfigError: when the library has none.
        SetupError: when they cannot be downloaded.
    """
    normalisation(spec)  # says whether there are any
    try:
        if spec.library == "timm":
            import timm

            with _asked_once():
                network: nn.Module = timm.create_model(spec.architecture, pretrained=True)
        else:
            import torchvision

            network = torchvision.models.get_model(spec.architecture, weights="DEFAULT")
    except OSError as error:  # of urllib, of the hub, of a full disk
        first = (
            str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        )
        raise SetupError(
            f"The pretrained weights of {spec.library} {spec.architecture} must be downloaded once",
            first,
            "run it once where there is a connection, then copy the root's pretrained folder here; "
            "or leave "
            "pretrained out",
        ) from error
    return to_bytes(network)


@contextmanager
def _asked_once() -> Iterator[None]:
    """Have the hub's client look into its own cache alone where its server does not answer.

    It would ask for every name that a file may have, six times each with growing pauses: 46 s
    without a connection.
    """
    from huggingface_hub import constants, get_session

    before, reason = constants.HF_HUB_OFFLINE, ""
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_TIMEOUT_S)
    except (
        Exception
    ) as error:  # its client's own kinds, and those of a proxy's or certificate's settings
        reason = f"{constants.ENDPOINT}: {type(error).__name__}: {str(error)[:200]}"
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise OSError(reason or str(error)) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def normalisation(spec: ModelSpec, in_channels: int = 3) -> Normalisation:
    """Return how pixels in [0, 1] were shifted and scaled when the library's weights were trained.

    Of one channel it is the mean over the three.

    Raises:
        ConfigError: when the library has no weights for the architecture.
    """
    found: Normalisation | None = None
    if spec.library == "timm":
        import timm

        config = (
            timm.get_pretrained_cfg(spec.architecture) if timm.is_model(spec.architecture) else None
        )
        if config is not None and config.has_weights:
            found = tuple(config.mean), tuple(config.std)
    else:
        import torchvision

        if spec.architecture in torchvision.models.list_models(module=torchvision.models):
            weights = torchvision.models.get_model_weights(spec.architecture).DEFAULT
            shown = weights.transforms()
            found = tuple(shown.mean), tuple(shown.std)
    if found is None:
        raise ConfigError(
            "pretrained needs a network for which its library has weights",
            f"{spec.library} {spec.architecture}",
            "leave pretrained out for this model",
        )
    mean, std = found
    return found if in_channels != 1 else ((sum(mean) / len(mean),), (sum(std) / len(std),))


def start_from(network: nn.Module, data: bytes, spec: ModelSpec) -> None:
    """Put downloaded weights into a network.

    The classifier stays random where its number of outputs is another one. For one-channel images
    the first convolution takes the sum over the three colours, as timm does: a grey image gives
    what it would give in colour.

    Raises:
        ConfigError: when they do not fit, as those of a transformer for another image size.
    """
    try:
        given = load(data)
    except SafetensorError as error:
        raise ConfigError("Pretrained weights must be a safetensors file", str(error)) from error
    own = network.state_dict()
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    first, head = f"{layers[0]}.weight", layers[-1]
    if first in given and own[first].shape[1] == 1 and given[first].shape[1] == 3:
        given[first] = given[first].sum(1, keepdim=True)
    shapes = {name: value.shape for name, value in given.items()}
    fitting = {name: given[name] for name, value in own.items() if shapes.get(name) == value.shape}
    strange = sorted(
        name for name in own.keys() - fitting.keys() if name.rpartition(".")[0] != head
    )
    if strange:
        raise ConfigError(
            "Pretrained weights must fit the network",
            (
                f"{spec.library} {spec.architecture}: {', '.join(strange[:3])} differ in shape or "
                "are "
                "missing"
            ),
            "choose the image_size (and arguments) they were trained with, or leave pretrained out",
        )
    network.load_state_dict(fitting, strict=False)
