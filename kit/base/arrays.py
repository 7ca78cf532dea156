"""Types of the arrays that travel through the kit; docstrings give their shapes."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
"""Rows of tiles, or counts."""
Labels = npt.NDArray[np.int64]
"""0 (no tumour in the centre) or 1 for each tile."""
Pixels = npt.NDArray[np.uint8]
"""RGB, the channel last."""
Strings = npt.NDArray[np.str_]
"""Ids or slides of tiles."""
