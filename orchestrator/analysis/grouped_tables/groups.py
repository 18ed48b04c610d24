"""Groups and units of the rows of a table. Groups are the replicates of a fit.

A unit is a combination of groups, one from each column of groups. If there is one column of
groups, units and groups are the same. If there are several columns, groups cross: for example,
a pair of classes is one unit and belongs to two groups.

Letters in the shapes of arrays: n rows, U units, G groups.
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
    """Groups of one kind: the groups of one column, or of both columns of a pair.

    Attributes:
        is_of_kind: True for each group of this kind, ``(G,)``.
        num_places: Number of columns with groups of this kind.
        num_in_smallest_place: Number of groups in the column with the fewest groups.
    """

    is_of_kind: NDArray[np.bool_]
    num_places: int
    num_in_smallest_place: int

    @classmethod
    def of(cls, places: pd.DataFrame, names: Codes) -> _Kind:
        """Collect the groups of one kind from the columns that contain them.

        Args:
            places: The columns with groups of this kind.
            names: Names of all groups, ``(G,)``.
        """
        names_of_kind = set(places.to_numpy().ravel())
        is_of_kind = np.array([name in names_of_kind for name in names.tolist()])
        num_places = places.shape[1]
        names_in_place = places.nunique()
        return cls(is_of_kind, num_places, int(names_in_place.min()))


class Groups:
    """The unit of each row, and the groups to which each unit belongs.

    If two columns are the two places of a pair, for example the first and second class, equal
    names mean the same group. In all other columns, equal names mean different groups.

    Attributes:
        remarks: Sentences on names that occur in two columns. Each sentence states whether
            such a name means the same group in both columns.
        unit: Index of each row's unit, ``(n,)``.
        unit_names: Names of the units, ``(U,)``.
        names: Names of the groups, ``(G,)``.
        crossed: True if units are combinations of several columns.
        classes_of_pairs: Codes of both groups of each unit, ``(U, 2)``. None if the columns of
            groups are not the two places of a pair.
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
            pairs: True if all columns contain names of the same kind, for example both classes
                of a pair.
        """
        labels = table[list(columns)].astype(str)
        self.remarks: list[str] = []
        kind_of = {name: name for name in columns}
        for column in columns:
            for earlier in columns[: columns.index(column)]:
                if pairs or _are_places_of_one_pair(labels, earlier, column):
                    kind_of[column] = kind_of[earlier]
                    break
        labels = self._with_distinct_names(labels, kind_of)
        # Sort the names, so that the pair (a, b) is the same unit as (b, a).
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
        """A matrix ``(G, U)``. An entry is 1 if the unit belongs to the group, and 0
        otherwise."""
        self._members.sum_duplicates()
        # If a unit has the same group in both places, it belongs to this group only once.
        self._members.data = np.minimum(self._members.data, 1.0)
        self._kinds = []
        for kind in dict.fromkeys(kind_of.values()):
            places_of_kind = [name for name in columns if kind_of[name] == kind]
            self._kinds.append(_Kind.of(labels[places_of_kind], self.names))
        are_places = len(columns) == 2 and len(self._kinds) == 1
        self.classes_of_pairs: Codes | None = places if are_places else None

    def _with_distinct_names(
        self,
        labels: pd.DataFrame,
        kind_of: dict[str, str],
    ) -> pd.DataFrame:
        """Prefix a name with its column's name if columns of different kinds share the name."""
        distinct = labels.copy()
        for first, second in combinations(labels.columns, 2):
            shared = set(labels[first]) & set(labels[second])
            if not shared:
                continue
            meaning = (
                "the same group. If they are different groups, write other names in one column."
            )
            if kind_of[first] != kind_of[second]:
                meaning = (
                    "different groups. If they are the same groups, swap values until each column "
                    "contains nearly all names."
                )
                for name in labels.columns:
                    if kind_of[name] in (kind_of[first], kind_of[second]):
                        prefixed = f"{kind_of[name]} " + distinct[name]
                        is_shared = distinct[name].isin(shared)
                        distinct[name] = distinct[name].mask(is_shared, prefixed)
            names = plural(len(shared), "name")
            self.remarks.append(f"{names} in both {first} and {second} are read as {meaning}")
        return distinct

    def sums(self, of_units: Array) -> Array:
        """Return the sum of values of units, ``(U, …)``, over each group, ``(G, …)``."""
        if not self.crossed:
            return of_units
        flat = of_units.reshape(len(of_units), -1)
        sums: Array = self._members @ flat
        shape = (len(self.names), *of_units.shape[1:])
        return sums.reshape(shape)

    def degrees(self, carried: Array) -> float:
        """Return the degrees of freedom of a jackknife over crossed groups.

        Each kind of groups has its own degrees of freedom, and the smallest number is
        returned. For the groups of one column, the number is ``1 / Σ share² − 1`` (Carter,
        Schnepel & Steigerwald 2017). For the classes of pairs, it is the number of classes
        minus one, but at most the number of names in the column with fewer names.

        Args:
            carried: The sum of squares of the regressor that each group contributes, ``(G,)``.
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

    Two columns are the places of a pair if they share nearly all names, and if no name is
    paired with itself. Each column may lack one name, or up to a fifth of the names.

    Raises:
        ConfigError: If the table contains a pair in both orders, as (a, b) and as (b, a).
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
                f"The columns {first} and {second} contain a pair in both orders: {a} and {b}, "
                f"{b} and {a}",
                hint="Write each pair in one order. If equal names in the two columns are "
                "different groups, rename these groups in one column",
            )
    return True
