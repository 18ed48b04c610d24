"""Sources of natural images: MNIST and Fashion-MNIST, CIFAR-10, SVHN, ImageNet.

As in the study, only the training files are read. The files may be unpacked or in archives.

- MNIST and Fashion-MNIST: the IDX format of Yann LeCun's page ("THE IDX FILE FORMAT"). The files
  may have the names of this page and torchvision, the names of Kaggle's copy, or names with a
  dot before ``idx``, as on some mirrors. The files of both datasets have the same names. The
  name of the folder, and the first labels of the official files, distinguish the two datasets.
- CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html. The files are pickles, from which only
  numpy arrays are loaded.
- SVHN, format 2: http://ufldl.stanford.edu/housenumbers/. The file has the format MATLAB 5, or
  MATLAB 7.3, which is HDF5 with all axes reversed. Class 10 is the digit 0.
- ImageNet: Kaggle's ``ILSVRC/Data/CLS-LOC/train/<class id>/``, torchvision's
  ``train/<class id>/``, or ``ILSVRC2012_img_train.tar``, a tar with one tar per class. Only
  the ten classes of the table of datasets are read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from search_spaces.errors import DataError, SweepError, plural
from tasks.array_types import AnyArray, IntArray, Uint8Array
from tasks.sources.arrays.files import open_hdf5
from tasks.sources.base import Item, Listing, RawRequest, Reader, SkipItem, Source
from tasks.sources.generated import list_rows, row_reader
from tasks.sources.official import OWN_MAXIMUM, download, incomplete_download, read_picture
from tasks.sources.pictures import is_image_name
from tasks.sources.raw import (
    MARK,
    MAX_FILE_BYTES,
    RawTree,
    gunzip,
    read_locator,
    split_locator,
)

IMAGENET_CLASSES = (
    "n01440764",
    "n01443537",
    "n02099601",
    "n02102040",
    "n02979186",
    "n03028079",
    "n03394916",
    "n03425413",
    "n03445777",
    "n03888257",
)
"""Ids of ten of the thousand classes, in the order of the class names in the table of
datasets. The released code always used the first two."""
OTHER_SPLITS = frozenset({"val", "test", "validation"})
OTHER_SPLIT_FILE = re.compile(r"ILSVRC\d*_(?:val|test)_", re.IGNORECASE)
"""Pattern of the names of validation and test images, which may be in class folders too."""
SMALLEST_CLASS = 732
"""Number of training images of the smallest class of ILSVRC 2012."""

COPY_MARK = re.compile(r"(?:[ _-]?\(\d+\)| copy(?: \d+)?| \d+)(?=(?:\.\w+)*$)")
"""Pattern of the text that browsers and file managers add to the name of a second copy. The
text is before the file extensions."""
CACHE_VARIABLE = "ISWEEP_DOWNLOADS"
"""Environment variable that names the folder for torchvision's downloads."""
MAX_SVHN_VALUES = 1 << 30
"""Largest number of values in SVHN's file."""
OFFICIAL_COUNT = 60_000
"""Number of images in the official training files of MNIST and of Fashion-MNIST."""
FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}
"""The first ten labels of the official training files."""
IDX_IMAGES = "train-images-idx3-ubyte"
IDX_LABELS = "train-labels-idx1-ubyte"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
SVHN_FILE = "train_32x32.mat"
OTHER_IDX = ("kmnist", "kuzushiji", "emnist", "qmnist")
"""Words in folder names of other datasets whose files have the same names as MNIST's files."""
PICKLE_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
PICKLE_NAMES = ("_reconstruct", "ndarray", "dtype")
"""Names that the pickles of CIFAR-10 may import from :data:`PICKLE_MODULES`. All other names
are rejected."""


class DownloadName(NamedTuple):
    """Names by which the download of a dataset is recognized.

    Attributes:
        torchvision: Name of torchvision's class that downloads the dataset.
        word: Word in the names of the dataset's folders and archives, in lower case.
        excluded_words: Words in folder names of other datasets whose files have the same
            names.
    """

    torchvision: str
    word: str
    excluded_words: tuple[str, ...] = ()


