"""Natural images: MNIST and Fashion-MNIST, CIFAR-10, SVHN, ImageNet, in whatever folder, in an archive too.

Layouts. MNIST's: Yann LeCun's page ("THE IDX FILE FORMAT"), names as there and in torchvision, with a dot as
common mirrors have them, and Kaggle's copy with each file in a folder of its own name; folders and the first
labels of the official files tell Fashion-MNIST apart. CIFAR-10: https://www.cs.toronto.edu/~kriz/cifar.html,
"Dataset layout"; its pickles are read by an unpickler that knows numpy arrays and nothing else. SVHN, format
2: http://ufldl.stanford.edu/housenumbers/, MATLAB 5 or 7.3 (HDF5 with all sides in reverse order), which
spells digit 0 as class 10. ImageNet: Kaggle's ``ILSVRC/Data/CLS-LOC/train/<class id>/``, torchvision's
``train/<class id>/``, or ``ILSVRC2012_img_train.tar``, a tar of one tar per class; only the ten classes of
the table's row are read.

Train files only, as in the study; its test images are drawn from them, too.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import os
import pickle
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np
from numpy.typing import NDArray

from search_spaces.datasets import IMAGENET_CLASSES
from search_spaces.errors import DataError, SweepError
from tasks.sources.arrays import open_hdf5
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample, SkipItem
from tasks.sources.made import ROWS_PER_TASK, cached_by_files, row_items, row_reader
from tasks.sources.official import list_download, not_there
from tasks.sources.pictures import by_own_maximum, decode_image, is_image_name
from tasks.sources.raw import RawTree, read_locator

LabelledImages = tuple[NDArray[np.uint8], NDArray[np.int64]]

OTHER_SPLITS = frozenset({"val", "test", "validation"})
OTHER_FILE = re.compile(r"ILSVRC\d*_(?:val|test)_", re.IGNORECASE)
"""Validation images sorted into class folders keep these names."""
SMALLEST_CLASS = 732
"""ILSVRC 2012: 732 to 1,300 train images per class."""


class ImageNet:
    """Files ``<class id>/<class id>_<number>.JPEG`` in the order of their names."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return all images of the ten classes.

        Raises:
            DataError: when a class is missing, or files lie in another class's folder than their name says.
        """
        return list_download(request, lambda tree: _listing(tree, request), _is_wanted)

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of JPEG files."""
        base = request.base()

        def read(item: Item) -> tuple[Sample]:
            return (own_maximum_sample(decode_image(read_locator(base, item.locator))),)

        return read


def own_maximum_sample(sample: Sample) -> Sample:
    """Scale an image that was read from a file by its own maximum."""
    pixels, note = by_own_maximum(sample.pixels)
    return replace(sample, pixels=pixels, conversions=(*sample.conversions, *([note] if note else [])))


def _listing(tree: RawTree, request: RawRequest) -> Listing:
    by_class, excluded = _by_class(tree)
    missing = [key for key in IMAGENET_CLASSES if key not in by_class]
    if missing:
        raise not_there(
            request, f"the train images of its ten classes, and has none of {', '.join(missing)}", tree
        )
    items, misplaced = [], 0
    for label, key in enumerate(IMAGENET_CLASSES):
        for file, name in by_class[key].items():
            said = file.partition("_")[0]
            misplaced += said in IMAGENET_CLASSES and said != key
            items.append(Item(tree.locator(name), label))
    if misplaced:
        rule = "imagenet's files must lie in the folder of the class that their names say"
        raise DataError(rule, f"{misplaced} elsewhere", "unpack the archives again")
    few = {key: len(by_class[key]) for key in IMAGENET_CLASSES if len(by_class[key]) < SMALLEST_CLASS}
    return Listing(
        items,
        request.dataset.label_names,
        excluded=dict(excluded),
        intensity="each image by its own maximum",
        flags={
            f"class {key} is not whole: the smallest has {SMALLEST_CLASS} images": n for key, n in few.items()
        },
    )


