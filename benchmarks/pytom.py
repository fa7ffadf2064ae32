"""Template matching side by side with pytom-match-pick on the processor, by the NumPy stand-in for CuPy.

    PYTHONPATH=src python benchmarks/pytom.py FOLDER [--step 38.53] [--only NAME ...] [--no-times]

FOLDER gets a virtual environment with pytom-match-pick (GPL; it is installed and run as a program, nothing of
it is here), the simulated tomograms, their template and mask, and what both have found in the same
orientations. A search is measured as a whole process; its start-up, measured with a search of one
orientation, is taken off the time per voxel.

Cases: `direct` compares without any weights; `same` has Weft's 3D CTF multiply the template in both; `tilts`
(missing wedge and cosine), `ctf` (CTF and dose, too) and `hand` (halves with their own defocus) take each
program's own weights, and the CTF that pytom 0.14 multiplies the tomogram by is switched off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import mrcfile
import numpy as np
import weft_match
from matching_case import CTF, VOXEL, WEDGE, Case, Scene, simulate
from measuring import Usage, measure, table
from numpy.typing import NDArray
from weft_match import Job

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


@dataclass(frozen=True)
class Search:
    """What a search took and found: volumes [z, y, x], the angles as numbers in the list that it searched.

    `took`: CPU and wall seconds of the search alone, where they are known.
    """

    usage: Usage
    scores: NDArray[np.float32]
    numbers: NDArray[np.int64]
    took: list[float] = field(default_factory=list)
    std: float = float("nan")


def environment(folder: Path) -> Path:
    """The interpreter of a virtual environment with pytom-match-pick, made where there is none."""
    python = folder / "venv/bin/python"
    if not python.with_name("pytom_match_template.py").exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        install = [python, "-m", "pip", "install", "-q"]
        subprocess.run([*install, *LIBRARIES], check=True)
        # its own requirements name CuPy
        subprocess.run([*install, "--no-deps", *PROGRAMS], check=True)
    return python


def make_case(folder: Path, python: Path, scene: Scene | None = None) -> Case:
    """Simulate; the mask is pytom's own."""
    case = simulate(folder, scene)
    scene = case.scene
    words = ["-b", scene.box, "-r", scene.radius, "-s", scene.soft]
    words += ["--voxel-size", VOXEL, "-o", folder / "mask.mrc"]
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


_WEIGHTED: list[str | Path] = ["-a", "angles.tlt", "--per-tilt-weighting"]
_WITH_CTF: list[str | Path] = ["--no-tomogram-ctf", *_WEIGHTED, "--dose-accumulation", "dose.txt"]
_WITH_CTF += ["--defocus", "defocus.txt", "--amplitude-contrast", "0.08"]
_WITH_CTF += ["--spherical-aberration", "2.7", "--voltage", "300"]
#: Tomogram, and words of pytom's command line; ±90° leaves it without a missing wedge.
COMMANDS: dict[str, tuple[str, list[str | Path]]] = {
    "plain": ("tomogram", ["-a", "-90", "90"]),
    "tilts": ("wedge", _WEIGHTED),
    "ctf": ("ctf", _WITH_CTF),
    "hand": ("ctf", [*_WITH_CTF, "--defocus-handedness", "1", "-s", "2", "1", "1"]),
}


def search(
    python: Path, case: Case, name: str, angles: str | Path, threads: int = 1, run: str = ""
) -> Search:
    """One of `COMMANDS` by pytom's own command.

    Parameters
    ----------
    angles : str or path
        The step in degrees, or a file of ZXZ angles in radians, one orientation a line.
    run : str
        What to call the folder of its results.
    """
    stem, words = COMMANDS[name]
    out = case.folder / (run or name)
    out.mkdir(exist_ok=True)
    command: list[str | Path] = [
        python,
        STANDIN / "match_template.py",
        "-t",
        "template.mrc",
        "-v",
        f"{stem}.mrc",
    ]
    command += ["-m", "mask.mrc", "-d", out, "-g", "0", "--voxel-size-angstrom", str(VOXEL)]
    command += ["--angular-search", angles, *words]
    usage = measure(command, cwd=case.folder, env=surroundings(threads), log=out / "log.txt")
    scores, found = (mrcfile.read(out / f"{stem}_{what}.mrc") for what in ("scores", "angles"))
    return Search(usage, scores, found.astype(np.int64))


