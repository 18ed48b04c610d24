"""The base class of every record that is stored."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Finding(BaseModel):
    """A stored record: frozen, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON values; ``model_validate`` makes an equal one of them."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """Return the record as JSON text; ``model_validate_json`` makes an equal one of it.

        Raises:
            ValueError: a number in it is not finite. Pydantic would write null for it.
        """
        return json.dumps(self.plain(), allow_nan=False)
