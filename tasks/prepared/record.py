"""Make the record of a prepared dataset. The marker of the dataset, logs, MLflow and reports
contain this record.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from search_spaces.errors import plural
from tasks.array_types import Int64Array
from tasks.prepared.parts import COLOR, FORMAT_TRAIT, GRAY, PartMetadata, Skip
from tasks.prepared.preparation import Preparation
from tasks.prepared.reading import Reading
from tasks.prepared.table import ImageTable, content_fingerprint, count_groups, distinct
from tasks.sources import OWN_KINDS, current_name
from tasks.sources.base import format_counts
from tasks.sources.dicom import INTENSITY
from tasks.sources.own.splits import GivenSplit
from tasks.sources.pictures import BY_OWN_MAXIMUM

MAX_LISTED = 50
"""Largest number of skipped items in a record. The number also limits the flags for classes
that are in only one given split."""
MAX_SHOWN_SKIPS = 5
"""Largest number of skipped items whose hashes are printed."""
MIN_GAIN = 0.1
"""Smallest gain of a predictive trait. The gain is the share of images whose label can be
guessed from the trait, minus the share of the most frequent class."""
MAX_P = 1e-3
"""Significance level of the G-test for an association between a trait and the label."""
MIN_IMAGES_PER_VALUE = 5
"""Smallest number of images per value of a trait with which the G-test is computed."""
MIN_ENLARGED = 2
"""Smallest factor of enlargement that is reported as a possible problem, for example from 28
to 56 pixels."""
MIN_STRETCHED = 1.5
"""Smallest ratio of the longer side of a raw image to its shorter side for which stretching to
a square is reported as a possible problem."""
SIZE = re.compile(r"\b(\d+)x(\d+)\b")
"""Pattern of the height and width of a raw image in the value of ``FORMAT_TRAIT``."""
SINGLE_VALUED = ("modality", "series description", "pixel spacing", "rescale slope")
"""Traits that should have the same value for all images of a dataset."""


class PreparedRecord(BaseModel):
    """A summary of a prepared dataset and of its origin. It contains nothing that identifies a
    person.

    Attributes:
        fingerprint: SHA-256 of the content: pixels, labels, groups, splits, label names and
            dtype. It does not depend on sharding, the number of workers, the hash key, or the
            time and place of the preparation.
        prepared_id: Id of the preparation's spec, which is the name of the store's folder.
        raw_id: Hash of the raw listing, including the sizes and times of the files. If the
            hash of the present files differs, all images are read again and compared.
        dataset: Name of the dataset in sweep files.
        source: Name of the source in :mod:`tasks.sources` that has read the dataset.
        title: Name of the dataset in texts for people.
        modality: Subject and imaging technique of the images, for example ``chest X-ray``.
        domain: ``natural`` or ``medical``; None if a user measured the data without stating a
            domain.
        task: Name of the label set if the download has several label sets; otherwise empty.
        data_mode: ``corrected``, or ``as_released`` with the faults of the released code.
        faults: Faults of the released code that are switched on, see ``docs/faults.md``.
        label_names: Names of the classes, in the order of their class indices.
        num_images: Number of stored images.
        num_groups: Number of groups that the stored images form.
        num_images_per_label: Number of images of each class. The keys are the names of the
            classes.
        num_groups_per_label: Number of groups that contain an image of each class. The keys
            are the names of the classes.
        num_listed: Number of items in the raw listing, including skipped items.
        num_skipped: Number of items that could not be listed or read.
        excluded: Number of items that are left out by the rules of the dataset, for each
            reason. The keys are the reasons.
        skipped: Number of items that could not be listed or read, for each reason. The keys
            are the reasons.
        skipped_items: The first skipped items. Each is a pair of the keyed hash of its locator
            and the reason.
        conversions: Number of converted images for each conversion of pixels. The keys are the
            conversions in words.
        flags: Number of affected images or items for each flag. A flag is a possible problem
            of the data, in words. The keys are the flags.
        num_duplicates: Number of images that are equal to an earlier image. If two groups had
            equal images, they were joined.
        num_conflicts: Number of images that are equal to an image with another label.
        intensity: The rule, in words, that converted raw values to pixels.
        pixel_range: The pixel values of black and of white.
        dtype: Type of the stored pixels.
        shape: Shape of the array of images, ``(num_images, channels, height, width)``.
        seconds: Duration of the preparation in seconds; 0 before the store is published.
        origin: ``real``, ``derived``, ``semi-synthetic`` or ``generated``.
        label_rule: Rule that assigned the labels; empty if people assigned the labels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str
    prepared_id: str
    raw_id: str
    dataset: str
    source: str
    title: str
    modality: str
    domain: str | None
    task: str
    data_mode: str
    faults: tuple[str, ...]
    label_names: tuple[str, ...]
    num_images: int
    num_groups: int
    num_images_per_label: dict[str, int]
    num_groups_per_label: dict[str, int]
    num_listed: int
    num_skipped: int
    excluded: dict[str, int]
    skipped: dict[str, int]
    skipped_items: tuple[tuple[str, str], ...]
    conversions: dict[str, int]
    flags: dict[str, int]
    num_duplicates: int
    num_conflicts: int
    intensity: str
    pixel_range: tuple[float, float]
    dtype: str
    shape: tuple[int, ...]
    seconds: float
    origin: str = "real"
    label_rule: str = ""