def search_direct(python: Path, case: Case, step: str, weights: NDArray[np.float32] | None = None) -> Search:
    """Without pytom's filters of the tomogram; the angles are left in the case's angles.npy."""
    name = "direct" if weights is None else "same"
    out, tomogram = case.folder / f"{name}.npz", "tomogram.mrc" if weights is None else "ctf.mrc"
    command = [python, STANDIN / "direct_search.py", tomogram, "template.mrc", "mask.mrc", step, out]
    if weights is not None:
        np.save(case.folder / "weights.npy", weft_match.whole_transform(weights))
        command += ["--weights", "weights.npy"]
    log = case.folder / f"{name}.txt"
    usage = measure(command, cwd=case.folder, env=surroundings(1), log=log)
    found = np.load(out)
    np.save(case.folder / "angles.npy", found["angles"])
    return Search(usage, found["scores"], found["numbers"], found["took"].tolist(), float(found["std"]))


def search_by_weft(case: Case, name: str, threads: int = 1, angles: str = "angles.npy") -> Search:
    """The same in Weft, over the angles that are in a file of the case; its work is in weft_match.py."""
    tilts = {"direct": None, "tilts": WEDGE, "hand": replace(CTF, hand=1.0)}.get(name, CTF)
    tomogram = {"direct": "tomogram", "tilts": "wedge"}.get(name, "ctf")
    out = case.folder / f"weft_{name}_{threads}.npz"
    paths = [str(case.folder / f) for f in (f"{tomogram}.mrc", "template.mrc", "mask.mrc", angles)]
    job = Job(*paths, str(out), VOXEL, threads, tilts, halves=name == "hand")
    job.write(case.folder / "job.json")
    command = [sys.executable, Path(weft_match.__file__), case.folder / "job.json"]
    number = str(threads)
    env = {**os.environ, "OMP_NUM_THREADS": number, "OPENBLAS_NUM_THREADS": number}
    usage = measure(command, env=env, log=case.folder / "weft.txt")
    found = np.load(out)
    return Search(usage, found["scores"], found["numbers"], found["took"].tolist(), float(found["std"]))


def peaks(scores: NDArray[np.float32], count: int, apart: float) -> list[tuple[int, ...]]:
    """The best places that are so many voxels apart, z y x."""
    left, out = scores.copy(), []
    axes = np.ogrid[tuple(slice(0, n) for n in scores.shape)]
    for _ in range(count):
        at = tuple(int(i) for i in np.unravel_index(left.argmax(), left.shape))
        out.append(at)
        left[sum((axis - i) ** 2 for axis, i in zip(axes, at, strict=True)) < apart**2] = -9.0
    return out


@dataclass(frozen=True)
class Agreement:
    """Of two searches of the same case.

    Attributes
    ----------
    correlation, largest, rms : float
        Of the maps, and their differences, where no mask reaches over the tomogram's faces: there pytom
        compares with what lies at the opposite face, Weft with nothing.
    edge_rms : float
        Elsewhere.
    moved : float
        The furthest that one of the eight best peaks lies from one of the other's, voxels.
    turned : int
        How many of these peaks have another orientation.
    found : int
        How many particles Weft has found within two voxels.
    """

    correlation: float
    largest: float
    rms: float
    edge_rms: float
    moved: float
    turned: int
    found: int

    @classmethod
    def of(cls, case: Case, weft: Search, other: Search) -> Agreement:
        """Compare them."""
        reach = case.scene.box // 2
        inner = (slice(reach, -reach),) * 3
        difference = weft.scores - other.scores
        edge = np.ones(difference.shape, dtype=bool)
        edge[inner] = False
        ours, theirs = (np.array(peaks(s.scores, 8, case.scene.radius)) for s in (weft, other))
        apart = np.linalg.norm(ours[:, None] - theirs, axis=-1)
        pairs = zip(ours, theirs[apart.argmin(1)], strict=True)
        turned = sum(int(weft.numbers[tuple(a)] != other.numbers[tuple(b)]) for a, b in pairs)
        missed = np.linalg.norm(case.positions[:, None, ::-1] - ours, axis=-1).min(1)
        return cls(
            float(np.corrcoef(weft.scores[inner].ravel(), other.scores[inner].ravel())[0, 1]),
            float(np.abs(difference[inner]).max()),
            float(np.sqrt((difference[inner] ** 2).mean())),
            float(np.sqrt((difference[edge] ** 2).mean())),
            float(apart.min(1).max()),
            turned,
            int((missed < 2.0).sum()),
        )


