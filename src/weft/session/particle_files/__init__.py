"""The files of exported particles, a class for each layout.

Volumes of RELION 3.1 and WarpTools (:mod:`.volumes`)
    ``particles.star``; ``subtomograms/TS/TS_000001_8.00A.mrc`` and ``..._ctf_8.00A.mrc``, the CTF volume as
    the half (n, n, n//2+1) that an FFT of real numbers gives, zero frequency first, as Warp writes it.
Volumes of Dynamo (:mod:`.dynamo`)
    ``particle_000001.em`` and ``crop.tbl``.
Stacks of RELION 5 (:mod:`.relion_stacks`)
    ``particles.star``, ``tomograms.star`` with ``tilt_series/TS.star``, ``optimisation_set.star``, and for
    each particle a stack of the tilts that show it. Tilt series are in that of RELION's forms in which its
    coordinates and Euler angles are ours (:mod:`weft.formats.relion_tomo`, ``invert_angles``).
Stacks of WarpTools (:mod:`.warp_stacks`)
    The same three tables as WarpTools writes them: all tilts in every stack, empty where they show nothing,
    and projection matrices in one ``tomograms.star``. Without premultiplication also ``images.star``: M's
    particle series, a row for every image.
Stacks of RELION 3.1 (:mod:`.image_rows`)
    ``particles.star`` with a row for every image.
"""

from __future__ import annotations

from pathlib import Path

from weft.particles.cutting import ImageSeriesSettings
from weft.particles.subtomograms import SubTomogramSettings
from weft.session.particle_files.base import ParticleFiles, Written
from weft.session.particle_files.dynamo import DynamoVolumes
from weft.session.particle_files.image_rows import ImageRows
from weft.session.particle_files.relion_stacks import RelionStacks
from weft.session.particle_files.volumes import Volumes, WarpVolumes
from weft.session.particle_files.warp_stacks import WarpStacks

__all__ = ["ParticleFiles", "Written", "particle_files"]


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
        ("3d", "relion3"): Volumes,
        ("3d", "warp"): WarpVolumes,
        ("3d", "dynamo"): DynamoVolumes,
        ("2d", "relion5"): RelionStacks,
        ("2d", "warp"): WarpStacks,
        ("2d", "relion3"): ImageRows,
    }
    return layouts[kind, program](output, project, cutting, volumes)
