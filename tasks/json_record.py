"""The base class of all stored records."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class JsonRecord(BaseModel):
    """A stored record. It cannot be changed, and rejects unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def plain(self) -> dict[str, Any]:
        """Return the record as JSON values. ``model_validate`` converts them to an equal record."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """Return the record as JSON text. ``model_validate_json`` converts it to an equal record.

        Raises:
            ValueError: A number in the record is not finite. Pydantic would write null
                instead.
        """
        return json.dumps(self.plain(), allow_nan=False)
