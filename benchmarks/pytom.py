"""Template matching in pytom-match-pick on the processor, through the NumPy stand-in for CuPy.

    python benchmarks/pytom.py FOLDER [--step 38.53] [--threads 1]

FOLDER gets a virtual environment with pytom-match-pick (GPL; it is installed and run as a program, nothing of
it is here), the simulated tomogram, its template and mask, and what the search found. A search is measured as
a whole process; its start-up, measured with a search of one orientation, is taken off the time per voxel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from measuring import Usage, measure, table
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

STANDIN = Path(__file__).parent / "cupy_standin"
PROGRAMS = ["pytom-match-pick==0.14.0", "voltools==0.6.0"]
LIBRARIES = [
    "numpy",
    "scipy",
    "tqdm",
    "mrcfile",
    "starfile",
    "importlib_resources",
    "packaging",
    "healpix",
    "lxml",
]

SIZE = 100  # voxels of the tomogram along each axis
BOX = 25  # odd, so that the centre of rotation, (n - 1)/2 in pytom, is a voxel in both programs
VOXEL = 10.0  # Å
RADIUS, SOFT = 10, 0.7  # voxels, of the mask
NOISE = 0.25  # of the densest voxel
# x y z about the centre, standard deviation (all in voxels), and height: six balls without any symmetry
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


@dataclass(frozen=True)
class Case:
    """A search, as files, and its truth.

    Attributes
    ----------
    tomogram, template, mask : Path
    positions : (n, 3)
        Where the particles' centres are, voxels, x y z.
    rotations : (n, 3, 3)
        From the template's coordinates, x y z, to the tomogram's.
    """

    tomogram: Path
    template: Path
    mask: Path
    positions: NDArray[np.float64]
    rotations: NDArray[np.float64]


@dataclass(frozen=True)
class Search:
    """What a search took and found: volumes [z, y, x], the angles as numbers in the list that it searched."""

    usage: Usage
    scores: NDArray[np.float32]
    angles: NDArray[np.float32]


def environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with pytom-match-pick, made where there is none."""
    python = folder / "venv/bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        # its own requirements name CuPy
        subprocess.run([*install, "--no-deps", *PROGRAMS], check=True)
        subprocess.run([*install, *LIBRARIES], check=True)
    return python


def density(size: int, centre: NDArray[np.float64], rotation: NDArray[np.float64]) -> NDArray[np.float64]:
    """The particle, turned and placed, in a cube [z, y, x]."""
    out = np.zeros((size,) * 3)
    for *place, width, height in BALLS:
        x, y, z = (
            np.exp(-((np.arange(size) - c) ** 2) / (2 * width**2))
            for c in centre + rotation @ np.array(place)
        )
        out += height * np.einsum("k,j,i->kji", z, y, x)
    return out


def make_case(folder: Path, python: Path, seed: int = 11) -> Case:
    """Eight particles at sub-voxel places in white noise; the mask is pytom's own."""
    random = np.random.default_rng(seed)
    corners = np.stack(np.meshgrid(*[[27, 73]] * 3), -1).reshape(-1, 3)
    positions = corners + random.uniform(-6, 6, corners.shape)
    rotations = Rotation.random(len(positions), random_state=random).as_matrix()
    particles = sum(density(SIZE, p, r) for p, r in zip(positions, rotations))
    tomogram = particles + NOISE * random.normal(size=particles.shape)
    template = density(BOX, np.full(3, BOX // 2), np.eye(3))
    case = Case(folder / "tomogram.mrc", folder / "template.mrc", folder / "mask.mrc", positions, rotations)
    for path, values in ((case.tomogram, tomogram), (case.template, template)):
        mrcfile.write(path, values.astype(np.float32), voxel_size=VOXEL, overwrite=True)
    words = ["-b", BOX, "-r", RADIUS, "-s", SOFT, "--voxel-size", VOXEL, "-o", case.mask]
    program = python.with_name("pytom_create_mask.py")
    subprocess.run([program, *map(str, words)], env=surroundings(1), check=True)
    return case


def surroundings(threads: int) -> dict[str, str]:
    """The environment variables with which pytom finds the stand-in."""
    number = str(threads)
    return {
        **os.environ,
        "PYTHONPATH": str(STANDIN),
        "OMP_NUM_THREADS": number,
        "OPENBLAS_NUM_THREADS": number,
    }


def search(folder: Path, python: Path, case: Case, angles: str | Path, threads: int = 1) -> Search:
    """Match the case; ±90° leaves it without a missing wedge.

    Parameters
    ----------
    angles : str or path
        The step in degrees, or a file of ZXZ angles in radians, one orientation a line.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words: list[str | Path] = [
        "-t",
        case.template,
        "-v",
        case.tomogram,
        "-m",
        case.mask,
        "-d",
        folder,
        "-g",
        "0",
    ]
    words += ["-a", "-90", "90", "--angular-search", angles, "--voxel-size-angstrom", str(VOXEL)]
    command = [python, STANDIN / "match_template.py", *words]
    usage = measure(command, env=surroundings(threads), log=folder / "log.txt")
    scores, found = (mrcfile.read(folder / f"tomogram_{what}.mrc") for what in ("scores", "angles"))
    return Search(usage, scores, found)


def main() -> None:
    """Run the case in pytom and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", default="38.53", help="angular step, degrees")
    parser.add_argument("--orientations", type=int, default=480, help="how many that step gives")
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    folder = words.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder)
    case = make_case(folder, python)
    single = folder / "single.txt"
    single.write_text("0.0 0.0 0.0\n")
    start = search(folder / "start", python, case, single, words.threads)
    found = search(folder / "search", python, case, words.step, words.threads)
    cpu = (found.usage.cpu - start.usage.cpu) / ((words.orientations - 1) * SIZE**3)
    at = np.unravel_index(found.scores.argmax(), found.scores.shape)
    row = {
        "program": "pytom-match-pick 0.14",
        "CPU s": found.usage.cpu,
        "wall s": found.usage.wall,
        "start-up CPU s": start.usage.cpu,
        "ns CPU per orientation and voxel": 1e9 * cpu,
        "best score": float(found.scores.max()),
        "off by (voxels)": float(np.linalg.norm(case.positions - np.array(at[::-1]), axis=1).min()),
        "other load (cores)": found.usage.others,
    }
    print(table([row]))


if __name__ == "__main__":
    main()
