"""Tables with a row for every image of every particle: RELION 3.1's, and M's particle series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from weft.formats import mrc
from weft.formats.particle_star import ANGLES
from weft.formats.star import write_star
from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms
from weft.physics.geometry import euler_angles
from weft.session.particle_files.base import ParticleFiles, Written
from weft.session.tomogram_export import AlignedSeries

__all__ = ["ImageRows", "image_rows"]


class ImageRows(ParticleFiles):
    """RELION 3.1's: every image is a particle of its own."""

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
        self.add(item, image_rows(self, item, series, particles, paths, first, every_tilt=False, sign=1.0))

    def finish(self, written: Written) -> Path:
        path = self.output / "particles.star"
        write_star(path, self.tables(written, 2, self.cutting.premultiply))
        return path


def image_rows(
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
        euler = euler_angles(series.rotation[i].cpu())
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
                    **dict(zip(ANGLES, euler[t].tolist(), strict=True)),
                    "rlnOriginXAngst": 0.0,
                    "rlnOriginYAngst": 0.0,
                    "rlnCtfBfactor": sign * 4.0 * float(series.dose[i, t]),
                    "rlnCtfScalefactor": float(series.weight[i, t]),
                    "rlnRandomSubset": int(series.half[i]) + 1,
                    "rlnGroupName": f"{item.name}_{first + i:06d}",
                }
            )
    return rows
