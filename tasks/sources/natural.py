"""Natural images: MNIST and Fashion-MNIST, CIFAR-10, SVHN, ImageNet, in whatever folder, in an
archive too.

Layouts, train files only, as in the study. MNIST's: Yann LeCun's page ("THE IDX FILE FORMAT"),
names as there and in torchvision, with a dot as common mirrors have them, and Kaggle's copy;
folders and the first labels of the official files tell Fashion-MNIST apart. CIFAR-10:
https://www.cs.toronto.edu/~kriz/cifar.html; its pickles are read by an unpickler that knows numpy
arrays and nothing else. SVHN, format 2: http://ufldl.stanford.edu/housenumbers/, MATLAB 5 or 7.3
(HDF5, all sides reversed), where class 10 is digit 0. ImageNet: Kaggle's
``ILSVRC/Data/CLS-LOC/train/<class id>/``, torchvision's ``train/<class id>/``, or
``ILSVRC2012_img_train.tar``, a tar of one tar per class; only the ten classes of the table's row
are read.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import pickle
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import DataError, SweepError
from tasks.sources.array_files import open_hdf5
from tasks.sources.base import Item, Listing, RawRequest, SkipItem, Source
from tasks.sources.made import list_rows, row_reader
from tasks.sources.official import OWN_MAXIMUM, download, not_there, read_picture
from tasks.sources.pictures import is_image_name
from tasks.sources.raw import MARK, MAX_FILE_BYTES, RawTree, gunzipped, read_locator, split_locator

IMAGENET_CLASSES = (
    *("n01440764", "n01443537", "n02099601", "n02102040", "n02979186"),
    *("n03028079", "n03394916", "n03425413", "n03445777", "n03888257"),
)
"""Ten of the thousand, in the order of the row's class names. The released code always used the
first two."""
LabelledImages = tuple[NDArray[np.uint8], NDArray[np.integer]]

OTHER_SPLITS = frozenset({"val", "test", "validation"})
OTHER_FILE = re.compile(r"ILSVRC\d*_(?:val|test)_", re.IGNORECASE)
"""Validation images sorted into class folders keep these names."""
SMALLEST_CLASS = 732
"""ILSVRC 2012: 732 to 1,300 train images per class."""
COPY = re.compile(r"(?:[ _-]?\(\d+\)| copy(?: \d+)?| \d+)(?=(?:\.\w+)*$)")
"""What a browser or a file manager adds to a second copy's name, before its endings."""
TORCHVISION = {
    "mnist": "MNIST",
    "fashion_mnist": "FashionMNIST",
    "cifar10": "CIFAR10",
    "svhn": "SVHN",
}
CACHE_VARIABLE = "ISWEEP_DOWNLOADS"
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
SPELLINGS = [
    tuple(stem + ending for stem in (name, name.replace("-idx", ".idx")) for ending in ("", ".gz"))
    for name in (IMAGES, LABELS)
]
NEITHER = ("kmnist", "kuzushiji", "emnist", "qmnist")
HINTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mnist": ("mnist", ("fashion", *NEITHER)),
    "fashion_mnist": ("fashion", NEITHER),
    "cifar10": ("cifar", ()),
    "svhn": ("svhn", ()),
}
"""Dataset -> a word of its folders, and words of others' with files of the same names."""
FIRST_LABELS = {
    "mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4),
    "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5),
}
OFFICIAL_COUNT = 60_000
BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
CIFAR = f"cifar-10-batches-py/{BATCHES[0]} to _5, or cifar-10-python.tar.gz"
SVHN = "train_32x32.mat"
MAX_BYTES = 1 << 30
ALLOWED = frozenset(
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
)
"""What the pickles of CIFAR-10 may name."""


def list_imagenet(tree: RawTree, request: RawRequest) -> Listing:
    """Return all images of the ten classes in the order of their names, ``<class
    id>_<number>.JPEG``.

    A class is the folder, or the class archive, that a file lies in; a file that lies there twice,
    in two copies of the train split, is taken once.
    """
    by_class: defaultdict[str, dict[str, str]] = defaultdict(dict)
    excluded = Counter[str]()
    for name in tree:
        *above, file = name.split("/")
        *_, archive, _ = ("", *tree.locator(name).split(MARK))
        key = PurePosixPath(archive).name.partition(".")[0]
        if key not in IMAGENET_CLASSES:
            key = above[-1] if above else ""
        if key not in IMAGENET_CLASSES or OTHER_SPLITS & {part.casefold() for part in above[:-1]}:
            continue
        if not is_image_name(name):
            excluded["not an image by its ending"] += 1
        elif OTHER_FILE.match(file):
            excluded["image of another split"] += 1
        elif by_class[key].setdefault(file, name) != name:
            excluded["the same file again"] += 1
    if missing := [key for key in IMAGENET_CLASSES if key not in by_class]:
        what = f"the train images of its ten classes, and has none of {', '.join(missing)}"
        raise not_there(request, what, tree)
    items, misplaced = [], 0
    for label, key in enumerate(IMAGENET_CLASSES):
        for file, name in by_class[key].items():
            said = file.partition("_")[0]
            misplaced += said in IMAGENET_CLASSES and said != key
            items.append(Item(tree.locator(name), label))
    if misplaced:
        rule = "files must lie in the folder of the class that their names say"
        raise request.error(rule, f"{misplaced} elsewhere", "unpack the archives again")
    few = f"is not whole: the smallest has {SMALLEST_CLASS} images"
    counts = {f"class {key} {few}": len(by_class[key]) for key in IMAGENET_CLASSES}
    return Listing(
        items,
        request.dataset.label_names,
        excluded=dict(excluded),
        intensity=OWN_MAXIMUM,
        flags={flag: count for flag, count in counts.items() if count < SMALLEST_CLASS},
    )


