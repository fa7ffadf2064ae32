"""The movies that are measured, and how Weft and RELION are run on them and judged."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import large_movie
import numpy as np
from measuring import Usage, busy_cores, measure
from numpy.typing import ArrayLike, NDArray

import weft
from weft.formats.relion import evaluate_motion_model
from weft.formats.star import Table, read_star, write_star

__all__ = [
    "Case",
    "arguments",
    "cases_of",
    "machine",
    "new_session",
    "relion_motion",
    "relion_tracks",
    "track_rmse",
    "true_defocus",
    "weft_command",
    "weft_environment",
]

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ("flat", "tilted40", "weak")
PATCHES = 5  # of RELION, each way
EXTENT_OF_PLACES = 5  # places each way where the large movie is judged


@dataclass(frozen=True)
class Case:
    """One movie and all that is known about it.

    Attributes
    ----------
    name : str
    movie, gain : Path
    truth : dict
        The keys of ``reference/movie_*.json``.
    """

    name: str
    movie: Path
    gain: Path
    truth: dict[str, Any]

    @property
    def shape(self) -> tuple[int, int]:
        """(ny, nx)"""
        ny, nx = self.truth["shape"]
        return ny, nx

    @property
    def places(self) -> NDArray[np.float64]:
        """(n, 2), Å, where the tracks are known."""
        return np.asarray(self.truth["track_xy"], dtype=np.float64)

    @property
    def tracks(self) -> NDArray[np.float64]:
        """(frames, n, 2), Å."""
        return np.asarray(self.truth["tracks"], dtype=np.float64)


def arguments(description: str | None) -> argparse.Namespace:
    """The command line that both benchmarks share."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n", 1)[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured there")
    parser.add_argument(
        "--movies", default="", help="of flat, tilted40, weak, large; by default all that there are"
    )
    given = os.environ.get("WEFT_REFERENCE_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--reference", type=Path, default=Path(given), metavar="DIR", help="reference data")
    parser.add_argument(
        "--large",
        type=Path,
        default=Path(tempfile.gettempdir()) / "weft-benchmark" / "large.tif",
        metavar="FILE",
        help="the large movie (made, in a minute, where it is not)",
    )
    parser.add_argument("--quick", action="store_true", help="one small movie, nothing repeated")
    parser.add_argument("--threads", type=int, default=2, help="of Weft and of RELION")
    parser.add_argument(
        "--attempts",
        type=int,
        default=3,
        help="repeat what others disturb, at most so often; the best counts",
    )
    parser.add_argument(
        "--further",
        type=int,
        default=2,
        metavar="N",
        help="run the large movie also N more times in the same run, for what one more costs (motion.py)",
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what is written there")
    parsed = parser.parse_args()
    if parsed.quick:
        parsed.attempts, parsed.further = 1, 0
    return parsed


def cases_of(options: argparse.Namespace, scratch: Path) -> list[Case]:
    """The movies that were asked for; where there is no reference data, one that is simulated now."""
    folder = options.reference / "reference"
    there = [name for name in REFERENCE if (folder / f"movie_{name}.tif").exists()]
    names = [name for name in options.movies.split(",") if name]
    if not names:
        names = (["weak"] if there else ["simulated"]) if options.quick else [*there, "large"]
        if not there and not options.quick:
            names.insert(0, "simulated")
    known = (*REFERENCE, "large", "simulated")
    if wrong := [name for name in names if name not in known]:
        raise SystemExit(f"{', '.join(wrong)}: there are {', '.join(known)}")
    if absent := [name for name in names if name in REFERENCE and name not in there]:
        raise SystemExit(f"{', '.join(absent)}: not in {folder} (give --reference DIR)")
    cases = []
    for name in names:
        if name == "large":
            cases.append(_large(options.large))
        elif name == "simulated":
            cases.append(_simulated(scratch / "simulated"))
        else:
            truth = json.loads((folder / f"movie_{name}.json").read_text())
            cases.append(Case(name, folder / f"movie_{name}.tif", folder / truth["gain"], truth))
    return cases


def _large(path: Path) -> Case:
    if not path.exists():
        print(f"making {path}", file=sys.stderr)
        path.parent.mkdir(parents=True, exist_ok=True)
        large_movie.make(path)
    known = json.loads(path.with_suffix(".json").read_text())
    import tifffile

    with tifffile.TiffFile(path) as file:
        ny, nx = file.pages[0].shape
    drift, pixel = np.asarray(known["drift"]), known["pixel"]
    steps = (np.arange(EXTENT_OF_PLACES) + 0.5) / EXTENT_OF_PLACES
    places = np.stack(np.meshgrid(steps * nx * pixel, steps * ny * pixel), -1).reshape(-1, 2)
    truth = {
        "optics": {"pixel": pixel, "kv": 300.0, "cs": 2.7, "amplitude": 0.07},
        "frames": len(drift),
        "shape": [ny, nx],
        "dose_per_frame": known["dose_per_frame"],
        "defocus": known["defocus"],
        "astig": 0.0,
        "astig_angle": 0.0,
        "plane": [0.0, 0.0],
        "track_xy": places.tolist(),
        "tracks": np.repeat(drift[:, None], len(places), axis=1).tolist(),
    }
    return Case("large", path, path.with_name(known["gain"]), truth)


def _simulated(folder: Path) -> Case:
    from weft.simulation.session import simulate_session
    from weft.simulation.settings import MovieSimulationSettings

    made = simulate_session(folder, 1, MovieSimulationSettings(width=768, height=768, frames=12), seed=1)
    return Case("simulated", made.movies[0], made.gain, json.loads(made.truths[0].read_text()))


def track_rmse(tracks: ArrayLike, case: Case) -> float:
    """RMS difference from the true tracks (frames, places, 2), Å, the mean over the frames free per place."""
    difference = np.asarray(tracks, dtype=np.float64) - case.tracks
    difference -= difference.mean(0)
    return float(np.sqrt((difference**2).sum(-1).mean()))


def true_defocus(case: Case) -> NDArray[np.float64]:
    """Mean of U and V at the case's places, Å."""
    truth, (ny, nx) = case.truth, case.shape
    middle = 0.5 * truth["optics"]["pixel"] * np.array([nx, ny])
    slope = np.asarray(truth["plane"], dtype=np.float64)
    return np.asarray(truth["defocus"] + (case.places - middle) @ slope)


def weft_environment() -> dict[str, str]:
    """That in which a child finds the Weft that this process has."""
    source = str(Path(weft.__file__).resolve().parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def weft_command(*words: object) -> list[str]:
    """``weft`` with these words, whether or not it is installed."""
    return [sys.executable, "-m", "weft", *map(str, words)]


def new_session(case: Case, root: Path, movies: Iterable[Path] | None = None) -> Path:
    """A fresh session, made as people make it."""
    optics = case.truth["optics"]
    frames = [word for path in (movies or [case.movie]) for word in ("--frames", path)]
    measure(
        weft_command(
            *("new", root, *frames, "--gain", case.gain),
            *("--pixel-size", optics["pixel"], "--voltage", optics["kv"], "--cs", optics["cs"]),
            *("--amplitude", optics["amplitude"], "--dose", case.truth["dose_per_frame"]),
        ),
        env=weft_environment(),
        log=root.with_suffix(".new.log"),
    )
    return root


def relion_motion(case: Case, folder: Path, threads: int, movies: int = 1) -> Usage:
    """RELION's own motion correction with 5×5 patches and dose weighting; its files are in ``out``."""
    optics = case.truth["optics"]
    folder.mkdir(parents=True)
    names = [f"{case.name}_{i}.tif" for i in range(movies)]
    for name in names:
        (folder / name).symlink_to(case.movie.resolve())
    (folder / "gain.mrc").symlink_to(case.gain.resolve())
    table = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [optics["pixel"]],
        "rlnVoltage": [optics["kv"]],
        "rlnSphericalAberration": [optics["cs"]],
        "rlnAmplitudeContrast": [optics["amplitude"]],
    }
    rows = {"rlnMicrographMovieName": names, "rlnOpticsGroup": [1] * movies}
    write_star(folder / "movies.star", {"optics": Table(table), "movies": Table(rows)})
    command = ["relion_run_motioncorr", "--i", "movies.star", "--o", "out/", "--use_own", "--j", threads]
    command += ["--patch_x", PATCHES, "--patch_y", PATCHES, "--dose_weighting"]
    command += ["--dose_per_frame", case.truth["dose_per_frame"], "--gainref", "gain.mrc"]
    return measure([str(word) for word in command], cwd=folder, log=folder / "log")


def relion_tracks(star: Path, case: Case) -> NDArray[np.float64]:
    """Tracks at the case's places from RELION's motion STAR, (frames, places, 2) Å.

    RELION writes what moves a frame's content back, in pixels: minus our tracks. The local model is a
    polynomial in x and y as fractions of the frame, 0 in its middle; it is absent where RELION gave up.
    """
    blocks = read_star(star)
    (ny, nx), pixel = case.shape, case.truth["optics"]["pixel"]
    whole = blocks["global_shift"]
    shift = np.stack([whole.floats("rlnMicrographShiftX"), whole.floats("rlnMicrographShiftY")], axis=1)
    shifts = np.repeat(shift[:, None], len(case.places), axis=1)
    if "local_motion_model" in blocks:
        fraction = case.places / (pixel * np.array([nx, ny])) - 0.5
        coefficients = blocks["local_motion_model"].floats("rlnMotionModelCoeff")
        shifts = shifts + evaluate_motion_model(coefficients, fraction, len(shift))
    return np.asarray(-pixel * shifts)


def machine(threads: int) -> dict[str, Any]:
    """What the figures depend on besides the programs."""
    import torch

    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_GB": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 1e-9, 1),
        "threads": threads,
        "busy_cores_before": round(busy_cores(), 2),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "weft": weft.__version__,
        "commit": _said(["git", "-C", str(ROOT), "describe", "--always", "--dirty"]),
        "relion": _said(["relion_run_motioncorr", "--version"]).replace("RELION version:", "").strip(),
        "ctffind": shutil.which("ctffind") or "absent",
    }


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "absent"
    return (done.stdout.strip().splitlines() or ["absent"])[0]


def angle_difference(a: float, b: float) -> float:
    """Of two directions of a line, degrees, 0 to 90."""
    difference = math.fmod(abs(a - b), 180.0)
    return min(difference, 180.0 - difference)