def _is_wanted(archive: str) -> bool:
    """Tell whether an archive may hold images of the ten classes: of the class archives, only theirs do."""
    stem = PurePosixPath(archive).name.partition(".")[0]
    return stem in IMAGENET_CLASSES or not (stem[:1] == "n" and stem[1:].isdigit())


def _by_class(tree: RawTree) -> tuple[dict[str, dict[str, str]], Counter[str]]:
    """Return class id -> file -> name of its images, and what else lies in the class folders, by reason.

    A class is the folder, or the class archive, that a file lies in; a file that lies there twice, in two
    copies of the train split, is taken once.
    """
    found: defaultdict[str, dict[str, str]] = defaultdict(dict)
    other = Counter[str]()
    for name in tree:
        parts = name.split("/")
        archive = tree.locator(name).split("!/")[-2:-1]
        key = parts[-2] if len(parts) > 1 else ""
        if archive and archive[0].rpartition("/")[2].partition(".")[0] in IMAGENET_CLASSES:
            key = archive[0].rpartition("/")[2].partition(".")[0]
        if key not in IMAGENET_CLASSES or OTHER_SPLITS & {part.casefold() for part in parts[:-2]}:
            continue
        if not is_image_name(name):
            other["not an image by its ending"] += 1
        elif OTHER_FILE.match(parts[-1]):
            other["image of another split"] += 1
        elif found[key].setdefault(parts[-1], name) != name:
            other["the same file again"] += 1
    return dict(found), other


COPY = re.compile(r"(?:[ _-]?\(\d+\)| copy(?: \d+)?| \d+)(?=(?:\.\w+)*$)")
"""What a browser or a file manager adds to a second copy's name, before its endings."""


def plain_name(name: str) -> str:
    """Spell a file's own name in lower case, without the mark of a copy."""
    return COPY.sub("", name.rpartition("/")[2].casefold())


def find_together(
    request: RawRequest, wanted: Sequence[Iterable[str]], *, hint: str, others: Sequence[str] = ()
) -> list[str] | None:
    """Return the locators of files that lie in one folder, one of each kind of name, or None.

    Args:
        request: What is read.
        wanted: For each file the names it may have, in lower case.
        hint: Part of the name of the dataset's own folders and archives, which go first, in lower case.
        others: Words of folders that hold another dataset with the same names, in lower case.

    Raises:
        DataError: when several folders have them and differ.
    """
    kinds = [set(names) for names in wanted]
    unpacked = [lambda _: False] if request.root().is_dir() else []
    for look_into in (*unpacked, lambda name: hint in name.casefold(), lambda _: True):
        found = _sets(RawTree(request, archives=True, wanted=look_into), kinds, others)
        found = [names for names in found if hint in names[0].casefold()] or found
        if found:
            _check_alike(found, request)
            return found[0]
    return None


def _sets(tree: RawTree, kinds: Sequence[set[str]], others: Sequence[str]) -> list[list[str]]:
    """Return one list of locators for each folder that has all files, those nearest to the top first."""
    folders: defaultdict[str, dict[int, str]] = defaultdict(dict)
    for name in tree:
        for index, names in enumerate(kinds):
            if plain_name(name) in names and not any(word in name.casefold() for word in others):
                folder = _without_own(name.rpartition("/")[0], names)
                folders[folder].setdefault(index, tree.locator(name))
    whole = [folder for folder, files in folders.items() if len(files) == len(kinds)]
    ranked = sorted(whole, key=lambda folder: (folder.count("/") + bool(folder), folder))
    return [[folders[folder][index] for index in range(len(kinds))] for folder in ranked]


def _without_own(folder: str, names: set[str]) -> str:
    """Return a file's folder without one of the file's own name, in which Kaggle puts each file."""
    above, _, last = folder.rpartition("/")
    return above if last.casefold() in names or f"{last.casefold()}.gz" in names else folder


