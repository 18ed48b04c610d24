"""Write the first sweep file for your images, for ``isweep init``. isweep can run it unchanged."""

from __future__ import annotations

import json
import os
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.planning.checks import LabelCounts, count_labels, names_key, with_subset_name
from orchestrator.planning.first_images import (
    guess_domain,
    read_first_images,
    size_comment,
    with_patients,
    without_other_files,
)
from orchestrator.planning.sweep_file import parse_sweep
from orchestrator.planning.written_files import preset_names
from search_spaces.datasets import DATASETS, user_dataset_spec
from search_spaces.errors import ConfigError, DataError, missing_path_hint, plural
from search_spaces.models import as_name
from search_spaces.specs import PreparedSpec, SubsetSpec
from search_spaces.sweeps import UserSourceSpec
from tasks.prepared.listings import list_raw
from tasks.prepared.subsets import make_subset
from tasks.sources.base import RawRequest
from tasks.sources.detect import detect_own_kind, unknown_kind_hint

TEST_SHARES = (0.25, 0.15, 0.08, 0.04)
"""Shares of all images that the test set may have. isweep tries them in this order, until the
groups and splits of the data allow a share."""
MAX_NAMED = 8
"""Largest number of classes that a comment lists."""
MAX_NAME = 64
"""Largest number of characters in the name of a sweep or dataset."""
MIN_TRAINED = 8
"""Smallest number of training images."""
NUM_TRAIN_SIZES = 4
"""Number of train sizes if there are enough images. Each size is about half of the next
size."""
SEEDS = (0, 1, 2)
"""Seeds of the sweep. The report contains intervals over seeds only if there are three seeds
or more."""


@dataclass(frozen=True)
class Sizes:
    """The sizes of a sweep.

    Attributes:
        train_sizes: Train sizes.
        test_size: Size of the test set.
    """

    train_sizes: tuple[int, ...]
    test_size: int


UNKNOWN_SIZES = Sizes((30, 60, 120, 240), 100)
"""Sizes if isweep cannot count the images before it reads them."""


@dataclass(frozen=True)
class Capacity:
    """Values of a sweep file that a machine can run in reasonable time.

    Attributes:
        models: The models.
        recipe: The recipe.
        image_size: Side of the images, pixels.
        max_trained: Largest train size.
        max_tested: Largest test size.
        resources: Resources of one trial.
    """

    models: str
    recipe: str
    image_size: int
    max_trained: int
    max_tested: int
    resources: str


ON_CPU = Capacity("[small_cnn, resnet_tiny]", "demo", 32, 1000, 400, "{num_cpus: 1}")
ON_GPU = Capacity("[resnet18, resnet34]", "paper", 224, 1750, 750, "{num_cpus: 2}")


@dataclass(frozen=True)
class _Dataset:
    """The lines of a sweep file that describe a dataset.

    Attributes:
        lines: Lines below ``datasets:``.
        channels: Number of channels of the images.
        sizes: Train sizes and test size for which there are enough images.
        size_comment: Comment on the size of the images. It may be empty.
    """

    lines: Sequence[str]
    channels: int
    sizes: Sizes
    size_comment: str = ""


EXAMPLE = _Dataset(
    lines=(
        "  - name: digits  # scans of handwritten digits; ships with scikit-learn",
        "    class_pairs: [['3', '8']]",
        "  # - name: my_images",
        "  #   own: {kind: folder, path: ./my-images, domain: medical, channels: 1}",
    ),
    channels=1,
    sizes=UNKNOWN_SIZES,
)


