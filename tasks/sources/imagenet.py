"""ImageNet (ILSVRC): class folders of the train split, as Kaggle or the ILSVRC archives lay them out.

Only the classes of the table's row are read, ten of the thousand, so that neither the index of a class nor
the prepared data depend on which other classes lie there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from search_spaces.errors import DataError
from search_spaces.study_datasets import IMAGENET_CLASSES
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.files import walk
from tasks.sources.image_files import by_own_maximum, is_image_name, read_image

PLACES = ("ILSVRC/Data/CLS-LOC/train", "Data/CLS-LOC/train", "train", "")


class ImageNet:
    """Files ``<class id>/<class id>_<number>.JPEG`` in the order of their names."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return all images of the ten classes.

        Raises:
            DataError: when a class folder is missing.
        """
        folder = _train_folder(request)
        missing = [key for key in IMAGENET_CLASSES if not (folder / key).is_dir()]
        if missing:
            rule = "imagenet needs the train folders of its ten classes"
            raise DataError(rule, f"no {', '.join(missing)}", f"expected: {request.dataset.raw_layout}")
        root = request.root()
        prefix = folder.relative_to(root).as_posix()
        items, other = [], 0
        for label, key in enumerate(IMAGENET_CLASSES):
            for name in walk(folder / key, request):
                locator = f"{key}/{name}" if prefix == "." else f"{prefix}/{key}/{name}"
                if is_image_name(name):
                    items.append(Item(locator, label))
                else:
                    other += 1
        return Listing(
            items,
            request.dataset.label_names,
            excluded={"not an image by its ending": other} if other else {},
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of JPEG files."""
        root = request.root()

        def read(item: Item) -> tuple[Sample]:
            return (own_maximum_sample(read_image(root / item.locator)),)

        return read


def own_maximum_sample(sample: Sample) -> Sample:
    """Scale an image that was read from a file by its own maximum."""
    pixels, note = by_own_maximum(sample.pixels)
    return replace(sample, pixels=pixels, conversions=(*sample.conversions, *([note] if note else [])))


def _train_folder(request: RawRequest) -> Path:
    root = request.root()
    for place in PLACES:
        if any((root / place / key).is_dir() for key in IMAGENET_CLASSES):
            return root / place
    raise DataError("imagenet needs class folders", "none", f"expected: {request.dataset.raw_layout}")
