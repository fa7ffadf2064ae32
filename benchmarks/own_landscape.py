"""A simulated tilt-series session with two conformations, from movies to a landscape, by commands only."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from landscapes import adjusted_rand, linear_auc, mean_fsc, shell_fsc, soft_ball, two_means, user
from numpy.typing import NDArray
from subtomograms import poses, structure

import weft
from weft.formats import mrc
from weft.formats.tilt_particles import read_tilt_particles
from weft.formats.tomo_particles import TomoParticles, join_particles, write_tomo_particles
from weft.session.heterogeneity.run_folder import open_run

__all__ = ["own"]

Array = NDArray[Any]

#: 1.3 MDa of which a quarter is an arm; what the other half of the particles has instead of it.
SPECIMEN = "clamp"
#: Written by the export and read by the training.
BOX, PIXEL_SIZE = 32, 8.0  # px, Å
SHELLS = (5, 7, 9, 11, 14)
DIAMETERS = {"clamp-core": 210.0, "clamp-open": 240.0}  # Å
_TABLES = {"relion5": "optimisation_set.star", "warp": "optimisation_set.star", "relion3": "particles.star"}


def own(out: Path, given: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of three tables: what it costs, how well classes are told, and the maps of the true classes."""
    out.mkdir(parents=True, exist_ok=True)
    session, truths, costs = _processed(out, given)
    listed, classes = _particles(session, truths)
    star = out / "poses.star"
    write_tomo_particles(star, listed, "relion5")
    first = next(iter(truths))
    structures = [
        structure(np.load(out / f"{first}_{name}.npy"), BOX, PIXEL_SIZE) for name in ("mol", "mol_other")
    ]
    found, maps = [], []
    diameter = DIAMETERS[given.other]
    for flavour in given.flavours:
        folder = out / f"particles_{flavour}"
        cutting = ("--kind", "2d", "--flavour", flavour, "--box", BOX, "--pixel-size", PIXEL_SIZE)
        cost = user(
            *("export", "subtomograms", session.root, "--output", folder, "--particles", star),
            *(*cutting, "--diameter", diameter),
            log=out / f"export_{flavour}.log",
        )
        costs.append({"command": f"export subtomograms, {flavour}", "CPU (s)": cost.cpu})
        table = folder / _TABLES[flavour]
        of = _classes_of(table, listed, classes, session)
        maps += _maps(table, of, structures, diameter, out / f"maps_{flavour}")
        for seed in range(given.seeds):
            run = out / f"run_{flavour}_{seed}"
            cost = user(
                *("vae", "train", table, "--output", run, "--latent", given.latent, "--overwrite"),
                *("--epochs", given.epochs, "--seed", seed, "--diameter", diameter, "--keep-every", 5),
                log=out / f"train_{flavour}_{seed}.log",
            )
            looked = user("vae", "analyze", run, log=out / f"analyze_{flavour}_{seed}.log")
            costs.append({"command": f"vae train, {flavour}, seed {seed}", "CPU (s)": cost.cpu})
            costs.append({"command": f"vae analyze, {flavour}, seed {seed}", "CPU (s)": looked.cpu})
            scores = _scores(run, of, structures, soft_ball(BOX, diameter / PIXEL_SIZE))
            found.append({"export": flavour, "seed": seed, **scores})
            print(found[-1], flush=True)
    return costs, found, maps


