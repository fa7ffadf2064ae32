"""Particles of a known structure in RELION: Weft's motion and CTF beside the true ones, and RELION's motion.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/particles.py OUT [--movies 12] [--only exact,weft,relion]

Simulates movies of an asymmetric particle, processes them as `weft run --steps motion,ctf` does, and cuts the
particles at their true places. Debian's relion_reconstruct --ctf makes a map of them with their true angles,
which is compared with the true structure. This is done several times:

    exact          every frame shifted by the true track at the particle, its true defocus
    weft           Weft's motion and its local CTF, by `weft export particles`
    relion         relion_run_motioncorr --use_own with dose weighting, relion_preprocess, the CTF of `weft`
    relion_whole   the same without local motion
    true_ctf       as weft, with the true CTF
    true_motion    as exact, with the CTF of `weft`
    weft_placed    as weft, each particle moved by its mean error of motion, as a refinement would find it
    relion_placed  as relion_whole, the same

Of every program's motion it says how far tracks at the particles are from the true ones ("motion": root mean
square about each one's mean, what blurs), how far images are off centre where the micrograph as a whole is
not ("place": frames count by their signal at 5 Å). "of exact" compares spatial frequencies; B is what would
turn the signal of the exact map into this one's. OMP_WAIT_POLICY=PASSIVE keeps threads from spinning, which
takes several times as long where others use the machine.

Everything in OUT that is finished is kept: a second run goes on where the first was stopped. It uses as many
movies as have been simulated when it is told of fewer.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import table
from subtomograms import run_relion, structure

import weft
from weft.formats import mrc
from weft.formats.relion import evaluate_motion_model
from weft.formats.star import Table, read_star, write_star
from weft.movies.frames import load_frames
from weft.particles.extraction import ExtractionSettings, extract_particles
from weft.physics.dose import dose_of_frames, dose_weight
from weft.physics.optics import Optics
from weft.picking.picks import Picks
from weft.session.particle_export import export_particles
from weft.session.pick_files import pick_path, write_picks
from weft.session.wanted_particles import ParticleSettings
from weft.simulation.movie import simulate_gain, simulate_movie
from weft.simulation.scene import Scene
from weft.simulation.session import session_settings, write_movie
from weft.simulation.settings import MovieSimulationSettings
from weft.simulation.specimen import load_specimen

#: Some 200 particles in a movie of 0.3 µm; 30 e/Å².
SIMULATED: dict[str, Any] = {
    "width": 2048,
    "height": 2048,
    "frames": 10,
    "pixel_size": 1.5,
    "dose_per_frame": 3.0,
    "specimen": "globule",
    "coverage": 0.44,
}
SEED = 7
MOVIES = 12  # the last of them is tilted by 25°
PICKER = "truth"
WAYS = ("exact", "weft", "relion", "relion_whole")
#: Further maps: the images of the first, the CTF of the second.
COMBINED = {
    "true_ctf": ("weft", "exact"),
    "true_motion": ("exact", "weft"),
    "weft_placed": ("weft", "weft"),
    "relion_placed": ("relion_whole", "weft"),
}
ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
CTF = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")


def simulated(out: Path, movies: int) -> list[str]:
    """Stems of the movies, simulated as far as they are missing."""
    base = MovieSimulationSettings(**SIMULATED)
    # the settings of each depend on how many there are
    every = session_settings(max(movies, MOVIES), base, SEED)[:movies]
    gain = simulate_gain(every[0], SEED)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "gain.mrc").exists():
        mrc.write(out / "gain.mrc", gain, base.pixel_size)
    stems = []
    for i, one in enumerate(every):
        stem = f"movie_{i:03d}"
        stems.append(stem)
        seed = SEED * 100_003 + i + 1
        if not (out / "truth" / f"{stem}.json").exists():
            write_movie(out, stem, simulate_movie(one, seed, gain), gain=False)
            print(f"simulated {stem}", flush=True)
        truth = json.loads((out / "truth" / f"{stem}.json").read_text())
        if truth["seed"] != seed or abs(truth["defocus"] - 1e4 * one.defocus) > 0.1:
            raise SystemExit(f"{out} has other movies: give another folder, or as many movies as before")
        if not (out / "truth" / f"{stem}.npz").exists():
            # the JSON has tracks at 25 places and no heights; the same seed makes the same scene
            scene = Scene(one, np.random.SeedSequence([seed, 0]).spawn(3)[0])
            xy = scene.particles.xy
            np.savez(
                out / "truth" / f"{stem}.npz",
                xy=xy,
                tracks=scene.motion.track(xy),
                height=scene.particles.height,
            )
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


def exactly(out: Path, stem: str, truth: dict[str, Any], box: int) -> tuple[np.ndarray, ...]:
    """Places (n, 2), tracks (frames, n, 2), defocus (n,) and height (n,) of particles that are used; Å."""
    use = inside(truth, box)
    with np.load(out / "truth" / f"{stem}.npz") as known:
        xy, tracks, height = known["xy"][use], known["tracks"][:, use], known["height"][use]
    centre = 0.5 * np.array(truth["shape"][::-1]) * truth["optics"]["pixel"]
    return xy, tracks, truth["defocus"] + (xy - centre) @ np.array(truth["plane"]) + height, height


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
        xy, tracks, z, _ = exactly(out, stem, truth, given.box)
        eulers = np.array(truth["eulers"])[inside(truth, given.box)]
        o = truth["optics"]
        if not (folder / f"{stem}.mrcs").exists():
            frames = load_frames(out / "frames" / f"{stem}.tif", gain=gain)
            optics = Optics(o["pixel"], o["kv"], o["cs"], o["amplitude"], truth["dose_per_frame"])
            settings = ExtractionSettings(box=given.box, diameter=given.diameter)
            batches = extract_particles(frames, xy, lambda _, true=tracks: true, optics, settings)
            images = (image.numpy() for batch in batches for image in batch.images)
            mrc.write_stack(folder / f"{stem}.mrcs", images, o["pixel"])
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


def theirs(out: Path, way: str, stems: list[str], truths: dict[str, Any], given: Any) -> int:
    """RELION's motion correction and extraction; angles and CTF are those of Weft's list."""
    folder = out / way
    folder.mkdir(exist_ok=True)
    for name in ("frames", "gain.mrc"):
        if not (folder / name).exists():
            (folder / name).symlink_to(out / name)
    movies = {
        "rlnMicrographMovieName": [f"frames/{s}.tif" for s in stems],
        "rlnOpticsGroup": [1] * len(stems),
    }
    write_star(folder / "movies.star", {"optics": Table(MICROSCOPE), "movies": Table(movies)})
    patches = given.patches if way == "relion" else 1
    run_relion(
        "run_motioncorr",
        *("--i", "movies.star", "--o", "Motion/", "--use_own", "--j", 1, "--only_do_unfinished"),
        *("--first_frame_sum", 1, "--last_frame_sum", -1, "--bin_factor", 1, "--bfactor", 150),
        *("--dose_per_frame", SIMULATED["dose_per_frame"], "--preexposure", 0, "--dose_weighting"),
        *("--patch_x", patches, "--patch_y", patches, "--gainref", "gain.mrc"),
        cwd=folder,
    )
    # RELION lays all frames on the first one, as Weft and the simulation do
    for stem in stems:
        xy, *_ = exactly(out, stem, truths[stem], given.box)
        # whole pixels, so that nobody rounds them
        at = np.round(xy / SIMULATED["pixel_size"])
        to = folder / "coords" / "Motion" / "frames" / f"{stem}_pick.star"
        to.parent.mkdir(parents=True, exist_ok=True)
        write_star(to, {"": Table({"rlnCoordinateX": at[:, 0], "rlnCoordinateY": at[:, 1]})})
    background = round(0.5 * given.diameter / SIMULATED["pixel_size"])
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
        *("--extract_size", given.box, "--norm", "--bg_radius", background),
        *("--white_dust", -1, "--black_dust", -1, "--invert_contrast"),
        cwd=folder,
    )
    return _with_poses(folder, out / "weft" / "particles.star", out, truths, given)


def _with_poses(folder: Path, weft_list: Path, out: Path, truths: dict[str, Any], given: Any) -> int:
    """RELION's stacks with the angles and the CTF of Weft's list.

    RELION cuts at whole pixels; the rest becomes an origin, so that all have the same centre.
    """
    known = read_star(weft_list)["particles"]
    # both lists have the particles of a micrograph in the order of the truth
    of: dict[str, list[int]] = {}
    for row, name in enumerate(known.strings("rlnMicrographName")):
        of.setdefault(Path(name).stem, []).append(row)
    wanted = {stem: exactly(out, stem, truths[stem], given.box)[0] for stem in of}
    cut = read_star(folder / "Extract" / "particles.star")["particles"]
    asked = np.stack([cut.floats("rlnCoordinateX"), cut.floats("rlnCoordinateY")], -1)
    seen: dict[str, int] = {}
    columns: dict[str, list[Any]] = {}
    for i, name in enumerate(cut.strings("rlnMicrographName")):
        stem = Path(name).stem
        number = seen.get(stem, 0)
        seen[stem] = number + 1
        rest = wanted[stem][number] - asked[i] * SIMULATED["pixel_size"]
        row = of[stem][number]
        cells = {label: known.strings(label)[row] for label in (*CTF, *ANGLES)}
        cells |= {"rlnImageName": cut.strings("rlnImageName")[i], "rlnMicrographName": name}
        # RELION's origins are what moves an image onto its reference
        cells |= dict(zip(ORIGINS, (f"{-value:.4f}" for value in rest), strict=True))
        for label, value in cells.items():
            columns.setdefault(label, []).append(value)
    assert {stem: len(rows) for stem, rows in of.items()} == seen, "RELION has left particles out"
    return write_list(folder / "particles.star", columns, given.box)


def combined(out: Path, way: str, given: Any, away: np.ndarray | None) -> int:
    """The images of one way with the CTF of another, or with the origins that a refinement would find."""
    images, ctfs = COMBINED[way]
    (out / way).mkdir(exist_ok=True)
    first, second = (read_star(out / one / "particles.star")["particles"] for one in (images, ctfs))

    def order(rows: Table) -> list[tuple[str, int]]:
        names = zip(rows.strings("rlnMicrographName"), rows.strings("rlnImageName"), strict=True)
        return [(Path(micrograph).stem, int(image.split("@")[0])) for micrograph, image in names]

    row_of = {key: row for row, key in enumerate(order(second))}
    to_second = [row_of[key] for key in order(first)]
    columns: dict[str, list[Any]] = {label: list(first.strings(label)) for label in ANGLES}
    columns |= {label: [second.strings(label)[row] for row in to_second] for label in CTF}
    columns["rlnMicrographName"] = list(first.strings("rlnMicrographName"))
    split = [name.split("@") for name in first.strings("rlnImageName")]
    columns["rlnImageName"] = [f"{number}@../{images}/{file}" for number, file in split]
    for axis, label in enumerate(ORIGINS):
        origin = first.floats(label) if label in first else np.zeros(len(split))
        if away is not None:
            origin = origin + away[:, axis]
        columns[label] = list(origin)
    return write_list(out / way / "particles.star", columns, given.box)


def found_tracks(out: Path, way: str, stem: str, session: Any, xy: np.ndarray, truth: Any) -> np.ndarray:
    """Tracks at places by Weft, or by RELION, (frames, n, 2), Å."""
    if way == "weft":
        tracks: np.ndarray = session[stem].motion.track(xy)
        return tracks
    blocks = read_star(out / way / "Motion" / "frames" / f"{stem}.star")
    whole, pixel = blocks["global_shift"], truth["optics"]["pixel"]
    shift = np.stack([whole.floats("rlnMicrographShiftX"), whole.floats("rlnMicrographShiftY")], 1)
    shifts = np.repeat(shift[:, None], len(xy), 1)
    if "local_motion_model" in blocks:
        fraction = xy / (pixel * np.array(truth["shape"][::-1])) - 0.5
        coefficients = blocks["local_motion_model"].floats("rlnMotionModelCoeff")
        shifts = shifts + evaluate_motion_model(coefficients, fraction, len(shift))
    # RELION writes what moves a frame's content back
    return np.asarray(-pixel * shifts)


def frame_weights(frames: int, resolution: float = 5.0) -> np.ndarray:
    """How much of a particle's signal at a resolution (Å) each frame brings, after damage and its weight."""
    doses = dose_of_frames(frames, SIMULATED["dose_per_frame"])
    k = torch.tensor([1.0 / resolution])
    share = np.array([float(dose_weight(k, float(dose), 300.0, "grant")) ** 2 for dose in doses])
    result: np.ndarray = share / share.sum()
    return result


