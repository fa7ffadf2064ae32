"""Template matching on the reference tilt series: recall, precision, angles, what the CTF is worth, the hand.

    python benchmarks/matching.py [DATA] [--only TS_A] [--work DIR] [--step 8]

DATA is the folder of reference data (default: WEFT_REFERENCE_DATA, else ../shared/data). With --work the
sessions are kept and used again. Searches bin tomograms to voxels of some 20 Å and refine at full resolution.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import measure, table
from reference_tilts import folders, reference_parser, session_arguments, specimen_motion
from scipy.spatial import cKDTree

from weft.formats import mrc
from weft.formats.tomo_particles import read_tomo_particles
from weft.matching.scattering import density_from_points
from weft.physics.geometry import euler_matrix

BOX, DIAMETER = 320.0, 210.0  # Å
WEFT = [sys.executable, "-m", "weft"]


def run(*arguments: str) -> Any:
    used = measure([*WEFT, *arguments])
    if used.exit_code:
        sys.exit(f"weft {arguments[0]} ended with {used.exit_code}")
    return used


def make_session(folder: Path, data: Path) -> None:
    run("new", str(folder), *session_arguments(data))
    run("run", str(folder))


def true_poses(
    session: Path, name: str, truth: dict[str, Any]
) -> tuple[np.ndarray, torch.Tensor, np.ndarray]:
    """Places (Å from the volume's first voxel) and matrices of the particles, and places of the beads.

    An alignment is defined up to a rigid motion of the specimen, which is fitted first.
    """
    import weft

    series = weft.open(session)[name]
    turn, place = specimen_motion(series, truth)

    def moved(points: Any) -> np.ndarray:
        return np.array(points).reshape(-1, 3) @ turn.T + place

    # the truth's angles take the specimen to the particle
    matrices = euler_matrix(*torch.tensor(truth["eulers"], dtype=torch.float64).unbind(-1)).transpose(-1, -2)
    places = moved(truth["particles_xyz_centered"])
    return places, torch.from_numpy(turn) @ matrices, moved(truth["beads_xyz_centered"])


def judge(session: Path, name: str, template: str, truth: dict[str, Any]) -> dict[str, Any]:
    """The candidates of a search against the truth, and its peaks against its background."""
    matching = session / "matching"
    job = json.loads((matching / f"{name}_{template}.json").read_text())
    places, matrices, _ = true_poses(session, name, truth)
    found = read_tomo_particles(matching / f"{name}_{template}_candidates.star")
    xyz = found.xyz + 0.5 * np.array(job["volume_size"])
    distance, nearest = cKDTree(places).query(xyz)
    right, taken = np.zeros(len(xyz), bool), set()
    for i in np.argsort(-found.score):
        if distance[i] <= truth["radius"] and nearest[i] not in taken:
            taken.add(nearest[i])
            right[i] = True
    estimate = euler_matrix(*torch.from_numpy(found.euler[right]).unbind(-1))
    trace = torch.einsum("nij,nij->n", estimate, matrices[nearest[right]])
    angle = torch.rad2deg(torch.acos((0.5 * (trace - 1.0)).clamp(-1.0, 1.0))).numpy()
    scores, _ = mrc.read(matching / job["files"]["scores"])
    ground = scores[scores > -1.0]
    middle = float(np.median(ground))
    width = 1.4826 * float(np.median(np.abs(ground - middle)))
    first = np.argsort(-found.score)[: len(places)]
    return {
        "candidates": len(xyz),
        "recall": len(taken) / len(places),
        "precision": float(right.mean()),
        "wrong in the top N": float(1.0 - right[first].mean()),
        "angle median (°)": float(np.median(angle)),
        "angle 90 % (°)": float(np.percentile(angle, 90)),
        "position (Å)": float(np.median(distance[right])),
        "peak over background (σ)": float((found.score[right].mean() - middle) / width),
        "step searched (°)": job["settings"]["found"]["angular_step"][0],
        "seconds": job["statistics"]["seconds"],
    }


def main() -> None:
    parser = reference_parser(__doc__)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--step", default="8")
    given = parser.parse_args()
    rows, verdicts = [], []
    with tempfile.TemporaryDirectory() as temporary:
        work = given.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name, data in folders(given):
            truth = json.loads((data / f"{name}.json").read_text())
            points = torch.from_numpy(np.load(data / f"{name}_mol.npy"))
            session = work / name
            if not session.is_dir():
                make_session(session, data)
            hands = ["--both-hands"] if name == "TS_B" else []
            for label, voxel, options, weights in _variants(name):
                template = work / f"{name}_mol_{voxel:g}.mrc"
                box = 2 * round(0.5 * BOX / voxel)
                mrc.write(template, density_from_points(points, voxel, box).numpy(), voxel, volume=True)
                search = ["--template", str(template), "--particle-diameter", f"{DIAMETER:g}"]
                search += ["--binning", f"{20 // voxel:g}", "--angular-step", given.step, "--refine", "160"]
                this = work / f"{name}_{label.replace(' ', '_')}"
                if not this.is_dir():
                    shutil.copytree(session, this)
                run("tilts", "reconstruct", str(this), "--pixel-size", f"{voxel:g}", *options)
                used = run("match", str(this), *search, *weights, *hands)
                found = judge(this, name, template.stem, truth)
                rows.append({"series": name, "what": label} | found | {"CPU (s)": used.cpu})
                if hands:
                    verdict = json.loads(
                        (this / "matching" / f"{name}_{template.stem}_hand.json").read_text()
                    )
                    verdicts.append({"series": name, "true hand": truth["hand"]} | verdict)
    print(table(rows))
    if verdicts:
        print()
        print(table(verdicts))


def _variants(name: str) -> list[tuple[str, float, list[str], list[str]]]:
    """What is compared: size of voxels, options of the reconstruction, and of the search."""
    if name != "TS_A":
        return [("local CTF", 10.0, [], [])]
    plain = ["--method", "wbp"]
    quick = ["--refine", "0"]
    bare = ["--no-whiten", "--no-whiten-noise"]
    return [
        ("local CTF", 10.0, [], []),
        ("local CTF, smaller voxels", 7.0, [], []),
        ("wedge", 10.0, [], ["--weighting", "wedge", *quick]),
        ("wedge alone", 10.0, [], ["--weighting", "wedge", *bare, *quick]),
        ("back-projection, local CTF", 10.0, plain, quick),
        ("back-projection, wedge", 10.0, plain, ["--weighting", "wedge", *quick]),
        ("back-projection, wedge alone", 10.0, plain, ["--weighting", "wedge", *bare, *quick]),
    ]


if __name__ == "__main__":
    main()