def _check_alike(found: Sequence[Sequence[str]], request: RawRequest) -> None:
    if len(found) < 2:
        return
    try:
        digests = {
            tuple(hashlib.sha256(read_locator(request.base(), name)).hexdigest() for name in names)
            for names in found
        }
    except SkipItem as skip:
        rule = f"{request.dataset.name}: every copy of the download must be readable"
        raise DataError(rule, skip.reason, "take the broken one away") from None
    if len(digests) > 1:
        rule = f"{request.dataset.name}: the raw folder must hold one such download"
        raise DataError(rule, f"{len(found)} that differ", "give the folder of the right one")


TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "svhn": "SVHN"}
CACHE_VARIABLE = "ISWEEP_DOWNLOADS"


def download_folder(name: str) -> Path:
    """Return where downloads of ``name`` go: below ``ISWEEP_DOWNLOADS`` or the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE_VARIABLE) or Path(cache) / "isweep" / "raw") / name


def download(request: RawRequest) -> Path:
    """Return the folder of the torchvision download, fetched now if need be.

    Raises:
        DataError: when it cannot be fetched, with what to do on a machine without network.
    """
    name = request.dataset.name
    folder = download_folder(name)
    from torchvision import datasets

    fetch = getattr(datasets, TORCHVISION[name])
    try:
        if name == "svhn":
            fetch(str(folder), split="train", download=True)
        else:
            fetch(str(folder), train=True, download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} needs its raw files, or a network to download them",
            f"no --raw folder, and the download failed ({type(error).__name__})",
            f"download it elsewhere and pass --raw DIR; expected: {request.dataset.raw_layout}",
        ) from None
    return folder


def with_raw(request: RawRequest) -> RawRequest:
    """Return the request with the download as its raw folder when none was given."""
    return request if request.raw is not None else replace(request, raw=download(request))


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SPELLINGS = [
    tuple(stem + ending for stem in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz"))
    for name in (IMAGES, LABELS)
]
NEITHER = ("kmnist", "kuzushiji", "emnist", "qmnist")
HINTS = {"mnist": ("mnist", ("fashion", *NEITHER)), "fashion_mnist": ("fashion", NEITHER)}
"""Dataset -> a word of its folders, and words of others' with files of the same names."""
FIRST_LABELS = {"mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)}
OFFICIAL_COUNT = 60_000
MAX_BYTES = 1 << 30


class IdxFiles:
    """Images and labels in two IDX files below the raw folder."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        base, images, labels = _files(request)
        values = _labels(base, (labels,))
        num_images = idx_shape(_body(base, images), images, dimensions=3)[0]
        if len(values) != num_images:
            raise DataError(
                f"{request.dataset.name}: image and label files must have equally many rows",
                f"{num_images} images, {len(values)} labels",
                "download both files again",
            )
        if len(values) and values.max() >= len(request.dataset.label_names):
            raise DataError(f"{request.dataset.name}: labels must be below 10", f"{values.max()}")
        _check_which(values, request.dataset.name)
        return Listing(
            row_items(values),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        base, images, _ = _files(request)
        return row_reader(_images(base, (images,)), own_maximum=True)


def _check_which(labels: NDArray[np.uint8], wanted: str) -> None:
    """Check that the official files of one set are not read as the other, which has the same names."""
    first = tuple(labels[:10].tolist())
    others = [name for name, known in FIRST_LABELS.items() if name != wanted and known == first]
    if others and len(labels) == OFFICIAL_COUNT:
        raise DataError(f"{wanted}: the files must be those of {wanted}", f"{others[0]}", "give its folder")


def _files(request: RawRequest) -> tuple[Path, str, str]:
    """Return the folder that the names of images and labels start from, and these."""
    name, request = request.dataset.name, with_raw(request)
    hint, others = HINTS.get(name, ("mnist", ()))
    found = find_together(request, SPELLINGS, hint=hint, others=others)
    if found is None:
        way_out = (
            f"expected: {request.dataset.raw_layout}; torchvision can download it on a machine with network"
        )
        raise DataError(f"{name} needs {IMAGES}[.gz] and {LABELS}[.gz]", "none there", way_out)
    return request.base(), found[0], found[1]


def _body(base: Path, name: str) -> bytes:
    try:
        return read_locator(base, name)
    except SkipItem as skip:
        shown = name.rpartition("/")[2]
        raise DataError(f"{shown} must be readable", skip.reason, "download it again") from None


@cached_by_files
def _images(base: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    return read_idx(_body(base, names[0]), names[0], dimensions=3)


@cached_by_files
def _labels(base: Path, names: tuple[str, ...]) -> NDArray[np.uint8]:
    return read_idx(_body(base, names[0]), names[0], dimensions=1)


def idx_shape(body: bytes, name: str, *, dimensions: int) -> tuple[int, ...]:
    """Return the shape that the header of an IDX file of bytes declares.

    Raises:
        DataError: when it is no IDX file of bytes with that many dimensions, or declares more than a GiB.
    """
    shown = name.rpartition("/")[2]
    header = _read(_open(body), 4 + 4 * dimensions, shown)
    if header[:4] != bytes((0, 0, 8, dimensions)):
        raise DataError(
            f"{shown} must be an IDX file of bytes with {dimensions} dimensions", "another header"
        )
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if int(np.prod(shape, dtype=object)) > MAX_BYTES:
        raise DataError(f"{shown} must declare less than {MAX_BYTES:,} bytes", f"shape {shape}")
    return shape


def read_idx(body: bytes, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, gzipped or not.

    Raises:
        DataError: when the file is truncated, damaged or longer than its header says.
    """
    shape = idx_shape(body, name, dimensions=dimensions)
    file, shown = _open(body), name.rpartition("/")[2]
    _read(file, 4 + 4 * dimensions, shown)
    values = _read(file, int(np.prod(shape)), shown)
    if _read(file, 1, shown, exact=False):
        raise DataError(f"{shown} must end where its header says", "more bytes", "download it again")
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(body: bytes) -> IO[bytes]:
    """Open what is gzipped by its first bytes: a browser may unpack a file and leave its ending."""
    stream = io.BytesIO(body)
    return gzip.GzipFile(fileobj=stream) if body[:2] == b"\x1f\x8b" else stream  # type: ignore[return-value]


def _read(file: IO[bytes], size: int, name: str, *, exact: bool = True) -> bytes:
    try:
        body = file.read(size)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name} must be whole", type(error).__name__, "download it again") from None
    if exact and len(body) != size:
        raise DataError(f"{name} must be whole", "it ends early", "download it again")
    return body


