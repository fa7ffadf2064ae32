"""cupy.typing."""

from numpy.typing import NDArray

__all__ = ["NDArray"]
