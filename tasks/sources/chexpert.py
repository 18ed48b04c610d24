"""CheXpert, the original and the small release: ``train.csv`` and JPEGs.

Label 1 = the finding is 1; label 0 = -1 (uncertain) or blank. Rows with an explicit 0 are left out, as in the
study, so label 0 is "uncertain or not mentioned", not "healthy". The group is the patient in the path.
"""

from __future__ import annotations

import re
from collections import Counter

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader, Sample
from tasks.sources.files import resolve_name
from tasks.sources.image_files import read_image
from tasks.sources.imagenet import own_maximum_sample
from tasks.sources.label_tables import read_table
from tasks.sources.official import find_folder, join

RELEASES = ("CheXpert-v1.0", "CheXpert-v1.0-small", "")
FINDINGS = {"default": "Pleural Effusion", "edema": "Edema"}
VALUES = {"1": 1, "-1": 0, "": 0}


class CheXpert:
    """Rows of ``train.csv`` in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per row that has a label.

        Raises:
            DataError: for a missing table, or a finding with other values than 1, 0, -1 and blank.
        """
        folder = find_folder(request, RELEASES, "train.csv")
        finding = FINDINGS[request.spec.task]
        rows = read_table(request.root() / folder / "train.csv", request, ("Path", finding))
        items, excluded, odd = [], Counter[str](), 0
        for row in rows:
            value = row[finding].removesuffix(".0")
            patient = re.search(r"patient\d+", row["Path"])
            if value == "0":
                excluded["explicitly negative"] += 1
            elif value not in VALUES or patient is None:
                odd += 1
            else:
                # Paths start with the release's folder, which may have been renamed or be the raw folder.
                below = row["Path"].replace("\\", "/").partition("/")[2]
                items.append(Item(join(folder, below), VALUES[value], patient[0]))
        if odd:
            rule = "train.csv must hold 1, 0, -1 or blank, and patient<id> in every path"
            raise DataError(
                f"{request.dataset.name}: {rule}", f"{odd} other rows", "download the table again"
            )
        return Listing(
            items,
            request.dataset.label_names,
            excluded=dict(excluded),
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of JPEGs."""
        return image_reader(request)


def image_reader(request: RawRequest) -> Reader:
    """Return a reader of image files named by a table, each scaled by its own maximum."""
    root = request.root()

    def read(item: Item) -> tuple[Sample]:
        return (own_maximum_sample(read_image(resolve_name(root, item.locator, request))),)

    return read