def draft_sweep(
    source: Path | None,
    to: Path,
    *,
    domain: str | None = None,
    gpu: bool = False,
    own_options: Mapping[str, Any] | None = None,
    root: Path | None = None,
) -> str:
    """Return the text of a sweep file for your own images, or for digits.

    This function opens only a few images. It lists the names of all other images.

    Args:
        source: Path of your own images. None means the dataset digits.
        to: File to which the text will be written. The sweep has the name of the file.
            Relative paths start in the folder of the file.
        domain: ``natural`` or ``medical``. If it is None, isweep guesses the domain from the
            format of the files, and from patients in DICOM headers.
        gpu: If True, choose larger networks and images.
        own_options: Options of your own data, as in ``own`` of a sweep file.
        root: Root that contains the key with which messages hash file names. None means that
            there is no key.

    Raises:
        SweepError: The images cannot be used, or there are too few images.
    """
    if not _ascii(to.stem):
        raise ConfigError(
            f"isweep names the sweep after its file, but {to.stem!r} contains no letter from a to "
            "z and no digit",
            hint="Choose another file name with `--out`",
        )
    capacity = ON_GPU if gpu else ON_CPU
    stem = as_name(_ascii(to.stem))
    name = f"my-{stem}"[:MAX_NAME] if stem in preset_names() else stem
    dataset = EXAMPLE
    command = "isweep init"
    if source is not None:
        dataset = _describe(source, to, capacity, domain, own_options or {}, names_key(root))
        command = f"isweep init {_typed(source)}"
    lines = [
        f"# Written by `{command}`. You can change every value.",
        f"# `isweep plan {_typed(to)}` checks this file, `isweep run {_typed(to)}` runs the sweep.",
        f"name: {name}",
        f"models: {capacity.models}  # `isweep models` lists all models",
        "datasets:  # `isweep datasets` lists more datasets to compare with",
        *dataset.lines,
        f"train_sizes: {list(dataset.sizes.train_sizes)}  # a larger training set contains the "
        "smaller ones",
        f"test_size: {dataset.sizes.test_size}  # number of test images; all images of a "
        "group (patient) are in the same set",
        f"image_size: {capacity.image_size}  # side in pixels{dataset.size_comment}",
        f"channels: {dataset.channels}  # use the same number for all datasets, to compare K_F",
        f"seeds: {list(SEEDS)}  # with one seed, training takes 1/{len(SEEDS)} of the time, but "
        "the results have no intervals over trainings",
        f"recipe: {capacity.recipe}  # `isweep recipes` lists all recipes",
        "attacks: {methods: [fgsm], epsilons: [1, 2, 4, 8]}  # epsilons in 1/255 of the pixel "
        "range; `pgd` is another method",
        f"resources: {capacity.resources}  # for one training",
        "",
    ]
    text = "\n".join(lines)
    parse_sweep(text, origin=str(to), folder=to.parent)
    return text


def _describe(
    source: Path,
    to: Path,
    capacity: Capacity,
    domain: str | None,
    own_options: Mapping[str, Any],
    key: str,
) -> _Dataset:
    """Return the lines of a sweep file that describe your own images."""
    request = _request(source, capacity, own_options, key)
    listing = list_raw(request)
    images = read_first_images(request, listing)
    channels = 3 if images[0].is_color else 1
    guess = guess_domain(request, images, listing)
    fields: dict[str, object] = {
        "kind": request.dataset.source,
        "path": _yaml(_relative(source, to)),
        "domain": domain or guess.domain,
        "channels": channels,
    }
    for option, value in own_options.items():
        fields[option] = _yaml(value)
    own_line = f"    own: {{{', '.join(f'{name}: {value}' for name, value in fields.items())}}}"
    if domain is None:
        own_line += (
            f"  # isweep guessed the domain{guess.reason}; if the guess is wrong, write natural or "
            "medical"
        )
    only_images = without_other_files(request, listing)
    num_others = len(listing.items) - len(only_images.items)
    counts = count_labels(only_images)
    if counts is not None:
        counts = with_patients(counts, request, only_images)
    sizes = UNKNOWN_SIZES
    counts_comment = "isweep run counts images and groups when it reads the images"
    class_names: tuple[str, ...] = ()
    # The counts are None if the labels are known only after reading the files, or if there are
    # too many headers to read.
    if counts is not None:
        sizes = _sizes(counts, request.spec, capacity)
        counts_comment = _counts_text(counts)
        class_names = counts.label_names
    lines = [f"  - name: {request.dataset.name}", f"    # {counts_comment}"]
    if num_others:
        files = "1 file has the name of an image, but is not"
        if num_others > 1:
            files = f"{num_others:,} files have names of images, but are not"
        measure = f"isweep measure {_typed(source)}"
        lines.append(f"    # {files} in an image format; `{measure}` lists such files")
    for flag, count in listing.flags.items():
        if count:
            lines.append(f"    # doubtful: {flag}")
    lines.append(own_line)
    if len(class_names) > 2:
        pair = ", ".join(map(_yaml, class_names[:2]))
        lines.append(f"    # class_pairs: [[{pair}]]  # remove the first # to use only two classes")
    return _Dataset(lines, channels, sizes, size_comment(images, capacity.image_size))


