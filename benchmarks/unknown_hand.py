"""The hand of simulated tilt series that nobody has chosen: Weft's verdict first, the truth afterwards.

    python benchmarks/unknown_hand.py OUT [--draws 2]

For each draw the operating system's randomness chooses the hand and the seed of a tilt series; they are
written to OUT/1/truth.json, which nothing reads before the verdict is written. The series is processed by
`weft new`, `weft run` and `weft match --both-hands` as one with an unknown hand. Ends with 1 where a verdict
is wrong, or none has been given.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import table

from weft.cli import main as weft
from weft.formats import mrc
from weft.matching.scattering import density_from_points
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import SMALL_SERIES, TiltSimulationSettings

#: Defocus differs by several thousand Å between the faces and edges of the specimen.
SIMULATED: dict[str, Any] = {
    **SMALL_SERIES,
    "width": 320,
    "height": 320,
    "pixel_size": 6.0,
    "thickness": 1800.0,
    "particles": 70,
    "beads": 10,
}
VOXEL, BOX, DIAMETER = 10.0, 300.0, 200.0  # Å


def draw(folder: Path, simulated: dict[str, Any]) -> None:
    """Simulate a series whose hand and seed are random; they are in truth.json only."""
    made = folder / "simulated"
    settings = TiltSimulationSettings(**simulated, hand=secrets.choice((1, -1)))
    (series,) = write_tilt_session(made, settings, seed=secrets.randbits(30))
    shutil.move(series.truth, folder / "truth.json")
    points = torch.from_numpy(np.load(made / f"{series.name}_mol.npy"))
    density = density_from_points(points, VOXEL, 2 * round(0.5 * BOX / VOXEL))
    mrc.write(folder / "structure.mrc", density.numpy(), VOXEL, volume=True)


def run(*arguments: object) -> None:
    """A command of Weft's, in this process."""
    if code := weft([str(argument) for argument in arguments]):
        sys.exit(f"weft {arguments[0]} ended with {code}")


def judge(folder: Path, simulated: dict[str, Any]) -> dict[str, Any]:
    """What `weft match --both-hands` says: hand, p, places, sentence."""
    session, made = folder / "session", folder / "simulated"
    known = TiltSimulationSettings(**simulated)
    physics = ["--voltage", known.voltage, "--cs", known.cs, "--amplitude", known.amplitude]
    physics += ["--pixel-size", known.pixel_size, "--dose", known.dose_per_tilt / known.frames]
    run("new", session, "--frames", made / "frames" / "*.tif", "--mdoc", made / "mdoc", *physics)
    own = {"alignment.thickness": known.thickness, "reconstruction.pixel_size": VOXEL}
    chosen = [word for key, value in own.items() for word in ("--set", f"{key}={value:g}")]
    run("run", session, "--steps", "reconstruct", "--workers", 0, *chosen)
    search = ["--template", folder / "structure.mrc", "--particle-diameter", DIAMETER, "--binning", 2]
    search += ["--angular-step", 9, "--refine", known.particles, "--both-hands", "--workers", 0]
    run("match", session, *search)
    (verdict,) = (session / "matching").glob("*_hand.json")
    return dict(json.loads(verdict.read_text()))


def true_hand(folder: Path) -> int:
    """To be read when everything else is done."""
    return int(json.loads((folder / "truth.json").read_text())["hand"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="an empty folder")
    parser.add_argument("--draws", type=int, default=2, help="series")
    given = parser.parse_args()
    rows = []
    for number in range(1, given.draws + 1):
        folder = given.out / str(number)
        folder.mkdir(parents=True)
        draw(folder, SIMULATED)
        verdict = judge(folder, SIMULATED)
        rows.append({"draw": number} | verdict | {"true hand": true_hand(folder)})
    print(table(rows))
    sys.exit(any(row["hand"] != row["true hand"] for row in rows))


if __name__ == "__main__":
    main()
