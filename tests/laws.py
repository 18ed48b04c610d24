"""Fits for tests of laws, levels and words: priors of predictions take half the time of all fits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pandas as pd
import pytest

from orchestrator.analysis import ScalingFits, fit_scaling_laws


@contextmanager
def without_priors() -> Iterator[None]:
    """Fit no prior of a prediction within the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.analysis.fits._growths", lambda *_: ())
        yield


def fit_laws(table: pd.DataFrame, **options: Any) -> ScalingFits:
    """Fit all but the priors of predictions."""
    with without_priors():
        return fit_scaling_laws(table, **options)
