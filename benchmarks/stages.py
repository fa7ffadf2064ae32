"""Child process of the benchmarks: the library's own share of one movie, stage by stage, as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_START = time.process_time(), time.perf_counter()  # before the imports, which are a stage


def main() -> None:
    """Arguments: movie, gain, JSON of the optics and the dose, threads."""
    movie, gain_path, constants, threads = sys.argv[1:5]
    import torch

    from weft.defocus.micrograph import fit_ctf
    from weft.formats.gain import load_gain
    from weft.movies.average import make_average
    from weft.movies.frames import load_frames
    from weft.movies.motion import fit_motion
    from weft.movies.source import open_movie
    from weft.physics.optics import Optics

    torch.set_num_threads(int(threads))
    known = json.loads(constants)
    optics = Optics(known["pixel"], known["kv"], known["cs"], known["amplitude"], known["dose_per_frame"])
    cpu, wall = time.process_time() - _START[0], time.perf_counter() - _START[1]
    out: dict[str, dict[str, float]] = {"imports": {"cpu": cpu, "wall": wall}}

    def timed(name: str, call: Callable[[], Any]) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = call()
        out[name] = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        return result

    with open_movie(movie) as source:
        shape = source.info.shape
    frames = timed("load", lambda: load_frames(movie, gain=load_gain(Path(gain_path), shape)))
    motion = timed("motion", lambda: fit_motion(frames, optics))
    average = timed("average", lambda: make_average(frames, motion, optics))
    timed("ctf", lambda: fit_ctf(average.average, optics.at_pixel_size(average.pixel_size)))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