DOWNLOADS = {
    "mnist": DownloadName("MNIST", "mnist", ("fashion", *OTHER_IDX)),
    "fashion_mnist": DownloadName("FashionMNIST", "fashion", OTHER_IDX),
    "cifar10": DownloadName("CIFAR10", "cifar"),
    "svhn": DownloadName("SVHN", "svhn"),
}


class LabeledImages(NamedTuple):
    """Images and their labels.

    Attributes:
        images: ``(num_images, height, width[, 3])`` in [0, 255].
        labels: ``(num_images,)`` class indices.
    """

    images: Uint8Array
    labels: IntArray


def list_imagenet(tree: RawTree, request: RawRequest) -> Listing:
    """List all images of the ten classes, in the order of classes and file names.

    The class of an image is the name of its folder or of the archive of its class. If a file
    is in two copies of the training split, it is listed once.

    Raises:
        DataError: A class has no image, or a file is in the folder of another class.
    """
    files_by_class: dict[str, dict[str, str]] = {class_id: {} for class_id in IMAGENET_CLASSES}
    excluded = Counter[str]()
    for name in tree:
        class_id = _imagenet_class(name, tree)
        if class_id is None:
            continue
        file = name.rpartition("/")[2]
        if not is_image_name(name):
            excluded["not an image by its extension"] += 1
        elif OTHER_SPLIT_FILE.match(file):
            excluded["image of another split"] += 1
        elif files_by_class[class_id].setdefault(file, name) != name:
            excluded["the same file again"] += 1
    missing = [class_id for class_id, files in files_by_class.items() if not files]
    if missing:
        needed = f"train images of the classes {', '.join(missing)}"
        raise incomplete_download(request, needed, tree)
    items = []
    flags = {}
    num_misplaced = 0
    for label, (class_id, files) in enumerate(files_by_class.items()):
        for file, name in files.items():
            class_in_name = file.partition("_")[0]
            if class_in_name in IMAGENET_CLASSES and class_in_name != class_id:
                num_misplaced += 1
            items.append(Item(tree.locator(name), label))
        if len(files) < SMALLEST_CLASS:
            flag = f"class {class_id} is not whole: the smallest has {SMALLEST_CLASS} images"
            flags[flag] = len(files)
    if num_misplaced:
        raise request.error(
            f"for {plural(num_misplaced, 'file')}, the class in the file name differs from "
            "the class of the folder",
            hint="Unpack the archives again",
        )
    return Listing(
        items,
        request.dataset.label_names,
        excluded=dict(excluded),
        intensity=OWN_MAXIMUM,
        flags=flags,
    )


def _stem(path: str) -> str:
    """Return a file name without its extensions."""
    return PurePosixPath(path).name.partition(".")[0]


def _imagenet_class(name: str, tree: RawTree) -> str | None:
    """Return the class id of a training image; None if it belongs to none of the ten classes."""
    *folders, _ = name.split("/")
    if not OTHER_SPLITS.isdisjoint(folder.casefold() for folder in folders[:-1]):
        return None
    *archives, _ = tree.locator(name).split(MARK)
    candidates = [_stem(archives[-1])] if archives else []
    candidates += folders[-1:]
    for stem in candidates:
        if stem in IMAGENET_CLASSES:
            return stem
    return None


def _may_hold_classes(archive: str) -> bool:
    """Return whether an archive may contain images of the ten classes.

    An archive whose name is the id of another class is never opened.
    """
    stem = _stem(archive)
    is_class_archive = stem.startswith("n") and stem[1:].isdigit()
    return stem in IMAGENET_CLASSES or not is_class_archive


imagenet = download(list_imagenet, read_picture, _may_hold_classes)


