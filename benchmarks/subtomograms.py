"""Many sub-tomograms in RELION: resolution with the alignment and CTF of Weft, and with the exact ones.

    python benchmarks/subtomograms.py OUT [--series 4] [--particles 255] [--box 48] [--pixel-size 4]
        [--refine 200] [--refine-box 32] [--refine-pixel-size 7] [--iterations 4] [--only reconstruct|refine]

Simulates tilt series, processes them as `weft run` does, exports the particles at their true poses as
sub-volumes and as image series, has Debian's relion_reconstruct make a map of each, and compares it with the
true structure; `weft average` makes one of the same particles. The same is done with every tilt's exact
geometry and defocus in place of what Weft has found.

Then relion_refine averages sub-volumes of the first particles (--refine, 0 for none) with their CTF volumes,
which are cut at places and orientations that are 4 Å and 3° wrong along and about each axis; it starts from
their own average, low-passed to 30 Å. Both exports have the same errors.

OUT keeps the simulated files and the session, and a second run does not make them again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import table
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

import weft
from weft.formats import mrc
from weft.formats.particle_star import ANGLES, CENTRED, ORIGINS
from weft.formats.star import read_star, write_star
from weft.formats.tomo_particles import TomoParticles, euler_angles, euler_matrices, join_particles
from weft.physics.geometry import TiltGeometry
from weft.session.averages import AverageSettings, average_particles, cut_images
from weft.session.subtomogram_export import ParticleExportSettings, export_subtomograms
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import TiltSimulationSettings

#: A microscope that loses what is finer than 10 Å, so that resolution is limited by particles and noise, not
#: by pixels; tilts of 5° and 5 e/Å².
SIMULATED: dict[str, Any] = {
    "specimen": "barrel",
    "pixel_size": 4.0,
    "tilt_increment": 5.0,
    "dose_per_tilt": 5.0,
    "envelope": 500.0,
    "thickness": 1200.0,
}
#: Errors of the poses that relion_refine begins with, along and about each axis.
SHIFTED, TURNED = 4.0, 3.0  # Å, degrees
START = 30.0  # Å: its first reference is low-passed


def exact_tilts(series: Any, truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The truth of the series' tilts, in its order."""
    known = np.array([tilt["nominal"] for tilt in truth["tilts"]])
    return [truth["tilts"][int(np.abs(known - angle).argmin())] for angle in series.tilt_angles]


def exact_geometry(series: Any, truth: dict[str, Any]) -> TiltGeometry:
    """As it was simulated."""
    tilts = exact_tilts(series, truth)
    return TiltGeometry.of(
        [tilt["tilt"] for tilt in tilts],
        axis=truth["axis"],
        shift=[tilt["shift"] for tilt in tilts],
        defocus=[tilt["defocus"] for tilt in tilts],
        volume_size=series.geometry.volume_size,
        image_size=series.geometry.image_size,
        level=tuple(truth["level"]),
        hand=truth["hand"],
    )


def poses(series: Any, truth: dict[str, Any], exact: bool) -> TomoParticles:
    """The true particles, moved as a whole to where the alignment has the specimen."""
    xyz, turns = np.array(truth["particles_xyz_centered"]), euler_matrices(truth["eulers_to_specimen"])
    middle = 0.5 * np.array(series.volume_size)
    motion, shift = np.eye(3), np.zeros(3)
    if not exact:
        true = exact_geometry(series, truth).project(torch.as_tensor(xyz + middle))[..., :2].numpy()

        def apart(p: np.ndarray) -> np.ndarray:
            moved = xyz @ Rotation.from_rotvec(p[:3]).as_matrix().T + p[3:] + middle
            return np.ravel(series.project(moved)[..., :2] - true) / 10.0

        scale = np.r_[0.05, 0.05, 0.05, 50.0, 50.0, 50.0]
        found = least_squares(apart, np.zeros(6), x_scale=scale, loss="soft_l1").x
        motion, shift = Rotation.from_rotvec(found[:3]).as_matrix(), found[3:]
    n = len(xyz)
    euler = euler_angles(motion @ turns)
    return TomoParticles([series.name] * n, xyz @ motion.T + shift, euler, np.full(n, np.nan))


