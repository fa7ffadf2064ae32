"""Columns by which STAR files describe particles in tomograms, and what they mean together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from weft.errors import CorruptError, FormatError
from weft.formats.star import Table, read_star
from weft.physics import geometry

__all__ = [
    "ANGLES",
    "CENTRED",
    "GROUP",
    "MAGNIFICATION",
    "MERIT",
    "MICROGRAPH",
    "NAME",
    "ORIGINS",
    "PIXELS",
    "SCORE",
    "ParticleStar",
    "euler_angles",
    "euler_matrices",
    "finite_column",
    "plain_name",
]

NAME, MICROGRAPH, GROUP = "rlnTomoName", "rlnMicrographName", "rlnOpticsGroup"
CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
PIXELS = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_PRIORS = tuple(f"{label}Prior" for label in ANGLES)
_OUTER = ("rlnTomoSubtomogramRot", "rlnTomoSubtomogramTilt", "rlnTomoSubtomogramPsi")
ORIGINS = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
_ORIGIN_PIXELS = tuple(f"rlnOrigin{axis}" for axis in "XYZ")
SCORE, MERIT = "rlnLCCmax", "rlnAutopickFigureOfMerit"
#: With it rlnDetectorPixelSize is the pixel size in Å.
MAGNIFICATION = 1e4
_Array = NDArray[np.float64]


def euler_matrices(euler: ArrayLike) -> _Array:
    """M(rot, tilt, psi): ``(n, 3)`` degrees → ``(n, 3, 3)``."""
    angles = torch.as_tensor(np.asarray(euler, np.float64).reshape(-1, 3))
    return np.asarray(geometry.euler_matrix(*angles.unbind(1)).numpy(), np.float64)


def euler_angles(matrices: ArrayLike) -> _Array:
    """rot, tilt, psi of matrices: ``(n, 3, 3)`` → ``(n, 3)`` degrees."""
    m = torch.as_tensor(np.asarray(matrices, np.float64).reshape(-1, 3, 3))
    return np.asarray(geometry.euler_angles(m).numpy(), np.float64)


def plain_name(name: str) -> str:
    """The tilt series that a file is of: ``../reconstruction/TS_01.mrc_15.00Apx.mrc`` → ``TS_01``."""
    stem = re.split(r"[/\\]", name.strip())[-1]
    while (
        short := re.sub(r"(\.tomostar|\.mrcs?|\.rec|\.st|\.map|\.em|:mrc|_\d+\.\d+Apx)$", "", stem)
    ) != stem:
        if not short:
            break
        stem = short
    return stem


class ParticleStar:
    """One STAR file of particles; it remembers which of its columns have been used.

    Attributes
    ----------
    names : list of str
        (n), tomograms.
    table, optics : Table
        Of the particles, and of their optics groups where there is one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        blocks = read_star(path)
        self.optics = blocks.get("optics")
        self.table = self._particles(blocks)
        self.used: set[str] = set()
        self.warp = False
        self.names = self._names()

    def _particles(self, blocks: Mapping[str, Table]) -> Table:
        for label in (CENTRED[0], PIXELS[0], CENTRED[1], PIXELS[1]):
            for name in sorted(blocks, key=lambda name: name != "particles"):
                block = blocks[name]
                old = {f"ptm{c[3:]}": c for c in (*PIXELS, *CENTRED, *ANGLES, SCORE, MICROGRAPH)}
                # early versions of pytom-match-pick have a prefix of their own
                columns = {old.get(key, key): column for key, column in block.columns.items()}
                if name != "optics" and label in columns:
                    return Table(columns, block.loop)
        raise FormatError(self.path, f"it has neither the column _{CENTRED[0]} nor _{PIXELS[0]}")

    def _names(self) -> list[str]:
        label = next((label for label in (NAME, MICROGRAPH) if label in self.table), None)
        if label is None:
            raise FormatError(
                self.path, f"it has no column _{NAME} or _{MICROGRAPH} that says where particles are"
            )
        given = self.table.strings(label)
        self.warp = label == NAME and all(name.endswith(".tomostar") for name in given)
        if label == NAME:
            self.used.add(NAME)
            return [name.removesuffix(".tomostar") for name in given]
        return [plain_name(name) for name in given]

    def has(self, labels: Sequence[str]) -> bool:
        """Whether these columns are there.

        Raises
        ------
        FormatError
            Some of them are, others are not.
        """
        present = [label for label in labels if label in self.table]
        if present and len(present) < len(labels):
            missing = next(label for label in labels if label not in self.table)
            raise FormatError(self.path, f"it has the column _{present[0]} but no _{missing}")
        return bool(present)

    def numbers(self, labels: Sequence[str]) -> _Array:
        """(n, labels): finite values of columns that must be there."""
        out = np.empty((len(self.table), len(labels)))
        self.has(labels)
        for i, label in enumerate(labels):
            if label not in self.table:
                raise FormatError(self.path, f"it has no column _{label}")
            out[:, i] = finite_column(self.path, label, self.table[label])
            self.used.add(label)
        return out

    def orientations(self) -> tuple[_Array, _Array]:
        """Matrices of the sub-tomograms, and Euler angles of the particles in the tomogram."""
        n = len(self.table)
        inner = np.zeros((n, 3))
        if self.has(ANGLES):
            inner = self.numbers(ANGLES)
        elif any(label in self.table for label in _PRIORS):
            # as RELION, which starts from what is expected where nothing has been found yet
            for i, label in enumerate(_PRIORS):
                if label in self.table:
                    inner[:, i] = self.numbers([label])[:, 0]
        if not self.has(_OUTER):
            return np.broadcast_to(np.eye(3), (n, 3, 3)), inner
        outer = euler_matrices(self.numbers(_OUTER))
        self.used.update(_PRIORS)  # they are relative to the sub-tomogram
        return outer, euler_angles(outer @ euler_matrices(inner))

    def pixel_size(self) -> _Array | None:
        """(n, 1) Å: what rlnCoordinateX counts."""
        if NAME in self.table:
            # WarpTools writes RELION's columns, but counts in the pixels of the images that it wrote
            order = ["rlnImagePixelSize" if self.warp else "rlnTomoTiltSeriesPixelSize"]
        else:
            order = ["rlnPixelSize", "rlnMicrographPixelSize", "rlnImagePixelSize"]
        for label in order:
            if (value := self._of_group(label)) is not None:
                return value
        detector = self._of_group("rlnDetectorPixelSize")
        magnification = self._of_group("rlnMagnification")
        if detector is not None and magnification is not None:
            return np.asarray(detector * MAGNIFICATION / magnification)
        return detector  # pytom-match-pick's, in Å

    def _of_group(self, label: str) -> _Array | None:
        """(n, 1): a column, or what the optics table says of each particle's group."""
        if label in self.table:
            return finite_column(self.path, label, self.table[label])[:, None]
        if self.optics is None or label not in self.optics:
            return None
        values = finite_column(self.path, label, self.optics[label])
        if len(values) == 1 or GROUP not in self.table or GROUP not in self.optics:
            if len(set(values.tolist())) > 1:
                raise FormatError(
                    self.path, f"it has several optics groups but no column _{GROUP} for particles"
                )
            return np.full((len(self.table), 1), values[0])
        of = dict(zip(self.optics.strings(GROUP), values, strict=True))
        groups = self.table.strings(GROUP)
        absent = next((group for group in groups if group not in of), None)
        if absent is not None:
            raise CorruptError(
                self.path, f"its particles name the optics group {absent}, which it does not describe"
            )
        return np.array([of[group] for group in groups])[:, None]

    def origins(self, pixel: _Array | None) -> _Array | None:
        """(n, 3) Å: what is to be subtracted, in the sub-tomogram's frame."""
        if self.has(ORIGINS):
            return self.numbers(ORIGINS)
        if _ORIGIN_PIXELS[2] not in self.table:
            return None  # without z they are of images of a tilt series
        values = self.numbers(_ORIGIN_PIXELS)
        if not values.any():
            return None
        if (size := self._of_group("rlnImagePixelSize")) is None and (size := pixel) is None:
            raise FormatError(self.path, f"it says nowhere how large the pixels of _{_ORIGIN_PIXELS[0]} are")
        return np.asarray(values * size)

    def score(self) -> _Array:
        """(n,): how good each is; NaN where the file does not say."""
        for label in (SCORE, MERIT):
            if label in self.table:
                self.used.update((SCORE, MERIT))
                try:
                    return self.table.floats(label)
                except ValueError as error:
                    raise CorruptError(self.path, str(error)) from None
        return np.full(len(self.table), np.nan)

    def rest(self) -> dict[str, Any]:
        """Columns that have not become part of places, orientations and scores."""
        spent = self.used | {*PIXELS, *CENTRED, *ORIGINS}
        if _ORIGIN_PIXELS[2] in self.table:
            spent |= set(_ORIGIN_PIXELS)
        return {label: column for label, column in self.table.columns.items() if label not in spent}


def finite_column(path: Path, label: str, column: Sequence[Any] | NDArray[Any]) -> _Array:
    """A column as numbers; CorruptError names the row (from 1) of what is none, or not finite."""
    out = np.empty(len(column))
    for row, value in enumerate(column):
        try:
            out[row] = float(value)
        except ValueError:
            out[row] = math.nan
        if not math.isfinite(out[row]):
            raise CorruptError(
                path, f"row {row + 1} of the column _{label} is {value}, which is no finite number"
            )
    return out
