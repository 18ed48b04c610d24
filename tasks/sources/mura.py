"""MURA: ``train_image_paths.csv`` without a header and PNGs; the label is in the study folder's name."""

from __future__ import annotations

import re

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader
from tasks.sources.chexpert import image_reader
from tasks.sources.label_tables import read_lines
from tasks.sources.official import find_folder, join

TABLE = "train_image_paths.csv"
PATH = re.compile(r"(?:^|/)train/XR_\w+/(patient\d+)/study\d+_(positive|negative)/[^/]+$")


class Mura:
    """Lines of the table in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per line; hidden files that the table names are left out.

        Raises:
            DataError: for a missing table or lines that are no MURA paths.
        """
        folder = find_folder(request, ("MURA-v1.1", ""), TABLE)
        items, hidden, odd = [], 0, 0
        for path, *_ in read_lines(request.root() / folder / TABLE, request):
            below = path.strip()[path.strip().find("train/") :]
            match = PATH.search(below)
            if match is None:
                odd += 1
            elif below.rsplit("/", 1)[-1].startswith("."):
                hidden += 1
            else:
                items.append(Item(join(folder, below), int(match[2] == "positive"), match[1]))
        if odd:
            rule = f"mura: lines of {TABLE} must be .../train/XR_<PART>/patient<id>/study<n>_<label>/<image>"
            raise DataError(rule, f"{odd} other lines")
        return Listing(
            items,
            request.dataset.label_names,
            excluded={"hidden file": hidden} if hidden else {},
            intensity="each image by its own maximum",
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of PNGs."""
        return image_reader(request)