def _processed(out: Path, given: Any) -> tuple[Any, dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The session, the truth of its series, and what that took."""
    costs = []
    if not list(out.glob("TS_*.json")):
        cost = user(
            *("simulate", "tilts", out, "--series", given.series, "--seed", 3, "--workers", 1),
            *("--pixel-size", 4, "--particles", given.particles, "--thickness", 1200),
            *("--specimen", SPECIMEN, "--other-specimen", given.other),
            log=out / "simulate.log",
        )
        costs.append({"command": "simulate tilts", "CPU (s)": cost.cpu})
    if not (out / "session").exists():
        physics = ("--pixel-size", 4, "--voltage", 300, "--cs", 2.7, "--amplitude", 0.07, "--dose", 1.5)
        movies = ("--frames", out / "frames" / "*.tif", "--mdoc", out / "mdoc")
        user("new", out / "session", *movies, *physics, log=out / "new.log")
        cost = user("run", out / "session", "--workers", 1, "--threads", 1, log=out / "run.log")
        costs.append({"command": "run (motion, CTF, alignment, tomograms)", "CPU (s)": cost.cpu})
    session = weft.open(out / "session")
    truths = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("TS_*.json"))}
    return session, {series.name: truths[series.name] for series in session.series.values()}, costs


def _particles(session: Any, truths: dict[str, dict[str, Any]]) -> tuple[TomoParticles, Array]:
    """The true poses where the alignment has the specimen, and the particles' classes."""
    listed = join_particles([poses(session[name], truth, exact=False) for name, truth in truths.items()])
    return replace(listed, extra={}), np.concatenate([truth["classes"] for truth in truths.values()])


def _classes_of(table: Path, listed: TomoParticles, classes: Array, session: Any) -> Array:
    """Of the exported particles, by where they are; −1 for none."""
    exported = read_tilt_particles(table)
    found = np.full(len(exported), -1)
    for name in dict.fromkeys(exported.tomogram):
        mine = np.array([other == name for other in exported.tomogram])
        theirs = np.array([other == name.removesuffix(".tomostar") for other in listed.tomogram])
        place = listed.xyz[theirs]
        if exported.place_origin == "corner":
            place = place + 0.5 * np.array(session[name.removesuffix(".tomostar")].volume_size)
        apart = np.linalg.norm(exported.place[mine][:, None] - place, axis=-1)
        worst = apart.min(1).max()
        if worst > 2.0 * PIXEL_SIZE:
            raise RuntimeError(f"{table}: a particle is {worst:.1f} Å from where it was asked for")
        found[mine] = classes[theirs][apart.argmin(1)]
    return found


def _scores(run: Path, of: Array, structures: list[Array], mask: Array) -> dict[str, Any]:
    """How well the latent coordinates tell the classes, what is decoded, and what the analysis says."""
    latent, opened = np.load(run / "latent.npz"), open_run(run)
    names = opened.particles().particle
    classes = of[[names.index(name) for name in latent["particle"]]]
    analysis = json.loads((run / "analysis" / "analysis.json").read_text())
    last = json.loads((run / "history.jsonl").read_text().splitlines()[-1])
    mu = latent["mu"]
    volumes = opened.volumes(np.stack([mu[classes == k].mean(0) for k in range(2)]))
    fsc = [[mean_fsc(volume, true, mask) for true in structures] for volume in volumes]
    return {
        "particles": len(mu),
        "ARI": adjusted_rand(two_means(mu), classes),
        "AUC": linear_auc(mu, classes),
        "reconstruction loss": last["reconstruction"],
        "clusters in the report": analysis["structure"]["clusters"],
        "decoded means, own FSC": min(fsc[0][0], fsc[1][1]),
        "other": max(fsc[0][1], fsc[1][0]),
    }


def _maps(
    table: Path, of: Array, structures: list[Array], diameter: float, folder: Path
) -> list[dict[str, Any]]:
    """Each true class by `weft backproject`, beside both true structures."""
    folder.mkdir(exist_ok=True)
    mask, rows = soft_ball(BOX, diameter / PIXEL_SIZE), []
    for k in range(2):
        chosen = folder / f"class_{k}.txt"
        chosen.write_text("\n".join(map(str, np.flatnonzero(of == k))) + "\n")
        path = folder / f"class_{k}.mrc"
        user("backproject", table, "--output", path, "--particles", chosen, log=folder / f"class_{k}.log")
        found = mrc.read(path)[0]
        same, other = (shell_fsc(found, true, mask) for true in (structures[k], structures[1 - k]))
        flavour = table.parent.name.removeprefix("particles_")
        row = {"export": flavour, "class": k, "particles": int((of == k).sum())}
        for shell in SHELLS:
            resolution = f"{BOX * PIXEL_SIZE / shell:.0f} Å"
            row[f"{resolution}, own"] = float(same[shell])
            row[f"{resolution}, other"] = float(other[shell])
        rows.append(row)
    return rows
