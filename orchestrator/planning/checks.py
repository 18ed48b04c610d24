"""Check that a sweep has enough images and correct labels, before a dataset is prepared."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.planning.plan import SweepPlan
from orchestrator.planning.workspace import Workspace
from search_spaces.errors import (
    ConfigError,
    DataError,
    SweepError,
    TooFewImagesError,
    missing_path_hint,
    raise_all,
)
from search_spaces.specs import DatasetSpec, MeasureSpec, PreparedSpec, SubsetSpec
from tasks.prepared.changes import changed_data_error
from tasks.prepared.parts import SPLIT_CODES
from tasks.prepared.preparation import Preparation
from tasks.prepared.record import PreparedRecord
from tasks.prepared.released_faults import check_no_given_split
from tasks.prepared.store import PreparedDataset
from tasks.prepared.subsets import make_subset
from tasks.sources.base import UNKEYED, Listing, RawRequest, hash_key

MIN_TRAIN_SIZES = 3
"""Smallest number of train sizes that shows whether a learning curve bends."""
MIN_TEST_SIZE = 25
"""If a sweep has fewer test images than this number, isweep prints a note. With this number,
the standard error of an accuracy is at most 0.1."""
ADAM_OPTIMIZERS = ("adam", "adamw")
HIGH_ADAM_RATE = 1.0
"""If the learning rate of Adam is at least this number, isweep prints a note. Adam changes
each weight by about the learning rate in each step, and weights are usually below 1. The
recipes of isweep use at most 0.002, and ``isweep tune`` tries at most 0.1."""
MAX_NAMED = 20
"""Largest number of classes that a message lists."""


@dataclass(frozen=True)
class LabelCounts:
    """Labels, groups and splits of a dataset, without its pixels.

    Attributes:
        classes: ``(num_images,)`` class indices.
        groups: ``(num_images,)`` group ids. An image without a group has a unique id.
        splits: ``(num_images,)`` code of the split to which the data assign each image.
        label_names: Names of the classes, by index.
        has_patients: True if patients in DICOM headers are groups.
    """

    classes: NDArray[np.int64]
    groups: NDArray[np.int64]
    splits: NDArray[np.int8]
    label_names: tuple[str, ...]
    has_patients: bool = False


Images = PreparedDataset | LabelCounts
"""The images of a dataset, either with pixels or with labels only."""


def count_labels(listing: Listing) -> LabelCounts | None:
    """Return the labels of a listing. None if the labels are known only after reading the files."""
    if not listing.one_image_per_item or any(item.label is None for item in listing.items):
        return None
    group_ids: dict[str, int] = {}
    groups = []
    for place, item in enumerate(listing.items):
        # The name of a group never begins with NUL.
        name = item.group or f"\0{place}"
        groups.append(group_ids.setdefault(name, len(group_ids)))
    return LabelCounts(
        np.array([item.label for item in listing.items], np.int64),
        np.array(groups, np.int64),
        _split_codes(listing),
        listing.label_names,
    )


def _split_codes(listing: Listing) -> NDArray[np.int8]:
    """Return the code of the split to which the data assign each item of a listing."""
    return np.array([SPLIT_CODES[item.split] for item in listing.items], np.int8)


def check_feasible(
    workspace: Workspace, raw: Mapping[str, Path] | None = None
) -> dict[str, Listing]:
    """Raise an error if the data of a sweep are absent, contradictory or too few.

    To check labels, groups, splits and file names, this function lists the files of your own
    data. It opens no image. If such a dataset is already prepared, its files must still have
    the same classes and enough images.

    Args:
        workspace: The sweep.
        raw: Folder with your own data, by the name of the dataset. It replaces the path in the
            sweep file.

    Returns:
        The listings of the datasets that are not prepared yet, by prepared id.

    Raises:
        SweepError: The data have at least one problem. The message lists all problems.
    """
    plan = workspace.plan
    sources = _own_sources(workspace, raw or {})
    problems: list[SweepError] = []
    images: dict[str, Images | None] = {}
    new_listings: dict[str, Listing] = {}
    for spec in plan.prepared:
        dataset = plan.datasets[spec.dataset]
        prepared = workspace.prepared.get(spec.prepared_id)
        if spec.dataset not in sources:
            images[spec.prepared_id] = prepared or _shipped_labels(dataset, spec)
            continue
        try:
            request = _request(workspace, spec, sources[spec.dataset])
            listing = workspace.listings.of(request)
            own_images = _own_images(workspace, request, listing, prepared)
        except SweepError as error:
            problems.append(error)
            continue
        images[spec.prepared_id] = own_images
        if prepared is None:
            new_listings[spec.prepared_id] = listing
        if own_images is not None:
            problems += _wrong_class_names(dataset, own_images.label_names)
    for measure in plan.measures:
        measured_images = images.get(measure.subset.prepared.prepared_id)
        if measured_images is not None:
            names_are_known = bool(plan.datasets[measure.subset.dataset].label_names)
            problems += _too_few_images(measure, measured_images, names_are_known)
    raise_all(problems, DataError)
    return new_listings


def _request(workspace: Workspace, spec: PreparedSpec, source: Path) -> RawRequest:
    """Return the request to read a dataset of your own."""
    key = names_key(workspace.paths.root)
    return RawRequest(workspace.plan.datasets[spec.dataset], spec, source, key)


def _own_images(
    workspace: Workspace, request: RawRequest, listing: Listing, prepared: PreparedDataset | None
) -> Images | None:
    """Return the images of your own data. None if labels are known only after reading the files.

    Raises:
        DataError: The files cannot belong to the prepared dataset, or their splits cannot be
            used.
    """
    if prepared is None:
        counts = count_labels(listing)
        if counts is None:
            # Only the splits are known, so they are checked here. If the labels are also
            # known, make_subset checks the splits.
            check_no_given_split(request.spec, _split_codes(listing))
        return counts
    change = _change_of_classes(request.spec, listing, prepared.record)
    if change:
        raise changed_data_error(request, change, workspace.paths.prepared(request.spec))
    return prepared


def _change_of_classes(spec: PreparedSpec, listing: Listing, record: PreparedRecord) -> str:
    """Return a reason why a prepared dataset cannot come from the listed files, or an empty text.

    This function compares only the classes and the numbers of images. A run also compares the
    images.
    """
    if listing.label_names != record.label_names:
        new = ", ".join(listing.label_names[:MAX_NAMED])
        old = ", ".join(record.label_names[:MAX_NAMED])
        return f"the files have the classes {new}, but the prepared dataset has the classes {old}"
    counts = count_labels(listing)
    if counts is None or spec.dials:
        return ""
    num_files = np.bincount(counts.classes, minlength=len(counts.label_names))
    for name, count in zip(counts.label_names, num_files.tolist(), strict=True):
        num_prepared = record.num_images_per_label.get(name, 0)
        if count < num_prepared:
            return (
                f"the class {name} has {count:,} files, but the prepared dataset has "
                f"{num_prepared:,} images of this class"
            )
    return ""


def changed_own_data(workspace: Workspace) -> dict[str, Listing]:
    """Return the prepared datasets whose files changed, with the listing of their present files.

    The names, sizes or times of these files have changed since the preparation. So a run reads
    all files again. It refuses them if they contain other images. Call :func:`check_feasible`
    before this function.
    """
    sources = _own_sources(workspace, {})
    listings: dict[str, Listing] = {}
    for spec in workspace.plan.prepared:
        prepared = workspace.prepared.get(spec.prepared_id)
        if prepared is None or spec.dataset not in sources:
            continue
        request = _request(workspace, spec, sources[spec.dataset])
        listing = workspace.listings.of(request)
        if Preparation(request, listing, listing.dtype).raw_id() != prepared.record.raw_id:
            listings[spec.dataset] = listing
    return listings


def small_size_notes(plan: SweepPlan) -> Iterator[str]:
    """Yield a note if the test set is very small, and one if a batch has all training images."""
    test_size = plan.sweep.test_size
    if test_size < MIN_TEST_SIZE:
        yield (
            f"With `test_size: {test_size}`, the standard error of an accuracy can be "
            f"{0.5 / math.sqrt(test_size):.2g}. If there are enough images, choose a larger "
            "`test_size`."
        )
    batch_sizes = {trial.network.recipe.batch_size for trial in plan.trials}
    if batch_sizes and min(batch_sizes) > plan.largest_size:
        yield (
            f"The batch size ({min(batch_sizes):,}) is larger than the largest train size "
            f"({plan.largest_size:,}), so each epoch has only one training step."
        )


def num_sizes_notes(plan: SweepPlan) -> Iterator[str]:
    """Yield a sentence if there are too few train sizes for a good learning curve.

    Experiments, and sweeps of several class pairs, answer other questions. They get no note.
    """
    num_datasets = len({measure.subset.dataset for measure in plan.measures})
    has_several_pairs = len(plan.measures) > num_datasets
    if has_several_pairs or plan.sweep.list_experiment_datasets():
        return
    num_sizes = len(set(plan.sweep.train_sizes))
    if num_sizes == 1:
        yield (
            "With only 1 train size, there is no learning curve, and `isweep predict` cannot "
            f"predict scores with more images. Use at least {MIN_TRAIN_SIZES} `train_sizes`."
        )
    elif num_sizes < MIN_TRAIN_SIZES:
        yield (
            f"With only {num_sizes} train sizes, isweep cannot check whether a learning curve "
            "bends, and predictions of `isweep predict` depend mostly on curves of other datasets. "
            f"Use at least {MIN_TRAIN_SIZES} `train_sizes`."
        )


def learning_rate_notes(plan: SweepPlan) -> Iterator[str]:
    """Yield a sentence if a learning rate is far above the usual learning rates of Adam."""
    rates = {
        trial.network.recipe.learning_rate
        for trial in plan.trials
        if trial.network.recipe.optimizer in ADAM_OPTIMIZERS
    }
    if rates and max(rates) >= HIGH_ADAM_RATE:
        yield (
            f"The learning rate of {max(rates):g} is very high for Adam, and the training will "
            "probably diverge. Usual learning rates of Adam are 1e-5 to 1e-2."
        )


def _shipped_labels(dataset: DatasetSpec, spec: PreparedSpec) -> LabelCounts | None:
    """Return the labels of a dataset that comes with an installed package. None for other datasets.

    The labels come from the table of datasets, which has the number of images of each class.
    Each image counts as a separate group, because this allows the largest sets.
    """
    if not dataset.images_per_class or spec.dials:
        return None
    labels = np.repeat(np.arange(len(dataset.label_names)), dataset.images_per_class)
    splits = np.zeros(len(labels), np.int8)
    return LabelCounts(labels, np.arange(len(labels)), splits, dataset.label_names)


def _wrong_class_names(dataset: DatasetSpec, names: tuple[str, ...]) -> list[SweepError]:
    """Return an error if the classes in a sweep differ from the classes of its data."""
    if dataset.label_names in ((), names):
        return []
    key = f"`datasets.{dataset.name}.own.class_names`"
    named = ", ".join(dataset.label_names)
    in_data = ", ".join(names[:MAX_NAMED])
    return [
        DataError(
            f"{key} lists {named}, but the data have the classes {in_data}",
            hint="Remove `class_names`, or set it to the classes of the data, in the order in "
            "which this message lists them",
        )
    ]


def _too_few_images(
    measure: MeasureSpec, images: Images, names_are_known: bool
) -> list[SweepError]:
    """Return an error if there are too few images for the subset of a measure.

    Args:
        measure: The measure of the subset, with its train sizes.
        images: The images, or their labels.
        names_are_known: True if the sweep was planned with the names of the classes.
    """
    subset = measure.subset
    names = images.label_names
    try:
        if not names_are_known:
            _check_pair_of_numbers(subset, names)
        make_subset(
            images.classes,
            images.groups,
            subset,
            images.splits,
            max_train_size=max(measure.train_sizes),
            class_names=names,
        )
    except SweepError as error:
        return [with_subset_name(subset, names, error)]
    return []


def _check_pair_of_numbers(subset: SubsetSpec, names: tuple[str, ...]) -> None:
    """Raise an error if a number in a class pair is ambiguous: an index or the name of a class.

    It is ambiguous if the names of the classes are numbers, but not 0, 1, 2 and so on.
    """
    are_indices = names == tuple(map(str, range(len(names))))
    are_numbers = all(name.lstrip("-").isdigit() for name in names)
    if subset.class_pair is None or are_indices or not are_numbers:
        return
    first, second = subset.class_pair
    raise DataError(
        f"`datasets.{subset.dataset}.class_pairs` has the numbers {first} and {second}. "
        "isweep reads numbers as indices from 0, but the classes of this dataset have numbers "
        f"as names: {', '.join(names[:MAX_NAMED])}",
        hint=f"Write class names in quotes, for example `class_pairs: [['{names[0]}', "
        f"'{names[1]}']]`",
    )


def _own_sources(workspace: Workspace, raw: Mapping[str, Path]) -> dict[str, Path]:
    """Return the paths of your own data by dataset. Raise an error if a path does not exist."""
    problems: list[SweepError] = []
    sources: dict[str, Path] = {}
    for name, own_path in workspace.plan.own_paths.items():
        path = raw.get(name) or Path(own_path)
        sources[name] = path
        if name not in raw and not path.exists():
            hint = "Correct the path. A relative path starts in the folder of the sweep file. "
            problems.append(
                ConfigError(
                    f"`datasets.{name}.own.path` does not exist: {own_path}",
                    hint=f"{hint}{missing_path_hint(path)}".rstrip(),
                )
            )
    raise_all(problems, ConfigError)
    return sources


def names_key(root: Path | None) -> str:
    """Return the key for the hashes of file names in messages.

    ``isweep locate`` needs the same key to find the files. If the root cannot be written,
    return :data:`UNKEYED`.
    """
    if root is None or not os.access(root, os.W_OK):
        return UNKEYED
    return hash_key(root / "prepared")


def with_subset_name(subset: SubsetSpec, names: tuple[str, ...], error: SweepError) -> SweepError:
    """Add the dataset and the classes to the message of a :class:`TooFewImagesError`.

    Other errors are returned unchanged, because their messages already name the dataset.
    """
    if not isinstance(error, TooFewImagesError):
        return error
    about = subset.dataset
    if subset.class_pair is not None:
        first, second = subset.class_pair
        about += f", classes {_class_name(first, names)} and {_class_name(second, names)}"
    return TooFewImagesError(
        f"{about}: {error.problem}",
        hint=error.hint,
        largest_train_size=error.largest_train_size,
    )


def _class_name(label: int, names: tuple[str, ...]) -> str:
    if label < len(names):
        return names[label]
    return str(label)
