"""ImageNet (ILSVRC): images of the train split by class, as Kaggle or the ILSVRC archives lay them out.

Layouts: ``ILSVRC/Data/CLS-LOC/train/<class id>/`` (Kaggle's object localization challenge, also inside its
``.zip`` or ``.tar.gz``), ``train/<class id>/`` or the bare class folders (torchvision's ``ImageNet``), and
``ILSVRC2012_img_train.tar`` as it comes, a tar of one tar per class, whose members are read in place.

Only the classes of the table's row are read, ten of the thousand, so that neither the index of a class nor
the prepared data depend on which other classes lie there. A file of the train split says its class twice,
in its folder and in its own name; both must agree.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import PurePosixPath

from search_spaces.errors import DataError
from search_spaces.study_datasets import IMAGENET_CLASSES
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.image_files import by_own_maximum, decode_image, is_image_name
from tasks.sources.official import list_download, not_there
from tasks.sources.raw import RawTree, read_locator

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
