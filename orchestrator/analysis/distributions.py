"""Quantiles and tails of Student's t and of the normal distribution.

``scipy.stats`` gives the same numbers by the same functions, and takes more than a second to be imported:
every command that plans, fits or reports would wait for it.
"""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]


def normal_quantile(share: float) -> float:
    """Return below which value a standard normal variable lies with probability ``share``."""
    return float(special.ndtri(share))


def t_quantile(share: float, degrees: float) -> float:
    """Return below which value a t variable of so many degrees of freedom lies with probability ``share``."""
    return float(special.stdtrit(degrees, share))


@overload
def t_tail(value: float, degrees: float) -> float: ...
@overload
def t_tail(value: Array, degrees: float) -> Array: ...
def t_tail(value: float | Array, degrees: float) -> float | Array:
    """Return with which probability a t variable of so many degrees of freedom lies above each value."""
    found = special.stdtr(degrees, -np.asarray(value))
    return float(found) if np.ndim(value) == 0 else np.asarray(found)
