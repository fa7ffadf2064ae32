"""The reference tilt series from frames to tomogram: time, memory, and errors against the exact truth.

    python benchmarks/tilts.py [DATA] [--only TS_A]

DATA is the folder of reference data (default: WEFT_REFERENCE_DATA, else ../shared/data). The session runs
as `weft run` does on this machine. Time is also given in units of one real FFT of every raw frame.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft
from measuring import measure, table
from reference_tilts import (
    folders,
    projected,
    reference_parser,
    session_arguments,
    specimen_motion,
    true_projections,
)


def errors(session: Path, name: str, truth: dict[str, Any]) -> dict[str, Any]:
    """Of one processed series, after the best rigid motion of the specimen."""
    import weft

    series = weft.open(session)[name]
    angles = np.array([tilt["tilt"] for tilt in truth["tilts"]])
    turn, place = specimen_motion(series, truth)
    moved = np.array(truth["particles_xyz_centered"]) @ turn.T + place
    off = projected(series, truth, moved) - true_projections(truth)
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
    given = reference_parser(__doc__).parse_args()
    quality, cost = [], []
    for name, data in folders(given):
        truth = json.loads((data / f"{name}.json").read_text())
        with tempfile.TemporaryDirectory() as temporary:
            session = Path(temporary) / "session"
            weft = [sys.executable, "-m", "weft"]
            made = measure([*weft, "new", str(session), *session_arguments(data)])
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
