"""The listings of raw data, each made once in a command and handed on."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from search_spaces.errors import DataError
from search_spaces.specs import DatasetSpec, PreparedSpec
from tasks.sources import OWN_KINDS, check_own_options, current_name, source_for
from tasks.sources.base import HASH_PATTERN, UNKEYED, Listing, RawRequest

PATIENTS_AS_CLASSES = "classes are numbered like patients: is the folder above it meant?"
"""Flag of a folder whose own folders may be patients, and not classes."""
MIN_NUMBERED = 5
"""Fewest classes of numbered names that are taken for patients."""
NUMBERED = re.compile(r"(.*\D)\d+")
"""A name that ends with a number, after a word or letter: p07, patient_12."""

Key = tuple[DatasetSpec, PreparedSpec | None, str | None]


class Listings:
    """The listings that one command has made so far.

    Reading a sweep file, checking a plan and preparing all need the listing of a user's own data,
    which may take minutes for millions of files. Do not keep the listings for another command,
    because files may change in between.
    """

    def __init__(self) -> None:
        self._by_request: dict[Key, Listing] = {}

    def of(self, request: RawRequest) -> Listing:
        """Return the listing of a raw download; it is made by the first call.

        Raises:
            DataError: See :func:`list_raw`. A later call tries again.
        """
        key = _key(request)
        if key not in self._by_request:
            self._by_request[key] = list_raw(request)
        return self._by_request[key]

    def clear(self) -> None:
        """Forget all listings: the columns of a large table take memory that training needs."""
        self._by_request.clear()


def _key(request: RawRequest) -> Key:
    """Return all of a request that its listing depends on."""
    raw = None if request.raw is None else os.path.abspath(request.raw.expanduser())
    # The names of own classes are read from the listing itself.
    dataset = request.dataset.model_copy(update={"label_names": ()})
    is_own = current_name(request.dataset.source) in OWN_KINDS
    # Own data are listed alike for all image sizes and channels; a download may depend on the task.
    return dataset, None if is_own else request.spec, raw


def are_like_patients(class_names: Sequence[str]) -> bool:
    """Return whether the names of classes are one word with many numbers, as of patients."""
    words = set()
    for name in class_names:
        numbered = NUMBERED.fullmatch(name)
        words.add(numbered[1] if numbered else name)
    return len(class_names) >= MIN_NUMBERED and len(words) == 1


def list_raw(request: RawRequest) -> Listing:
    """List a raw download.

    Raises:
        DataError: It is not as its source expects, or has no items; then with the reason why each
            was left out.
    """
    dataset = request.dataset
    check_own_options(dataset)
    try:
        listing = source_for(dataset.source).list_items(request)
    except DataError as error:
        # Without the root's key, no hash in the message can be found again.
        if request.key == UNKEYED or not HASH_PATTERN.search(error.problem):
            raise
        hints = [error.hint, "Find a file by isweep locate HASH --raw DIR"]
        raise DataError(error.problem, hint=". ".join(filter(None, hints))) from None
    if listing.items:
        if current_name(dataset.source) == "folder" and are_like_patients(listing.label_names):
            flags = {**listing.flags, PATIENTS_AS_CLASSES: len(listing.items)}
            return replace(listing, flags=flags)
        return listing
    reasons = Counter(reason for _, reason in listing.skipped)
    reasons += Counter(listing.excluded)
    counts = ", ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
    raise request.error(
        f"the raw download has no image that can be used ({counts or 'it is empty'})",
        hint=f"The download needs this layout: {dataset.raw_layout}",
    )