def with_exact(session: Path, out: Path, truths: dict[str, dict[str, Any]]) -> Path:
    """A session whose records hold the exact geometry and CTF; its images are links."""
    out.mkdir()
    for path in session.iterdir():
        if path.name == "records":
            shutil.copytree(path, out / path.name)
        elif path.name != "index.sqlite":
            (out / path.name).symlink_to(path)
    opened = weft.open(session)
    for name, truth in truths.items():
        tilts, file = exact_tilts(opened[name], truth), out / "records" / f"{name}.json"
        record = json.loads(file.read_text())
        geometry = record["steps"]["align"]["results"]["alignment"]["geometry"]
        geometry |= {"angles": [t["tilt"] for t in tilts], "shift": [t["shift"] for t in tilts]}
        geometry |= {
            "axis": [truth["axis"]] * len(tilts),
            "level_x": truth["level"][0],
            "level_y": truth["level"][1],
        }
        results = record["steps"]["tilt_ctf"]["results"]
        results["hand"] = truth["hand"]
        results["ctf"] |= {
            "defocus": [t["defocus"] for t in tilts],
            "delta": [truth["astig"]] * len(tilts),
            "angle": [truth["astig_angle"]] * len(tilts),
        }
        file.write_text(json.dumps(record))
    return out


def structure(points: np.ndarray, box: int, pixel: float) -> np.ndarray:
    """Points (x, y, z, strength) as a map."""
    k = np.fft.fftfreq(box, pixel)
    phase = [np.exp(-2j * np.pi * np.outer(points[:, i], k)) for i in range(3)]
    spectrum = np.einsum("p,pz,py,px->zyx", points[:, 3], phase[2], phase[1], phase[0], optimize=True)
    return np.fft.fftshift(np.fft.ifftn(spectrum).real)


