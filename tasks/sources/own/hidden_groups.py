"""Find unused columns, and names of image files, that look like patient ids.

If isweep ignores such ids, the training set and the test set may share patients. Two signs
reveal patient ids: several images have the same id, and all images with the same id have the
same class. The values in a column of scanners or ages also repeat. But images with the same
scanner or age have different classes.

If the search finds such ids, isweep asks the user about them in a flag. The search has limits.
It does not find ids in these cases:

- There are fewer than 10 patients, or fewer patients than three times the number of classes.
- Each patient has one image, or many patients have images of several classes.
- There are two classes, each patient has 4 images, and only one or two patients have the rare
  class.
- The ids have decimals, such as 12.1 for the first visit of patient 12.

The search also finds columns that determine the class, such as a detailed diagnosis.

In the name of a file, the id is a word that means patient, followed by a number, as in
``patient_003_2.png``. The search also tests three other parts of a path: the first word of the
file's name, the name without its last word, and the folder. Such a part counts as an id only
if it has the two signs above.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import chain

from tasks.sources.own.words import NO_IDS
from tasks.sources.tables import GROUP_WORDS, NOT_ONE_VALUE

MIN_REPEATED_VALUES = 10
"""In an id column, at least this number of values must occur in several rows. If there are
fewer such values, each of them may have only one class by chance."""
MIN_MEAN_VALUES_PER_CLASS = 3
"""An id column must have at least this number of repeated values per class. A column with the
class in another language has only one value per class."""
MIN_SHARE_WITH_ONE_CLASS = 0.9
"""In an id column, at least this share of the repeated values must have images of only one
class. A few patients may have images of several classes."""
MIN_STANDARD_DEVIATIONS = 3.0
"""In an id column, the number of values with only one class must exceed its mean for random
classes by this number of standard deviations. If 90 % of all images have the same class, most
values have only one class by chance."""
PATIENT_ABBREVIATIONS = ("sub", "subj", "pat", "pt")
"""Abbreviations that mean patient or subject in file names, as in ``sub-01`` (BIDS)."""
PATIENT_IN_PATH = re.compile(
    rf"(?:(?:^|(?<=/))p|(?<![^\W\d_])(?:{'|'.join((*GROUP_WORDS, *PATIENT_ABBREVIATIONS))}))"
    r"[\s_-]*\d+"
)
"""Pattern of a word that means patient, followed by a number, in a path in lower case. A
single ``p``, as in ``p0012``, counts only at the start of a name, because ``scan_p1`` may be a
page."""
COPY_WORDS = r"[hv]?flip(?:ped)?|mirror(?:ed)?|rot(?:ated?)?|aug(?:mented)?|copy"
COPY_IN_PATH = re.compile(
    rf"(?<=/)(?:{COPY_WORDS})\d*[\W_]+|(?:_|[^\w/])+(?:{COPY_WORDS})[\W_]*\d*(?=\.[^/]*$)"
)
"""Pattern of the part of a path that marks a changed copy of an image, such as ``_flipped``.
Paths are in lower case. Without this part, the path is the path of the original image."""
WORD_SEPARATOR = re.compile(r"[\W_]+")
"""Pattern of the characters between two words of a file's name."""
MIN_PATIENT_CLASSES = 5
"""A flag needs at least this number of classes with a name such as ``patient 3``."""
MIN_SHARE_WITH_PATIENT = 0.5
"""A flag needs a text such as ``patient 3`` in at least this share of the file names or classes."""


def find_group_like(columns: Mapping[str, Sequence[str]], classes: Sequence[str]) -> list[str]:
    """Return the names of the columns whose values look like patient ids.

    Args:
        columns: Name of a column -> its cells, one per image.
        classes: Class of each image.
    """
    return [name for name, values in columns.items() if look_like_groups(values, classes)]


def look_like_groups(values: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether the cells of a column look like patient ids.

    Args:
        values: Cells of the column, one per image. Blank cells are ignored.
        classes: Class of each image.
    """
    classes_by_text: defaultdict[str, list[str]] = defaultdict(list)
    for value, class_name in zip(values, classes, strict=True):
        text = value.strip()
        if text.casefold() not in NO_IDS and text != NOT_ONE_VALUE:
            classes_by_text[text].append(class_name)
    repeated = [names for names in classes_by_text.values() if len(names) > 1]
    if len(repeated) < MIN_REPEATED_VALUES or _are_measurements(classes_by_text):
        return False
    class_sizes = Counter(chain.from_iterable(classes_by_text.values()))
    if len(repeated) < MIN_MEAN_VALUES_PER_CLASS * len(class_sizes):
        return False
    num_with_one_class = sum(len(set(names)) == 1 for names in repeated)
    if num_with_one_class < MIN_SHARE_WITH_ONE_CLASS * len(repeated):
        return False
    total = class_sizes.total()
    mean = 0.0
    variance = 0.0
    for names in repeated:
        # The probability that all images with this text have one class, if classes are random.
        probability = sum((size / total) ** len(names) for size in class_sizes.values())
        mean += probability
        variance += probability * (1 - probability)
    return num_with_one_class > mean + MIN_STANDARD_DEVIATIONS * math.sqrt(variance)


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


def _has_copies(paths: Sequence[str]) -> bool:
    """Return whether a path, without a word such as ``flip``, is the path of another image."""
    lower_paths = set()
    for path in paths:
        lower_paths.add(f"/{path.lower()}")
    for path in lower_paths:
        original, num_copy_words = COPY_IN_PATH.subn("", path)
        if num_copy_words and original in lower_paths:
            return True
    return False


def patient_class_flags(num_images: Mapping[str, int]) -> dict[str, int]:
    """Return a flag if the classes seem to be patients: flag -> number of images.

    In this case, the user probably chose the folder of one class. The folder above it then
    contains the folders of all classes.

    Args:
        num_images: Name of a class -> its number of images.
    """
    patients = [name for name in num_images if PATIENT_IN_PATH.fullmatch(name.lower())]
    if len(patients) < max(MIN_PATIENT_CLASSES, MIN_SHARE_WITH_PATIENT * len(num_images)):
        return {}
    flag = "class names look like patients of one class. If so, use the folder above"
    return {flag: sum(map(num_images.__getitem__, patients))}


def describe_patient_names(paths: Sequence[str], classes: Sequence[str]) -> str:
    """Describe why the names of image files look like patients.

    If the names do not look like patients, return an empty text.

    Args:
        paths: Path of the file of each image that has no group.
        classes: Class of each image.
    """
    if _has_copies(paths):
        return "file names look like changed copies of other images, such as mirrored ones"
    patient_ids = []
    for path in paths:
        matches = PATIENT_IN_PATH.findall(path.lower())
        if matches:
            patient_ids.append(matches[-1])
    # If each patient has only one image, training and test cannot share a patient. The folders
    # of classes may also have such names.
    are_repeated = len(set(classes)) < len(set(patient_ids)) < len(patient_ids)
    if are_repeated and len(patient_ids) > MIN_SHARE_WITH_PATIENT * len(paths):
        return "file names look like patients"
    for parts in zip(*map(_name_parts, paths), strict=True):
        if look_like_groups(parts, classes):
            return "file names repeat like ids of patients"
    return ""


def _name_parts(path: str) -> tuple[str, str, str]:
    """Return three parts of a path that may be an id. An empty part is not an id.

    Returns:
        The first word of the file's name, the file's name without its last word, and the
        folder.
    """
    folder, _, name = path.rpartition("/")
    words = WORD_SEPARATOR.split(name.partition(".")[0])
    return words[0], " ".join(words[:-1]), folder
