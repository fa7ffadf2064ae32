"""NumPy's array with what CuPy's has besides: the way back to the host, and no scalars."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ndarray"]


class ndarray(np.ndarray):
    """An array "on the device"."""

    def get(self) -> np.ndarray:
        """A copy on the host."""
        return np.array(self, subok=False)

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> ndarray:
        """An array without dimensions where NumPy would give a scalar."""
        return array.view(ndarray)
