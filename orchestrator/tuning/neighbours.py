"""Which cells are like each other, so that what was found for one can begin the search of another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.tuning.cells import CellKey, TuningCell
from search_spaces.specs import Domain

OTHER_MODEL = 3.0
"""A rate depends more on the network than on the data: another model is this far away, its kin a third."""
OTHER_DOMAIN = 1.0
SPREAD = {"log_train_size": 1.0, "d_data": 10.0, "log_label_sharpness": 2.0}
"""One step of distance in each measured quantity: about the spread over the study's datasets."""


@dataclass(frozen=True)
class Likeness:
    """What is known of a cell's data before anything is trained.

    Attributes:
        domain: Natural or medical.
        measured: Names of ``SPREAD`` with their values; those not measured are left out.
    """

    domain: Domain | None
    measured: Mapping[str, float]

    @classmethod
    def of(
        cls, domain: Domain | None, train_size: int, d_data: float | None, label_sharpness: float | None
    ) -> Likeness:
        """Return it from what is measured; None was not."""
        measured = {"log_train_size": math.log(train_size)}
        if d_data is not None:
            measured["d_data"] = d_data
        if label_sharpness:
            measured["log_label_sharpness"] = math.log(label_sharpness)
        return cls(domain, measured)


def distance(first: TuningCell, second: TuningCell, known: Mapping[str, Likeness]) -> float:
    """Return how unlike two cells are.

    Args:
        first: A cell.
        second: Another.
        known: What is known of each dataset, by name. What is known of both is compared.
    """
    squares = 0.0
    if first.model != second.model:
        kin = first.model.architecture.rstrip("0123456789") == second.model.architecture.rstrip("0123456789")
        squares += (OTHER_MODEL / 3 if kin else OTHER_MODEL) ** 2
    one, other = known.get(first.dataset), known.get(second.dataset)
    if one is not None and other is not None:
        squares += OTHER_DOMAIN**2 * (one.domain != other.domain)
        for name in SPREAD.keys() & one.measured.keys() & other.measured.keys():
            squares += ((one.measured[name] - other.measured[name]) / SPREAD[name]) ** 2
    return math.sqrt(squares)


def nearest_first(
    cell: TuningCell, others: Mapping[CellKey, TuningCell], known: Mapping[str, Likeness]
) -> list[CellKey]:
    """Return the keys of the other cells, the most alike first; ties keep their order."""
    keys = [key for key in others if key != cell.key]
    return sorted(keys, key=lambda key: distance(cell, others[key], known))
