"""Where the slices of the Duke collection lie: by the mapping table's paths, or by the headers' UIDs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.sources.base import RawRequest
from tasks.sources.dicom_headers import HeaderIndex, read_header
from tasks.sources.raw import RawTree

COLLECTION = "Duke-Breast-Cancer-MRI/"
ORIGINAL, CLASSIC, DESCRIPTIVE = "original_path_and_filename", "classic_path", "descriptive_path"
INSTANCE = "sop_instance_UID"


@dataclass(frozen=True)
class Slice:
    """A row of the mapping table that has a label."""

    row: Mapping[str, str]
    patient: str
    label: int

    @property
    def instance(self) -> str:
        """SOP instance UID, empty when the table has none."""
        return self.row.get(INSTANCE, "")


def find_files(slices: Sequence[Slice], tree: RawTree, request: RawRequest) -> list[str | None]:
    """Return each slice's file in the tree."""
    paths = _Paths(tree)
    found = [paths.find(one.row) for one in slices]
    by_folder: defaultdict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(found):
        by_folder["" if name is None else name.rpartition("/")[0]].append(place)
    doubtful: list[int] = []
    for folder, places in by_folder.items():
        if not folder or not _ends_agree(places, slices, found, tree, request):
            doubtful += [place for place in places if slices[place].instance]
    if doubtful:
        index = HeaderIndex(request, tree, _candidates([slices[place] for place in doubtful], tree))
        for place in doubtful:
            found[place] = index.instance(slices[place].instance)
    return found


def _ends_agree(
    places: Sequence[int],
    slices: Sequence[Slice],
    found: Sequence[str | None],
    tree: RawTree,
    request: RawRequest,
) -> bool:
    """Tell whether the first and last file of a folder are the slices that the table says."""
    for place in {places[0], places[-1]}:
        name, instance = found[place], slices[place].instance
        if name is not None and instance:
            header = read_header(request.base(), tree.locator(name))
            if header is not None and header.instance != instance:
                return False
    return True


def _candidates(slices: Sequence[Slice], tree: RawTree) -> list[str]:
    """Return the files to open in search of slices: below their patients' folders, or all of them."""
    wanted = {one.patient for one in slices}
    names = [name for name in tree if not name.lower().endswith((".xlsx", ".csv", ".txt", ".tcia"))]
    below = [name for name in names if wanted & set(name.split("/"))]
    seen = {part for name in below for part in name.split("/")}
    return below if wanted <= seen else names


class _Paths:
    """Files by what the mapping table calls them, whichever slips its spelling has."""

    def __init__(self, tree: RawTree) -> None:
        self._by_path: dict[str, str] = {}
        for name in tree:
            before, mark, below = name.partition(COLLECTION)
            self._by_path.setdefault((below if mark else before).casefold(), name)

    def find(self, row: Mapping[str, str]) -> str | None:
        for column in (CLASSIC, DESCRIPTIVE):
            path = re.sub(r"[\\/]+", "/", row.get(column, "")).strip("/ ")
            folder, _, file = path.rpartition(COLLECTION)[2].rpartition("/")
            number = re.fullmatch(r"(\d+-)(\d+)(\.dcm)", file)
            names = [file]
            if number:
                digits = number[2].lstrip("0") or "0"
                names += [f"{number[1]}{digits.zfill(width)}{number[3]}" for width in (1, 2, 3)]
            for name in names if path else ():
                found = self._by_path.get(f"{folder}/{name}".casefold())
                if found is not None:
                    return found
        return None