def same_gradient(case: Case, plain: tuple[Search, Search], hand: tuple[Search, Search]) -> float:
    """What the defocus gradient changes in both programs' scores, correlated: −1 for opposite hands."""
    inner = (slice(case.scene.box // 2, -(case.scene.box // 2)),) * 3
    ours, theirs = (h.scores[inner] - p.scores[inner] for p, h in zip(plain, hand, strict=True))
    return float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1])


def compare(python: Path, case: Case, name: str, step: str) -> tuple[Agreement, Search, Search]:
    """Run one of the module's cases in both programs, one thread each."""
    if name == "direct":
        other = search_direct(python, case, step)
    elif name == "same":
        shape = (case.scene.size,) * 3
        other = search_direct(python, case, step, weft_match.weights(CTF, shape, VOXEL, case.scene.box))
    else:
        other = search(python, case, name, step)
    weft = search_by_weft(case, name)
    return Agreement.of(case, weft, other), weft, other


def times(python: Path, case: Case, step: str) -> list[dict[str, object]]:
    """Whole processes without weights, one thread; of Weft's search alone with two, too."""
    np.savetxt(case.folder / "single.txt", np.zeros((1, 3)))
    np.save(case.folder / "single.npy", np.zeros((1, 3)))
    count = len(np.load(case.folder / "angles.npy"))
    comparisons = case.scene.size**3
    rows: list[dict[str, object]] = []

    def add(program: str, threads: int, start: Search, whole: Search) -> None:
        cpu = (whole.usage.cpu - start.usage.cpu) / ((count - 1) * comparisons)
        rows.append(
            {
                "program": program,
                "threads": threads,
                "whole process CPU s": whole.usage.cpu,
                "start-up CPU s": start.usage.cpu,
                "ns CPU per orientation and voxel": 1e9 * cpu,
                "search alone CPU s": whole.took[0] if whole.took else None,
                "search alone wall s": whole.took[1] if whole.took else None,
                "other load (cores)": whole.usage.others,
            }
        )

    start = search(python, case, "plain", "single.txt", run="start")
    add("pytom-match-pick 0.14", 1, start, search(python, case, "plain", step))
    add("pytom-match-pick 0.14, search alone", 1, start, search_direct(python, case, step))
    for threads in (1, 2):
        start = search_by_weft(case, "direct", threads, "single.npy")
        add("Weft", threads, start, search_by_weft(case, "direct", threads))
    return rows


def main() -> None:
    """Run the cases in both programs, and print how they agree and what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", default="38.53", help="angular step, degrees")
    parser.add_argument("--only", nargs="*", default=["direct", "same", "tilts", "ctf", "hand"])
    parser.add_argument("--no-times", action="store_true")
    words = parser.parse_args()
    folder = words.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    python = environment(folder)
    case = make_case(folder, python)
    if not (folder / "angles.npy").exists():
        search_direct(python, case, words.step)
    rows, found = [], {}
    for name in words.only:
        agreement, *found[name] = compare(python, case, name, words.step)
        row = {
            k: f"{v:.5f}" if k != "moved" and isinstance(v, float) else v for k, v in vars(agreement).items()
        }
        best = zip(("best, Weft", "best, pytom"), found[name], strict=True)
        rows.append({"case": name, **row, **{k: f"{s.scores.max():.4f}" for k, s in best}})
    print(table(rows))
    if {"ctf", "hand"} <= set(found):
        changes = same_gradient(case, found["ctf"], found["hand"])
        print(f"\nWhat the defocus gradient changes correlates by {changes:.2f}.\n")
    if not words.no_times:
        print(table(times(python, case, words.step)))


if __name__ == "__main__":
    main()
