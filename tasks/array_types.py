"""Define names of array types for type annotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
"""An array of any dtype."""
FloatArray = npt.NDArray[np.floating[Any]]
"""An array of floats. The dtype is float64, unless a docstring states another one."""
IntArray = npt.NDArray[np.integer[Any]]
"""An array of integers: positions, labels, or sums of bytes."""
Int64Array = npt.NDArray[np.int64]
"""An array of int64: labels, group ids, or row indices."""
Int8Array = npt.NDArray[np.int8]
"""An array of int8: the split of each image."""
Uint8Array = npt.NDArray[np.uint8]
"""An array of uint8: pixels or hashes."""
Float32Array = npt.NDArray[np.float32]
"""An array of float32."""
Float64Array = npt.NDArray[np.float64]
"""An array of float64."""
BoolArray = npt.NDArray[np.bool_]
"""An array of booleans, also called a mask."""
Bytes = npt.NDArray[np.integer[Any] | np.bool_]
"""An array of uint8, int8 or bool with the shape ``(num_rows, num_features)``."""
