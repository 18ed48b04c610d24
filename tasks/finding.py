"""The base of everything that is found and kept: typed, frozen, finite."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """A record: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON values, from which ``model_validate`` makes an equal one."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """Return the record as JSON text, from which ``model_validate_json`` makes an equal one.

        Raises:
            ValueError: when a number in it is not finite (pydantic would write null).
        """
        return json.dumps(self.plain(), allow_nan=False)
