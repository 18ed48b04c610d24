"""What an hour of a card and of a CPU core costs, in money and power: a table that a root may replace."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orchestrator.planning.cards import CARDS, Card, card_named
from orchestrator.planning.plain_yaml import read_plain
from search_spaces.errors import ConfigError
from tasks.atomic import read_whole

DEFAULT_CARD = "h100"
LARGEST = 1e6
"""Of dollars and of watts: more than any machine has, and little enough to be read as a mistake."""


class Price(BaseModel):
    """Of one unit, a card or a core.

    Attributes:
        dollars: an hour.
        watts: at work, with its share of the machine if that is to count.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    dollars: float = Field(ge=0, le=LARGEST, allow_inf_nan=False)
    watts: float = Field(ge=0, le=LARGEST, allow_inf_nan=False)


class Prices(BaseModel):
    """The table.

    Attributes:
        card: of a whole graphics card.
        core: of a CPU core; by default about what clouds ask for one of a general machine, and the draw of a
            server's core (assumed).
        origin: where the table is from, for people.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    card: Price = Price(dollars=CARDS[DEFAULT_CARD].price, watts=CARDS[DEFAULT_CARD].watts)
    core: Price = Price(dollars=0.05, watts=8)
    origin: str = f"assumed prices of an {DEFAULT_CARD} and of cloud cores"


def read_prices(path: Path) -> Prices:
    """Read a price table, such as ``{card: a100, core: {dollars: 0, watts: 5}}``; the default without one.

    ``card`` may be a name of :data:`orchestrator.planning.cards.CARDS` instead of numbers; what is left out
    has its default.

    Raises:
        ConfigError: for a table that cannot be read.
    """
    if not os.path.lexists(path):
        return Prices()
    found = _table(path)
    if isinstance(found.get("card"), str):
        card = card_named(found["card"])
        found["card"] = {"dollars": card.price, "watts": card.watts}
    try:
        return Prices.model_validate({"origin": str(path.name), **found})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConfigError(
            f"A price table has card and core, each with dollars and watts an hour, from 0 to {LARGEST:,.0f}",
            f"{path}: {place}: {problem['msg']}",
            "card: {dollars: 2.5, watts: 700}",
        ) from None


def card_to_plan(name: str | None, path: Path) -> Card:
    """Return the card of this name, else the one that a root's table names, else an H100.

    Its price and draw are those that the table has in numbers, if any.

    Raises:
        ConfigError: as :func:`read_prices`, and for a name that is not in the table of cards.
    """
    price = read_prices(path).card
    told = _table(path).get("card") if os.path.lexists(path) else None
    if name is None:
        name = told if isinstance(told, str) else DEFAULT_CARD
    card = card_named(name)
    return replace(card, price=price.dollars, watts=price.watts) if isinstance(told, dict) else card


def _table(path: Path) -> dict[str, Any]:
    try:
        if path.is_char_device():
            raise OSError("a device, which may have no end")
        text = read_whole(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        way_out = "mend it or delete it"
        raise ConfigError("A price table must be readable text", f"{path}: {error}", way_out) from None
    found = read_plain(text, str(path))
    if not isinstance(found, dict):
        raise ConfigError("A price table must be a mapping", str(path), "card: {dollars: 2.5, watts: 700}")
    return found


def amount(value: float) -> str:
    """Spell an amount to two figures, without exponents: ``17,000``, ``0.45``, ``under 0.001``."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return "under 0.001"
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 else f"{rounded:g}"


def roughly(value: float) -> str:
    """Spell an estimate in a sentence: ``about 17,000``, ``under 0.001``, ``0``."""
    found = amount(value)
    return found if found.startswith("under") or found == "0" else f"about {found}"