def make_record(reading: Reading, skipped: Sequence[Skip]) -> PreparedRecord:
    """Build the record of a prepared dataset.

    Args:
        reading: The images that were read.
        skipped: Items that could not be listed or read.
    """
    preparation = reading.preparation
    spec = preparation.request.spec
    dataset = preparation.request.dataset
    listing = preparation.listing
    images = reading.images
    parts = reading.parts
    names = listing.label_names
    num_images = len(images.labels)
    shape = (num_images, spec.channels, spec.image_size, spec.image_size)
    image_counts = np.bincount(images.labels, minlength=len(names))
    group_counts = count_groups(images.labels, images.groups, len(names))
    conversions = Counter[str]()
    for part in parts:
        conversions.update(part.conversions)
    if current_name(dataset.source) in OWN_KINDS:
        conversions.update(channel_conversions(parts, spec.channels))
    flags = _count_flags(reading, group_counts)
    return PreparedRecord(
        fingerprint=fingerprint_of(preparation, images),
        prepared_id=spec.prepared_id,
        raw_id=reading.raw_id,
        dataset=dataset.name,
        source=dataset.source,
        title=dataset.title,
        modality=dataset.modality,
        domain=dataset.domain,
        origin=dataset.origin,
        label_rule=dataset.label_rule,
        task=spec.task,
        data_mode=spec.data_mode,
        faults=spec.faults,
        label_names=names,
        num_images=num_images,
        num_groups=len(np.unique(images.groups)),
        num_images_per_label=dict(zip(names, image_counts.tolist(), strict=True)),
        num_groups_per_label=dict(zip(names, group_counts.tolist(), strict=True)),
        num_listed=len(listing.items) + len(listing.skipped),
        num_skipped=len(skipped),
        excluded=dict(+Counter(listing.excluded)),
        skipped=dict(Counter(skip.reason for skip in skipped)),
        skipped_items=tuple(skipped[:MAX_LISTED]),
        conversions=dict(conversions),
        flags=dict(+flags),
        num_duplicates=images.num_duplicates,
        num_conflicts=images.num_conflicts,
        intensity=listing.intensity,
        pixel_range=(0.0, 255.0),
        dtype=preparation.dtype,
        shape=shape,
        seconds=0.0,
    )


def fingerprint_of(preparation: Preparation, images: ImageTable) -> str:
    """Return the fingerprint of a prepared dataset, see :class:`PreparedRecord`."""
    spec = preparation.request.spec
    shape = (len(images.labels), spec.channels, spec.image_size, spec.image_size)
    header: dict[str, object] = {
        "dtype": preparation.dtype,
        "shape": shape,
        "label_names": preparation.listing.label_names,
    }
    return content_fingerprint(images, header)


