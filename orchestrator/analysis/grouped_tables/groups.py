"""Groups of rows, the replicates that intervals count, and units, their combinations.

With one column of groups, units and groups are the same. Groups may also cross: a pair of classes
is one unit and belongs to two groups. Shape letters: n rows, U units, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from orchestrator.analysis.inference import MIN_CLASSES, Array, Codes
from search_spaces.errors import ConfigError, plural


@dataclass(frozen=True, slots=True)
class _Kind:
    """Groups of one kind: those of one column, or of all places of a pair.

    Attributes:
        is_of_kind: Whether a group is one of them, ``(G,)``.
        num_places: Columns that hold them.
        num_in_smallest_place: Names in the column that holds fewest.
    """

    is_of_kind: NDArray[np.bool_]
    num_places: int
    num_in_smallest_place: int

    @classmethod
    def of(cls, places: pd.DataFrame, names: Codes) -> _Kind:
        """Collect the groups of one kind from the columns that hold them."""
        names_of_kind = set(places.to_numpy().ravel())
        is_of_kind = np.array([name in names_of_kind for name in names.tolist()])
        num_places = places.shape[1]
        names_in_place = places.nunique()
        return cls(is_of_kind, num_places, int(names_in_place.min()))


class Groups:
    """The units of rows, and the groups that each unit belongs to.

    A name is of its own column, unless two columns are places of one pair, as the first and second
    class are. ``remarks`` says where two columns share names, and how that was understood.

    Attributes:
        unit: Index of each row's unit, ``(n,)``.
        unit_names: Names of the units, U of them.
        names: Names of the groups, ``(G,)``.
        crossed: Whether units are combinations of several columns.
        classes_of_pairs: Codes of both groups of every unit, ``(U, 2)``, if the table itself shows
            that two columns are the places of one pair; else None.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        columns: Sequence[str],
        pairs: bool,
    ) -> None:
        """Collect the units and groups of a table.

        Args:
            table: Rows with the columns of groups.
            columns: Columns of groups.
            pairs: Whether all columns name the same things, as both classes of a pair do.
        """
        labels = table[list(columns)].astype(str)
        self.remarks: list[str] = []
        kind_of = {name: name for name in columns}
        for column in columns:
            for earlier in columns[: columns.index(column)]:
                if pairs or _are_places_of_one_pair(labels, earlier, column):
                    kind_of[column] = kind_of[earlier]
                    break
        labels = self._tell_names_apart(labels, kind_of)
        rows = np.sort(labels.to_numpy(str), axis=1)
        units, unit = np.unique(rows, axis=0, return_inverse=True)
        self.unit = unit.reshape(-1)
        self.unit_names = [" and ".join(row) for row in units.tolist()]
        self.names = np.unique(units)
        self.crossed = len(columns) > 1
        places = np.searchsorted(self.names, units)
        num_units, num_places = places.shape
        unit_of_place = np.repeat(np.arange(num_units), num_places)
        ones = np.ones(places.size)
        self._members = csr_array(
            (ones, (places.ravel(), unit_of_place)),
            shape=(len(self.names), num_units),
        )
        """A matrix that is 1 where a group holds a unit, ``(G, U)``."""
        self._members.sum_duplicates()
        self._members.data = np.minimum(self._members.data, 1.0)
        self._kinds = []
        for kind in dict.fromkeys(kind_of.values()):
            places_of_kind = [name for name in columns if kind_of[name] == kind]
            self._kinds.append(_Kind.of(labels[places_of_kind], self.names))
        are_places = len(columns) == 2 and len(self._kinds) == 1 and not pairs
        self.classes_of_pairs: Codes | None = places if are_places else None

    def _tell_names_apart(
        self,
        labels: pd.DataFrame,
        kind_of: dict[str, str],
    ) -> pd.DataFrame:
        """Put the column before a name that two columns of different kinds share."""
        told_apart = labels.copy()
        for first, second in combinations(labels.columns, 2):
            shared = set(labels[first]) & set(labels[second])
            if not shared:
                continue
            understood = "the same group. If they are not, write other names in one column."
            if kind_of[first] != kind_of[second]:
                understood = (
                    "different groups. If they are the same, swap values until each column "
                    "holds nearly all names."
                )
                for name in labels.columns:
                    if kind_of[name] in (kind_of[first], kind_of[second]):
                        prefixed = f"{kind_of[name]} " + told_apart[name]
                        is_shared = told_apart[name].isin(shared)
                        told_apart[name] = told_apart[name].mask(is_shared, prefixed)
            names = plural(len(shared), "name")
            self.remarks.append(f"{names} in both {first} and {second} are read as {understood}")
        return told_apart

    def sums(self, of_units: Array) -> Array:
        """Add up what units have, ``(U, …)``, by group, ``(G, …)``."""
        if not self.crossed:
            return of_units
        flat = of_units.reshape(len(of_units), -1)
        sums: Array = self._members @ flat
        shape = (len(self.names), *of_units.shape[1:])
        return sums.reshape(shape)

    def degrees(self, carried: Array) -> float:
        """Return degrees of freedom of a jackknife over crossed groups, for the scarcest kind.

        Groups of one column count as ``1 / Σ share²`` groups of equal weight, less one (Carter,
        Schnepel & Steigerwald 2017). Classes of pairs count as the smaller number of names in a
        place of the pair.

        Args:
            carried: How much of the regressor's variation each group carries, ``(G,)``.
        """
        degrees = []
        for kind in self._kinds:
            if kind.num_places > 1:
                num_groups = int(kind.is_of_kind.sum())
                fewest = min(num_groups - 1, kind.num_in_smallest_place)
                degrees.append(float(fewest))
            else:
                carried_by_kind = carried[kind.is_of_kind]
                shares = carried_by_kind / carried_by_kind.sum()
                num_equal = 1 / float(shares @ shares)
                degrees.append(num_equal - 1)
        return min(degrees)


def _are_places_of_one_pair(labels: pd.DataFrame, first: str, second: str) -> bool:
    """Return whether two columns are the two places of a pair.

    They share nearly all names (each may lack one, or a fifth), and nothing is paired with itself.

    Raises:
        ConfigError: A pair stands in both orders, which would be two units.
    """
    first_names = set(labels[first])
    second_names = set(labels[second])
    pairs = set(zip(labels[first], labels[second], strict=True))
    num_names = len(first_names | second_names)
    lacking_in_second = len(first_names - second_names)
    lacking_in_first = len(second_names - first_names)
    num_lacking = max(lacking_in_first, lacking_in_second)
    is_pair = (
        num_names >= MIN_CLASSES
        and num_lacking <= max(1, num_names // 5)
        and not any(a == b for a, b in pairs)
    )
    if not is_pair:
        return False
    for a, b in pairs:
        if (b, a) in pairs:
            raise ConfigError(
                f"{first} and {second} hold a pair in both orders: {a} and {b}, {b} and {a}",
                hint="Write each pair in one order. If the columns do not name pairs, use other "
                "names in one column",
            )
    return True