def _request(
    source: Path, capacity: Capacity, own_options: Mapping[str, Any], key: str
) -> RawRequest:
    """Return the request with which to list and read your own images."""
    if not source.exists():
        hint = f"Give a folder, a table or a file of arrays. {missing_path_hint(source)}"
        raise ConfigError(f"{source} does not exist", hint=hint.rstrip())
    kind = detect_own_kind(source)
    if kind is None:
        raise ConfigError(
            f"{source} is not a folder, table or file of arrays that isweep can read",
            hint=unknown_kind_hint(source),
        )
    stem = as_name(_ascii(source.absolute().name.split(".")[0]) or "images")
    name = f"my_{stem}"[:MAX_NAME] if stem in DATASETS else stem
    own_data = UserSourceSpec(kind=kind, path=str(source), domain=None, **own_options)
    spec = PreparedSpec(dataset=name, image_size=capacity.image_size, channels=1)
    return RawRequest(user_dataset_spec(name, own_data), spec, source, key)


def _relative(source: Path, to: Path) -> str:
    """Return the path of the images, relative to the folder of the sweep file."""
    path = os.path.relpath(source.absolute(), to.absolute().parent)
    if path.startswith(".."):
        return path
    return f"./{path}"


def _counts_text(counts: LabelCounts) -> str:
    """Return the numbers of images, groups and images per class as text."""
    num_images = len(counts.classes)
    num_groups = len(np.unique(counts.groups))
    groups = f"{plural(num_groups, 'group')} (patients)"
    if num_groups == num_images:
        groups = "every image is its own group"
    images_per_class = np.bincount(counts.classes, minlength=len(counts.label_names)).tolist()
    classes: list[str] = []
    for name, number in zip(counts.label_names, images_per_class, strict=True):
        classes.append(f"{name} {number:,}")
    named = ", ".join(classes[:MAX_NAMED])
    if len(classes) > MAX_NAMED:
        named += f" and {len(classes) - MAX_NAMED} more classes"
    text = f"{plural(num_images, 'image')}, {groups}: {named}"
    if counts.has_patients:
        text += "; groups are the patients in the DICOM headers"
    return text


def _sizes(counts: LabelCounts, spec: PreparedSpec, capacity: Capacity) -> Sizes:
    """Return sizes for which there are enough images."""
    num_images = len(counts.classes)
    for share in TEST_SHARES:
        test_size = max(min(capacity.max_tested, round(share * num_images)), 2)
        subset = SubsetSpec(prepared=spec, class_pair=None, test_size=test_size)
        try:
            rows = make_subset(
                counts.classes,
                counts.groups,
                subset,
                counts.splits,
                class_names=counts.label_names,
            ).train_rows
        except DataError as error:
            problem = with_subset_name(subset, counts.label_names, error)
        else:
            largest = _rounded(min(capacity.max_trained, len(rows)))
            if largest >= MIN_TRAINED:
                return Sizes(_train_sizes(largest), test_size)
            raise DataError(
                f"{spec.dataset} has {plural(num_images, 'image')}. isweep can use only "
                f"{len(rows)} of these images for training, but a sweep needs at least "
                f"{MIN_TRAINED} training images",
                hint="Add images or groups. A group (patient) is never split between training and "
                "test set",
            )
    raise problem


def _train_sizes(largest: int) -> tuple[int, ...]:
    """Return up to NUM_TRAIN_SIZES train sizes. Each is about half of the next."""
    sizes: list[int] = []
    for num_halvings in reversed(range(NUM_TRAIN_SIZES)):
        size = _rounded(largest // 2**num_halvings)
        if size >= MIN_TRAINED and size not in sizes:
            sizes.append(size)
    return tuple(sizes)


def _rounded(number: int) -> int:
    """Round a size down to a round, even number.

    The number is even so that two classes can have the same size.
    """
    unit = 2
    if number >= 1000:
        unit = 100
    elif number >= 40:
        unit = 10
    return max(number // unit * unit, 2)


def _ascii(text: str) -> str:
    """Return text in ASCII, without accents. If no letter or digit is left, return no text."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    if any(map(str.isalnum, plain)):
        return plain
    return ""


def _typed(path: Path) -> str:
    """Return a path quoted for a shell, on one line."""
    return shlex.quote("".join(letter if letter.isprintable() else "?" for letter in str(path)))


def _yaml(value: object) -> str:
    """Return a value as YAML on one line.

    The value is written as JSON, which is valid YAML. JSON quotes all text, so no text can be
    read as another type.
    """
    return json.dumps(value, ensure_ascii=False)
