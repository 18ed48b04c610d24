"""Find the class of each row from its label in the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.sources.base import RawRequest
from tasks.sources.own.class_names import LABEL_MAP_HINT, check_class_names
from tasks.sources.own.rows import Rows
from tasks.sources.own.words import is_missing
from tasks.sources.tables import MAX_NAMED, SEVERAL


def classes_of_rows(rows: Rows, request: RawRequest, class_names: Sequence[str] = ()) -> list[str]:
    """Return the class of each row: its label, after ``label_map`` and ``class_names`` are applied.

    Args:
        rows: Only the labels are read.
        request: Its dataset has the ``label_map``.
        class_names: Names of the labels 0, 1, ... if the data give them.

    Raises:
        DataError: Labels are missing, are different spellings of one class, or are not plausible
            names of classes.
    """
    written = rows.cells["label"]
    label_map = dict(request.dataset.label_map)
    if class_names:
        check_class_names(class_names, request)
        if len(set(class_names)) < len(class_names):
            raise request.error("a class name stands twice in the data's list of classes")
    class_of_cell = {}
    for cell in dict.fromkeys(written):
        class_of_cell[cell] = _class_of(cell, rows, request, class_names)
    _check_label_map(label_map, {*class_of_cell, *class_names}, request)
    if SEVERAL in class_of_cell and SEVERAL not in label_map:
        raise request.error(
            "several labels, or bytes, stand in place of a label for "
            f"{rows.describe_labeled({SEVERAL})}",
            hint="Write one class per image, as text or number",
        )
    mapped = set(label_map.values())
    blank = set()
    for cell, class_name in class_of_cell.items():
        if is_missing(class_name) and class_name not in mapped:
            blank.add(cell)
    if blank:
        raise request.error(
            f"the label is blank for {rows.describe_labeled(blank)}",
            hint="Give these images a class, or take them out. Blank, NaN and NA are classes "
            "only if label_map says so",
        )
    check_class_names(set(class_of_cell.values()), request)
    return [class_of_cell[cell] for cell in written]


def _class_of(cell: str, rows: Rows, request: RawRequest, class_names: Sequence[str]) -> str:
    """Return the class of the rows whose label is ``cell``, see :func:`classes_of_rows`.

    Raises:
        DataError: The data name the labels by number, and ``cell`` is not one of these numbers.
    """
    label_map = dict(request.dataset.label_map)
    mapped = label_map.get(cell.strip())
    if mapped is not None:
        return mapped
    if not class_names or is_missing(cell):
        return cell
    if not (cell.isascii() and cell.isdigit() and int(cell) < len(class_names)):
        raise request.error(
            f"the label is not a number of a class name, 0 to {len(class_names) - 1}, for "
            f"{rows.describe_labeled({cell})}",
            hint=f"Take these images out, or {LABEL_MAP_HINT}",
        )
    class_name = class_names[int(cell)]
    return label_map.get(class_name.strip(), class_name)


def _check_label_map(label_map: Mapping[str, str], labels: set[str], request: RawRequest) -> None:
    """Check that every label of the map is in the data: a misspelled one would have no effect."""
    unused = sorted(label_map.keys() - set(map(str.strip, labels)))
    if unused:
        raise request.error(
            "label_map names labels that the data do not have: "
            f"{', '.join(map(repr, unused[:MAX_NAMED]))}",
            hint="Correct or drop them",
        )
