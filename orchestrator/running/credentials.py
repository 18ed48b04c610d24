"""Credentials in the driver's environment: out of Ray's files, and in the one process that needs them.

Tune copies keys of AWS into the runtime environment of every trial, which Ray's agents write to their logs in
clear. Trials need none: weights and checkpoints go through :class:`.keeper.Keeper`.
"""

from __future__ import annotations

import os
from typing import Any

STORAGE_PREFIXES = ("AWS_", "AZURE_STORAGE_", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_")
"""Of the variables that name object stores and open them."""


def for_storage() -> dict[str, str]:
    """Return the variables of this process by which object stores are reached."""
    return {name: value for name, value in os.environ.items() if name.startswith(STORAGE_PREFIXES)}


def keep_out_of_runtime_environments() -> None:
    """Take credentials off the list of variables that Tune copies to its trials."""
    from ray.tune.execution import class_cache

    copied: Any = class_cache.ENV_VARS_TO_PROPAGATE
    copied.difference_update({name for name in copied if name.startswith(STORAGE_PREFIXES)})
