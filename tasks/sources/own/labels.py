"""Find the class of each row of a user's data.

A *raw label* is the text of a row's label in the data. A *class* is the class name that isweep
uses in plans and results. Three things decide the class of a row: its raw label, the option
``label_map``, and a list of class names in the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from tasks.sources.base import RawRequest
from tasks.sources.own.class_names import LABEL_MAP_HINT, check_class_names
from tasks.sources.own.rows import Rows
from tasks.sources.own.words import is_missing
from tasks.sources.tables import MAX_NAMED, NOT_ONE_VALUE


def find_classes(rows: Rows, request: RawRequest) -> list[str]:
    """Return the class of each row.

    The first of these rules that applies to a raw label decides its class:

    1. If ``label_map`` contains the raw label, the class is its value in ``label_map``.
    2. If the data contain a list of class names, the raw label is an index into this list. The
       first index is 0. If ``label_map`` contains the name with this index, the class is the
       value of this name in ``label_map``. Otherwise the class is the name itself.
    3. In all other cases, the class is the raw label.

    Args:
        rows: The rows. Only their raw labels and the list of class names are used.
        request: The request, with the dataset's ``label_map``.

    Raises:
        DataError: A label or a class name cannot be used: a raw label is missing, a list,
            bytes, or not an index into the class names; the data list a class name twice;
            ``label_map`` contains a label that does not occur in the data; or a class name
            breaks a rule of :func:`check_class_names`.
    """
    raw_labels = rows.cells["label"]
    class_names = rows.class_names
    label_map = dict(request.dataset.label_map)
    if class_names:
        check_class_names(class_names, request)
        repeated = [name for name, count in Counter(class_names).items() if count > 1]
        if repeated:
            raise request.error(
                f"the data contain the class name {repeated[0]!r} twice",
                hint="Give every class a different name",
            )
    class_by_label = {}
    for raw_label in dict.fromkeys(raw_labels):
        class_by_label[raw_label] = _class_of(raw_label, rows, label_map, request)
    _check_label_map(label_map, {*class_by_label, *class_names}, request)
    if NOT_ONE_VALUE in class_by_label and NOT_ONE_VALUE not in label_map:
        raise request.error(
            "the label is a list or bytes, not one text or number, for "
            f"{rows.describe_rows_with_label({NOT_ONE_VALUE})}",
            hint="Write one class per image, as text or number",
        )
    # Missing labels are reported first, because check_class_names would report a blank label
    # as a name that cannot be used.
    classes_in_map = set(label_map.values())
    missing_labels = set()
    for raw_label, class_name in class_by_label.items():
        # A word such as NA is a class if label_map maps a label to it.
        if is_missing(class_name) and class_name not in classes_in_map:
            missing_labels.add(raw_label)
    if missing_labels:
        raise request.error(
            f"the label is missing for {rows.describe_rows_with_label(missing_labels)}",
            hint="Give these images a class, or remove them. If a blank label, NaN or "
            "NA is a class, give it a name in label_map, for example `label_map: {NA: none}`",
        )
    check_class_names(set(class_by_label.values()), request)
    return [class_by_label[raw_label] for raw_label in raw_labels]


def _class_of(raw_label: str, rows: Rows, label_map: Mapping[str, str], request: RawRequest) -> str:
    """Return the class of the rows with this raw label, see :func:`find_classes`.

    Raises:
        DataError: The data list class names, and the raw label is not an index into this list.
    """
    # The spaces around a label do not matter for label_map. If a label is not in label_map,
    # its spaces are not removed, so that check_class_names can report two spellings of a
    # class.
    mapped_class = label_map.get(raw_label.strip())
    if mapped_class is not None:
        return mapped_class
    class_names = rows.class_names
    if not class_names or is_missing(raw_label):
        return raw_label
    if not _is_index(raw_label, len(class_names)):
        raise request.error(
            f"the label is not a class number from 0 to {len(class_names) - 1} for "
            f"{rows.describe_rows_with_label({raw_label})}",
            hint=f"Remove these images, or {LABEL_MAP_HINT}",
        )
    class_name = class_names[int(raw_label)]
    return label_map.get(class_name.strip(), class_name)


def _is_index(raw_label: str, length: int) -> bool:
    """Return whether a raw label consists of digits and is a number below ``length``."""
    return raw_label.isascii() and raw_label.isdigit() and int(raw_label) < length


def _check_label_map(
    label_map: Mapping[str, str],
    labels: set[str],
    request: RawRequest,
) -> None:
    """Check that every label in ``label_map`` occurs in the data.

    Without this check, isweep would silently ignore a misspelled label.

    Args:
        label_map: Raw label, or class name that the data list -> class.
        labels: All raw labels in the data, and all class names that the data list.
        request: The request. Its method ``error`` makes the errors.

    Raises:
        DataError: A label in ``label_map`` does not occur in the data.
    """
    unused = sorted(label_map.keys() - set(map(str.strip, labels)))
    if unused:
        raise request.error(
            "label_map contains labels that do not occur in the data: "
            f"{', '.join(map(repr, unused[:MAX_NAMED]))}",
            hint="Correct these labels, or remove them from label_map",
        )
