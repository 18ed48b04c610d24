"""Find the arrays of images, labels and columns in a user's array file, by their names.

An *array name* is the name of an array in the file. The array names of PatchCamelyon, MedMNIST
(``medmnist/dataset.py``), Keras (``mnist.npz``) and scikit-learn are recognized.

Every array except the images and the class names is a *column*, with one value per image. The
name of a column is its array name without the split. The label column is always called
``label``, whatever its array name is. Another array that would get this column name is not
read. The *role* of a column is its use, see :mod:`tasks.sources.own.columns`. Example:

==================  ==========  =====
array name          column      role
==================  ==========  =====
train_patient_id    patient_id  group
train_labels        label       label
train_age           age         none
==================  ==========  =====
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NoReturn

from tasks.sources.arrays.files import ArrayFile
from tasks.sources.own.splits import GivenSplit, parse_split
from tasks.sources.tables import MAX_NAMED, column_key, flags_for_unused_columns

LABEL_COLUMN = "label"
"""Name of the label column, and of its role."""
LABEL_NAMES = "label_names"
"""Array name of the class names in every scheme."""
SAVE_EXAMPLE = "np.savez(PATH, images=images, labels=labels)"
"""Python code in hints: the simplest way to write a file that can be read."""
VALIDATION_NAMES = ("val", "valid")
"""Names of the validation split in array names."""
SPLIT_NAMES = ("train", "test", *VALIDATION_NAMES)
"""Names of all splits in array names. Only lower case is recognized, so ``TRAIN`` and ``Test``
are not."""


@dataclass(frozen=True)
class NameScheme:
    """A naming scheme for the arrays of a file. In each text, ``{}`` stands for the name of
    the split.

    Attributes:
        images: Array name of the images.
        labels: Array name of the labels.
        prefix: Text before the name of a column in an array name.
        suffix: Text after the name of a column in an array name.
        class_names: Array names of the class names. The first name that occurs in the file is
            used.
    """

    images: str
    labels: str
    prefix: str = ""
    suffix: str = ""
    class_names: tuple[str, ...] = (LABEL_NAMES,)

    @property
    def split_names(self) -> tuple[str, ...]:
        """Names of the splits that may occur; one empty name if the scheme has no splits."""
        return SPLIT_NAMES if "{}" in self.images else ("",)

    def columns(self, names: Iterable[str], split_name: str) -> dict[str, str]:
        """Find the columns of one split.

        The result maps the name of a column to its array name.
        """
        prefix = self.prefix.format(split_name)
        suffix = self.suffix.format(split_name)
        columns = {}
        for name in sorted(names):
            if name.startswith(prefix) and name.endswith(suffix):
                column = name.removeprefix(prefix).removesuffix(suffix)
                if column:
                    columns[column] = name
        return columns


SHORT_SCHEMES = (NameScheme("x", "y"), NameScheme("X", "y"), NameScheme("X", "Y"))
"""Short array names in a file without splits."""
SPLIT_SCHEMES = (
    NameScheme("{}_images", "{}_labels", prefix="{}_"),  # MedMNIST
    NameScheme("x_{}", "y_{}", suffix="_{}"),  # Keras
    NameScheme("X_{}", "y_{}", suffix="_{}"),  # Keras, with a capital X
)
"""Array names in a file with splits."""
SCHEMES = (
    NameScheme("images", "labels"),
    *SHORT_SCHEMES,
    NameScheme("data", "target", class_names=(LABEL_NAMES, "target_names")),  # scikit-learn
    NameScheme("data", "labels"),
    *SPLIT_SCHEMES,
)
"""All schemes of array names."""


@dataclass(frozen=True)
class ImageArray:
    """An array of images, and the arrays of their columns.

    Attributes:
        images_name: Array name of the images.
        split: Split of the images.
        array_name_by_column: Name of a column -> its array name, for example ``{"label":
            "train_labels", "age": "train_age"}``. The label column is the first one.
    """

    images_name: str
    split: GivenSplit
    array_name_by_column: dict[str, str]


@dataclass(frozen=True)
class FoundArrays:
    """The arrays that one scheme finds in a file.

    Attributes:
        arrays: The arrays of training and test images; if there are no splits, the array of
            all images.
        num_validation: Number of images in validation splits, which are left out.
        class_names_array: Array name of the class names; None if the file has no such array.
    """

    arrays: list[ImageArray]
    num_validation: int
    class_names_array: str | None


def find_arrays(file: ArrayFile) -> FoundArrays:
    """Find the image arrays to read, and their columns.

    Raises:
        DataError: There are no arrays of images, or several sets of them, or images without
            labels.
    """
    names = set(file.names())
    by_scheme = [_arrays_of_scheme(file, scheme) for scheme in SCHEMES]
    with_images = [result for result in by_scheme if result.arrays]
    if len(with_images) > 1:
        with_images = [result for result in with_images if not _are_two_columns(file, result)]
    _check_labels_exist(file, check_short_names=not with_images)
    if len(with_images) > 1:
        _refuse_several_sets(file, [result.arrays for result in with_images])
    if not with_images:
        missing = "labels" if "images" in names else "images"
        listed = ", ".join(sorted(names)[:MAX_NAMED])
        only = f", only {listed}" if listed else ""
        raise file.error(
            f"the file has no array {missing}{only}",
            hint=f"Save the arrays with {SAVE_EXAMPLE}, or use the array names of MedMNIST or "
            "Keras",
        )
    num_validation = sum(result.num_validation for result in by_scheme)
    return replace(with_images[0], num_validation=num_validation)


def _are_two_columns(file: ArrayFile, result: FoundArrays) -> bool:
    """Return whether arrays such as ``x`` and ``y`` are two columns, for example coordinates."""
    short_names = {scheme.images for scheme in SHORT_SCHEMES}
    images_name = result.arrays[0].images_name
    return images_name in short_names and len(file.header(images_name).shape) < 3


def _arrays_of_scheme(file: ArrayFile, scheme: NameScheme) -> FoundArrays:
    """Find the image arrays whose names follow one scheme."""
    names = set(file.names())
    arrays = []
    num_validation = 0
    for split_name in scheme.split_names:
        images_name = scheme.images.format(split_name)
        labels_name = scheme.labels.format(split_name)
        if not {images_name, labels_name} <= names:
            continue
        split = parse_split(split_name)
        if split is GivenSplit.VALIDATION:
            shape = file.header(images_name).shape
            if shape:  # a single number, such as a validation accuracy, is no array of images
                num_validation += shape[0]
            continue
        array_name_by_column = {LABEL_COLUMN: labels_name}
        other_names = names - {images_name, labels_name, *scheme.class_names}
        for column, name in scheme.columns(other_names, split_name).items():
            if column_key(column) != LABEL_COLUMN:
                array_name_by_column[column] = name
        arrays.append(ImageArray(images_name, split, array_name_by_column))
    class_names_array = next((name for name in scheme.class_names if name in names), None)
    return FoundArrays(arrays, num_validation, class_names_array)


def _check_labels_exist(file: ArrayFile, *, check_short_names: bool) -> None:
    """Check that all image arrays have labels.

    Images without labels would be ignored silently.

    Args:
        file: The array file.
        check_short_names: True if an array with a short name, such as ``x``, must have labels.
            It is False if the file has other images with labels, because ``x`` may then
            contain other data.

    Raises:
        DataError: An image array has no labels.
    """
    names = file.names()
    schemes = (*SPLIT_SCHEMES, *SHORT_SCHEMES) if check_short_names else SPLIT_SCHEMES
    for scheme in schemes:
        for split_name in scheme.split_names:
            images_name = scheme.images.format(split_name)
            labels_name = scheme.labels.format(split_name)
            if images_name in names and labels_name not in names:
                raise file.error(
                    f"the file has the array {images_name!r}, but no array {labels_name!r}",
                    hint=f"Add the array {labels_name!r}, or remove {images_name!r} from the file",
                )


def _refuse_several_sets(
    file: ArrayFile, sets_of_arrays: Sequence[Sequence[ImageArray]]
) -> NoReturn:
    """Raise the error for a file with several sets of images, or with several sets of labels
    for the same images.

    Raises:
        DataError: Always.
    """
    # The keys are array names. Unlike a set, a dict keeps their order.
    images_names: dict[str, None] = {}
    labels_names: dict[str, None] = {}
    for array in chain(*sets_of_arrays):
        images_names[array.images_name] = None
        labels_names[array.array_name_by_column[LABEL_COLUMN]] = None
    listed = ", ".join(images_names)
    if len(images_names) == 1:
        raise file.error(
            f"the images in {listed} have several arrays of labels: {', '.join(labels_names)}",
            hint="Keep only the right one of these arrays, and remove the others from the file",
        )
    raise file.error(
        f"the file has several sets of images: {listed}",
        hint=f"Save one of these sets in a separate file: {SAVE_EXAMPLE}",
    )


def unused_array_flags(file: ArrayFile, found_arrays: FoundArrays) -> list[str]:
    """Return flags for the arrays that are not images, columns or class names.

    A flag is a warning in the record of the prepared dataset. Arrays of a validation split are
    left out on purpose, so they get no flag.
    """
    names = set(file.names())
    expected: set[str | None] = {found_arrays.class_names_array}
    for array in found_arrays.arrays:
        expected |= {array.images_name, *array.array_name_by_column.values()}
    for scheme in SPLIT_SCHEMES:
        for split_name in VALIDATION_NAMES:
            expected.update(scheme.columns(names, split_name).values())
    return flags_for_unused_columns(sorted(names - expected))
