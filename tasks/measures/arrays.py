"""Names of array types, for annotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
"""An array of any dtype of real numbers."""
FloatArray = npt.NDArray[np.floating[Any]]
"""An array of floats; float64 if no other dtype is stated."""
IntArray = npt.NDArray[np.integer[Any]]
"""An array of integers: positions, labels, or sums of bytes."""
BoolArray = npt.NDArray[np.bool_]
"""A mask: an array of booleans."""
Bytes = npt.NDArray[np.integer[Any] | np.bool_]
"""Rows of uint8, int8 or bool, ``(num_rows, num_features)``."""