def errors(
    out: Path, way: str, stems: list[str], truths: Any, session: Any, box: int
) -> tuple[dict[str, str], np.ndarray]:
    """Of tracks and CTF at the particles (Å), and what each particle's image is away from its true place."""
    moved, away, defocus, astigmatism = [], [], [], []
    for stem in stems:
        truth = truths[stem]
        xy, tracks, z, height = exactly(out, stem, truth, box)
        difference = found_tracks(out, way, stem, session, xy, truth) - tracks
        moved.append(difference - difference.mean(0))
        mean = np.tensordot(frame_weights(len(tracks)), difference, 1)
        # a micrograph as a whole is laid onto the true places by `centred`
        away.append(mean - mean.mean(0))
        u, v, angle = session[stem].ctf.at(xy)
        # of the plane in which they lie: nobody can know how high each of them is
        defocus.append(0.5 * (u + v) - (z - height))
        turn = np.exp(2j * np.radians([angle[0], truth["astig_angle"]]))
        astigmatism.append(abs((u - v)[0] * turn[0] - truth["astig"] * turn[1]))

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt((values**2).sum(-1).mean()))

    for stem, one, mean, z in zip(stems, moved, away, defocus, strict=True):
        print(
            f"{stem} {way}: motion {rms(one):.2f}, place {rms(mean):.2f}, "
            f"defocus {z.mean():.1f} ± {z.std():.1f} Å"
        )
    found = {
        "motion (Å)": f"{rms(np.concatenate(moved, 1)):.2f}",
        "place (Å)": f"{rms(np.concatenate(away)):.2f}",
        "defocus (Å)": f"{np.sqrt((np.concatenate(defocus) ** 2).mean()):.0f}",
        "astigmatism (Å)": f"{np.sqrt((np.array(astigmatism) ** 2).mean()):.0f}",
    }
    return found, np.concatenate(away)


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
    zero = np.zeros(len(names))
    origins = np.stack([rows.floats(a) if a in rows else zero for a in ORIGINS], -1)
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
    columns |= {label: origins[:, i] for i, label in enumerate(ORIGINS)}
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


