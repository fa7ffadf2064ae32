"""What all layouts of exported particles share: names of files, places, poses, optics groups."""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.formats.particle_star import ANGLES, CENTRED, ORIGINS
from weft.formats.star import Table
from weft.formats.tomo_particles import TomoParticles
from weft.particles.cutting import ImageSeriesSettings
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms, SubTomogramSettings
from weft.session.tomogram_export import AlignedSeries

__all__ = ["ParticleFiles", "Written", "as_columns"]

#: Columns of other programs' lists that mean the same here, and are kept.
_KEPT = ("rlnClassNumber", "rlnRandomSubset")


def as_columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows with the same labels, as columns."""
    return {label: [row[label] for row in rows] for label in rows[0]}


@dataclass(frozen=True)
class Written:
    """The tomograms whose particles have been written.

    Attributes
    ----------
    items : sequence of AlignedSeries
    weights : mapping
        Their tilts' weights by name: rlnCtfScalefactor.
    """

    items: Sequence[AlignedSeries]
    weights: Mapping[str, NDArray[np.float64]]


class ParticleFiles(ABC):
    """Writes the images of particles as they come, and the tables in the end.

    Attributes
    ----------
    output, project : Path
        Names of files in tables count from the project.
    cutting, volumes : settings
    """

    def __init__(
        self, output: Path, project: Path, cutting: ImageSeriesSettings, volumes: SubTomogramSettings
    ) -> None:
        self.output, self.project, self.cutting, self.volumes = output, project, cutting, volumes
        self.rows: dict[str, list[dict[str, Any]]] = {}

    @abstractmethod
    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        """Write the next particles of a tomogram."""

    @abstractmethod
    def finish(self, written: Written) -> Path:
        """Write the tables; the one that lists the particles."""

    def forget(self, name: str) -> None:
        """A tomogram has failed: what was written of it goes."""
        self.rows.pop(name, None)
        shutil.rmtree(self.output / "subtomograms" / name, ignore_errors=True)

    # ------------------------------------------------------------------ what they share

    def place(self, item: AlignedSeries, number: int, suffix: str, mark: str = "") -> Path:
        """Where an image of a particle goes."""
        folder = self.output / "subtomograms" / item.name
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{item.name}_{number:06d}{mark}_{self.cutting.pixel_size:.2f}A{suffix}"

    def name_of(self, path: Path) -> str:
        """Of a file, in a table."""
        return os.path.relpath(path, self.project)

    def add(self, item: AlignedSeries, rows: list[dict[str, Any]]) -> None:
        """Keep rows of the table."""
        self.rows.setdefault(item.name, []).extend(rows)

    def next_number(self, item: AlignedSeries) -> int:
        """1-based number of the next particle of a tomogram."""
        return len(self.rows.get(item.name, [])) + 1

    def tables(self, written: Written, dimensions: int, premultiplied: bool) -> dict[str, Table]:
        """Of optics groups, one for each tomogram, and of particles."""
        names = [item.name for item in written.items]
        columns = as_columns([row for name in names for row in self.rows[name]])
        columns["rlnOpticsGroup"] = [k for k, name in enumerate(names, 1) for _ in self.rows[name]]
        return {"optics": self._optics(written, dimensions, premultiplied), "particles": Table(columns)}

    def _optics(self, written: Written, dimensions: int, premultiplied: bool) -> Table:
        count = len(written.items)
        chosen = written.items[0].session.settings.input
        pixel = [item.pixel_size for item in written.items]
        size = self.cutting.pixel_size
        columns: dict[str, Any] = {
            "rlnOpticsGroup": list(range(1, count + 1)),
            "rlnOpticsGroupName": [f"opticsGroup{i}" for i in range(1, count + 1)],
            "rlnSphericalAberration": [float(chosen.cs)] * count,
            "rlnVoltage": [float(chosen.voltage)] * count,
            "rlnTomoTiltSeriesPixelSize": pixel,
            "rlnCtfDataAreCtfPremultiplied": [int(premultiplied)] * count,
            "rlnImageDimensionality": [dimensions] * count,
            "rlnTomoSubtomogramBinning": [size / p for p in pixel],
            "rlnImagePixelSize": [size] * count,
            "rlnImageSize": [self.cutting.box] * count,
            "rlnAmplitudeContrast": [float(chosen.amplitude)] * count,
        }
        return Table(columns)

    def pose(self, item: AlignedSeries, particles: TomoParticles, i: int, half: int) -> dict[str, Any]:
        """Place and orientation of a particle, and columns of its list that still hold."""
        row: dict[str, Any] = dict(zip(ANGLES, particles.euler[i].tolist(), strict=True))
        row |= dict.fromkeys(ORIGINS, 0.0)
        row |= dict(zip(CENTRED, particles.xyz[i].tolist(), strict=True))
        row["rlnRandomSubset"] = half + 1
        if np.isfinite(particles.score).any():
            row["rlnLCCmax"] = float(particles.score[i])
        row |= {k: particles.extra[k][i] for k in _KEPT if k in particles.extra and k not in row}
        return row

    def corner_place(
        self, item: AlignedSeries, particles: TomoParticles, i: int, pixel: float
    ) -> list[float]:
        """x, y, z from the centre of the volume's first voxel, in pixels of that size."""
        at = particles.xyz[i] + 0.5 * item.geometry.volume_size.numpy()
        return [float(v) / pixel for v in at]
