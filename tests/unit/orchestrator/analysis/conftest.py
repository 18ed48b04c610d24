"""Fits without what a test does not ask for."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def without_priors() -> Iterator[None]:
    """Priors of predictions take half the time of all fits; only predictions ask for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.analysis.fits._growths", lambda *_: ())
        yield
