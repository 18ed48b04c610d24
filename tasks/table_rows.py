"""Load the function or object that a row of a table names as text.

Tables such as :data:`search_spaces.attacks.ATTACKS` are read often. Their rows name functions
as ``module:name``, so that reading a table imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from search_spaces.errors import ConfigError


def load_target(target: str, row: str) -> Any:
    """Return the object that ``target`` names as ``module:name``.

    Args:
        target: Text of the row.
        row: Place of the text in messages: file, table, name of the row and field.

    Raises:
        ConfigError: The module does not exist, or contains no such name.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name or target.startswith("."):
        raise ConfigError(f"{row} is {target!r}", hint="Write package.module:name")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # The module itself may import a library that is not installed. This is another error.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ConfigError(
            f"{row} is {target!r}, but there is no module {error.name}",
            hint="Correct the name of the module",
        ) from None
    if not hasattr(module, name):
        raise ConfigError(
            f"{row} is {target!r}, but the module {module_name} contains no {name}",
            hint="Correct the name, or write the function",
        )
    return getattr(module, name)
