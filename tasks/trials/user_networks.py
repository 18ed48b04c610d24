"""Build networks of users. A user writes ``package.module:function``, which returns a network.

The driver sends the source code of these functions to every machine that runs a trial.
:func:`install_code` makes the code importable on that machine.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from search_spaces.errors import ConfigError, SweepError
from search_spaces.specs import ModelSpec
from search_spaces.user_code import code_hash, source_files

_SIGNATURE = "(*, num_outputs, in_channels, image_size) and the arguments of the sweep file"
CORRECT_FORWARD = "Correct the forward method of your network"
"""Hint of the error that isweep raises if a user's network fails in a forward pass."""


def install_code(texts: Mapping[str, str]) -> None:
    """Make source code from the driver importable, with priority over equally named modules.

    Args:
        texts: Source code of each file, from :func:`search_spaces.user_code.source_texts`. The
            keys are relative paths.
    """
    if not texts:
        return
    folder = str(_code_folder(tuple(sorted(texts.items()))))
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


@cache
def _code_folder(texts: tuple[tuple[str, str], ...]) -> Path:
    """Write source code into a new folder, and return the folder.

    No other user can write to this folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="isweep-code-"))
    for relative, text in texts:
        path = folder / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def build_user_network(
    spec: ModelSpec, *, num_outputs: int, in_channels: int, image_size: int
) -> nn.Module:
    """Call a user's function, ``package.module:function``, and return its network.

    ``spec.code`` is the hash that the source code had when the sweep was planned. If
    ``spec.code`` is empty, the source code is not checked.

    Raises:
        ConfigError: The source code has changed or cannot be imported. Or the function does
            not exist or raises an error. Or the returned network cannot be trained.
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
            hint=f"Correct the error. To see the traceback, run `python -c 'import {module_name}'`",
        ) from error
    if function is None:
        raise ConfigError(
            f"Your network {reference} was not found: the module {module_name} has no "
            f"function {name}",
            hint="Correct the name",
        )
    try:
        network = function(
            num_outputs=num_outputs,
            in_channels=in_channels,
            image_size=image_size,
            **spec.keyword_arguments,
        )
    except SweepError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"Your function {reference} raised {one_line(error)}",
            hint=f"Correct the function. The function must accept the arguments {_SIGNATURE}",
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
            hint="Set `requires_grad` of the network's parameters to True",
        )
    return network


def _import_hashed(module_name: str, reference: str) -> object:
    """Import a module from the files whose source code was hashed.

    If Python has imported a module of the same name from another file, the module is imported
    again from the hashed file.
    """
    for name, path in source_files(reference).items():
        loaded = sys.modules.get(name)
        if loaded is None:
            continue
        loaded_path = Path(getattr(loaded, "__file__", None) or "")
        if loaded_path.resolve() != path.resolve():
            del sys.modules[name]
    return importlib.import_module(module_name)


def check_user_failure(
    spec: ModelSpec, model: nn.Module, images: Tensor, error: BaseException
) -> None:
    """Raise a ConfigError if a network that raised ``error`` would fail on all images.

    ``images`` is the batch on which the network failed. If the failure depends on the values
    of the pixels, the network may work on other images. Then this function raises no error.
    """
    if depends_on_pixels(error) or _may_run_without_values(model, images.shape):
        return
    raise ConfigError(
        f"Your network {spec.architecture} raised {one_line(error)} on a float32 "
        f"batch of shape {tuple(images.shape)}",
        hint=CORRECT_FORWARD,
    ) from error


def _may_run_without_values(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    """Return whether a model can run on tensors that have a shape and a dtype, but no values.

    The result is also True if the model fails only because it needs the values.
    """
    try:
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            model(torch.empty(input_shape))
    except (Exception, SystemExit) as error:
        return depends_on_pixels(error)
    return True


def depends_on_pixels(error: BaseException) -> bool:
    """Return whether a forward pass on tensors without values failed because it needs the
    values.
    """
    while not isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause
    return True


def one_line(error: BaseException) -> str:
    """Return the type of an exception and the first line of its message.

    The line is cut after 300 characters.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    return f"{type(error).__name__}: {lines[0][:300]}"
