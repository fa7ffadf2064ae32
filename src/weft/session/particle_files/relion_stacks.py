"""Stacks of tilt images with RELION 5's tables of particles, tomograms and tilt series."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weft.formats import mrc, relion_tomo
from weft.formats.star import Table, write_star
from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms
from weft.session.particle_files.base import ParticleFiles, Written
from weft.session.tomogram_export import AlignedSeries, relion_series

__all__ = ["RelionStacks"]


class RelionStacks(ParticleFiles):
    """RELION 5's set of particles."""

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
        path, tomograms = self.output / "particles.star", self.output / "tomograms.star"
        stacks = Table({"rlnTomoSubTomosAre2DStacks": [1]}, loop=False)
        blocks = {"general": stacks, **self.tables(written, 2, self.cutting.premultiply)}
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
