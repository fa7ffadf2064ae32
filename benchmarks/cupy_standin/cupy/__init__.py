"""The part of CuPy that pytom-match-pick and voltools use, on NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import flip, float32, floor, int32, roll, sqrt, uint32, zeros_like

from . import cuda, typing
from ._array import ndarray
from ._kernels import ElementwiseKernel, RawKernel, ReductionKernel

__all__ = [
    "ElementwiseKernel",
    "RawKernel",
    "ReductionKernel",
    "array",
    "asarray",
    "cuda",
    "flip",
    "float32",
    "floor",
    "get_default_memory_pool",
    "int32",
    "ndarray",
    "ones",
    "roll",
    "sqrt",
    "typing",
    "uint32",
    "zeros",
    "zeros_like",
]

__version__ = "13.3.0"  # the CuPy whose interface this follows


def array(values: Any, dtype: Any = None, order: str = "K") -> ndarray:
    """A copy, as CuPy's array makes one."""
    return np.array(values, dtype=dtype, order=order, copy=True).view(ndarray)


def asarray(values: Any, dtype: Any = None, order: str = "K") -> ndarray:
    """An array on the "device": what comes from the host is copied, so that neither can change the other."""
    if isinstance(values, ndarray):
        return np.asanyarray(values, dtype=dtype, order=order)
    return array(values, dtype, order)


def zeros(shape: Any, dtype: Any = float) -> ndarray:
    """An array of zeros."""
    return np.zeros(shape, dtype).view(ndarray)


def ones(shape: Any, dtype: Any = float) -> ndarray:
    """An array of ones."""
    return np.ones(shape, dtype).view(ndarray)


class _MemoryPool:
    def free_all_blocks(self) -> None:
        """Nothing is pooled."""


def get_default_memory_pool() -> _MemoryPool:
    """A pool without memory."""
    return _MemoryPool()