def _is_wanted(archive: str) -> bool:
    """Tell whether an archive may hold images of the ten classes: of the class archives, only
    theirs do.
    """
    stem = PurePosixPath(archive).name.partition(".")[0]
    return stem in IMAGENET_CLASSES or not (stem[:1] == "n" and stem[1:].isdigit())


imagenet = download(list_imagenet, read_picture, _is_wanted)


def find_together(
    request: RawRequest, wanted: Sequence[Iterable[str]], *, hint: str, others: Sequence[str] = ()
) -> list[str] | None:
    """Return the locators of files that lie in one folder, one of each ``wanted`` kind of name, or
    None.

    ``hint`` is part of the name of the dataset's own folders and archives, which go first,
    ``others`` are words of folders that hold another dataset with the same names; all in lower
    case. Several folders that have them and differ are a DataError.
    """
    kinds, body = (
        [set(names) for names in wanted],
        partial(_body, request.base(), request.dataset.name),
    )
    unpacked = [lambda _: False] if request.root().is_dir() else []
    for look_into in (*unpacked, lambda name: hint in name.casefold(), lambda _: True):
        tree = RawTree(request, archives=True, wanted=look_into)
        folders: defaultdict[str, dict[int, str]] = defaultdict(dict)
        for name in tree:
            above, _, file = name.rpartition("/")
            plain = COPY.sub("", file.casefold())
            for index, names in enumerate(kinds):
                if plain in names and not any(word in name.casefold() for word in others):
                    # Without a folder of the file's own name, in which Kaggle puts each file.
                    outer, _, last = above.rpartition("/")
                    own = last.casefold() in names or f"{last.casefold()}.gz" in names
                    folders[outer if own else above].setdefault(index, tree.locator(name))
        whole = [folder for folder, files in folders.items() if len(files) == len(kinds)]
        whole.sort(
            key=lambda folder: (folder.count("/") + bool(folder), folder)
        )  # nearest to the top first
        found = [[folders[folder][index] for index in range(len(kinds))] for folder in whole]
        found = [names for names in found if hint in names[0].casefold()] or found
        several = found if len(found) > 1 else ()
        digests = {
            tuple(hashlib.sha256(body(file)).hexdigest() for file in files) for files in several
        }
        if len(digests) > 1:
            rule = "the raw folder must hold one such download"
            raise request.error(
                rule, f"{len(found)} that differ", "give the folder of the right one"
            )
        if found:
            return found[0]
    return None


def _body(base: Path, name: str, locator: str) -> bytes:
    try:
        return read_locator(base, locator)
    except SkipItem as skip:
        rule = f"{name}: {locator.rpartition('/')[2]} must be readable"
        raise DataError(
            rule, skip.reason, "download it again, or take the broken copy away"
        ) from None


def with_raw(request: RawRequest) -> RawRequest:
    """Return the request with torchvision's download, fetched if need be, where no raw folder was
    given.
    """
    if request.raw is not None:
        return request
    name = request.dataset.name
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path(cache) / "isweep" / "raw") / name
    options = {"split": "train"} if name == "svhn" else {"train": True}
    from torchvision import datasets

    try:
        getattr(datasets, TORCHVISION[name])(str(folder), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} needs its raw files, or a network to download them",
            f"no --raw folder, and the download failed ({type(error).__name__})",
            f"download it elsewhere and pass --raw DIR; expected: {request.dataset.raw_layout}",
        ) from None
    return replace(request, raw=folder)