def _count_flags(reading: Reading, group_counts: Int64Array) -> Counter[str]:
    """Return all flags, with the number of affected images or items.

    Args:
        reading: The images that were read.
        group_counts: ``(num_labels,)`` number of groups that contain an image of each label.
    """
    request = reading.preparation.request
    listing = reading.preparation.listing
    images = reading.images
    parts = reading.parts
    flags = Counter(listing.flags)
    for part in parts:
        flags.update(part.flags)
    flags.update(trait_flags(parts))
    # We know the image sizes of the study's datasets, so only the sizes of user data are
    # checked.
    if current_name(request.dataset.source) in OWN_KINDS:
        flags.update(size_flags(parts, request.spec.image_size))
    flags.update(_unused_test_flags(images))
    flags.update(_divided_patient_flags(parts))
    flags.update(_class_flags(images, listing.label_names, group_counts))
    return flags


def _unused_test_flags(images: ImageTable) -> dict[str, int]:
    """Return a flag for test images of the given split whose group contains a training image."""
    is_training = images.splits == GivenSplit.TRAIN
    is_test = images.splits == GivenSplit.TEST
    has_training_group = np.isin(images.groups, images.groups[is_training])
    num_unused = int((has_training_group & is_test).sum())
    return {"test images that are not used, because their group is in training": num_unused}


def _divided_patient_flags(parts: Sequence[PartMetadata]) -> dict[str, int]:
    """Return a flag for images whose patient, according to the header, is in several groups."""
    patients = np.concatenate([part.rows["patient"] for part in parts])
    groups = np.concatenate([part.rows["group"] for part in parts])
    first_rows, patient_numbers = distinct(patients)
    first_group_of_patient = groups[first_rows[patient_numbers]]
    # The value 0 means that the header of the image names no patient.
    has_patient = patients != 0
    is_in_other_group = (groups != first_group_of_patient) & has_patient
    num_images = int(np.isin(patients, patients[is_in_other_group]).sum())
    flag = "patient in the image header with several groups; check that each group is a patient"
    return {flag: num_images}


def _class_flags(
    images: ImageTable, names: Sequence[str], group_counts: Int64Array
) -> dict[str, int]:
    """Return flags for classes with one group, without an image, or in only one given split.

    If a class is only in the training or only in the test split, the labels of one of the
    splits may start at 1 instead of 0.
    """
    flags: dict[str, int] = {}
    for name, num_groups in zip(names, group_counts.tolist(), strict=True):
        if num_groups == 1:
            flags[f"class with only one group: {name}"] = 1
    train_labels = set(images.labels[images.splits == GivenSplit.TRAIN].tolist())
    test_labels = set(images.labels[images.splits == GivenSplit.TEST].tolist())
    if train_labels and test_labels:
        for label in sorted(train_labels - test_labels)[:MAX_LISTED]:
            flags[f"class only in the training split: {names[label]}"] = 1
        for label in sorted(test_labels - train_labels)[:MAX_LISTED]:
            flags[f"class only in the test split: {names[label]}"] = 1
    for name, num_groups in zip(names, group_counts.tolist(), strict=True):
        if num_groups == 0:
            flags[f"class without a usable image: {name}"] = 1
    return flags


