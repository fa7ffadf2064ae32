"""Particles of a known structure in RELION: Weft's motion and CTF beside the true ones, and RELION's motion.

    python benchmarks/particles.py OUT [--movies 40] [--box 128] [--only exact,weft,relion]

Simulates movies of an asymmetric particle, processes them as `weft run --steps motion,ctf` does, and cuts the
particles at their true places. Debian's relion_reconstruct --ctf makes a map of them with their true angles,
which is compared with the true structure. This is done three times:

    exact    every frame shifted by the true track at the particle, the true defocus
    weft     Weft's motion and its local CTF, by `weft export particles`
    relion   relion_run_motioncorr --use_own with dose weighting, relion_preprocess, the CTF of `weft`

Everything in OUT that is finished is kept: a second run goes on where the first was stopped. It uses as many
movies as have been simulated when it is told of fewer.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import table
from scipy.interpolate import RectBivariateSpline
from subtomograms import run_relion, structure

import weft
from weft.formats import mrc
from weft.formats.star import Table, read_star, write_star
from weft.movies.frames import load_frames
from weft.particles.extraction import ExtractionSettings, extract_particles
from weft.physics.optics import Optics
from weft.picking.picks import Picks
from weft.session.particle_export import export_particles
from weft.session.particle_extraction import ParticleSettings
from weft.session.pick_files import pick_path, write_picks
from weft.simulation.movie import simulate_gain, simulate_movie
from weft.simulation.session import session_settings, write_movie
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.specimen import load_specimen

#: 52 particles in a movie of 0.15 µm; 30 e/Å².
SIMULATED: dict[str, Any] = {
    "width": 1024,
    "height": 1024,
    "frames": 10,
    "pixel_size": 1.5,
    "dose_per_frame": 3.0,
    "specimen": "globule",
    "coverage": 0.44,
}
SEED = 7
PICKER = "truth"
WAYS = ("exact", "weft", "relion")


def simulated(out: Path, movies: int) -> list[str]:
    """Stems of the movies, simulated as far as they are missing."""
    base = MovieSimulationSettings(**SIMULATED)
    # settings do not depend on how many there are
    every = session_settings(max(movies, 40), base, SEED)[:movies]
    gain = simulate_gain(every[0], SEED)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "gain.mrc").exists():
        mrc.write(out / "gain.mrc", gain, base.pixel_size)
    stems = []
    for i, one in enumerate(every):
        stem = f"movie_{i:03d}"
        stems.append(stem)
        if not (out / "truth" / f"{stem}.json").exists():
            write_movie(out, stem, simulate_movie(one, SEED * 100_003 + i + 1, gain), gain=False)
            print(f"simulated {stem}", flush=True)
    return stems


def processed(out: Path, stems: list[str], truths: dict[str, Any], box: int) -> Any:
    """The session, with the true places and angles as picks."""
    root = out / "session"
    if root.exists():
        session = weft.open(root)
    else:
        session = weft.new(
            root,
            frames=out / "frames" / "*.tif",
            gain=out / "gain.mrc",
            pixel_size=SIMULATED["pixel_size"],
            voltage=300.0,
            cs=2.7,
            amplitude=0.07,
            dose_per_frame=SIMULATED["dose_per_frame"],
        )
    for stem in stems:  # others may be there, which are not asked for
        report = session.run(steps=["motion", "ctf"], only=stem, workers=0)
        assert not report.failed, report.failed
        use = inside(truths[stem], box)
        xy, eulers = (np.array(truths[stem][key])[use] for key in ("particles_xy", "eulers"))
        picks = Picks(xy, np.ones(len(xy)), 160.0, eulers=eulers)
        write_picks(root / pick_path(PICKER, stem), picks, SIMULATED["pixel_size"])
    return session


def inside(truth: dict[str, Any], box: int) -> np.ndarray:
    """Particles whose boxes lie within the micrograph: RELION leaves others out, or fills them otherwise."""
    at = np.array(truth["particles_xy"]) / truth["optics"]["pixel"]
    size = np.array(truth["shape"][::-1])
    return ((at >= box // 2 + 1) & (at <= size - box // 2 - 1)).all(1)


def true_track(truth: dict[str, Any]) -> Any:
    """Tracks anywhere, from those at 25 places."""
    places, tracks = np.array(truth["track_xy"]), np.array(truth["tracks"])
    x, y = np.unique(places[:, 0]), np.unique(places[:, 1])
    grid = tracks.reshape(len(tracks), len(y), len(x), 2)

    def track(xy: np.ndarray) -> np.ndarray:
        found = [
            [RectBivariateSpline(y, x, g[..., a])(xy[:, 1], xy[:, 0], grid=False) for a in (0, 1)]
            for g in grid
        ]
        return np.array(found).swapaxes(1, 2)

    return track


#: RELION's table of optics, as far as movies and particles have it in common.
MICROSCOPE: dict[str, Any] = {
    "rlnOpticsGroupName": ["opticsGroup1"],
    "rlnOpticsGroup": [1],
    "rlnMicrographOriginalPixelSize": [SIMULATED["pixel_size"]],
    "rlnVoltage": [300.0],
    "rlnSphericalAberration": [2.7],
    "rlnAmplitudeContrast": [0.07],
}


def optics_table(box: int) -> Table:
    """Of images at the pixel size of the movies."""
    return Table(
        {
            **MICROSCOPE,
            "rlnImagePixelSize": [SIMULATED["pixel_size"]],
            "rlnImageSize": [box],
            "rlnImageDimensionality": [2],
        }
    )


def write_list(path: Path, columns: dict[str, list[Any]], box: int) -> int:
    """particles.star; how many."""
    columns = {**columns, "rlnOpticsGroup": [1] * len(columns["rlnImageName"])}
    write_star(path, {"optics": optics_table(box), "particles": Table(columns)})
    return len(columns["rlnImageName"])


def exact(out: Path, stems: list[str], truths: dict[str, Any], given: Any) -> int:
    """Particles with the true motion and CTF."""
    folder = out / "exact"
    folder.mkdir(exist_ok=True)
    columns: dict[str, list[Any]] = {}
    gain = mrc.read(out / "gain.mrc")[0]
    for stem in stems:
        truth = truths[stem]
        use = inside(truth, given.box)
        xy, eulers = np.array(truth["particles_xy"])[use], np.array(truth["eulers"])[use]
        o = truth["optics"]
        if not (folder / f"{stem}.mrcs").exists():
            frames = load_frames(out / "frames" / f"{stem}.tif", gain=gain)
            optics = Optics(o["pixel"], o["kv"], o["cs"], o["amplitude"], truth["dose_per_frame"])
            settings = ExtractionSettings(box=given.box, diameter=given.diameter)
            batches = extract_particles(frames, xy, true_track(truth), optics, settings)
            images = (image.numpy() for batch in batches for image in batch.images)
            mrc.write_stack(folder / f"{stem}.mrcs", images, o["pixel"])
        centre = 0.5 * np.array(truth["shape"][::-1]) * o["pixel"]
        z = truth["defocus"] + (xy - centre) @ np.array(truth["plane"])
        rows = {
            "rlnImageName": [f"{i + 1:06d}@{stem}.mrcs" for i in range(len(xy))],
            "rlnMicrographName": [f"{stem}.mrc"] * len(xy),
            "rlnDefocusU": z + 0.5 * truth["astig"],
            "rlnDefocusV": z - 0.5 * truth["astig"],
            "rlnDefocusAngle": [truth["astig_angle"]] * len(xy),
            "rlnAngleRot": eulers[:, 0],
            "rlnAngleTilt": eulers[:, 1],
            "rlnAnglePsi": eulers[:, 2],
        }
        for label, values in rows.items():
            columns.setdefault(label, []).extend(values)
    return write_list(folder / "particles.star", columns, given.box)


def ours(out: Path, session: Any, given: Any) -> int:
    """Particles as Weft exports them."""
    settings = ParticleSettings(box=given.box, diameter=given.diameter, picks=PICKER)
    report = export_particles(session, out / "weft", settings)
    assert not report.problems, report.problems
    return report.count


def theirs(out: Path, stems: list[str], truths: dict[str, Any], given: Any) -> int:
    """RELION's motion correction and extraction; angles and CTF are those of Weft's list."""
    folder = out / "relion"
    folder.mkdir(exist_ok=True)
    for name in ("frames", "gain.mrc"):
        if not (folder / name).exists():
            (folder / name).symlink_to(out / name)
    movies = {
        "rlnMicrographMovieName": [f"frames/{s}.tif" for s in stems],
        "rlnOpticsGroup": [1] * len(stems),
    }
    write_star(folder / "movies.star", {"optics": Table(MICROSCOPE), "movies": Table(movies)})
    run_relion(
        "run_motioncorr",
        *("--i", "movies.star", "--o", "Motion/", "--use_own", "--j", 1, "--only_do_unfinished"),
        *("--first_frame_sum", 1, "--last_frame_sum", -1, "--bin_factor", 1, "--bfactor", 150),
        *("--dose_per_frame", SIMULATED["dose_per_frame"], "--preexposure", 0, "--dose_weighting"),
        *("--patch_x", given.patches, "--patch_y", given.patches, "--gainref", "gain.mrc"),
        cwd=folder,
    )
    # RELION lays all frames on the first one, as Weft and the simulation do
    for stem in stems:
        truth = truths[stem]
        use = inside(truth, given.box)
        xy = np.array(truth["particles_xy"])[use]
        # whole pixels, so that nobody rounds them
        at = np.round(xy / SIMULATED["pixel_size"])
        to = folder / "coords" / "Motion" / "frames" / f"{stem}_pick.star"
        to.parent.mkdir(parents=True, exist_ok=True)
        write_star(to, {"": Table({"rlnCoordinateX": at[:, 0], "rlnCoordinateY": at[:, 1]})})
    run_relion(
        "preprocess",
        *(
            "--i",
            "Motion/corrected_micrographs.star",
            "--coord_dir",
            "coords/",
            "--coord_suffix",
            "_pick.star",
        ),
        *("--part_star", "Extract/particles.star", "--part_dir", "Extract/", "--extract"),
        *(
            "--extract_size",
            given.box,
            "--norm",
            "--bg_radius",
            round(0.5 * given.diameter / SIMULATED["pixel_size"]),
        ),
        *("--white_dust", -1, "--black_dust", -1, "--invert_contrast"),
        cwd=folder,
    )
    return _with_poses(folder, out / "weft" / "particles.star", truths, given)


def _with_poses(folder: Path, weft_list: Path, truths: dict[str, Any], given: Any) -> int:
    """RELION's stacks with the angles and the CTF of Weft's list.

    RELION cuts at whole pixels; the rest becomes an origin, so that all three have the same centre.
    """
    known = read_star(weft_list)["particles"]
    # both lists have the particles of a micrograph in the order of the truth
    of: dict[str, list[int]] = {}
    for row, name in enumerate(known.strings("rlnMicrographName")):
        of.setdefault(Path(name).stem, []).append(row)
    cut = read_star(folder / "Extract" / "particles.star")["particles"]
    seen: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    labels = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    for i, name in enumerate(cut.strings("rlnMicrographName")):
        stem = Path(name).stem
        number = seen.get(stem, 0)
        seen[stem] = number + 1
        truth = truths[stem]
        use = inside(truth, given.box)
        wanted = np.array(truth["particles_xy"])[use][number]
        asked = np.array([cut.floats("rlnCoordinateX")[i], cut.floats("rlnCoordinateY")[i]])
        rest = wanted - asked * SIMULATED["pixel_size"]
        row = of[stem][number]
        cells = {label: known.strings(label)[row] for label in labels}
        cells |= {"rlnImageName": cut.strings("rlnImageName")[i], "rlnMicrographName": name}
        # RELION's origins are what moves an image onto its reference
        cells |= {"rlnOriginXAngst": f"{-rest[0]:.4f}", "rlnOriginYAngst": f"{-rest[1]:.4f}"}
        for label, value in cells.items():
            columns.setdefault(label, []).append(value)
    assert {stem: len(rows) for stem, rows in of.items()} == seen, "RELION has left particles out"
    return write_list(folder / "particles.star", columns, given.box)


def centred(out: Path, way: str, stems: list[str], given: Any) -> float:
    """Give the particles of each micrograph the origin that lays them onto the exact ones, all the same.

    Any refinement would find it; where a program puts the origin of its average is no error of its motion.

    Returns
    -------
    float
        Root mean square of what was found, Å.
    """
    path = out / way / "particles.star"
    blocks = read_star(path)
    rows = blocks["particles"]
    names, micrographs = rows.strings("rlnImageName"), rows.strings("rlnMicrographName")
    labels = ("rlnOriginXAngst", "rlnOriginYAngst")
    zero = np.zeros(len(names))
    origins = np.stack([rows.floats(a) if a in rows else zero for a in labels], -1)
    k = np.fft.fftfreq(given.box)
    low = np.exp(-((k[:, None] ** 2 + k**2) / 0.1**2))  # 15 Å
    pixel, found = SIMULATED["pixel_size"], []
    for stem in stems:
        mine = [i for i, name in enumerate(micrographs) if Path(name).stem == stem]
        with mrc.MrcStack(out / "exact" / f"{stem}.mrcs") as stack:
            true = [stack.read(i) for i in range(len(stack))]
        assert len(true) == len(mine)
        power = np.zeros((given.box, given.box), complex)
        for image, i in zip(true, mine, strict=True):
            number, file = names[i].split("@")
            with mrc.MrcStack(out / way / file) as stack:
                other = np.fft.fft2(stack.read(int(number) - 1))
            # the image moved by its origin
            other *= np.exp(-2j * np.pi * (k * origins[i, 0] + k[:, None] * origins[i, 1]) / pixel)
            power += np.fft.fft2(image) * other.conj() * low
        power[0, 0] = 0.0
        peaks = np.fft.ifft2(power).real
        y, x = np.unravel_index(int(peaks.argmax()), peaks.shape)
        shift = []
        for at, line in ((x, peaks[y]), (y, peaks[:, x])):
            a, b, c = line[at - 1], line[at], line[(at + 1) % given.box]
            whole = at - given.box if at > given.box // 2 else at
            shift.append((whole + 0.5 * (a - c) / (a - 2.0 * b + c)) * pixel)
        origins[mine] += shift
        found.append(shift)
    columns = dict(rows.columns)
    columns |= {label: origins[:, i] for i, label in enumerate(labels)}
    write_star(path, {**blocks, "particles": Table(columns)})
    return float(np.sqrt((np.array(found) ** 2).sum(1).mean()))


def fsc_curve(found: np.ndarray, true: np.ndarray, pixel: float, diameter: float) -> np.ndarray:
    """Against the truth, under a soft mask."""
    n = len(found)
    x = (np.arange(n) - n // 2) * pixel
    radius = np.sqrt(x[:, None, None] ** 2 + x[:, None] ** 2 + x**2)
    mask = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius - 0.5 * diameter) / (6.0 * pixel), 0.0, 1.0))
    a, b = np.fft.fftn(found * mask), np.fft.fftn(true * mask)
    k = np.fft.fftfreq(n, 1.0 / n)
    shell = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2).round().astype(int).ravel()
    top = np.bincount(shell, (a * b.conj()).real.ravel())
    low = np.bincount(shell, (np.abs(a) ** 2).ravel()) * np.bincount(shell, (np.abs(b) ** 2).ravel())
    curve: np.ndarray = (top / np.sqrt(low))[: n // 2 + 1]
    return curve


def crossing(curve: np.ndarray, box: int, pixel: float, level: float) -> float:
    """1/Å: where the curve first falls below a level, after its first shells."""
    below = np.nonzero(curve[3:] < level)[0]
    if not len(below):
        return 0.5 / pixel
    i = int(below[0]) + 3
    return float((i - 1 + (curve[i - 1] - level) / (curve[i - 1] - curve[i])) / (box * pixel))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--movies", type=int, default=40, help="of some 52 particles each")
    parser.add_argument("--box", type=int, default=128, help="px")
    parser.add_argument("--diameter", type=float, default=165.0, help="of the particle, Å")
    parser.add_argument(
        "--patches", type=int, default=4, help="of RELION's motion correction, along each axis"
    )
    parser.add_argument("--only", default=",".join(WAYS), help="some of the three")
    given = parser.parse_args()
    out = given.out.absolute()
    stems = simulated(out, given.movies)
    truths = {stem: json.loads((out / "truth" / f"{stem}.json").read_text()) for stem in stems}
    ways = given.only.split(",")
    session = processed(out, stems, truths, given.box) if {"weft", "relion"} & set(ways) else None
    specimen = load_specimen(SIMULATED["specimen"])
    points = np.column_stack([specimen.points, specimen.strengths])
    true = structure(points, given.box, SIMULATED["pixel_size"])
    rows: list[dict[str, Any]] = []
    for way in ways:
        begin = time.perf_counter()
        if way == "exact":
            count = exact(out, stems, truths, given)
        elif way == "weft":
            count = ours(out, session, given)
        else:
            count = theirs(out, stems, truths, given)
        made = time.perf_counter() - begin
        moved = 0.0 if way == "exact" else centred(out, way, stems, given)
        taken = run_relion("reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", cwd=out / way)
        found = np.array(mrc.read(out / way / "map.mrc")[0])
        curve = fsc_curve(found, true, SIMULATED["pixel_size"], given.diameter)
        np.save(out / way / "fsc.npy", curve)
        half, low = (crossing(curve, given.box, SIMULATED["pixel_size"], level) for level in (0.5, 0.143))
        row: dict[str, Any] = {"motion and CTF": way, "particles": count}
        row |= {"FSC 0.5 (Å)": f"{1 / half:.2f}", "FSC 0.143 (Å)": f"{1 / low:.2f}"}
        row |= {
            "mean FSC": f"{curve[1:].mean():.4f}",
            "moved (Å)": f"{moved:.2f}",
            "particles (s)": round(made),
            "map (s)": round(taken),
        }
        rows.append(row)
        print(rows[-1], flush=True)
        shutil.copy(out / way / "particles.star", out / f"{way}.star")
    print(table(rows))


if __name__ == "__main__":
    main()