def resolution(found: np.ndarray, true: np.ndarray, pixel: float, diameter: float, level: float) -> float:
    """Beyond which the FSC under a soft mask stays below a level, Å: it dips at zeros that tilts share."""
    n = len(found)
    x = (np.arange(n) - n // 2) * pixel
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    mask = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius - 0.5 * diameter) / (4.0 * pixel), 0.0, 1.0))
    a, b = np.fft.fftn(found * mask), np.fft.fftn(true * mask)
    k = np.fft.fftfreq(n, 1.0 / n)
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().astype(int).ravel()
    top = np.bincount(shell, (a * b.conj()).real.ravel())
    low = np.bincount(shell, (np.abs(a) ** 2).ravel()) * np.bincount(shell, (np.abs(b) ** 2).ravel())
    fsc = (top / np.sqrt(low))[: n // 2 + 1]
    i = int(np.nonzero(fsc >= level)[0][-1]) + 1
    if i == len(fsc):
        return 2.0 * pixel
    return float(n * pixel / (i - 1 + (fsc[i - 1] - level) / (fsc[i - 1] - fsc[i])))


def run_relion(program: str, *arguments: object, cwd: Path) -> float:
    """Its wall time, s; stops where it fails."""
    begin = time.perf_counter()
    with (cwd / f"{program}.log").open("w") as log:
        command = [f"relion_{program}", *map(str, arguments)]
        subprocess.run(command, cwd=cwd, check=True, stdout=log, stderr=subprocess.STDOUT)
    return time.perf_counter() - begin


def exported(session: Any, particles: TomoParticles, kind: str, to: Path, given: Any) -> tuple[int, float]:
    """How many were written for RELION 3, and the seconds that took."""
    shutil.rmtree(to, ignore_errors=True)
    settings = ParticleExportSettings.model_validate(
        {"kind": kind, "flavour": "relion3", "box": given.box}
        | {"pixel_size": given.pixel_size, "diameter": given.diameter}
    )
    begin = time.perf_counter()
    report = export_subtomograms(session, to, particles, settings)
    for problem in report.problems:
        print(problem)
    return report.count, time.perf_counter() - begin


def reconstructed(folder: Path, kind: str) -> tuple[np.ndarray, float]:
    """relion_reconstruct's map and its seconds."""
    turned = ["--3d_rot"] if kind == "3d" else []
    taken = run_relion("reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", *turned, cwd=folder)
    return mrc.read(folder / "map.mrc")[0], taken


def averaged(session: Any, particles: TomoParticles, given: Any) -> tuple[np.ndarray, int]:
    """The map of `weft average`, before its filter."""
    settings = AverageSettings(box=given.box, pixel_size=given.pixel_size, diameter=given.diameter)
    found = average_particles(cut_images(session, particles, settings), settings).average
    return found.halves.mean(0).numpy(), sum(found.particles)


def disturbed(particles: TomoParticles, count: int) -> TomoParticles:
    """The first of the particles, at wrong places and turned; every call makes the same errors."""
    rng = np.random.default_rng(7)
    some = particles.select(np.arange(min(count, len(particles))))
    turns = Rotation.from_rotvec(rng.normal(0.0, np.deg2rad(TURNED), (len(some), 3))).as_matrix()
    euler = euler_angles(euler_matrices(some.euler) @ turns)
    return replace(some, xyz=some.xyz + rng.normal(0.0, SHIFTED, some.xyz.shape), euler=euler)


def at_true_poses(folder: Path, true: TomoParticles, wrong: TomoParticles) -> np.ndarray:
    """relion_reconstruct's map of the sub-volumes that were cut at wrong places, put right in its table."""
    blocks = read_star(folder / "particles.star")
    columns = blocks["particles"].columns
    cut = np.stack([np.asarray(columns[label], float) for label in CENTRED], axis=1)
    which = np.linalg.norm(cut[:, None] - wrong.xyz, axis=-1).argmin(1)
    # RELION's origins are by what an image is moved, not where the particle is
    origins = (wrong.xyz - true.xyz)[which]
    columns |= dict(zip(ORIGINS, origins.T, strict=True))
    columns |= dict(zip(ANGLES, true.euler[which].T, strict=True))
    write_star(folder / "true.star", blocks)
    run_relion("reconstruct", "--i", "true.star", "--o", "true.mrc", "--ctf", "--3d_rot", cwd=folder)
    return mrc.read(folder / "true.mrc")[0]


def refined(folder: Path, given: Any) -> tuple[np.ndarray, float]:
    """relion_refine's last map, from the particles as they are, and its seconds."""
    run_relion("image_handler", "--i", "map.mrc", "--o", "start.mrc", "--lowpass", START, cwd=folder)
    (folder / "refine").mkdir(exist_ok=True)
    taken = run_relion(
        "refine",
        *("--i", "particles.star", "--ref", "start.mrc", "--ini_high", START, "--o", "refine/run"),
        *("--iter", given.iterations, "--j", given.threads),
        *("--K", 1, "--sym", "C1", "--ctf", "--pad", 1, "--pool", 4),
        *("--particle_diameter", 1.1 * given.diameter, "--zero_mask", "--dont_combine_weights_via_disc"),
        # with --pad 1 and without this, what lies in the corners of the reference, noise and neighbours,
        # grows to many times the particle within an iteration, and is what the next one compares
        "--flatten_solvent",
        *("--healpix_order", 4, "--oversampling", 1, "--sigma_ang", TURNED),
        *("--offset", SHIFTED, "--offset_range", 2, "--offset_step", 1),
        cwd=folder,
    )
    return mrc.read(folder / "refine" / f"run_it{given.iterations:03d}_class001.mrc")[0], taken


def processed(out: Path, given: Any) -> Any:
    """The session with the CTFs of all its series."""
    simulated = TiltSimulationSettings(particles=given.particles, **SIMULATED)
    if len(list((out / "mdoc").glob("*.mdoc"))) < given.series:
        write_tilt_session(out, simulated, series=given.series, seed=11, workers=2)
    if (out / "session").exists():
        session = weft.open(out / "session")
    else:
        session = weft.new(
            out / "session",
            frames=out / "frames" / "*.tif",
            mdoc=out / "mdoc",
            pixel_size=simulated.pixel_size,
            voltage=simulated.voltage,
            cs=simulated.cs,
            amplitude=simulated.amplitude,
            dose_per_frame=simulated.dose_per_tilt / simulated.frames,
        )
    session.run(steps=["tilt_ctf"], workers=0)
    return session


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--series", type=int, default=4, help="tilt series")
    parser.add_argument("--particles", type=int, default=255, help="in each of them")
    parser.add_argument("--box", type=int, default=48, help="px")
    parser.add_argument("--pixel-size", type=float, default=4.0, help="of what is exported, Å")
    parser.add_argument("--diameter", type=float, default=180.0, help="of the mask, Å")
    parser.add_argument("--refine", type=int, default=200, help="particles for relion_refine; 0: without")
    parser.add_argument("--refine-box", type=int, default=32, help="px")
    parser.add_argument("--refine-pixel-size", type=float, default=7.0, help="Å")
    parser.add_argument("--iterations", type=int, default=4, help="of relion_refine")
    parser.add_argument("--threads", type=int, default=2, help="of relion_refine")
    parser.add_argument("--only", choices=("reconstruct", "refine"), help="one of the two tables")
    given = parser.parse_args()
    out = given.out.absolute()
    session = processed(out, given)
    truths = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    truths = {series.name: truths[series.name] for series in session.series.values()}
    points = np.load(out / f"{next(iter(truths))}_mol.npy")
    if not (out / "exact").exists():
        with_exact(session.root, out / "exact", truths)
    sessions = {"Weft": session, "exact": weft.open(out / "exact")}
    listed = {
        label: join_particles([poses(one[name], truth, label == "exact") for name, truth in truths.items()])
        for label, one in sessions.items()
    }
    rows: list[dict[str, Any]] = []

    def measured(label: str, what: str, count: int, found: np.ndarray, seconds: dict[str, float]) -> None:
        true = structure(points, given.box, given.pixel_size)
        half, low = (resolution(found, true, given.pixel_size, given.diameter, v) for v in (0.5, 0.143))
        row: dict[str, Any] = {"alignment and CTF": label, "map": what, "particles": count}
        row |= {"FSC 0.5 (Å)": f"{half:.2f}", "FSC 0.143 (Å)": f"{low:.2f}"}
        rows.append(row | {name: round(value, 1) for name, value in seconds.items()})
        print(rows[-1], flush=True)

    if given.only != "refine":
        for label, one in sessions.items():
            for kind in ("2d", "3d"):
                folder = out / f"{label}_{kind}"
                count, wrote = exported(one, listed[label], kind, folder, given)
                found, taken = reconstructed(folder, kind)
                seconds = {"export (s)": wrote, "map (s)": taken}
                measured(label, f"relion_reconstruct, {kind}", count, found, seconds)
            begin = time.perf_counter()
            found, count = averaged(one, listed[label], given)
            measured(label, "weft average", count, found, {"map (s)": time.perf_counter() - begin})
        print(table(rows))
        rows.clear()
    if given.refine and given.only != "reconstruct":
        given.box, given.pixel_size = given.refine_box, given.refine_pixel_size
        for label, one in sessions.items():
            folder = out / f"{label}_refine"
            wrong = disturbed(listed[label], given.refine)
            count, _ = exported(one, wrong, "3d", folder, given)
            true = listed[label].select(np.arange(len(wrong)))
            found = at_true_poses(folder, true, wrong)
            measured(label, "relion_reconstruct, true poses", count, found, {})
            found, taken = reconstructed(folder, "3d")
            measured(label, "relion_reconstruct, poses as disturbed", count, found, {"map (s)": taken})
            found, taken = refined(folder, given)
            measured(label, "relion_refine", count, found, {"map (s)": taken})
        print(table(rows))


if __name__ == "__main__":
    main()
