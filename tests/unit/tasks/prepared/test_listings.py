"""Listings of one command: equal requests share one, and a failed listing is not stored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search_spaces.errors import DataError
from tasks.prepared.listings import Listings, look_like_patients
from tasks.sources.class_folders import listing
from tests.unit.tasks.sources.conftest import request_for, write_tree


@pytest.fixture
def listing_requests(monkeypatch) -> list[object]:
    """Record the requests for which the source of class folders makes a listing."""
    requests: list[object] = []
    source = listing.FOLDER_SOURCE

    def list_items(request):
        requests.append(request)
        return source.list_items(request)

    monkeypatch.setattr(listing, "FOLDER_SOURCE", replace(source, list_items=list_items))
    return requests


@pytest.fixture
def raw(tmp_path):
    return write_tree(tmp_path / "raw", "cat/", "dog/")


CHANGES = {
    "nothing": (lambda request: request, 1),
    "another image size": (
        lambda request: replace(request, spec=request.spec.model_copy(update={"image_size": 16})),
        1,
    ),
    "class names that were read": (
        lambda request: replace(
            request, dataset=request.dataset.model_copy(update={"label_names": ("cat", "dog")})
        ),
        1,
    ),
    "another key": (lambda request: replace(request, key="k" * 16), 1),
    "the same folder by another path": (
        lambda request: replace(request, raw=request.raw / "cat" / ".."),
        1,
    ),
    "another folder": (
        lambda request: replace(request, raw=write_tree(request.raw / "x", "a/", "b/")),
        2,
    ),
    "labels mapped": (
        lambda request: replace(
            request, dataset=request.dataset.model_copy(update={"label_map": (("cat", "pet"),)})
        ),
        2,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_requests_with_the_same_listing_share_it(raw, listing_requests, change):
    changed, num_listings = CHANGES[change]
    listings = Listings()
    request = request_for("folder", raw)
    first = listings.of(request)
    second = listings.of(changed(request))
    assert len(listing_requests) == num_listings
    assert (second is first) == (num_listings == 1)


def test_a_listing_that_failed_is_tried_again(raw, listing_requests):
    listings = Listings()
    request = request_for("folder", raw / "cat")
    with pytest.raises(
        DataError,
        match="images outside class folders, but two classes are needed",
    ):
        listings.of(request)
    write_tree(raw / "cat", "tabby/", "siamese/")
    assert listings.of(request).label_names == ("siamese", "tabby")


def test_cleared_listings_are_made_again(raw, listing_requests):
    listings = Listings()
    request = request_for("folder", raw)
    listings.of(request)
    listings.clear()
    listings.of(request)
    assert len(listing_requests) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["p00", "p01", "p02", "p03", "p04"], True),
        (["patient_1", "patient_2", "patient_3", "patient_10", "patient_11"], True),
        (["0", "1", "2", "3", "4"], False),
        (["grade1", "grade2", "grade3"], False),
        (["p00", "p01", "p02", "p03", "cat"], False),
    ],
)
def test_classes_that_are_numbered_like_patients_are_a_question(names, expected):
    assert look_like_patients(names) == expected
