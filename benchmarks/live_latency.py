"""How long after a movie is complete its results are on the board of a live session.

    python benchmarks/live_latency.py [FOLDER] [--movies 5] [--size 1024] [--frames 16]

Movies are copied into the folder one by one, each after the last has ended; workers are warm but for the
first one. The time runs from the moment at which the copy is complete, so it holds the wait for the file to
stand still (live.settle), the look for it (live.poll_interval), the work, and the reading of the record.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from large_movie import make

import weft
from weft.session.live import Manager


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--movies", type=int, default=5)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--workers", type=int)
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="weft_latency_"))
    frames = folder / "frames"
    frames.mkdir(parents=True)
    movie = folder / "movie.tif"
    make(movie, width=given.size, height=given.size, frames=given.frames)
    session = weft.new(
        folder / "session",
        frames=frames / "*.tif",
        pixel_size=0.85,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=1.0,
    )
    with Manager(session, workers=given.workers, on_note=print) as manager:
        while not manager.status()["workers"]:
            time.sleep(0.1)
        time.sleep(5.0)
        for number in range(given.movies):
            name = f"movie_{number}"
            shutil.copyfile(movie, frames / f"{name}.tif")
            begin = time.monotonic()
            entry = None
            while entry is None or entry.state not in ("done", "failed"):
                time.sleep(0.02)
                entry = manager.board.entry(name)
            latency = time.monotonic() - begin
            record = session.store.read(name)
            work = sum(record.timings.values()) if record else 0.0
            print(f"{name}: {entry.state} after {latency:.1f} s, of which {work:.1f} s of work")


if __name__ == "__main__":
    main()