FOLDER, ARCHIVE = "cifar-10-batches-py", "cifar-10-python.tar.gz"
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
MAX_BATCH_BYTES = 256 << 20

ALLOWED = frozenset(
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError("only numpy arrays are allowed")
        return super().find_class(module, name)


def _cifar10(request: RawRequest) -> LabelledImages:
    request = with_raw(request)
    batches = find_together(request, [(name,) for name in BATCHES], hint="cifar")
    if batches is None:
        rule = f"cifar10 needs {FOLDER}/data_batch_1 to _5, or {ARCHIVE}"
        raise DataError(rule, "neither is there", "https://www.cs.toronto.edu/~kriz/cifar.html")
    return _load(request.base(), batches)


@cached_by_files
def _load(base: Path, batches: tuple[str, ...]) -> LabelledImages:
    images, labels = [], []
    for name in batches:
        try:
            body = read_locator(base, name, MAX_BATCH_BYTES)
            batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
            pixels = np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
            classes = np.asarray(batch[b"labels"], dtype=np.int64)
        except SkipItem as skip:
            raise DataError("cifar10: batches must be readable", skip.reason, "download them again") from None
        except Exception as error:  # a damaged pickle raises almost anything
            raise DataError("cifar10: batches must be whole CIFAR-10 files", type(error).__name__) from None
        if len(pixels) != len(classes) or not len(classes) or classes.min() < 0 or classes.max() > 9:
            raise DataError("cifar10: each image must have a label in 0..9", "another count or label")
        images.append(pixels.transpose(0, 2, 3, 1))
        labels.append(classes)
    return np.concatenate(images), np.concatenate(labels)


FILE = "train_32x32.mat"


def _svhn(request: RawRequest) -> LabelledImages:
    request = with_raw(request)
    found = find_together(request, [(FILE,)], hint="svhn")
    if found is None:
        raise DataError(f"svhn needs {FILE}", "it is not there", "http://ufldl.stanford.edu/housenumbers/")
    return _svhn_load(request.base(), found)


@cached_by_files
def _svhn_load(base: Path, names: tuple[str, ...]) -> LabelledImages:
    from scipy.io import loadmat, whosmat

    try:
        body = read_locator(base, names[0])
        if b"\x89HDF\r\n\x1a\n" in body[:520]:  # MATLAB 7.3: HDF5 behind 512 bytes of text
            images, labels = _load_hdf5(body)
        else:
            declared = sum(math.prod(shape) for _, shape, _ in whosmat(io.BytesIO(body)))
            if declared > MAX_BYTES:
                raise DataError(f"svhn: {FILE} must be below 1 GiB", f"{declared:,} values")
            content = loadmat(io.BytesIO(body), variable_names=["X", "y"])
            images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except SweepError:
        raise
    except SkipItem as skip:
        raise DataError(f"svhn: {FILE} must be readable", skip.reason, "download it again") from None
    except Exception as error:  # scipy's reader raises almost anything on damaged files
        raise DataError(f"svhn: {FILE} must be whole", type(error).__name__, "download it again") from None
    if images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8 or images.shape[3:] != labels.shape:
        found = f"X {images.dtype} {images.shape}, y {labels.shape}"
        raise DataError("svhn: X must be uint8 (32, 32, 3, n) and y have n labels", found)
    if not len(labels) or labels.min() < 0 or labels.max() > 10:
        raise DataError(
            "svhn: labels must be in 1..10", f"{labels.min()}..{labels.max()}" if len(labels) else "none"
        )
    return images.transpose(3, 0, 1, 2), labels % 10


def _load_hdf5(body: bytes) -> LabelledImages:
    with open_hdf5(io.BytesIO(body), "svhn") as file:
        missing = [name for name in ("X", "y") if name not in file]
        if missing:
            found = f"a MATLAB 7.3 file without {' and '.join(missing)}"
            if "digitStruct" in file:
                found += ": the boxes of format 1, full numbers"
            raise DataError(
                f"svhn needs {FILE} of format 2, cropped digits", found, "download train_32x32.mat"
            )
        if file["X"].size > MAX_BYTES:
            raise DataError(f"svhn: {FILE} must be below 1 GiB", f"{file['X'].size:,} bytes")
        images = np.asarray(file["X"]).transpose()
        return images, np.asarray(file["y"]).reshape(-1).astype(np.int64)


class ArrayDownload:
    """Images and labels that a download's files hold as arrays, in file order."""

    def __init__(self, load: Callable[[RawRequest], LabelledImages]) -> None:
        self._load = load

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per image."""
        return Listing(
            row_items(self._load(request)[1]),
            request.dataset.label_names,
            block_size=ROWS_PER_TASK,
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of rows."""
        return row_reader(self._load(request)[0], own_maximum=True)


cifar10, svhn = partial(ArrayDownload, _cifar10), partial(ArrayDownload, _svhn)
"""The 50,000 training images of CIFAR-10, in the order of the five batches; the 73,257 of SVHN."""
