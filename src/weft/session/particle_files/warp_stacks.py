"""Stacks of tilt images as WarpTools writes them, and M's particle series."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weft.formats.particle_star import MAGNIFICATION, PIXELS
from weft.formats.star import Table, write_star
from weft.formats.tomo_particles import TomoParticles
from weft.particles.image_series import ImageSeries
from weft.particles.subtomograms import SubTomograms
from weft.session.particle_files.base import Written, as_columns
from weft.session.particle_files.image_rows import image_rows
from weft.session.particle_files.relion_stacks import RelionStacks
from weft.session.tomogram_export import AlignedSeries, relion_series

__all__ = ["WarpStacks"]


class WarpStacks(RelionStacks):
    """WarpTools' set of particles."""

    all_tilts = True

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.images: dict[str, list[dict[str, Any]]] = {}

    def tomogram(self, item: AlignedSeries) -> str:
        return f"{item.name}.tomostar"

    def further(self, item: AlignedSeries, particles: TomoParticles, i: int) -> dict[str, Any]:
        # in pixels of the exported images, as WarpTools has them
        corner = self.corner_place(item, particles, i, self.cutting.pixel_size)
        return dict(zip(PIXELS, corner, strict=True))

    def write(
        self, item: AlignedSeries, series: ImageSeries, volumes: SubTomograms | None, particles: TomoParticles
    ) -> None:
        first = self.next_number(item)
        super().write(item, series, volumes, particles)
        if not self.cutting.premultiply:
            paths = [self.place(item, first + i, ".mrcs") for i in range(len(series))]
            rows = image_rows(self, item, series, particles, paths, first, every_tilt=True, sign=-1.0)
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
                "rlnMagnification": np.full(n, MAGNIFICATION),
                "rlnDetectorPixelSize": np.full(n, self.cutting.pixel_size),
                "rlnVoltage": np.full(n, float(chosen.voltage)),
                "rlnSphericalAberration": np.full(n, float(chosen.cs)),
                "rlnAmplitudeContrast": np.full(n, float(chosen.amplitude)),
            }
            columns |= as_columns(rows)
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
        write_star(path, {"global": Table(as_columns(rows)), **blocks})


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
