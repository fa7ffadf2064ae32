"""The folder of a training as it is after `weft vae analyze`, written without either."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from weft.formats import mrc
from weft.formats.tilt_particles import read_tilt_particles
from weft.heterogeneity.model import NetworkSettings
from weft.heterogeneity.preparation import PreparationSettings
from weft.heterogeneity.training import VAETrainingSettings
from weft.session.heterogeneity.run_folder import RunFacts, VAERun

SIZE = 16


def write_training(
    folder: Path,
    star: Path,
    cluster: np.ndarray | None,
    *,
    trained: np.ndarray | None = None,
    umap: bool = False,
    seed: int = 0,
) -> VAERun:
    """A training of a file's particles; `cluster` is of those that were `trained`, None for no analysis."""
    particles = read_tilt_particles(star)
    chosen = np.arange(len(particles)) if trained is None else trained
    names = [particles.particle[i] for i in chosen]
    run = VAERun(folder)
    run.write_facts(
        RunFacts(
            input=star,
            datadir=None,
            tomograms=None,
            particles=len(names),
            images=particles.images,
            tilts=int(particles.count.max()),
            box=particles.box,
            pixel_size=particles.pixel_size,
            diameter=0.75 * particles.box * particles.pixel_size,
            sign=-1.0,
            homogeneous=False,
            network=NetworkSettings(latent=2),
            training=VAETrainingSettings(epochs=1),
            preparation=PreparationSettings(),
        )
    )
    mu = np.random.default_rng(seed).normal(size=(len(names), 2)).astype(np.float32)
    np.savez(folder / "latents" / "0001.npz", mu=mu, log_var=0 * mu, particle=np.array(names))
    (folder / "models" / "0001.safetensors").touch()
    if cluster is not None:
        write_analysis(run, names, cluster, mu, umap)
    return run


def write_analysis(run: VAERun, names: list[str], cluster: np.ndarray, mu: np.ndarray, umap: bool) -> None:
    folder = run.path / "analysis"
    (folder / "volumes").mkdir(parents=True)
    columns = ["pc1", "pc2", *(["umap1", "umap2"] if umap else [])]
    with (folder / "clusters.csv").open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["particle", "tomogram", "cluster", *columns])
        for name, number, z in zip(names, cluster, mu, strict=True):
            out.writerow([name, "", number, *(f"{v:.6g}" for v in ([*z, *(10 * z)] if umap else z))])
    numbers = sorted(set(cluster.tolist()))
    volumes = [{"file": f"volumes/cluster_{n:02d}.mrc", "series": "cluster"} for n in numbers]
    facts = {"epoch": 1, "volumes": volumes, "settings": {"invert": False}}
    (folder / "analysis.json").write_text(json.dumps(facts))
    at = np.arange(SIZE) - SIZE // 2
    r2 = (at**2)[:, None, None] + (at**2)[:, None] + at**2
    for number, one in zip(numbers, volumes, strict=True):
        blob = np.exp(-r2 / (2.0 * (1.0 + number) ** 2)).astype(np.float32)
        mrc.write(folder / one["file"], blob, 2 * run.pixel_size, sync=False)