@dataclass(frozen=True)
class ArrayFiles:
    """A dataset whose images and labels are in array files.

    Attributes:
        file_names: For each file, its possible names in lower case.
        description: The files in words, for messages.
        load: Function that returns the images and labels in the files. Its arguments are the
            name of the dataset and the bytes of each file. For damaged files, it raises
            DataError.
    """

    file_names: Sequence[Collection[str]]
    description: str
    load: Callable[[str, list[bytes]], LabeledImages]

    def source(self) -> Source:
        """Return the source of this dataset. It loads the arrays once per process."""
        return Source(self._list_items, self._reader)

    def _list_items(self, request: RawRequest) -> Listing:
        return list_rows(self._arrays(request).labels, request, intensity=OWN_MAXIMUM)

    def _reader(self, request: RawRequest) -> Reader:
        return row_reader(self._arrays(request).images, by_image_maximum=True)

    def _arrays(self, request: RawRequest) -> LabeledImages:
        """Find the files and return their arrays.

        Raises:
            DataError: A file is missing or damaged.
        """
        request = with_download(request)
        locators = find_together(request, self.file_names)
        if locators is None:
            raise DataError(
                f"{request.dataset.name}: not all of these files were found: {self.description}",
                hint=f"Arrange the files in this layout: {request.dataset.raw_layout}. Or "
                "leave out --raw: with an internet connection, torchvision downloads the "
                "files",
            )
        base = request.base()
        stats = [(base / split_locator(locator)[0]).stat() for locator in locators]
        stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
        return _load_arrays(self, base, request.dataset.name, tuple(locators), stamps)


@lru_cache(maxsize=4)
def _load_arrays(
    files: ArrayFiles, base: Path, name: str, locators: tuple[str, ...], _stamps: object
) -> LabeledImages:
    """Load and check the arrays of a dataset.

    The result is cached. ``_stamps`` contains the modification time and size of each file: if
    they change, the files are loaded again.

    Raises:
        DataError: The arrays are damaged.
    """
    arrays = files.load(name, [_read_file(base, name, locator) for locator in locators])
    images, labels = arrays
    if len(images) != len(labels):
        raise DataError(
            f"{name}: there are {len(images)} images, but {len(labels)} labels",
            hint="Download the files again",
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < 10:
        raise DataError(
            f"{name}: labels range from {labels.min()} to {labels.max()}, but must be 0 to 9",
            hint="Download the files again",
        )
    return arrays


def _read_file(base: Path, name: str, locator: str) -> bytes:
    """Return the bytes of a file or archive member.

    Raises:
        DataError: The file is damaged.
    """
    try:
        return read_locator(base, locator)
    except SkipItem as skip:
        raise DataError(
            f"{name}: the file {locator.rpartition('/')[2]} cannot be read ({skip.reason})",
            hint="Download it again. If the folder also contains an undamaged copy, delete "
            "the damaged one instead",
        ) from None


def with_download(request: RawRequest) -> RawRequest:
    """Return the request with a raw folder: the user's folder, or torchvision's download.

    Files are downloaded once, into the folder that the environment variable
    ``ISWEEP_DOWNLOADS`` names, or else into the user's cache.

    Raises:
        DataError: The download failed.
    """
    if request.raw is not None:
        return request
    from torchvision import datasets

    name = request.dataset.name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    downloads = os.environ.get(CACHE_VARIABLE) or Path(cache) / "isweep" / "raw"
    folder = Path(downloads) / name
    split: dict[str, Any] = {"split": "train"} if name == "svhn" else {"train": True}
    try:
        getattr(datasets, DOWNLOADS[name].torchvision)(str(folder), download=True, **split)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"torchvision could not download {name} ({type(error).__name__}), and --raw is not set",
            hint="Download the files yourself, and set --raw to their folder. The folder must "
            f"contain: {request.dataset.raw_layout}",
        ) from None
    return replace(request, raw=folder)


def find_together(
    request: RawRequest,
    file_names: Sequence[Collection[str]],
) -> list[str] | None:
    """Return the locators of a dataset's files. All files must be in one folder.

    Unpacked files are searched first, then archives with the dataset's word in their name,
    then all archives. If several folders have the files, folders with this word are preferred.
    Among these, the folder with the fewest parent folders is used.

    Args:
        request: The dataset and its download.
        file_names: For each file, its possible names in lower case.

    Returns:
        One locator per file, or None if no folder has all files.

    Raises:
        DataError: Several folders have such files, and the files differ.
    """
    download_name = DOWNLOADS[request.dataset.name]

    def has_word(name: str) -> bool:
        return download_name.word in name.casefold()

    for is_wanted in (lambda _: False, has_word, lambda _: True):
        tree = RawTree(request, is_wanted)
        copies = _complete_copies(tree, file_names, download_name.excluded_words)
        copies = [locators for locators in copies if has_word(locators[0])] or copies
        if len(copies) > 1:
            _check_equal(copies, request)
        if copies:
            return copies[0]
    return None


