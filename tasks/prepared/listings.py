"""List raw data. During one command, each listing is created once and then reused."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from search_spaces.datasets import DATASETS
from search_spaces.errors import DataError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.sources import OWN_KINDS, check_own_options, current_name, source_for
from tasks.sources.base import HASH_PATTERN, UNKEYED, Item, Listing, RawRequest

PATIENTS_AS_CLASSES = "classes are numbered like patients; if they are, give the folder above"
"""Flag for a folder whose subfolders may be patients instead of classes."""
MIN_NUMBERED_CLASSES = 5
"""Smallest number of classes with numbered names for which this flag is set."""
NUMBERED_NAME = re.compile(r"(.*\D)\d+")
"""Pattern of a name that ends with a number, for example p07 or patient_12."""

Key = tuple[DatasetSpec, PreparedSpec | None, str | None]


class Listings:
    """The listings that one command has created so far.

    isweep needs the listing of user data to read a sweep file, to check a plan and to prepare
    the data. For millions of files, creating a listing may take minutes. Do not use this
    object in another command, because files may have changed.
    """

    def __init__(self) -> None:
        self._by_request: dict[Key, Listing] = {}

    def of(self, request: RawRequest) -> Listing:
        """Return the listing of a raw download. Only the first call for a download creates it.

        Raises:
            DataError: See :func:`list_raw`. After an error, the next call tries to create the
                listing again.
        """
        key = _key(request)
        if key not in self._by_request:
            self._by_request[key] = list_raw(request)
        return self._by_request[key]

    def clear(self) -> None:
        """Delete all listings. The columns of a large table need memory that trainings need
        too.
        """
        self._by_request.clear()


def _key(request: RawRequest) -> Key:
    """Return the parts of a request on which the listing depends."""
    raw = None if request.raw is None else os.path.abspath(request.raw.expanduser())
    # The class names of user data are known only after listing. So they are not part of the
    # key.
    dataset = request.dataset.model_copy(update={"label_names": ()})
    # The listing of user data does not depend on the spec. The listing of other data may
    # depend on the task in the spec.
    spec = None if _reads_user_data(request.dataset) else request.spec
    return dataset, spec, raw


def _reads_user_data(dataset: DatasetSpec) -> bool:
    """Return whether the source of a dataset is one of the sources for user data."""
    return current_name(dataset.source) in OWN_KINDS


def look_like_patients(class_names: Sequence[str]) -> bool:
    """Return whether class names look like ids of patients.

    They do if there are at least :data:`MIN_NUMBERED_CLASSES` names, and all of them consist
    of the same word and a number.
    """
    words = set()
    for name in class_names:
        numbered = NUMBERED_NAME.fullmatch(name)
        words.add(numbered[1] if numbered else name)
    return len(class_names) >= MIN_NUMBERED_CLASSES and len(words) == 1


def list_raw(request: RawRequest) -> Listing:
    """Return the listing of a raw download.

    Unlike :meth:`Listings.of`, this function always creates a new listing.

    Raises:
        DataError: The download does not have the layout that its source expects. Or no item of
            the download can be used. The message then contains the reasons why items were left
            out.
    """
    dataset = request.dataset
    check_own_options(dataset)
    try:
        listing = source_for(dataset.source).list_items(request)
    except DataError as error:
        # `isweep locate` finds only hashes that were made with the hash key of a root. `isweep
        # measure` has no such key, so the message does not contain this hint.
        if request.key == UNKEYED or not HASH_PATTERN.search(error.problem):
            raise
        hints = [error.hint, "To find the file of a hash, run `isweep locate HASH --raw DIR`"]
        raise DataError(error.problem, hint=". ".join(filter(None, hints))) from None
    _check_listing(listing, request)
    if listing.items:
        _check_class_names(listing, request)
        if current_name(dataset.source) == "folder" and look_like_patients(listing.label_names):
            flags = {**listing.flags, PATIENTS_AS_CLASSES: len(listing.items)}
            return replace(listing, flags=flags)
        return listing
    reasons = Counter(reason for _, reason in listing.skipped)
    reasons += Counter(listing.excluded)
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    hint = f"Arrange the files in this layout: {dataset.raw_layout}"
    if _reads_user_data(dataset):
        hint = "docs/reference/data-formats.md lists the layouts that isweep reads"
    raise request.error(
        f"no image of the raw files can be used ({counts or 'there are no files'})", hint=hint
    )


def _check_listing(listing: object, request: RawRequest) -> None:
    """Raise an error if a source returned an object that is not a listing of items."""
    source = f"`list_items` of the source {request.dataset.source}"
    if not isinstance(listing, Listing):
        raise request.error(
            f"{source} returned an object of type {type(listing).__name__} instead of a Listing",
            hint="Return Listing(items=..., label_names=...)",
        )
    if listing.items and not isinstance(listing.items[0], Item):
        raise request.error(
            f"{source} returned a Listing whose items are of type "
            f"{type(listing.items[0]).__name__} instead of Item",
            hint="Make an Item for each file, volume or row",
        )


def _check_class_names(listing: Listing, request: RawRequest) -> None:
    """Raise an error if a row of ``datasets.toml`` has other class names than the dataset's
    files.
    """
    row = DATASETS.get(request.dataset.name)
    if row is None or not _reads_user_data(request.dataset):
        return
    if listing.label_names != row.label_names:
        raise request.error(
            f"the files have the classes {', '.join(listing.label_names)}, but the row in "
            f"datasets.toml has label_names = {list(row.label_names)}",
            hint="Write the names in datasets.toml as in the files, in the same order. If the "
            "files contain codes such as 0 and 1, set `label_map` in the row in datasets.toml",
        )
