"""The files of exported particles, a class for each layout.

Volumes of RELION 3.1 and WarpTools
    ``particles.star``; ``subtomograms/TS/TS_000001_8.00A.mrc`` and ``..._ctf_8.00A.mrc``, the CTF volume as
    the half (n, n, n//2+1) that an FFT of real numbers gives, zero frequency first, as Warp writes it.
Volumes of Dynamo
    ``particle_000001.em`` and ``crop.tbl``.
Stacks of RELION 5
    ``particles.star``, ``tomograms.star`` with ``tilt_series/TS.star``, ``optimisation_set.star``, and for
    each particle a stack of the tilts that show it. Tilt series are in that of RELION's forms in which its
    coordinates and Euler angles are ours (:mod:`weft.formats.relion_tomo`, ``invert_angles``).
Stacks of WarpTools
    The same three tables as WarpTools writes them: all tilts in every stack, empty where they show nothing,
    and projection matrices in one ``tomograms.star``. Without premultiplication also ``images.star``: M's
    particle series, a row for every image.
Stacks of RELION 3.1
    ``particles.star`` with a row for every image.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.formats import mrc, relion_tomo
from weft.formats.dynamo import TABLE_COLUMNS, read_tbl, write_tbl
from weft.formats.em import write_em
from weft.formats.star import Table, write_star
from weft.formats.tomo_particles import TomoParticles, euler_angles, join_particles, write_tomo_particles
from weft.particles.cutting import ImageSeriesSettings
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms, SubTomogramSettings
from weft.session.tomogram_export import AlignedSeries, relion_series

__all__ = ["ParticleFiles", "Written", "particle_files"]

_ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_CENTRED = tuple(f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ")
_COORDINATES = tuple(f"rlnCoordinate{axis}" for axis in "XYZ")
_ORIGINS = tuple(f"rlnOrigin{axis}Angst" for axis in "XYZ")
_MAGNIFICATION = 10000.0
#: Columns of other programs' lists that mean the same here, and are kept.
_KEPT = ("rlnClassNumber", "rlnRandomSubset")


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

    def columns(self, names: Sequence[str]) -> dict[str, list[Any]]:
        """All rows as columns."""
        rows = [row for name in names for row in self.rows[name]]
        return {label: [row[label] for row in rows] for label in rows[0]}

    def optics(self, written: Written, dimensions: int, premultiplied: bool) -> Table:
        """A group for each tomogram."""
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
        row: dict[str, Any] = dict(zip(_ANGLES, particles.euler[i].tolist(), strict=True))
        row |= dict.fromkeys(_ORIGINS, 0.0)
        row |= dict(zip(_CENTRED, particles.xyz[i].tolist(), strict=True))
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


def particle_files(
    program: str,
    kind: str,
    output: Path,
    project: Path,
    cutting: ImageSeriesSettings,
    volumes: SubTomogramSettings,
) -> ParticleFiles:
    """The layout of a program."""
    layouts: dict[tuple[str, str], type[ParticleFiles]] = {
        ("3d", "relion3"): _Volumes,
        ("3d", "warp"): _WarpVolumes,
        ("3d", "dynamo"): _DynamoVolumes,
        ("2d", "relion5"): _Relion5Stacks,
        ("2d", "warp"): _WarpStacks,
        ("2d", "relion3"): _ImageRows,
    }
    return layouts[kind, program](output, project, cutting, volumes)


# ---------------------------------------------------------------------------------------------- volumes


class _Volumes(ParticleFiles):
    tomogram = "{}.mrc"

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        assert volumes is not None
        first, rows = self.next_number(item), []
        for i in range(len(series)):
            image = self.place(item, first + i, ".mrc")
            ctf = self.place(item, first + i, ".mrc", "_ctf")
            mrc.write(image, volumes.volumes[i].cpu(), self.cutting.pixel_size, sync=False)
            mrc.write(ctf, volumes.ctf[i].cpu(), self.cutting.pixel_size, sync=False)
            corner = self.corner_place(item, particles, i, self.cutting.pixel_size)
            rows.append(
                {
                    "rlnMicrographName": self.tomogram.format(item.name),
                    "rlnTomoName": item.name,
                    **dict(zip(_COORDINATES, corner, strict=True)),
                    "rlnImageName": self.name_of(image),
                    "rlnCtfImage": self.name_of(ctf),
                    **self.pose(item, particles, i, int(series.half[i])),
                }
            )
        self.add(item, rows)

    def finish(self, written: Written) -> Path:
        names = [item.name for item in written.items]
        columns: dict[str, Any] = self.columns(names)
        columns["rlnOpticsGroup"] = [k for k, name in enumerate(names, 1) for _ in self.rows[name]]
        path = self.output / "particles.star"
        optics = self.optics(written, 3, self.volumes.weighting == "premultiplied")
        write_star(path, {"optics": optics, "particles": Table(columns)})
        return path


class _WarpVolumes(_Volumes):
    tomogram = "{}.tomostar"


class _DynamoVolumes(ParticleFiles):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.particles: dict[str, list[TomoParticles]] = {}
        self.tags: dict[str, list[int]] = {}
        self.last = 0

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        assert volumes is not None
        self.output.mkdir(parents=True, exist_ok=True)
        for volume in volumes.volumes:
            self.last += 1
            write_em(self.output / f"particle_{self.last:06d}.em", volume.cpu(), self.cutting.pixel_size)
            self.tags.setdefault(item.name, []).append(self.last)
        self.particles.setdefault(item.name, []).append(particles)

    def forget(self, name: str) -> None:
        self.particles.pop(name, None)
        for tag in self.tags.pop(name, []):
            (self.output / f"particle_{tag:06d}.em").unlink(missing_ok=True)

    def finish(self, written: Written) -> Path:
        pixel = self.cutting.pixel_size
        names = [item.name for item in written.items]
        sizes = {i.name: tuple(i.geometry.volume_size.tolist()) for i in written.items}
        path = self.output / "crop.tbl"
        joined = join_particles([part for name in names for part in self.particles[name]])
        write_tomo_particles(path, joined, "dynamo", pixel_size=pixel, volume_size=sizes)
        table = read_tbl(path)
        at = {label: number - 1 for label, number in TABLE_COLUMNS.items()}
        table[:, at["tag"]] = [tag for name in names for tag in self.tags[name]]
        for axis in "xyz":  # particles are centred where they are: nothing is left to be shifted
            table[:, at[axis]] += table[:, at[f"d{axis}"]]
            table[:, at[f"d{axis}"]] = 0.0
        row = 0
        for item in written.items:
            # of the tilt axis along y
            angles, count = item.geometry.angles + item.geometry.level_y, len(self.tags[item.name])
            table[row : row + count, at["ymintilt"]] = float(angles.min())
            table[row : row + count, at["ymaxtilt"]] = float(angles.max())
            row += count
        write_tbl(path, table)
        return path


# ---------------------------------------------------------------------------------------------- stacks


class _Relion5Stacks(ParticleFiles):
    all_tilts = False

    def tomogram(self, item: AlignedSeries) -> str:
        """rlnTomoName."""
        return item.name

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        first, rows = self.next_number(item), []
        for i in range(len(series)):
            seen = series.weight[i] > 0.0
            images = series.images[i] if self.all_tilts else series.images[i, seen.to(series.images.device)]
            path = self.place(item, first + i, ".mrcs")
            mrc.write(path, images.cpu(), self.cutting.pixel_size, volume=False, sync=False)
            name = self.tomogram(item)
            rows.append(
                {
                    "rlnTomoName": name,
                    "rlnTomoParticleId": first + i,
                    "rlnTomoParticleName": f"{item.name}/{first + i}",
                    **self.pose(item, particles, i, int(series.half[i])),
                    **self.further(item, particles, i),
                    "rlnImageName": self.name_of(path),
                    "rlnTomoVisibleFrames": "[" + ",".join(str(int(v)) for v in seen.tolist()) + "]",
                }
            )
        self.add(item, rows)

    def further(self, item: AlignedSeries, particles: TomoParticles, i: int) -> dict[str, Any]:
        """Columns of this program only."""
        return {}

    def finish(self, written: Written) -> Path:
        names = [item.name for item in written.items]
        columns: dict[str, Any] = self.columns(names)
        columns["rlnOpticsGroup"] = [k for k, name in enumerate(names, 1) for _ in self.rows[name]]
        path, tomograms = self.output / "particles.star", self.output / "tomograms.star"
        blocks = {
            "general": Table({"rlnTomoSubTomosAre2DStacks": [1]}, loop=False),
            "optics": self.optics(written, 2, self.cutting.premultiply),
            "particles": Table(columns),
        }
        self.write_tomograms(tomograms, written)
        write_star(path, blocks)
        both: dict[str, Any] = {
            "rlnTomoParticlesFile": [self.name_of(path)],
            "rlnTomoTomogramsFile": [self.name_of(tomograms)],
        }
        write_star(self.output / "optimisation_set.star", {"": Table(both, loop=False)})
        return path

    def write_tomograms(self, path: Path, written: Written) -> None:
        """The table of tomograms."""
        series = []
        for number, item in enumerate(written.items, 1):
            found = relion_series(item, self.project)
            tilts: dict[str, Any] = dict(found.tilts.columns)
            tilts["rlnCtfScalefactor"] = written.weights[item.name]
            general = {**found.general, "rlnOpticsGroupName": f"opticsGroup{number}"}
            series.append(
                relion_tomo.from_geometry(
                    *(item.geometry, item.name),
                    pixel_size=item.pixel_size,
                    general=general,
                    tilts=tilts,
                    invert_angles=True,
                )
            )
        relion_tomo.write_tilt_series(path, series, root=self.project)


class _WarpStacks(_Relion5Stacks):
    all_tilts = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.images: dict[str, list[dict[str, Any]]] = {}

    def tomogram(self, item: AlignedSeries) -> str:
        return f"{item.name}.tomostar"

    def further(self, item: AlignedSeries, particles: TomoParticles, i: int) -> dict[str, Any]:
        # in pixels of the exported images, as WarpTools has them
        corner = self.corner_place(item, particles, i, self.cutting.pixel_size)
        return dict(zip(_COORDINATES, corner, strict=True))

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        first = self.next_number(item)
        super().write(item, series, volumes, particles)
        if not self.cutting.premultiply:
            paths = [self.place(item, first + i, ".mrcs") for i in range(len(series))]
            rows = _image_rows(self, item, series, particles, paths, first, every_tilt=True, sign=-1.0)
            self.images.setdefault(item.name, []).extend(rows)

    def forget(self, name: str) -> None:
        super().forget(name)
        self.images.pop(name, None)

    def finish(self, written: Written) -> Path:
        if not self.cutting.premultiply:
            chosen = written.items[0].session.settings.input
            rows = [row for item in written.items for row in self.images[item.name]]
            n = len(rows)
            columns: dict[str, Any] = {
                "rlnMagnification": np.full(n, _MAGNIFICATION),
                "rlnDetectorPixelSize": np.full(n, self.cutting.pixel_size),
                "rlnVoltage": np.full(n, float(chosen.voltage)),
                "rlnSphericalAberration": np.full(n, float(chosen.cs)),
                "rlnAmplitudeContrast": np.full(n, float(chosen.amplitude)),
            }
            columns |= {label: [row[label] for row in rows] for label in rows[0]}
            write_star(self.output / "images.star", {"": Table(columns)})
        return super().finish(written)

    def write_tomograms(self, path: Path, written: Written) -> None:
        rows: list[dict[str, Any]] = []
        blocks: dict[str, Table] = {}
        for number, item in enumerate(written.items, 1):
            found, g, pixel = relion_series(item, self.project), item.geometry, item.pixel_size
            size = [round(v / pixel) for v in g.volume_size.tolist()]
            rows.append(
                {
                    "rlnTomoName": self.tomogram(item),
                    "rlnTomoTiltSeriesName": self.name_of(
                        item.session.root.absolute() / item.record.steps["stack"].outputs["stack"]
                    ),
                    "rlnTomoFrameCount": len(g),
                    **{f"rlnTomoSize{axis}": size[k] for k, axis in enumerate("XYZ")},
                    # the matrices are those of our own specimen, not of its mirror image
                    "rlnTomoHand": g.hand,
                    "rlnOpticsGroupName": f"opticsGroup{number}",
                    "rlnTomoTiltSeriesPixelSize": pixel,
                    **{k: found.general[k] for k in ("rlnVoltage", "rlnSphericalAberration")},
                    "rlnAmplitudeContrast": found.general["rlnAmplitudeContrast"],
                    "rlnTomoImportFractionalDose": float(np.mean([t["exposure"] for t in item.tilts])),
                }
            )
            columns: dict[str, Any] = dict(_matrices(item))
            columns |= {k: found.tilts[k] for k in ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")}
            columns["rlnCtfScalefactor"] = written.weights[item.name]
            columns["rlnMicrographPreExposure"] = item.doses
            blocks[self.tomogram(item)] = Table(columns)
        table = Table({label: [row[label] for row in rows] for label in rows[0]})
        write_star(path, {"global": table, **blocks})


def _matrices(item: AlignedSeries) -> dict[str, list[str]]:
    """rlnTomoProjX ... W: from pixels of the volume to those of the image."""
    g, pixel = item.geometry, item.pixel_size
    turn = g.matrices
    centre = torch.tensor([round(v / pixel) // 2 for v in g.volume_size.tolist()], dtype=torch.float64)
    shift = torch.zeros(len(g), 3, dtype=torch.float64)
    shift[:, :2] = (g.shift + 0.5 * g.image_size) / pixel
    shift -= turn @ centre

    def text(values: Sequence[float]) -> str:
        return "[" + ",".join(f"{v:.9g}" for v in values) + "]"

    rows = torch.cat([turn, shift[..., None]], dim=-1).tolist()
    out = {f"rlnTomoProj{axis}": [text(rows[t][k]) for t in range(len(g))] for k, axis in enumerate("XYZ")}
    return out | {"rlnTomoProjW": ["[0,0,0,1]"] * len(g)}


class _ImageRows(ParticleFiles):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.count: dict[str, int] = {}

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        first, paths = self.count.get(item.name, 0) + 1, []
        for i in range(len(series)):
            seen = (series.weight[i] > 0.0).to(series.images.device)
            paths.append(self.place(item, first + i, ".mrcs"))
            mrc.write(
                paths[-1], series.images[i, seen].cpu(), self.cutting.pixel_size, volume=False, sync=False
            )
        self.count[item.name] = first + len(series) - 1
        self.add(item, _image_rows(self, item, series, particles, paths, first, every_tilt=False, sign=1.0))

    def finish(self, written: Written) -> Path:
        names = [item.name for item in written.items]
        columns: dict[str, Any] = self.columns(names)
        columns["rlnOpticsGroup"] = [k for k, name in enumerate(names, 1) for _ in self.rows[name]]
        path = self.output / "particles.star"
        optics = self.optics(written, 2, self.cutting.premultiply)
        write_star(path, {"optics": optics, "particles": Table(columns)})
        return path


def _image_rows(
    files: ParticleFiles,
    item: AlignedSeries,
    series: ImageSeries,
    particles: TomoParticles,
    paths: Sequence[Path],
    first: int,
    *,
    every_tilt: bool,
    sign: float,
) -> list[dict[str, Any]]:
    """A row for every image that shows its particle.

    `every_tilt`: the stacks hold the other tilts too. `sign`: of rlnCtfBfactor; RELION damps with positive
    ones, Warp and M write negative ones.
    """
    at = torch.as_tensor(particles.xyz) + 0.5 * item.geometry.volume_size
    places = (item.geometry.project(at)[..., :2] / item.pixel_size).numpy()
    rows = []
    for i in range(len(series)):
        seen = (series.weight[i] > 0.0).nonzero()[:, 0].tolist()
        euler = euler_angles(series.rotation[i].double().cpu().numpy())
        for position, t in enumerate(seen):
            half = 0.5 * float(series.astigmatism[i, t])
            number = (t if every_tilt else position) + 1
            name = item.tilts[t]["item"] or f"{item.name}_{t:03d}"
            rows.append(
                {
                    "rlnDefocusU": float(series.defocus[i, t]) + half,
                    "rlnDefocusV": float(series.defocus[i, t]) - half,
                    "rlnDefocusAngle": float(series.angle[i, t]),
                    "rlnPhaseShift": float(series.phase_shift[i, t]),
                    "rlnImageName": f"{number:06d}@{files.name_of(paths[i])}",
                    "rlnMicrographName": f"{name}.mrc",
                    "rlnTomoName": item.name,
                    "rlnCoordinateX": float(places[t, i, 0]),
                    "rlnCoordinateY": float(places[t, i, 1]),
                    **dict(zip(_ANGLES, euler[t].tolist(), strict=True)),
                    "rlnOriginXAngst": 0.0,
                    "rlnOriginYAngst": 0.0,
                    "rlnCtfBfactor": sign * 4.0 * float(series.dose[i, t]),
                    "rlnCtfScalefactor": float(series.weight[i, t]),
                    "rlnRandomSubset": int(series.half[i]) + 1,
                    "rlnGroupName": f"{item.name}_{first + i:06d}",
                }
            )
    return rows
