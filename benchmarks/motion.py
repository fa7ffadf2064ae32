"""Motion correction: Weft and RELION on the same movies in the same run.

Both run as whole processes, from their command lines, with everything that they start and write. Weft runs
in a fresh session with one worker; RELION with its own motion correction, 5×5 patches and dose weighting.
Tracks are compared with the truth at 25 places of every movie.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cases import (
    Case,
    arguments,
    cases_of,
    machine,
    new_session,
    relion_motion,
    relion_tracks,
    track_rmse,
    weft_command,
    weft_environment,
)
from limits import motion_limits
from measuring import Usage, measure, quietest, table

import weft


def weft_run(case: Case, root: Path, threads: int, *more: str, movies: int = 1) -> Usage:
    """``weft run`` in a fresh session of this movie (or of several links to it)."""
    links = [case.movie]
    for i in range(1, movies):
        links.append(root.parent / f"{case.name}_{i}.tif")
        links[-1].unlink(missing_ok=True)
        links[-1].symlink_to(case.movie.resolve())
    new_session(case, root, links)
    command = weft_command("run", root, "--workers", 1, "--threads", threads, "--device", "cpu", *more)
    return measure(command, env=weft_environment(), log=root.with_suffix(".log"))


def stages(case: Case, threads: int) -> dict[str, dict[str, float]]:
    """The library's stages in one process, without session, workers and files."""
    constants = {**case.truth["optics"], "dose_per_frame": case.truth["dose_per_frame"]}
    script = Path(__file__).with_name("stages.py")
    command = [sys.executable, script, case.movie, case.gain, json.dumps(constants), threads]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=weft_environment(), capture_output=True, text=True, check=True)
    out: dict[str, dict[str, float]] = json.loads(done.stdout)
    return out


def compare(case: Case, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Everything that is measured on one movie."""
    threads, attempts = options.threads, options.attempts
    case.movie.read_bytes()  # so that the first program does not pay for the disk
    number = iter(range(1000))

    def fresh(what: str) -> Path:
        return scratch / f"{case.name}_{what}_{next(number)}"

    programs: list[dict[str, Any]] = []

    def measured(name: str, run: Callable[[Path], Usage], judge: Callable[[Path], float] | None) -> None:
        print(f"{case.name}: {name}", file=sys.stderr)
        folders: list[Path] = []

        def once() -> Usage:
            folders.append(fresh(name.replace(" ", "_").replace(",", "").replace("+", "and")))
            return run(folders[-1])

        usage = quietest(once, attempts)
        rmse = judge(folders[-1]) if judge else None
        programs.append({"program": name, "rmse_A": rmse, **usage.to_dict()})
        if options.work is None:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def judged(root: Path) -> float:
        return track_rmse(weft.open(root)[case.movie.stem].track(case.places), case)

    def relion_judged(folder: Path) -> float:
        return track_rmse(relion_tracks(folder / "out" / f"{case.name}_0.star", case), case)

    measured("Weft, motion", lambda root: weft_run(case, root, threads, "--steps", "motion"), judged)
    measured("Weft, motion + CTF", lambda root: weft_run(case, root, threads), judged)
    has_relion = shutil.which("relion_run_motioncorr") is not None
    if has_relion:
        measured("RELION, motion", lambda folder: relion_motion(case, folder, threads), relion_judged)
    if case.name == "large" and options.further > 0:
        many = 1 + options.further
        measured(
            f"Weft, motion + CTF, {many} movies",
            lambda root: weft_run(case, root, threads, movies=many),
            None,
        )
        if has_relion:
            measured(
                f"RELION, motion, {many} movies",
                lambda folder: relion_motion(case, folder, threads, many),
                None,
            )
    parts = stages(case, threads)
    limits = {name: u.to_dict() for name, u in motion_limits(case.movie, case.gain, threads).items()}
    ny, nx = case.shape
    size = f"{nx}×{ny}×{case.truth['frames']}"
    return {"size": size, "programs": programs, "stages": parts, "limits": limits}


def report(results: dict[str, dict[str, Any]]) -> str:
    """The measurements as Markdown."""
    programs, library, limits = [], [], []
    for name, found in results.items():
        movie = f"{name} ({found['size']})"
        for p in found["programs"]:
            programs.append(
                {
                    "movie": movie,
                    "program": p["program"],
                    "RMSE Å": p["rmse_A"],
                    "CPU s": p["cpu"],
                    "wall s": p["wall"],
                    "largest process GB": p["largest"],
                    "all processes GB": p["together"],
                    "others' cores": p["others"],
                }
            )
        row: dict[str, Any] = {"movie": movie}
        row |= {stage: used["cpu"] for stage, used in found["stages"].items()}
        row["all CPU s"] = sum(used["cpu"] for used in found["stages"].values())
        row["all wall s"] = sum(used["wall"] for used in found["stages"].values())
        library.append(row)
        limits.append({"movie": movie} | {what: used["cpu"] for what, used in found["limits"].items()})
    return "\n\n".join(
        (
            "Whole processes:",
            table(programs),
            "The library alone, in one process, CPU seconds:",
            table(library),
            "The machine's limits for all frames, CPU seconds:",
            table(limits),
        )
    )


def main() -> None:
    options = arguments(__doc__)
    if shutil.which("relion_run_motioncorr") is None:
        print("relion_run_motioncorr is not on the PATH (Debian: apt-get install relion)", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="weft-benchmark-") as temporary:
        scratch = options.work.resolve() if options.work else Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        about = machine(options.threads)
        results = {case.name: compare(case, options, scratch) for case in cases_of(options, scratch)}
    print("  ".join(f"{key}: {value}" for key, value in about.items()), end="\n\n")
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "motion": results}, indent=1))


if __name__ == "__main__":
    main()
