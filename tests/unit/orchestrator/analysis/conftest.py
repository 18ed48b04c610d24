"""Fits without what a test does not ask for."""

from collections.abc import Iterator

import pytest

from tests.laws import without_priors


@pytest.fixture(scope="module", name="without_priors")
def _without_priors() -> Iterator[None]:
    """No fit of this file has priors of predictions."""
    with without_priors():
        yield