def _complete_copies(
    tree: RawTree, file_names: Sequence[Collection[str]], excluded_words: Sequence[str]
) -> list[list[str]]:
    """Return the locators of the files in each folder that has all files.

    Folders with the fewest parent folders come first.
    """
    locators_by_folder: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in tree:
        if any(word in name.casefold() for word in excluded_words):
            continue
        folder, _, file = name.rpartition("/")
        file = COPY_MARK.sub("", file.casefold())
        for index, names in enumerate(file_names):
            if file in names:
                locators = locators_by_folder[_without_file_folder(folder, names)]
                locators.setdefault(index, tree.locator(name))
    copies = []
    for folder in sorted(locators_by_folder, key=lambda name: (name.count("/") + bool(name), name)):
        locators = locators_by_folder[folder]
        if len(locators) == len(file_names):
            copies.append([locators[index] for index in range(len(file_names))])
    return copies


def _without_file_folder(folder: str, file_names: Collection[str]) -> str:
    """Return the folder of a file. A folder with the name of the file is skipped.

    Kaggle puts each file into a folder with the same name.
    """
    outer, _, innermost = folder.rpartition("/")
    innermost = innermost.casefold()
    if innermost in file_names or f"{innermost}.gz" in file_names:
        return outer
    return folder


def _check_equal(copies: Sequence[Sequence[str]], request: RawRequest) -> None:
    """Check that several copies of a download have the same bytes.

    Raises:
        DataError: Two copies have different bytes.
    """
    digests = set()
    for locators in copies:
        total = hashlib.sha256()
        for locator in locators:
            body = _read_file(request.base(), request.dataset.name, locator)
            total.update(hashlib.sha256(body).digest())
        digests.add(total.digest())
    if len(digests) > 1:
        raise request.error(
            f"the raw folder contains {len(copies)} different downloads",
            hint="Set --raw to the folder of the right download",
        )


def _idx_names(name: str) -> tuple[str, ...]:
    """Return the possible names of an IDX file: with a dot, with a hyphen, and gzipped."""
    dotted = name.replace("-idx", ".idx")
    return name, f"{name}.gz", dotted, f"{dotted}.gz"


def _load_idx(name: str, bodies: list[bytes]) -> LabeledImages:
    """Return the images and labels of MNIST or Fashion-MNIST.

    Raises:
        DataError: A file is damaged, or the files belong to the other dataset.
    """
    images = read_idx(bodies[0], IDX_IMAGES, dimensions=3)
    labels = read_idx(bodies[1], IDX_LABELS, dimensions=1)
    if len(labels) == OFFICIAL_COUNT:
        first_labels = tuple(labels[:10].tolist())
        for dataset, official_labels in FIRST_LABELS.items():
            if dataset != name and first_labels == official_labels:
                raise DataError(
                    f"{name}: the files belong to {dataset}",
                    hint=f"Set --raw to the folder of {name}",
                )
    return LabeledImages(images, labels)


