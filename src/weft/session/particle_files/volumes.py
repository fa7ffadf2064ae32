"""Sub-volumes with a CTF volume each, for RELION 3.1 and WarpTools."""

from __future__ import annotations

from pathlib import Path

from weft.formats import mrc
from weft.formats.particle_star import PIXELS
from weft.formats.star import write_star
from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms
from weft.session.particle_files.base import ParticleFiles, Written
from weft.session.tomogram_export import AlignedSeries

__all__ = ["Volumes", "WarpVolumes"]


class Volumes(ParticleFiles):
    """RELION 3.1's."""

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
                    **dict(zip(PIXELS, corner, strict=True)),
                    "rlnImageName": self.name_of(image),
                    "rlnCtfImage": self.name_of(ctf),
                    **self.pose(item, particles, i, int(series.half[i])),
                }
            )
        self.add(item, rows)

    def finish(self, written: Written) -> Path:
        path = self.output / "particles.star"
        write_star(path, self.tables(written, 3, self.volumes.weighting == "premultiplied"))
        return path


class WarpVolumes(Volumes):
    """WarpTools'."""

    tomogram = "{}.tomostar"
