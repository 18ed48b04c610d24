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
from tasks.sources.official import (
    FILE_MISSING,
    find_named,
    join,
    list_download,
    not_there,
    repeated_rows,
)
from tasks.sources.raw import RawTree

TABLE, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"
PATH = re.compile(
    r"(?:^|/)(?P<image>(?P<study>train/XR_\w+/(?P<patient>patient\d+)/study\d+_(?P<label>positive|negative))/[^/]+)$"
)
STUDY = re.compile(r"(?:^|/)(train/XR_\w+/patient\d+/study\d+_(?:positive|negative))/?$")


class Mura:
    """Lines of the table in their order."""

    def list_items(self, request: RawRequest) -> Listing:
        """Return one item per line; hidden files that the table names are left out.

        Raises:
            DataError: for a missing table, lines that are no MURA paths, or labels that disagree.
        """
        return list_download(request, lambda tree: _listing(tree, request))

    def reader(self, request: RawRequest) -> Reader:
        """Return a reader of PNGs."""
        return image_reader(request)


def _listing(tree: RawTree, request: RawRequest) -> Listing:
    tables = find_named(tree, TABLE)
    if not tables:
        raise not_there(request, TABLE, tree)
    folder = tables[0].rpartition("/")[0]
    files = _images(tree, folder)
    hidden, odd, missing = 0, 0, []
    items: dict[str, Item] = {}
    labels: dict[str, int] = {}
    rows: list[tuple[str, int | None]] = []
    for path, *_ in read_lines(tree.locator(tables[0]), request):
        match = PATH.search(path.strip().replace("\\", "/"))
        if match is None:
            odd += 1
            continue
        label = labels[match["study"]] = int(match["label"] == "positive")
        rows.append((match["image"], label))
        if match["image"].rpartition("/")[2].startswith("."):
            hidden += 1
        elif (name := files.get(match["image"].casefold())) is None:
            missing.append((match["image"], FILE_MISSING))
        else:
            items.setdefault(name, Item(tree.locator(name), label, match["patient"]))
    if odd:
        rule = f"mura: lines of {TABLE} must be .../train/XR_<PART>/patient<id>/study<n>_<label>/<image>"
        raise DataError(rule, f"{odd} other lines")
    excluded = {"hidden file": hidden} if hidden else {}
    return Listing(
        list(items.values()),
        request.dataset.label_names,
        excluded=excluded | repeated_rows(TABLE, rows, request),
        skipped=missing,
        intensity="each image by its own maximum",
        flags=_compare(labels, tree, folder, request),
    )


def _images(tree: RawTree, folder: str) -> dict[str, str]:
    """Return path from ``train/`` on -> name, those beside the table first."""
    found: dict[str, str] = {}
    for name in sorted(tree, key=lambda name: not name.startswith(f"{folder}/")):
        match = PATH.search(name)
        if match:
            found.setdefault(match["image"].casefold(), name)
    return found


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