def read_idx(body: bytes, name: str, *, dimensions: int) -> Uint8Array:
    """Return the array of unsigned bytes in an IDX file.

    Args:
        body: The bytes of the file, gzipped or not.
        name: Name of the file in messages.
        dimensions: Number of axes that the array must have.

    Raises:
        DataError: The file is damaged, or has another format or number of axes.
    """
    try:
        body = gunzip(body, MAX_FILE_BYTES)
    except SkipItem as skip:
        raise DataError(
            f"{name} is damaged: {skip.reason}", hint="Download the file again"
        ) from None
    header_bytes = 4 + 4 * dimensions
    if body[:4] != bytes((0, 0, 8, dimensions)) or len(body) < header_bytes:
        raise DataError(
            f"{name} is not an IDX file of bytes with {dimensions} dimensions",
            hint="Download the file again",
        )
    shape = np.frombuffer(body[:header_bytes], ">u4", offset=4).tolist()
    surplus = len(body) - header_bytes - math.prod(shape)
    if surplus:
        amount = "fewer" if surplus < 0 else "more"
        raise DataError(
            f"{name} has {amount} bytes than its header declares",
            hint="Download the file again",
        )
    return np.frombuffer(body, np.uint8, offset=header_bytes).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that only accepts numpy arrays.

    Other classes could run code from the file.
    """

    def find_class(self, module: str, name: str) -> object:
        """Return a class or function that the pickle imports.

        Raises:
            UnpicklingError: numpy arrays do not need this class or function.
        """
        if module in PICKLE_MODULES and name in PICKLE_NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError("only numpy arrays are allowed")


def _load_cifar10(_name: str, bodies: list[bytes]) -> LabeledImages:
    """Return the images and labels of the five training batches of CIFAR-10.

    Raises:
        DataError: A batch is damaged.
    """
    images = []
    labels = []
    for body in bodies:
        try:
            batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8)
            images.append(pixels.reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64))
        except Exception as error:  # damaged files may raise any type of exception
            raise DataError(
                f"cifar10: a batch file is damaged ({type(error).__name__})",
                hint="Download the files again",
            ) from None
    channels_last = np.concatenate(images).transpose(0, 2, 3, 1)
    return LabeledImages(channels_last, np.concatenate(labels))


def _load_svhn(_name: str, bodies: list[bytes]) -> LabeledImages:
    """Return the images and labels of SVHN. Class 10 is the digit 0, so it becomes label 0.

    Raises:
        DataError: The file is damaged, or not SVHN's format 2.
    """
    try:
        images, labels = _read_matlab(bodies[0])
    except SweepError:
        raise
    except Exception as error:  # damaged files may raise any type of exception
        raise DataError(
            f"svhn: {SVHN_FILE} is damaged, or is not the file of format 2 with cropped "
            f"digits ({type(error).__name__})",
            hint="Download the file again",
        ) from None
    if images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise DataError(
            f"svhn: the array X of {SVHN_FILE} has type {images.dtype} and shape "
            f"{images.shape}, not uint8 and (32, 32, 3, n)",
            hint="Download the file of format 2: it has cropped digits",
        )
    digits = labels.reshape(-1).astype(np.int64)
    digits[digits == 10] = 0
    return LabeledImages(images.transpose(3, 0, 1, 2), digits)


def _read_matlab(body: bytes) -> tuple[AnyArray, AnyArray]:
    """Return the variables X and y of a MATLAB file, after checking the declared size.

    Raises:
        DataError: The file declares too many values.
    """
    if b"\x89HDF\r\n\x1a\n" in body[:520]:  # MATLAB 7.3: HDF5 after 512 bytes of text
        with open_hdf5(io.BytesIO(body), "svhn") as file:
            _check_svhn_size(file["X"].size)
            images = np.asarray(file["X"])
            labels = np.asarray(file["y"])
        return images.transpose(), labels.transpose()
    from scipy.io import loadmat, whosmat

    variables = whosmat(io.BytesIO(body))
    _check_svhn_size(sum(math.prod(shape) for _, shape, _ in variables))
    content = loadmat(io.BytesIO(body), variable_names=["X", "y"])
    return np.asarray(content["X"]), np.asarray(content["y"])


def _check_svhn_size(num_values: int) -> None:
    """Check that SVHN's file does not declare too many values.

    Raises:
        DataError: The file declares more than :data:`MAX_SVHN_VALUES`.
    """
    if num_values > MAX_SVHN_VALUES:
        raise DataError(
            f"svhn: {SVHN_FILE} declares {num_values:,} values, more than {MAX_SVHN_VALUES:,}",
            hint="Download the file again",
        )


idx = ArrayFiles(
    (_idx_names(IDX_IMAGES), _idx_names(IDX_LABELS)),
    f"{IDX_IMAGES}[.gz] and {IDX_LABELS}[.gz]",
    _load_idx,
).source()
cifar10 = ArrayFiles(
    tuple((name,) for name in BATCHES),
    f"cifar-10-batches-py/{BATCHES[0]} to _5, or cifar-10-python.tar.gz",
    _load_cifar10,
).source()
svhn = ArrayFiles(((SVHN_FILE,),), f"{SVHN_FILE} of format 2, cropped digits", _load_svhn).source()
