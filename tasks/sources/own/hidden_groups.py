"""Find unused columns whose values look like ids of patients.

If such a column is ignored, images of one patient may be in both training and test. An id has two
signs: several images have the same id, and all images with the same id have the same label. Columns
such as a scanner or an age also repeat, but their images have different labels.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

from tasks.sources.own.words import NO_IDS
from tasks.sources.tables import NOT_ONE_VALUE

MIN_REPEATED_VALUES = 10
"""Smallest number of repeated values of an id. Fewer values can have one label each by chance."""
MIN_VALUES_PER_CLASS = 3
"""Smallest number of repeated values for each class. A column with one value for each class, such
as the class in another language, has fewer."""
MIN_SHARE_WITH_ONE_LABEL = 0.9
"""Smallest share of the repeated values whose images all have one label. A few patients may have
images of several classes."""
MIN_STANDARD_DEVIATIONS = 3.0
"""Standard deviations by which the number of such values must exceed its mean for random labels. If
90 % of all images have one label, most values have one label by chance."""


def look_like_groups(values: Sequence[str], labels: Sequence[str]) -> bool:
    """Return whether the cells of a column look like ids of patients.

    Args:
        values: Cells of the column, one per image. Blank cells are ignored.
        labels: Label of each image.
    """
    labels_by_value: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for value, label in zip(values, labels, strict=True):
        text = value.strip()
        if text.casefold() not in NO_IDS and text != NOT_ONE_VALUE:
            labels_by_value[text][label] += 1
    class_sizes: Counter[str] = Counter()
    repeated = []
    for counts in labels_by_value.values():
        class_sizes.update(counts)
        if counts.total() > 1:
            repeated.append(counts)
    num_needed = max(MIN_REPEATED_VALUES, MIN_VALUES_PER_CLASS * len(class_sizes))
    if len(repeated) < num_needed or _are_measurements(labels_by_value):
        return False
    num_with_one_label = sum(len(counts) == 1 for counts in repeated)
    if num_with_one_label < MIN_SHARE_WITH_ONE_LABEL * len(repeated):
        return False
    num_images = class_sizes.total()
    expected = 0.0
    variance = 0.0
    for counts in repeated:
        size = counts.total()
        chance = sum((count / num_images) ** size for count in class_sizes.values())
        expected += chance
        variance += chance * (1 - chance)
    return num_with_one_label > expected + MIN_STANDARD_DEVIATIONS * math.sqrt(variance)


def _are_measurements(values: Collection[str]) -> bool:
    """Return whether more than half of the values are numbers with decimals, such as 71.5."""
    num_measurements = 0
    for value in values:
        try:
            number = float(value)
        except ValueError:
            continue
        num_measurements += not number.is_integer()
    return 2 * num_measurements > len(values)
