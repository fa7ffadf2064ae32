"""CuPy's kernels: two small kinds of expression are evaluated, and voltools' kernels are known by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["ElementwiseKernel", "RawKernel", "ReductionKernel"]

_CUBIC = 3
_PREFILTER_AXES = {"X": 2, "Y": 1, "Z": 0}


def _names(parameters: str) -> list[str]:
    """The names in "float32 a, float32 b"."""
    return [parameter.split()[-1] for parameter in parameters.split(",")]


class ElementwiseKernel:
    """A kernel of the form ``if (condition) {output = expression; ...}``, element by element."""

    def __init__(self, inputs: str, outputs: str, operation: str, name: str = "kernel") -> None:
        found = re.fullmatch(r"\s*if\s*\(([^()]*)\)\s*\{(.*)\}\s*", operation, re.DOTALL)
        if found is None:
            raise NotImplementedError(f"kernel {name}: only if (...) {{...}} is emulated, not {operation!r}")
        self._parameters = _names(inputs) + _names(outputs)
        self._condition = found[1].strip()
        assignments = (part.split("=", 1) for part in found[2].split(";") if part.strip())
        self._assignments = [(target.strip(), value.strip()) for target, value in assignments]

    def __call__(self, *arguments: Any) -> None:
        values = dict(zip(self._parameters, arguments, strict=True))
        where = eval(self._condition, {}, values)
        for target, expression in self._assignments:
            np.copyto(values[target], eval(expression, {}, values), where=where)


class ReductionKernel:
    """A sum over the array of an expression in its one input."""

    def __init__(
        self,
        inputs: str,
        outputs: str,
        each: str,
        reduce: str,
        after: str,
        identity: str,
        name: str = "kernel",
    ) -> None:
        (self._input,), (result,) = _names(inputs), _names(outputs)
        if (reduce.strip(), after.replace(" ", ""), identity) != ("a + b", f"{result}=a", "0"):
            raise NotImplementedError(f"kernel {name}: only sums are emulated")
        self._each = each

    def __call__(self, values: Any) -> Any:
        return np.sum(eval(self._each, {}, {self._input: values}))


class RawKernel:
    """One of voltools' kernels: "transform" or "SamplesToCoefficients3D" X, Y or Z."""

    def __init__(self, code: str, name: str, options: Sequence[str] = ()) -> None:
        if name == "transform":
            self._order = _CUBIC if "cubicTex3D" in code else 1
        elif not name.startswith("SamplesToCoefficients3D"):
            raise NotImplementedError(f"kernel {name} is not emulated")
        self._name = name

    def __call__(self, grid: Any, block: Any, arguments: tuple[Any, ...]) -> None:
        if self._name == "transform":
            output, texture, matrix, _ = arguments
            _transform(output, texture.values, matrix, self._order)
        else:
            samples = arguments[0]
            axis = _PREFILTER_AXES[self._name[-1]]
            # its recursion starts as if the first and the last sample went on for ever
            samples[...] = ndimage.spline_filter1d(
                samples, _CUBIC, axis, output=samples.dtype, mode="reflect"
            )


def _transform(output: np.ndarray, coefficients: np.ndarray, matrix: np.ndarray, order: int) -> None:
    """Resample at matrix · index, zeros beyond the border; nothing is written where the source is outside."""
    values = ndimage.affine_transform(
        coefficients, matrix, order=order, mode="grid-constant", cval=0.0, prefilter=False, output=np.float32
    )
    inside = np.ones(output.shape, bool)
    index = np.ogrid[tuple(slice(n) for n in output.shape)]
    for row, n in zip(np.asarray(matrix), output.shape, strict=False):
        source = sum((np.float32(c) * i for c, i in zip(row, index, strict=False)), row[3] + np.float32(0.5))
        inside &= (source >= 0) & (source < n)
    np.copyto(output, values, where=inside)