def of_arrays(
    wanted: Sequence[Iterable[str]], needed: str, load: Callable[[str, list[bytes]], LabelledImages]
) -> Source:
    """Return the source of images and labels that a download's files hold as arrays, in file order.

    ``wanted`` are for each file the names that it may have, in lower case, ``needed`` says so in
    messages; ``load`` makes images and labels of the dataset's name and the files' bytes.
    """

    @lru_cache(maxsize=2)
    def cached(base: Path, name: str, locators: tuple[str, ...], stamps: object) -> LabelledImages:
        """Load once, until a file that these lead into changes."""
        images, labels = load(name, [_body(base, name, locator) for locator in locators])
        if len(images) != len(labels):
            rule = f"{name}: there must be one label per image"
            raise DataError(
                rule, f"{len(images)} images, {len(labels)} labels", "download the files again"
            )
        if len(labels) and not 0 <= labels.min() <= labels.max() < 10:
            raise DataError(
                f"{name}: labels must be from 0 to 9", f"{labels.min()} to {labels.max()}"
            )
        return images, labels

    def loaded(request: RawRequest) -> LabelledImages:
        request, name = with_raw(request), request.dataset.name
        hint, others = HINTS[name]
        found = find_together(request, wanted, hint=hint, others=others)
        if found is None:
            way_out = (
                f"expected: {request.dataset.raw_layout}; with a network torchvision downloads it"
            )
            raise DataError(f"{name} needs {needed}", "it is not there", way_out)
        base = request.base()
        stats = [(base / split_locator(locator)[0]).stat() for locator in found]
        stamps = tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
        return cached(base, name, tuple(found), stamps)

    return Source(
        lambda request: list_rows(loaded(request)[1], request, intensity=OWN_MAXIMUM),
        lambda request: row_reader(loaded(request)[0], own_maximum=True),
    )


def _load_idx(name: str, bodies: list[bytes]) -> LabelledImages:
    images, labels = (
        read_idx(bodies[0], IMAGES, dimensions=3),
        read_idx(bodies[1], LABELS, dimensions=1),
    )
    others = [
        one
        for one, first in FIRST_LABELS.items()
        if one != name and first == tuple(labels[:10].tolist())
    ]
    if (
        others and len(labels) == OFFICIAL_COUNT
    ):  # the official files of another set have the same names
        raise DataError(f"{name}: the files must be those of {name}", others[0], "give its folder")
    return images, labels


def read_idx(body: bytes, name: str, *, dimensions: int) -> NDArray[np.uint8]:
    """Return the array in an IDX file of bytes, gzipped or not; a damaged one is a DataError."""
    try:
        body = gunzipped(body, MAX_FILE_BYTES)
    except SkipItem as skip:
        raise DataError(f"{name} must be whole", skip.reason, "download it again") from None
    size = 4 + 4 * dimensions
    if body[:4] != bytes((0, 0, 8, dimensions)) or len(body) < size:
        raise DataError(
            f"{name} must be an IDX file of bytes with {dimensions} dimensions", "another header"
        )
    shape = tuple(int(side) for side in np.frombuffer(body[:size], ">u4", offset=4))
    if (left := len(body) - size - math.prod(shape)) != 0:
        found = "it ends early" if left < 0 else "more bytes"
        raise DataError(f"{name} must end where its header says", found, "download it again")
    return np.frombuffer(body, np.uint8, offset=size).reshape(shape)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError("only numpy arrays are allowed")
        return super().find_class(module, name)


def _load_cifar10(_name: str, bodies: list[bytes]) -> LabelledImages:
    images, labels = [], []
    for body in bodies:
        try:
            batch = _ArrayUnpickler(io.BytesIO(body), encoding="bytes").load()
            images.append(np.asarray(batch[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32))
            labels.append(np.asarray(batch[b"labels"], dtype=np.int64))
        except Exception as error:  # a damaged pickle raises almost anything
            raise DataError(
                "cifar10: batches must be whole CIFAR-10 files", type(error).__name__
            ) from None
    return np.concatenate(images).transpose(0, 2, 3, 1), np.concatenate(labels)


def _load_svhn(_name: str, bodies: list[bytes]) -> LabelledImages:
    from scipy.io import loadmat, whosmat

    content: Any = None
    try:
        if b"\x89HDF\r\n\x1a\n" in bodies[0][:520]:  # MATLAB 7.3: HDF5 behind 512 bytes of text
            with open_hdf5(io.BytesIO(bodies[0]), "svhn") as file:
                if (declared := file["X"].size) <= MAX_BYTES:
                    content = {key: np.asarray(file[key]).transpose() for key in ("X", "y")}
        else:
            declared = sum(math.prod(shape) for _, shape, _ in whosmat(io.BytesIO(bodies[0])))
            if declared <= MAX_BYTES:
                content = loadmat(io.BytesIO(bodies[0]), variable_names=["X", "y"])
        if content is None:
            raise DataError(f"svhn: {SVHN} must be below 1 GiB", f"{declared:,} values")
        images, labels = np.asarray(content["X"]), np.asarray(content["y"])
    except SweepError:
        raise
    except Exception as error:  # these readers raise almost anything on damaged files
        rule = f"svhn: {SVHN} must be a whole file of format 2, cropped digits"
        raise DataError(rule, type(error).__name__, "download it again") from None
    if images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise DataError("svhn: X must be uint8 (32, 32, 3, n)", f"{images.dtype} {images.shape}")
    classes = labels.reshape(-1).astype(np.int64)
    return images.transpose(3, 0, 1, 2), np.where(classes == 10, 0, classes)


idx = of_arrays(SPELLINGS, f"{IMAGES}[.gz] and {LABELS}[.gz]", _load_idx)
cifar10 = of_arrays([(name,) for name in BATCHES], CIFAR, _load_cifar10)
svhn = of_arrays([(SVHN,)], f"{SVHN} of format 2, cropped digits", _load_svhn)
