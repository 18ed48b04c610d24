"""Networks of one's own: from ``package.module:function`` to a network, on whatever machine a trial runs."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from torch import nn

from search_spaces.errors import ConfigError, SweepError
from search_spaces.own_code import code_hash, source_files
from search_spaces.specs import ModelSpec

_SIGNATURE = "(*, num_outputs, in_channels, image_size) and the arguments of the sweep file"


def install_code(texts: Mapping[str, str]) -> None:
    """Make source that was sent here importable, before anything of the same name.

    Args:
        texts: From :func:`search_spaces.own_code.source_texts`, by relative path.
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

    Args:
        spec: ``architecture`` is ``package.module:function``; ``code`` the hash of its source when the sweep
            was planned, empty to take it as it is.
        num_outputs: number of logits.
        in_channels: channels of the images.
        image_size: their side.

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
        raise ConfigError("Your own network must be importable", f"{reference}: {_line(error)}") from error
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
            f"{reference} raised {_line(error)}",
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


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__
