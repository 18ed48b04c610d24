"""Create the listing of a user's data, and check all rules for labels, groups and splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np

from tasks.array_types import Int64Array
from tasks.sources.base import Item, Listing, RawRequest
from tasks.sources.nifti import is_nifti_name
from tasks.sources.own.class_names import sort_labels
from tasks.sources.own.columns import TRAITS
from tasks.sources.own.groups import (
    check_groups,
    check_id_spellings,
    check_no_group_in_both_splits,
    similar_id_flags,
)
from tasks.sources.own.hidden_groups import (
    describe_patient_names,
    find_group_like,
    patient_class_flags,
)
from tasks.sources.own.labels import find_classes
from tasks.sources.own.rows import Rows
from tasks.sources.own.similar_classes import similar_class_flags
from tasks.sources.own.splits import (
    ITEM_SPLITS,
    SPLIT_WORDS,
    VALIDATION_LEFT_OUT,
    GivenSplit,
    parse_split,
)
from tasks.sources.pictures import is_image_name
from tasks.sources.tables import MAX_NAMED

HIDDEN = "hidden, by the dot before its name"
"""Reason for leaving out a file."""
NO_TEST_SPLIT = (
    "no test split beside train and val: call the validation split test, or give train alone"
)
"""Flag of a dataset that has a training split and a validation split, but no test split.
isweep leaves out the validation split."""


def count_hidden(names: Iterable[str], is_readable: Callable[[str], bool]) -> dict[str, int]:
    """Count hidden folders, and hidden files that isweep would read if they were not hidden.

    Args:
        names: Names of files and folders that the search left out. Names of folders end with a
            slash.
        is_readable: Function that returns whether isweep reads a file with the given name.

    Returns:
        A dict for :attr:`Listing.excluded`: the reason -> the count.
    """
    count = 0
    for name in names:
        is_hidden = PurePath(name).name.startswith(".")
        if is_hidden and (name.endswith("/") or is_readable(name)):
            count += 1
    return {HIDDEN: count}


def named_flags(flag: str, names: Sequence[str], max_named: int) -> dict[str, int]:
    """Return one flag for each of the first ``max_named`` names, and one flag for all other names.

    The value of the last flag is the number of the other names.
    """
    flags = {f"{flag}: {name}": 1 for name in names[:max_named]}
    if len(names) > max_named:
        flags[f"other {flag}"] = len(names) - max_named
    return flags


@dataclass(frozen=True, eq=False)
class RowItems(Sequence[Item]):
    """A sequence with the items of rows.

    An item is created only on access, because a list of all items would need much memory.

    Attributes:
        rows: All rows.
        row_indices: Index of each item's row, ``(num_items,)``.
        labels: Class index of each item, ``(num_items,)``.
        splits: Split of every row, including rows without an item.
    """

    rows: Rows
    row_indices: Int64Array
    labels: Int64Array
    splits: Sequence[GivenSplit]

    def __len__(self) -> int:
        return len(self.row_indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return RowItems(self.rows, self.row_indices[index], self.labels[index], self.splits)
        row = int(self.row_indices[index])
        traits = []
        for name in TRAITS:
            if name in self.rows.cells:
                traits.append((name, self.rows.cells[name][row]))
        return Item(
            locator=self.rows.locator(row),
            label=int(self.labels[index]),
            group=self.rows.group(row),
            split=ITEM_SPLITS[self.splits[row]],
            details=self.rows.details(row),
            traits=tuple(traits),
        )

    def __reduce__(self) -> tuple[type[list[Item]], tuple[list[Item]]]:
        """Pickle this sequence as a list of items.

        A pickled slice therefore does not contain the columns of other rows.
        """
        return list, (list(self),)


def own_listing(
    rows: Rows,
    request: RawRequest,
    base_listing: Listing,
    *,
    sort_classes: Callable[[Iterable[str]], list[str]] = sort_labels,
) -> Listing:
    """Return the listing of a user's data.

    The listing has one item for every row. Rows of a validation split have no item.

    Args:
        rows: The rows that the source read.
        request: The request, with the dataset and the key that hashes names in messages.
        base_listing: A listing without items and classes. The result is a copy of it with
            items and classes, and with further flags and counts of excluded rows.
        sort_classes: Function that sorts the names of the classes.

    Raises:
        DataError: Labels, groups or splits break a rule of :mod:`tasks.sources.own`.
    """
    class_of_row = find_classes(rows, request)
    splits = _row_splits(rows, request)
    check_groups(rows, request)
    item_rows = []
    item_classes = []
    for row, split in enumerate(splits):
        if split is not GivenSplit.VALIDATION:
            item_rows.append(row)
            item_classes.append(class_of_row[row])
    classes = tuple(sort_classes(set(item_classes)))
    num_validation = len(splits) - len(item_rows)
    _check_two_classes(classes, num_validation, request)
    check_id_spellings(rows, item_rows, request)
    check_no_group_in_both_splits(rows, item_rows, splits, request)
    index_of_class = {name: index for index, name in enumerate(classes)}
    labels = np.array([index_of_class[name] for name in item_classes], np.int64)
    # The items outlive this function. They do not need the unused columns, which may be large.
    rows_of_items = replace(rows, unused_cells={})
    items = RowItems(rows_of_items, np.array(item_rows, np.int64), labels, splits)
    # The source may also have left out validation images. The sum of counters drops zeros.
    excluded = Counter(base_listing.excluded) + Counter({VALIDATION_LEFT_OUT: num_validation})
    num_images_by_class = Counter(item_classes)
    flags = _column_flags(rows, class_of_row)
    flags |= base_listing.flags
    flags |= _split_flags(rows, splits, excluded[VALIDATION_LEFT_OUT])
    flags |= similar_id_flags(rows, item_rows)
    flags |= _patient_name_flags(rows, class_of_row)
    flags |= patient_class_flags(num_images_by_class)
    flags |= similar_class_flags(num_images_by_class)
    flags |= _absent_class_flags(rows.class_names, classes, request)
    return replace(
        base_listing,
        items=items,
        label_names=classes,
        excluded=dict(excluded),
        flags=flags,
    )


def _check_two_classes(classes: Sequence[str], num_validation: int, request: RawRequest) -> None:
    """Check that there are at least two classes, not counting images of a validation split.

    Raises:
        DataError: There are fewer than two classes.
    """
    if len(classes) >= 2:
        return
    text = f"only the class {classes[0]}" if classes else "no class"
    if num_validation:
        text += f" ({num_validation} rows are in a validation split)"
    raise request.error(
        f"isweep needs images of two classes, but these images have {text}",
        hint="Add images of a second class",
    )


def _row_splits(rows: Rows, request: RawRequest) -> list[GivenSplit]:
    """Return the split of every row.

    The cell in the column ``split`` decides the split. If this cell is blank, or if there is
    no such column, the name of the row's file or folder decides the split.

    Raises:
        DataError: A cell does not name a split, or it names another split than the row's file
            or folder.
    """
    row_indices = range(len(rows.cells["label"]))
    file_splits = list(map(rows.file_split, row_indices))
    cells = rows.cells.get("split")
    if cells is None:
        return file_splits
    unknown = []
    contradictory = []
    splits = []
    for row, (cell, file_split) in enumerate(zip(cells, file_splits, strict=True)):
        split = parse_split(cell) if cell.strip() else file_split
        if cell.strip() and split is GivenSplit.NONE:
            unknown.append(row)
        if file_split not in (GivenSplit.NONE, split):
            contradictory.append(row)
        splits.append(split)
    if unknown:
        raise request.error(
            f"the column 'split' has an unknown word for {rows.describe(unknown)}",
            hint=f"Leave the cell blank, or write one of these words: {', '.join(SPLIT_WORDS)}",
        )
    if contradictory:
        raise request.error(
            "the column 'split' contradicts the name of the folder or file for "
            f"{rows.describe(contradictory)}",
            hint="Remove the column, or move the files",
        )
    return splits


def _column_flags(rows: Rows, class_of_row: Sequence[str]) -> dict[str, int]:
    """Return flags about chosen and unused columns: flag -> number of rows."""
    if rows.columns is None:
        return {}
    group_like = []
    if "group" not in rows.cells:
        group_like = find_group_like(rows.unused_cells, class_of_row)
    return dict.fromkeys(rows.columns.flags(group_like), len(class_of_row))


def _split_flags(rows: Rows, splits: Sequence[GivenSplit], num_validation: int) -> dict[str, int]:
    """Return flags for rows without a split, and for a validation split without a test split.

    Args:
        rows: All rows.
        splits: Split of every row.
        num_validation: Number of images that are left out because of a validation split.
    """
    flags = {}
    num_without = splits.count(GivenSplit.NONE)
    if "split" in rows.cells and num_without:
        flags["row without a split: used for training or testing"] = num_without
    if num_validation and set(splits) - {GivenSplit.VALIDATION} == {GivenSplit.TRAIN}:
        flags[NO_TEST_SPLIT] = num_validation
    return flags


def _patient_name_flags(rows: Rows, class_of_row: Sequence[str]) -> dict[str, int]:
    """Return a flag if names of image files look like patients, and the images have no group."""
    paths = []
    classes = []
    for row, class_name in enumerate(class_of_row):
        path = rows.image_path(row)
        # DICOM files have patient ids in their headers.
        has_no_header = is_image_name(path) or is_nifti_name(path)
        # If there is no group column, each volume is a group whose id is its path.
        if has_no_header and rows.group(row) in ("", path):
            paths.append(path)
            classes.append(class_name)
    description = describe_patient_names(paths, classes)
    if not description:
        return {}
    question = "do images of one patient belong together?"
    return {f"{description}: {question} If so, {rows.group_hint}": len(paths)}


def _absent_class_flags(
    listed_classes: Sequence[str], classes: Sequence[str], request: RawRequest
) -> dict[str, int]:
    """Return flags for class names that the data list but that no image has."""
    label_map = dict(request.dataset.label_map)
    present = set(classes)
    absent = [name for name in listed_classes if label_map.get(name, name) not in present]
    return named_flags("class without an image", absent, MAX_NAMED)
