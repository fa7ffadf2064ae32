"""The reference tilt series from frames to tomogram: time, memory, and errors against the exact truth.

    python benchmarks/tilts.py [DATA] [--only TS_A]

DATA is the folder of reference data (default: WEFT_REFERENCE_DATA, else ../shared/data). The session runs
as `weft run` does on this machine. Time is also given in units of one real FFT of every raw frame.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from measuring import measure, table
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

SERIES = {"TS_A": "tilts_beads", "TS_B": "tilts_plain"}


def true_projections(truth: dict[str, Any]) -> np.ndarray:
    """(tilts, n, 3) of the truth's particles: x, y from the image's corner and defocus, Å; as acquired."""
    xyz = np.array(truth["particles_xyz_centered"])
    ny, nx = truth["shape"]
    centre = 0.5 * np.array([nx, ny]) * truth["optics"]["pixel"]
    out = []
    for tilt in truth["tilts"]:
        seen = xyz @ _matrix(tilt["tilt"], truth["axis"], truth["level"]).T
        z = seen[:, 2]
        if truth["hand"] < 0:
            # the other hand is that of the mirrored specimen under inverted angles
            z = ((xyz * [1, 1, -1]) @ _matrix(-tilt["tilt"], truth["axis"], [-v for v in truth["level"]]).T)[
                :, 2
            ]
        out.append(np.c_[seen[:, :2] + centre + tilt["shift"], tilt["defocus"] + z])
    return np.array(out)


def _matrix(angle: float, axis: float, level: list[float]) -> np.ndarray:
    a, b, x = np.deg2rad([angle + level[1], -axis, level[0]])
    ry = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    rz = np.array([[np.cos(b), np.sin(b), 0], [-np.sin(b), np.cos(b), 0], [0, 0, 1]])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    return rz @ ry @ rx


def errors(session: Path, name: str, truth: dict[str, Any]) -> dict[str, Any]:
    """Of one processed series, after the best rigid motion of the specimen."""
    import weft

    series = weft.open(session)[name]
    xyz, true = np.array(truth["particles_xyz_centered"]), true_projections(truth)
    angles = np.array([tilt["tilt"] for tilt in truth["tilts"]])
    mine = [int(np.argmin(abs(series.tilt_angles - angle))) for angle in angles]
    centre = np.array(series.volume_size) / 2

    def seen(p: Any) -> np.ndarray:
        moved = xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + centre
        return np.asarray(series.project(moved))[mine]

    def left(p: Any) -> np.ndarray:
        return np.asarray((seen(p)[..., :2] - true[..., :2]).ravel() / 10)

    fit = least_squares(left, np.zeros(6), x_scale=[0.05] * 3 + [50] * 3, loss="soft_l1")
    off = seen(fit.x) - true
    low = abs(angles) <= 45
    metrics, level = series.metrics, truth["level"]
    return {
        "series": name,
        "position (Å)": float(np.sqrt((off[..., :2] ** 2).sum(-1).mean())),
        "axis (°)": metrics["alignment_axis"] - truth["axis"],
        "residual (px)": metrics["alignment_residual_mean_px"],
        "defocus, 45° (Å)": float(np.sqrt((off[low, :, 2] ** 2).mean())),
        "inclination (°)": float(
            np.hypot(metrics["alignment_level_x"] - level[0], metrics["alignment_level_y"] - level[1])
        ),
        "hand": f"{series.hand:+.0f} ({truth['hand']:+d})",
        "scores +1, -1": f"{metrics['hand_score_plus']:.0f}, {metrics['hand_score_minus']:.0f}",
        "verdict": metrics["hand_verdict"],
    }


def fft_seconds(truth: dict[str, Any], frames: int = 2) -> float:
    """CPU seconds of one real FFT of every frame of the series, with SciPy."""
    image = np.random.default_rng(0).normal(size=truth["shape"]).astype(np.float32)
    scipy.fft.rfft2(image)
    begin = time.process_time()
    for _ in range(20):
        scipy.fft.rfft2(image)
    return (time.process_time() - begin) / 20 * frames * len(truth["tilts"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = Path(__file__).resolve().parent.parent
    default = os.environ.get("WEFT_REFERENCE_DATA", str(root.parent / "shared" / "data"))
    parser.add_argument("data", nargs="?", default=default, type=Path)
    parser.add_argument("--only", choices=list(SERIES))
    given = parser.parse_args()
    quality, cost = [], []
    for name, folder in SERIES.items():
        if given.only not in (None, name):
            continue
        data = given.data / "reference" / folder
        truth = json.loads((data / f"{name}.json").read_text())
        with tempfile.TemporaryDirectory() as temporary:
            session = Path(temporary) / "session"
            weft = [sys.executable, "-m", "weft"]
            physics = ["--pixel-size", "4", "--voltage", "300", "--cs", "2.7", "--amplitude", "0.07"]
            files = ["--frames", f"{data}/frames/*.tif", "--mdoc", f"{data}/mdoc", "--dose", "1.5"]
            made = measure([*weft, "new", str(session), *files, *physics])
            run = measure([*weft, "run", str(session)])
            if made.exit_code or run.exit_code:
                sys.exit(f"{name}: weft ended with {made.exit_code}, {run.exit_code}")
            quality.append(errors(session, name, truth))
            record = json.loads((session / "records" / f"{name}.json").read_text())
            cost.append(
                {
                    "series": name,
                    "wall (s)": run.wall,
                    "CPU (s)": run.cpu,
                    "FFTs of all frames": run.cpu / fft_seconds(truth),
                    "largest process (GB)": run.largest,
                    "together (GB)": run.together,
                    "others (cores)": run.others,
                    **{f"{step} (s)": seconds for step, seconds in record["timings"].items()},
                }
            )
    print(table(quality))
    print()
    print(table(cost))


if __name__ == "__main__":
    main()
