"""The rows of a user's own data, one per image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from search_spaces.errors import plural
from tasks.sources.base import first_of
from tasks.sources.own.columns import Cells, Columns
from tasks.sources.own.splits import GivenSplit

FROM_ZERO = "the first row is 0"
"""The numbering of rows in numpy and pandas, for messages about arrays and Parquet files."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a user's data, one per image, as the module of a kind reads them.

    Each function takes the index of a row. The first row has the index 0.

    Attributes:
        cells: The columns ``label`` and, if the data have them, ``group``, ``split`` and
            :data:`TRAITS`.
        locator: Returns the locator of a row's image.
        name: Returns the name of a row for messages. It contains no id and no file name.
        numbering: Returns a text that explains the row numbers in the row's file, such as
            ``the first row is 0``. The text is empty if rows have no numbers.
        default_group: Returns the group of a row if there is no column ``group``: the row's
            folder or volume.
        image_path: Returns the path of a row's image file; empty if rows have no files of
            their own.
        group_hint: Hint for the user about adding groups to the data.
        file_split: Returns the split that the name of a row's file or folder states.
        details: Returns the details of a row's item.
        columns: The choice of columns; None if the data have no columns.
        unused_cells: The columns that are not read, by name, if they have one value per row.
            Unless there are groups, the values are searched for ids of patients.
        class_names: Class names that the data list, in the order of their indices. Empty
            if the data contain no such list.
    """

    cells: Cells
    locator: Callable[[int], str]
    name: Callable[[int], str] = "row {}".format
    numbering: Callable[[int], str] = lambda _: FROM_ZERO
    default_group: Callable[[int], str] = lambda _: ""
    image_path: Callable[[int], str] = lambda _: ""
    group_hint: str = "add a column `group`"
    file_split: Callable[[int], GivenSplit] = lambda _: GivenSplit.NONE
    details: Callable[[int], tuple[str | int | float | None, ...]] = lambda _: ()
    columns: Columns | None = None
    unused_cells: Cells = field(default_factory=dict)
    class_names: Sequence[str] = ()

    def group(self, row: int) -> str:
        """Return the group id of a row."""
        if "group" in self.cells:
            return self.cells["group"][row]
        return self.default_group(row)

    def describe(self, rows: Iterable[int]) -> str:
        """Format the number of rows and the names of the first ones, for a message."""
        listed = list(rows)
        names = first_of(map(self.name, listed))
        return f"{plural(len(listed), 'image')}: {names}{self.describe_numbering(listed)}"

    def describe_numbering(self, rows: Sequence[int]) -> str:
        """Format the numbering of rows, such as `` (the first row is 0)``, with a leading space.

        Returns an empty text if rows have no numbers.
        """
        if not rows or not self.numbering(rows[0]):
            return ""
        return f" ({self.numbering(rows[0])})"

    def describe_rows_with_label(self, labels: set[str]) -> str:
        """Format the number and names of the rows that have one of these labels in the data."""
        return self.describe(row for row, cell in enumerate(self.cells["label"]) if cell in labels)
