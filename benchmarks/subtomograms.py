"""Many sub-tomograms in RELION: resolution with the alignment and CTF of Weft, and with the exact ones.

    python benchmarks/subtomograms.py OUT [--series 8] [--particles 140] [--box 48] [--pixel-size 6]

Simulates tilt series, processes them as `weft run` does, exports the particles at their true poses as
sub-volumes and as image series, has Debian's relion_reconstruct make a map of each, and compares it with the
true structure. The same is done with every tilt's exact geometry and defocus in place of what Weft has found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import table
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

import weft
from weft.formats import mrc
from weft.formats.tomo_particles import TomoParticles, euler_angles, euler_matrices, join_particles
from weft.physics.geometry import TiltGeometry
from weft.session.subtomogram_export import ParticleExportSettings, export_subtomograms
from weft.simulation.specimen import phantom
from weft.simulation.tilt_series import write_tilt_session
from weft.simulation.tilt_settings import TiltSimulationSettings

SPECIMEN = "barrel"


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
        geometry |= {"axis": truth["axis"], "level_x": truth["level"][0], "level_y": truth["level"][1]}
        results = record["steps"]["tilt_ctf"]["results"]
        results["hand"] = truth["hand"]
        results["ctf"] |= {
            "defocus": [t["defocus"] for t in tilts],
            "delta": [truth["astig"]] * len(tilts),
            "angle": [truth["astig_angle"]] * len(tilts),
        }
        file.write_text(json.dumps(record))
    return out


def structure(box: int, pixel: float) -> np.ndarray:
    """The particle's points as a map."""
    points = phantom(SPECIMEN).points
    k = np.fft.fftfreq(box, pixel)
    phase = [np.exp(-2j * np.pi * np.outer(points[:, i], k)) for i in range(3)]
    spectrum = np.einsum("pz,py,px->zyx", phase[2], phase[1], phase[0], optimize=True)
    return np.fft.fftshift(np.fft.ifftn(spectrum).real)


def resolution(found: np.ndarray, true: np.ndarray, pixel: float, diameter: float, level: float) -> float:
    """Where the FSC under a soft mask falls below a level, Å; Nyquist where it does not."""
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
    below = np.nonzero(fsc[1:] < level)[0]
    if not len(below):
        return 2.0 * pixel
    i = int(below[0]) + 1
    return float(n * pixel / (i - 1 + (fsc[i - 1] - level) / (fsc[i - 1] - fsc[i])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--series", type=int, default=8)
    parser.add_argument("--particles", type=int, default=140)
    parser.add_argument("--box", type=int, default=48)
    parser.add_argument("--pixel-size", type=float, default=6.0)
    parser.add_argument("--diameter", type=float, default=200.0)
    given = parser.parse_args()
    out = given.out.absolute()
    simulated = TiltSimulationSettings(particles=given.particles, specimen=SPECIMEN)
    if not (out / "frames").exists():
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
    truths = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json"))}
    truths = {series.name: truths[series.name] for series in session.series.values()}
    shutil.rmtree(out / "exact", ignore_errors=True)
    sessions = {"Weft": session, "exact": weft.open(with_exact(session.root, out / "exact", truths))}
    rows: list[dict[str, Any]] = []
    true = structure(given.box, given.pixel_size)
    for label, one in sessions.items():
        parts = [poses(one[name], truth, label == "exact") for name, truth in truths.items()]
        particles = join_particles(parts)
        for kind in ("3d", "2d"):
            folder = out / f"{label}_{kind}"
            shutil.rmtree(folder, ignore_errors=True)
            settings = ParticleExportSettings.model_validate(
                {"kind": kind, "flavour": "relion3", "box": given.box}
                | {"pixel_size": given.pixel_size, "diameter": given.diameter}
            )
            begin = time.perf_counter()
            report = export_subtomograms(one, folder, particles, settings)
            seconds = time.perf_counter() - begin
            turned = ["--3d_rot"] if kind == "3d" else []
            command = ["relion_reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", *turned]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            found, _ = mrc.read(folder / "map.mrc")
            half, low = (
                resolution(found, true, given.pixel_size, given.diameter, level) for level in (0.5, 0.143)
            )
            rows.append(
                {
                    "alignment and CTF": label,
                    "kind": kind,
                    "particles": report.count,
                    "FSC 0.5 (Å)": round(half, 2),
                    "FSC 0.143 (Å)": round(low, 2),
                    "export (particles/s)": round(report.count / seconds, 1),
                }
            )
            for problem in report.problems:
                print(problem)
    print(table(rows))


if __name__ == "__main__":
    main()
