"""MURA: ``train_image_paths.csv`` without a header and PNGs; the label is in the study folder's name.

Layout: ``MURA-v1.1/`` as the competition's page and public readers give it, unpacked or ``MURA-v1.1.zip``.
The release says every study's label twice, in the folder's name and in ``train_labeled_studies.csv``; both
must agree.
"""

from __future__ import annotations

import re

from search_spaces.errors import DataError
from tasks.sources.base import Item, Listing, RawRequest, Reader
from tasks.sources.chexpert import image_reader
from tasks.sources.label_tables import first_hashed, read_lines
from tasks.sources.official import find_named, find_tree, join, not_there
from tasks.sources.tree import RawTree

TABLE, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"
PATH = re.compile(r"(?:^|/)(train/XR_\w+/(patient\d+)/study\d+_(positive|negative))/[^/]+$")
STUDY = re.compile(r"(?:^|/)(train/XR_\w+/patient\d+/study\d+_(?:positive|negative))/?$")


class Mura:
    """Lines of the table in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per line; hidden files that the table names are left out.

        Raises:
            DataError: for a missing table, lines that are no MURA paths, or labels that disagree.
        """
        tree = find_tree(request, lambda tree: bool(find_named(tree, TABLE)))
        tables = find_named(tree, TABLE)
        if not tables:
            raise not_there(request, TABLE, tree)
        folder = tables[0].rpartition("/")[0]
        items, hidden, odd, missing = [], 0, 0, []
        labels: dict[str, int] = {}
        for path, *_ in read_lines(tree.locator(tables[0]), request):
            below = path.strip()[path.strip().find("train/") :]
            match = PATH.search(below)
            if match is None:
                odd += 1
                continue
            labels[match[1]] = int(match[3] == "positive")
            if below.rsplit("/", 1)[-1].startswith("."):
                hidden += 1
            elif (locator := tree.get(join(folder, below))) is None:
                missing.append((join(folder, below), "file is missing"))
            else:
                items.append(Item(locator, labels[match[1]], match[2]))
        if odd:
            rule = f"mura: lines of {TABLE} must be .../train/XR_<PART>/patient<id>/study<n>_<label>/<image>"
            raise DataError(rule, f"{odd} other lines")
        return Listing(
            items,
            request.dataset.label_names,
            excluded={"hidden file": hidden} if hidden else {},
            skipped=missing,
            intensity="each image by its own maximum",
            flags=_compare(labels, tree, folder, request),
        )

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of PNGs."""
        return image_reader(request)


def _compare(labels: dict[str, int], tree: RawTree, folder: str, request: RawRequest) -> dict[str, int]:
    """Compare the folders' labels with the table of studies; returns a flag when there is no such table.

    Raises:
        DataError: for studies with two labels, or in one table only.
    """
    locator = tree.get(join(folder, STUDIES))
    if locator is None:
        return {f"labels from folder names only: no {STUDIES}": len(labels)}
    second: dict[str, int] = {}
    odd = 0
    for line in read_lines(locator, request):
        match = STUDY.search(line[0].strip()) if len(line) == 2 else None
        if match is None or line[1].strip() not in ("0", "1"):
            odd += 1
        else:
            second[match[1]] = int(line[1])
    wrong = [study for study, label in labels.items() if second.get(study) != label]
    if odd or wrong:
        found = f"{odd} odd lines; unlike or absent: {first_hashed(request, wrong)}"
        raise DataError(
            f"mura: {STUDIES} and the names of the study folders must agree", found, "download MURA again"
        )
    return {}
