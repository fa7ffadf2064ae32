"""cupyx.scipy.fft on scipy.fft, with as many threads as OMP_NUM_THREADS says."""

from __future__ import annotations

import os
from typing import Any

import scipy.fft
from cupy import ndarray

__all__ = ["irfftn", "rfftn"]

_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


def rfftn(x: Any, s: Any = None) -> ndarray:
    """The real transform; single precision stays single."""
    return scipy.fft.rfftn(x, s, workers=_THREADS).view(ndarray)


def irfftn(x: Any, s: Any = None) -> ndarray:
    """Its inverse."""
    return scipy.fft.irfftn(x, s, workers=_THREADS).view(ndarray)
