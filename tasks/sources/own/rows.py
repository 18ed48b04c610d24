"""The record of a user's rows, and the texts that describe rows in messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from search_spaces.errors import plural
from tasks.sources.base import first_of
from tasks.sources.own.columns import Cells, Columns
from tasks.sources.own.splits import GivenSplit

FROM_ZERO = "the first row is 0"
"""Text that explains the row numbers in messages about arrays and Parquet files. numpy and
pandas number rows in the same way."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of a user's data, one per image.

    Many fields are functions. Each function takes the index of a row, counted from 0.

    Attributes:
        cells: Role of a column -> its cells. The roles are ``label`` and, if the data have
            them, ``group``, ``split`` and :data:`TRAITS`.
        locator: Function that returns the locator of a row's image.
        name: Function that returns the name of a row for messages. The name contains no id and
            no file name.
        numbering: Function that returns a text about the row numbers in the row's file, such
            as ``the first row is 0``. The text is empty if rows have no numbers.
        default_group: Function that returns the group of a row if there is no column
            ``group``. This group is the folder or volume of the row.
        image_path: Function that returns the path of a row's image file. The path is empty if
            a file contains the images of several rows.
        group_hint: Text that explains to the user how to add groups to the data.
        file_split: Function that returns the split in the name of a row's file or folder.
        details: Function that returns the field ``details`` of a row's item.
        columns: The columns that isweep chose; None if the data have no columns.
        unused_cells: Name of a column that is not read -> its cells, one per row. If there is
            no group column, isweep searches these cells for patient ids.
        class_names: Class names that the data list. Entry i is the name of the class with
            index i. Empty if the data contain no such list.
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
        """Format the number of rows and the names of the first rows, for a message."""
        listed = list(rows)
        names = first_of(map(self.name, listed))
        return f"{plural(len(listed), 'image')}: {names}{self.describe_numbering(listed)}"

    def describe_numbering(self, rows: Sequence[int]) -> str:
        """Return a text in parentheses about the row numbers, such as `` (the first row is 0)``.

        The text begins with a space. If rows have no numbers, the text is empty.
        """
        if not rows or not self.numbering(rows[0]):
            return ""
        return f" ({self.numbering(rows[0])})"

    def describe_rows_with_label(self, labels: set[str]) -> str:
        """Format the number and the first names of the rows that have one of these raw labels."""
        return self.describe(row for row, cell in enumerate(self.cells["label"]) if cell in labels)
