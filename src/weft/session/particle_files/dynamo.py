"""Sub-volumes for Dynamo: EM files and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weft.formats.dynamo import TABLE_COLUMNS, read_tbl, write_tbl
from weft.formats.em import write_em
from weft.formats.tomo_particles import TomoParticles, join_particles, write_tomo_particles
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms
from weft.session.particle_files.base import ParticleFiles, Written
from weft.session.tomogram_export import AlignedSeries

__all__ = ["DynamoVolumes"]


class DynamoVolumes(ParticleFiles):
    """Without CTF volumes: Dynamo takes none."""

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
