"""Load the function or object whose name is a text in a row of a table.

Many modules read tables such as :data:`search_spaces.attacks.ATTACKS`. A row contains the text
``module:name`` instead of a function, so a module can read the table without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from search_spaces.errors import ConfigError


def load_target(target: str, row: str) -> Any:
    """Return the object with the name ``target``, a text ``module:name``.

    Args:
        target: The text ``module:name`` in the row.
        row: The place of the text, for error messages: file, table, name of the row and field.

    Raises:
        ConfigError: The module does not exist, or contains no such name.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name or target.startswith("."):
        raise ConfigError(f"{row} is {target!r}", hint="Write package.module:name")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # If the module exists but imports a library that is not installed, raise the original
        # error.
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
