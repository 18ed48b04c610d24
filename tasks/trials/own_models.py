"""Networks of one's own: from ``package.module:function`` to a network, on whatever machine a trial runs."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from search_spaces.errors import ConfigError, SweepError
from search_spaces.models import code_hash, source_files
from search_spaces.specs import ModelSpec

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
    """Write source into a folder that this process alone has, so that nobody else can put code there."""
    folder = Path(tempfile.mkdtemp(prefix="isweep-code-"))
    for relative, text in texts:
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def build_own(spec: ModelSpec, *, num_outputs: int, in_channels: int, image_size: int) -> nn.Module:
    """Call one's own function and return its network.

    ``spec.architecture`` is ``package.module:function``, ``spec.code`` the hash of its source when the sweep
    was planned, empty to take it as it is.

    Raises:
        ConfigError: when the source is another one now, cannot be imported, has no such function, raises, or
            returns no network.
    """
    reference = spec.architecture
    if spec.code and code_hash(reference) != spec.code:
        raise ConfigError(
            "The source of your own network must stay as it was planned", reference, "run the sweep again"
        )
    module_name, _, name = reference.partition(":")
    try:
        function = getattr(_fresh(module_name, reference), name)
    except (Exception, SystemExit) as error:
        raise ConfigError("Your own network must be importable", f"{reference}: {one_line(error)}") from error
    try:
        network = function(
            num_outputs=num_outputs,
            in_channels=in_channels,
            image_size=image_size,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in spec.arguments},
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
            "Your own function must return a torch.nn.Module", f"{reference}: {type(network).__name__}"
        )
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigError("Your own network must have parameters to train", f"{reference}: none")
    return network


def _fresh(module: str, reference: str) -> object:
    """Import the module from the files that were hashed, even where an older one was imported before."""
    for name, path in source_files(reference).items():
        loaded = sys.modules.get(name)
        if loaded is not None and Path(getattr(loaded, "__file__", None) or "").resolve() != path.resolve():
            del sys.modules[name]
    return importlib.import_module(module)


def fails_by_pixels(error: BaseException, model: nn.Module, shape: tuple[int, ...]) -> bool:
    """Tell whether a pass that failed on black images may work on others: then only its cells may fail."""
    if depends_on_pixels(error):
        return True
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.empty(shape))
    except (Exception, SystemExit) as fake:
        return depends_on_pixels(fake)
    return True


def depends_on_pixels(error: BaseException) -> bool:
    """Tell whether a pass with tensors that hold no data failed because it asked for their values."""
    while not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        if error.__cause__ is None and error.__context__ is None:
            return False
        error = error.__cause__ or error.__context__ or error
    return True


def one_line(error: BaseException) -> str:
    """Return what an exception says, on one line of at most 300 characters."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