def lost(curve: np.ndarray, best: np.ndarray, box: int, pixel: float) -> float:
    """Å²: B-factor that turns one map into the other, from their signal-to-noise ratios beyond 12 Å."""
    k = np.arange(len(best)) / (box * pixel)
    use = (k > 1.0 / 12.0) & (best > 0.143) & (curve > 0.0)

    def ratio(fsc: np.ndarray) -> np.ndarray:
        # against the truth, which has no noise
        square: np.ndarray = fsc[use] ** 2
        return square / (1.0 - square)

    change, square = np.log(ratio(curve) / ratio(best)), k[use] ** 2
    return float(-2.0 * (change * square).sum() / (square**2).sum())


def mapped(out: Path, way: str, true: np.ndarray, given: Any) -> dict[str, Any]:
    """relion_reconstruct's map of a way, against the truth."""
    taken = run_relion("reconstruct", "--i", "particles.star", "--o", "map.mrc", "--ctf", cwd=out / way)
    found, pixel = np.array(mrc.read(out / way / "map.mrc")[0]), SIMULATED["pixel_size"]
    curve = fsc_curve(found, true, pixel, given.diameter)
    np.save(out / way / "fsc.npy", curve)
    half, low = (crossing(curve, given.box, pixel, level) for level in (0.5, 0.143))
    row: dict[str, Any] = {"FSC 0.5 (Å)": f"{1 / half:.2f}", "FSC 0.143 (Å)": f"{1 / low:.2f}"}
    if way != "exact" and (out / "exact" / "fsc.npy").exists():
        best = np.load(out / "exact" / "fsc.npy")
        for name, found_at, level in (("0.5", half, 0.5), ("0.143", low, 0.143)):
            share = 100.0 * found_at / crossing(best, given.box, pixel, level)
            row[f"of exact at {name} (%)"] = f"{share:.1f}"
        row["B (Å²)"] = f"{lost(curve, best, given.box, pixel):.1f}"
    return row | {"map (s)": round(taken)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for everything")
    parser.add_argument("--movies", type=int, default=MOVIES, help="of some 200 particles each")
    parser.add_argument("--box", type=int, default=128, help="px")
    parser.add_argument("--diameter", type=float, default=165.0, help="of the particle, Å")
    parser.add_argument("--patches", type=int, default=5, help="of RELION's motion, along each axis")
    parser.add_argument(
        "--only", default=",".join((*WAYS, *COMBINED)), help="some of the ways, in this order"
    )
    given = parser.parse_args()
    out = given.out.absolute()
    there = len(list((out / "truth").glob("*.json")))
    stems = simulated(out, max(given.movies, there))
    truths = {stem: json.loads((out / "truth" / f"{stem}.json").read_text()) for stem in stems}
    session = processed(out, stems, truths, given.box)
    specimen = load_specimen(SIMULATED["specimen"])
    points = np.column_stack([specimen.points, specimen.strengths])
    true = structure(points, given.box, SIMULATED["pixel_size"])
    rows: list[dict[str, Any]] = []
    for way in given.only.split(","):
        begin = time.perf_counter()
        row: dict[str, Any] = {"way": way, "particles": 0}
        if way in COMBINED:
            away = None
            if way.endswith("placed"):
                away = errors(out, COMBINED[way][0], stems, truths, session, given.box)[1]
            row["particles"] = combined(out, way, given, away)
        elif way == "exact":
            row["particles"] = exact(out, stems, truths, given)
        else:
            make = ours(out, session, given) if way == "weft" else theirs(out, way, stems, truths, given)
            row["particles"] = make
            row |= errors(out, way, stems, truths, session, given.box)[0]
            row["moved (Å)"] = f"{centred(out, way, stems, given):.2f}"
        row["particles (s)"] = round(time.perf_counter() - begin)
        row |= mapped(out, way, true, given)
        rows.append(row)
        print(row, flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
