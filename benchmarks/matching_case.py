"""Tomograms with particles at known places, for ``pytom.py``: as they are, through tilts, and with a CTF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import weft_match
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from weft_match import Tilts

VOXEL = 10.0  # Å
# x y z about the centre, standard deviation (all in voxels of the full size), and height: no symmetry
BALLS = np.array(
    [
        [0, 0, 0, 2.6, 1.0],
        [4.5, 0, 0, 1.8, 1.0],
        [-2, 4, 0, 1.5, 0.9],
        [0, -3, 4, 1.4, 0.9],
        [2, 2, -5, 1.3, 0.8],
        [-4, -2, -2, 1.2, 1.0],
    ]
)
ANGLES = np.arange(-60.0, 61.0, 3.0)  # degrees


def dose_symmetric() -> list[float]:
    """e/Å² by the end of each tilt, 3 each, from the middle outwards."""
    order = np.argsort(np.abs(ANGLES) + 1e-3 * (ANGLES > 0.0), kind="stable")
    dose = np.empty(len(ANGLES))
    dose[order] = 3.0 * np.arange(1, len(ANGLES) + 1)
    return [float(d) for d in dose]


DEFOCUS = [float(d) for d in 3.0 + 0.05 * np.sin(np.arange(len(ANGLES)))]  # µm
WEDGE = Tilts(ANGLES.tolist(), [], [])
CTF = Tilts(ANGLES.tolist(), dose_symmetric(), DEFOCUS)


@dataclass(frozen=True)
class Scene:
    """How large things are, voxels; noise in units of the densest voxel.

    The box is odd, so that the centre of rotation, (n - 1)/2 in pytom, is a voxel in both programs.
    """

    size: int = 100
    box: int = 25
    radius: float = 10.0
    soft: float = 0.7
    scale: float = 1.0
    corners: tuple[int, ...] = (27, 73)
    wander: float = 6.0

    def density(
        self, size: int, centre: NDArray[np.float64], turn: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The particle, turned and placed, in a cube [z, y, x]."""
        out = np.zeros((size,) * 3)
        for *place, width, height in BALLS * np.array([self.scale] * 4 + [1.0]):
            x, y, z = (
                np.exp(-((np.arange(size) - c) ** 2) / (2 * width**2))
                for c in centre + turn @ np.array(place)
            )
            out += height * np.einsum("k,j,i->kji", z, y, x)
        return out


@dataclass(frozen=True)
class Case:
    """Tomograms that hold the same particles, as files, and their truth.

    Attributes
    ----------
    folder : Path
        tomogram.mrc, wedge.mrc (seen by tilts) and ctf.mrc (with CTF and dose); template.mrc, mask.mrc;
        angles.tlt, dose.txt and defocus.txt.
    scene : Scene
    positions : (n, 3)
        Where the particles' centres are, voxels, x y z.
    rotations : (n, 3, 3)
        From the template's coordinates, x y z, to the tomogram's.
    """

    folder: Path
    scene: Scene
    positions: NDArray[np.float64]
    rotations: NDArray[np.float64]


def simulate(folder: Path, scene: Scene | None = None, seed: int = 11) -> Case:
    """Eight particles at sub-voxel places in noise, white where it is seen; all but the mask."""
    scene, random = scene or Scene(), np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[scene.corners] * 3), -1).reshape(-1, 3)
    positions = corners + random.uniform(-scene.wander, scene.wander, corners.shape)
    turns = Rotation.random(len(positions), random_state=random).as_matrix()
    shape = (scene.size,) * 3
    particles = sum(scene.density(scene.size, p, r) for p, r in zip(positions, turns, strict=True))
    noise = random.normal(size=shape)
    template = scene.density(scene.box, np.full(3, scene.box // 2), np.eye(3))
    maps = {"template": template, "tomogram": particles + 0.25 * noise}
    for name, tilts, level in (("wedge", WEDGE, 0.2), ("ctf", CTF, 0.05)):
        kept = weft_match.weights(tilts, shape, VOXEL, scene.size)
        seen = np.fft.rfftn(particles - particles.mean()) * kept + level * np.fft.rfftn(noise) * (kept != 0.0)
        maps[name] = np.fft.irfftn(seen, s=shape, axes=(0, 1, 2))
    for name, values in maps.items():
        mrcfile.write(folder / f"{name}.mrc", values.astype(np.float32), voxel_size=VOXEL, overwrite=True)
    for name, column in (("angles.tlt", CTF.angles), ("dose.txt", CTF.dose), ("defocus.txt", CTF.defocus)):
        np.savetxt(folder / name, column, "%.6f")
    return Case(folder, scene, positions, turns)
