"""Weft's half of ``pytom.py``: one search as a process of its own, over orientations that are given.

    python benchmarks/weft_match.py JOB.json

A job holds the paths of tomogram, template, mask, a list of ZXZ angles (.npy, radians) and the result (.npz),
the voxel size, the threads, and, where the template is weighted, the tilts.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import mrcfile
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from weft.matching.matcher import Matcher
from weft.matching.plan import SearchSettings, Template
from weft.matching.search import SearchResult, run_search
from weft.matching.weights import Imaging, local_weights
from weft.physics.geometry import euler_angles
from weft.physics.optics import Optics
from weft.session.foreign_tilts import tilts_of_angles
from weft.tilts.gridding import TiltContrast


@dataclass(frozen=True)
class Tilts:
    """What a template is weighted by; angles have IMOD's sign.

    Attributes
    ----------
    angles : list of float
        Degrees.
    dose : list of float
        e/Å² by the end of each; empty for none.
    defocus : list of float
        µm; empty for no CTF.
    hand : float
        Of these angles: +1 brings +x to greater underfocus at positive ones; 0 is one defocus everywhere.
    """

    angles: list[float]
    dose: list[float]
    defocus: list[float]
    hand: float = 0.0


@dataclass(frozen=True)
class Job:
    """See the module. `halves`: cut the tomogram in two along x, each with its own defocus."""

    tomogram: str
    template: str
    mask: str
    angles: str
    out: str
    voxel: float
    threads: int = 1
    tilts: Tilts | None = None
    halves: bool = False

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Job:
        """From JSON."""
        given = json.loads(path.read_text())
        tilts = given.pop("tilts")
        return cls(**given, tilts=None if tilts is None else Tilts(**tilts))


def imaging(tilts: Tilts, shape: tuple[int, ...], voxel: float) -> Imaging:
    """As pytom has it: nothing was done to the images, and tilts are weighted by their cosine."""
    n = len(tilts.angles)
    read = tilts_of_angles(Path("angles"), np.array(tilts.angles))
    volume = torch.tensor([2.0 * (size // 2) * voxel for size in reversed(shape)], dtype=torch.float64)
    defocus = 1e4 * torch.tensor(tilts.defocus or [0.0] * n, dtype=torch.float64)
    contrast = TiltContrast.of(Optics(voxel, 300.0, 2.7, 0.08), n, dose=tilts.dose or 0.0)
    return Imaging(
        replace(read.geometry, defocus=defocus, volume_size=volume, hand=read.sign * tilts.hand),
        contrast,
        "uncorrected",
        has_ctf=bool(tilts.defocus),
        dose_weighted=False,
        cosine=True,
        dose_model="warp" if tilts.dose else "none",
    )


def whole_transform(half: NDArray[np.float32]) -> NDArray[np.float32]:
    """All coefficients [z, y, x] of weights that are even, from those of an rfft; an odd box."""
    n = len(half)
    out = np.empty((n, n, n), dtype=np.float32)
    out[..., : n // 2 + 1] = half
    away = -np.arange(n) % n
    out[..., n // 2 + 1 :] = half[away][:, away][..., :0:-1]
    return out


def weights(tilts: Tilts, shape: tuple[int, ...], voxel: float, box: int) -> NDArray[np.float32]:
    """H of the volume's centre for a box: (box, box, box//2+1)."""
    found = imaging(tilts, shape, voxel)
    place = 0.5 * found.geometry.volume_size
    return local_weights(found, place, (box,) * 3, voxel, box * voxel).signal.numpy()


def settings(job: Job, first: int = 0, last: int = 0) -> SearchSettings:
    """A search without anything that pytom does not do; from x `first` to `last` if cut (voxels)."""
    region = (first * job.voxel, last * job.voxel, 0.0, 1e9, 0.0, 1e9) if job.halves else ()
    return SearchSettings(
        weighting="none" if job.tilts is None else "ctf",
        whiten=False,
        whiten_noise=False,
        refine=0,
        angular_step=60.0,  # the orientations are replaced
        region=region,
    )


def search(job: Job) -> tuple[list[SearchResult], list[float]]:
    """The results of the parts, and CPU and wall seconds of the search alone."""
    torch.set_num_threads(job.threads)
    tomogram, template, mask = (mrcfile.read(p) for p in (job.tomogram, job.template, job.mask))
    wanted = Template(torch.from_numpy(template), torch.from_numpy(mask), len(template) * job.voxel)
    seen = None if job.tilts is None else imaging(job.tilts, tomogram.shape, job.voxel)
    turns = Rotation.from_euler("zxz", np.atleast_2d(np.load(job.angles))).as_matrix()
    rotations = euler_angles(torch.from_numpy(turns))
    size = tomogram.shape[2]
    spans = [(0, size // 2 - 1), (size // 2, size - 1)] if job.halves else [(0, size - 1)]
    cpu, wall, out = time.process_time(), time.perf_counter(), []
    for first, last in spans:
        matcher = Matcher.of(tomogram, job.voxel, [wanted], seen, settings(job, first, last))
        plan = replace(
            matcher.plan, rotations=rotations, owner=torch.zeros(len(rotations), dtype=torch.int64)
        )
        out.append(run_search(replace(matcher, plan=plan)))
    return out, [time.process_time() - cpu, time.perf_counter() - wall]


def main() -> None:
    """Search as told."""
    job = Job.read(Path(sys.argv[1]))
    found, took = search(job)
    np.savez(
        job.out,
        scores=np.concatenate([part.scores for part in found], axis=2),
        numbers=np.concatenate([part.numbers for part in found], axis=2),
        std=found[0].statistics.std,
        took=took,
    )


if __name__ == "__main__":
    main()
