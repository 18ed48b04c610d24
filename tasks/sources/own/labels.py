"""Find the class of each row from its label in the data, ``label_map`` and the class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from tasks.sources.base import RawRequest
from tasks.sources.own.class_names import LABEL_MAP_HINT, check_class_names
from tasks.sources.own.rows import Rows
from tasks.sources.own.words import is_missing
from tasks.sources.tables import MAX_NAMED, SEVERAL_VALUES


def find_classes(rows: Rows, request: RawRequest, class_names: Sequence[str] = ()) -> list[str]:
    """Return the class of each row.

    The first of these rules that applies to a label decides its class:

    1. ``label_map`` has the label: the class is the one in ``label_map``.
    2. The data contain a list of class names: the label is a number in this list. The class is the
       name with this number, or the class to which ``label_map`` maps this name.
    3. The class is the label.

    Args:
        rows: The rows; only their labels are used.
        request: The request, with the dataset's ``label_map``.
        class_names: Names of the labels 0, 1, ... if the data have such names.

    Raises:
        DataError: A label is missing, a class has several spellings, or a class name breaks a rule
            of :func:`check_class_names`.
    """
    raw_labels = rows.cells["label"]
    label_map = dict(request.dataset.label_map)
    if class_names:
        check_class_names(class_names, request)
        repeated = [name for name, count in Counter(class_names).items() if count > 1]
        if repeated:
            raise request.error(
                f"the data contain the class name {repeated[0]!r} twice",
                hint="Give every class a different name",
            )
    class_of_label = {}
    for label in dict.fromkeys(raw_labels):
        class_of_label[label] = _class_of(label, rows, request, label_map, class_names)
    _check_label_map(label_map, {*class_of_label, *class_names}, request)
    # SEVERAL_VALUES is the text that the reader of a table writes for a list or for bytes.
    if SEVERAL_VALUES in class_of_label and SEVERAL_VALUES not in label_map:
        raise request.error(
            "the label is a list or bytes, not one text or number, for "
            f"{rows.describe_labeled({SEVERAL_VALUES})}",
            hint="Write one class per image, as text or number",
        )
    classes_in_map = set(label_map.values())
    missing_labels = set()
    for label, class_name in class_of_label.items():
        # A word such as NA is a class if label_map maps a label to it.
        if is_missing(class_name) and class_name not in classes_in_map:
            missing_labels.add(label)
    if missing_labels:
        raise request.error(
            f"the label is blank for {rows.describe_labeled(missing_labels)}",
            hint="Write a class for each of these images, or remove the images. To use "
            "blank, NaN or NA as a class, add it to label_map",
        )
    check_class_names(set(class_of_label.values()), request)
    return [class_of_label[label] for label in raw_labels]


def _class_of(
    label: str,
    rows: Rows,
    request: RawRequest,
    label_map: Mapping[str, str],
    class_names: Sequence[str],
) -> str:
    """Return the class of the rows with this label, see :func:`find_classes`.

    Raises:
        DataError: The data contain a list of class names, and the label is not a number in it.
    """
    mapped_class = label_map.get(label.strip())
    if mapped_class is not None:
        return mapped_class
    if not class_names or is_missing(label):
        return label
    if not _is_index(label, len(class_names)):
        raise request.error(
            f"the label is not a class number from 0 to {len(class_names) - 1} for "
            f"{rows.describe_labeled({label})}",
            hint=f"Remove these images, or {LABEL_MAP_HINT}",
        )
    class_name = class_names[int(label)]
    return label_map.get(class_name.strip(), class_name)


def _is_index(label: str, length: int) -> bool:
    """Return whether a label is an index into a list of this length, in decimal digits."""
    return label.isascii() and label.isdigit() and int(label) < length


def _check_label_map(label_map: Mapping[str, str], labels: set[str], request: RawRequest) -> None:
    """Check that the data have every label of ``label_map``.

    Without this check, a misspelled label would be ignored silently.
    """
    unused = sorted(label_map.keys() - set(map(str.strip, labels)))
    if unused:
        raise request.error(
            "label_map contains labels that do not occur in the data: "
            f"{', '.join(map(repr, unused[:MAX_NAMED]))}",
            hint="Correct these labels, or remove them from label_map",
        )