def trait_flags(parts: Sequence[PartMetadata]) -> dict[str, int]:
    """Return flags for traits that predict the label, and for traits with unexpected values.

    If a trait predicts the label, a network may learn the trait instead of the image content.
    A trait is predictive if both of these conditions hold:

    - The share of images whose label can be guessed from the trait is larger than the share of
      the largest class. The difference is more than :data:`MIN_GAIN`.
    - The p value of a G-test of association is below :data:`MAX_P`.

    If a trait has fewer than :data:`MIN_IMAGES_PER_VALUE` images per value, it is not tested.

    Returns:
        The number of images for each flag. For a predictive trait, it is the number of images
        whose label is guessed right. If a trait should have one value but has several, it is
        the number of images that do not have the most frequent value.
    """
    counts_by_trait: defaultdict[str, Counter[tuple[int, str]]] = defaultdict(Counter)
    for part in parts:
        for label, name, value, num_images in part.traits:
            counts_by_trait[name][label, value] += num_images
    flags: dict[str, int] = {}
    for name, counts in counts_by_trait.items():
        table = _contingency_table(counts)
        num_values = table.shape[1]
        if name in SINGLE_VALUED and num_values > 1:
            num_unusual = table.sum() - table.sum(0).max()
            flags[f"{name} has {num_values} different values"] = int(num_unusual)
        num_right = int(table.max(0).sum())
        gain = num_right - table.sum(1).max()
        is_large_enough = table.sum() >= MIN_IMAGES_PER_VALUE * num_values
        if min(table.shape) < 2 or not is_large_enough:
            continue
        if gain > MIN_GAIN * table.sum() and _g_test(table) < MAX_P:
            share = f"right for {num_right / table.sum():.0%}, {_format_information(table)}"
            flags[f"{name} predicts the label ({share})"] = num_right
    return flags


def _count_formats(parts: Sequence[PartMetadata]) -> Counter[str]:
    """Return the number of images with each value of the trait :data:`FORMAT_TRAIT`."""
    counts: Counter[str] = Counter()
    for part in parts:
        for trait in part.traits:
            if trait.name == FORMAT_TRAIT:
                counts[trait.value] += trait.num_images
    return counts


def size_flags(parts: Sequence[PartMetadata], side: int) -> dict[str, int]:
    """Return flags on image sizes: enlarged, stretched and unequal images, each with a number.

    Enlarging an image adds interpolated pixels. So the intrinsic dimension d_data of enlarged
    images is lower than that of the raw images.

    Args:
        parts: Metadata of all images that were read.
        side: Side of the prepared images in pixels.
    """
    counts: Counter[tuple[int, int]] = Counter()
    for image_format, num_images in _count_formats(parts).items():
        size = SIZE.search(image_format)
        if size is not None:
            counts[int(size[1]), int(size[2])] += num_images
    num_enlarged = 0
    num_stretched = 0
    for (height, width), num_images in counts.items():
        if MIN_ENLARGED * min(height, width) <= side:
            num_enlarged += num_images
        if MIN_STRETCHED * min(height, width) <= max(height, width):
            num_stretched += num_images
    flags = {
        f"enlarged to {side} pixels by interpolation; consider a smaller image_size": num_enlarged,
        "stretched to a square; check that all images have the same shape": num_stretched,
    }
    smallest = min(counts, default=(0, 0))
    largest = max(counts, default=(0, 0))
    if max(largest) > MIN_STRETCHED * max(smallest):
        sizes = f"{smallest[0]}x{smallest[1]} to {largest[0]}x{largest[1]}"
        num_unusual = counts.total() - max(counts.values())
        flags[f"raw images differ in size, {sizes}; check that all have the same scale"] = (
            num_unusual
        )
    return flags


def channel_conversions(parts: Sequence[PartMetadata], channels: int) -> Counter[str]:
    """Return the number of images that were converted to the requested number of channels.

    Args:
        parts: Metadata of all images that were read.
        channels: Number of channels of the prepared images.
    """
    raw_mode = GRAY
    conversion = "gray to 3 equal channels (`channels: 3`)"
    if channels == 1:
        raw_mode = COLOR
        conversion = "color to gray (`channels: 1`)"
    counts: Counter[str] = Counter()
    for image_format, num_images in _count_formats(parts).items():
        if image_format.split()[0] == raw_mode:
            counts[conversion] += num_images
    return counts


def _contingency_table(counts: Mapping[tuple[int, str], int]) -> Int64Array:
    """Return a contingency table ``(num_labels, num_values)``, from counts by (label, value)."""
    labels = sorted({label for label, _ in counts})
    values = sorted({value for _, value in counts})
    rows = []
    for label in labels:
        rows.append([counts[label, value] for value in values])
    return np.array(rows)


def _mutual_information(table: Int64Array) -> float:
    """Return the mutual information, in nats, of the rows and columns of a contingency table."""
    from scipy.special import rel_entr

    shares = table / table.sum()
    independent = np.outer(shares.sum(1), shares.sum(0))
    return float(rel_entr(shares, independent).sum())


def _g_test(table: Int64Array) -> float:
    """Return the p value of the G-test of independence for a contingency table."""
    from scipy.special import chdtrc

    num_labels, num_values = table.shape
    degrees = (num_labels - 1) * (num_values - 1)
    g = 2 * table.sum() * _mutual_information(table)
    return float(chdtrc(degrees, g))


def _format_information(table: Int64Array) -> str:
    """Format the mutual information of a trait and the label beside the entropy of the label."""
    from scipy.special import entr

    entropy = entr(table.sum(1) / table.sum()).sum()
    bits = _mutual_information(table) / math.log(2)
    return f"{bits:.2f} of {entropy / math.log(2):.2f} bits"


def reading_lines(record: PreparedRecord) -> list[str]:
    """Return lines of text about converted, left out and skipped images, and about flags."""
    return format_counts(
        converted=record.conversions,
        left_out=record.excluded,
        skipped=record.skipped,
        doubtful=record.flags,
    )


def set_lines(
    num_images_by_label: Mapping[str, int], num_groups_by_label: Iterable[int], num_groups: int
) -> list[str]:
    """Return a line with the numbers of images, classes and groups, and a line per class."""
    num_images = plural(sum(num_images_by_label.values()), "image")
    num_classes = plural(len(num_images_by_label), "class")
    lines = [f"{num_images}, {num_classes}, {plural(num_groups, 'group')}"]
    pairs = zip(num_images_by_label.items(), num_groups_by_label, strict=True)
    for (name, num_images_of_class), num_groups_of_class in pairs:
        counts = f"{plural(num_images_of_class, 'image')}, {plural(num_groups_of_class, 'group')}"
        lines.append(f"  class {name}: {counts}")
    return lines


def total_and_class_lines(record: PreparedRecord) -> list[str]:
    """Return the lines of :func:`set_lines`, with a hint if every group has only one image."""
    totals, *classes = set_lines(
        record.num_images_per_label, record.num_groups_per_label.values(), record.num_groups
    )
    if record.num_groups == record.num_images:
        totals += ", one for each image (docs/datasets.md explains how to group by patient)"
    return [totals, *classes]


def _intensity_text(record: PreparedRecord) -> str:
    """Return how stored values became the pixel values of these images, as text.

    The rule for image files depends on the file. So this function looks at the conversions of
    the images.
    """
    if record.intensity != INTENSITY:
        return record.intensity
    num_scaled = record.conversions.get(BY_OWN_MAXIMUM, 0)
    if num_scaled == 0:
        return "pixel values of 8 bits as stored"
    scaled = "scaled by own maximum (a CT after adding 1024 to its Hounsfield units)"
    if num_scaled < record.num_images:
        return f"images with more than 8 bits and DICOM files {scaled}, all other images as stored"
    return f"each image {scaled}"


def preparation_lines(record: PreparedRecord) -> list[str]:
    """Return the lines that are printed after a preparation."""
    totals, *classes = total_and_class_lines(record)
    lines = [f"{record.title}: {totals}"]
    if record.origin != "real":
        lines.append(f"  {record.origin}; label: {record.label_rule or 'see the source'}")
    channels, height, width = record.shape[1:]
    lines += classes
    lines.append(
        f"  prepared: {height}x{width} pixels, {plural(channels, 'channel')}; "
        f"{_intensity_text(record)}"
    )
    lines += reading_lines(record)
    if record.num_duplicates:
        lines.append(
            f"  equal to an earlier image: {record.num_duplicates:,} "
            "(equal images are in the same set of a split)"
        )
    if record.num_conflicts:
        lines.append(f"  equal to an image with another label: {record.num_conflicts:,}")
    if record.skipped_items:
        hashes = [locator_hash for locator_hash, _ in record.skipped_items[:MAX_SHOWN_SKIPS]]
        lines.append(f"  hashes of the first skipped files: {', '.join(hashes)}")
        lines.append("  to find such a file: isweep locate HASH --raw DIR")
    return lines
