"""Everything that `weft vae analyze` finds in a latent space, before any volume is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weft.errors import RequestError, WeftError
from weft.heterogeneity.advice import kl_by_dimension
from weft.heterogeneity.clusters import Clusters, by_size, k_means, representatives
from weft.heterogeneity.components import PrincipalComponents, principal_components
from weft.heterogeneity.convergence import Movement, latent_movement
from weft.heterogeneity.correlates import Correlate, correlates
from weft.heterogeneity.neighbours import local_density
from weft.heterogeneity.structure import Structure, find_structure
from weft.session.heterogeneity.analysis_settings import AnalysisSettings

if TYPE_CHECKING:
    from weft.formats.tilt_particles import TiltParticles
    from weft.session.heterogeneity.run_folder import VAERun

__all__ = ["Landscape", "explore", "kept_epochs"]

Array = NDArray[np.float64]

#: UMAP's own default, which shows local structure.
_UMAP_NEIGHBOURS = 15


@dataclass(frozen=True)
class Landscape:
    """The latent space of a training.

    Attributes
    ----------
    epoch : int
        That was looked at.
    particle, tomogram : (n,) lists of str
        `tomogram` is "" where it is not known.
    latent : (n, d)
        Means of the posteriors.
    kl : (d,)
        Nats a particle.
    components : PrincipalComponents
    scores : (n, d)
    structure : Structure
        Whether there are clusters.
    clusters : Clusters
        Those that are shown: the structure's, or as many as were asked for.
    asked : int
        Clusters that were asked for; 0 is none.
    representative : (k,) int64
        Particle nearest to each centre.
    density : (n,)
        How crowded it is at each particle, median 1.
    umap : (n, 2) or None
    correlates : list of Correlate
    movement : list of Movement
    notes : list of str
        What could not be looked at.
    """

    epoch: int
    particle: list[str]
    tomogram: list[str]
    latent: Array
    kl: Array
    components: PrincipalComponents
    scores: Array
    structure: Structure
    clusters: Clusters
    asked: int
    representative: NDArray[np.int64]
    density: Array
    umap: Array | None
    correlates: list[Correlate] = field(default_factory=list)
    movement: list[Movement] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> NDArray[np.int64]:
        """(n,) Cluster of every particle, from 0."""
        return self.clusters.label

    def composition(self) -> tuple[list[str], NDArray[np.int64]]:
        """Tomograms (t) by name, and how many particles of each cluster each has (t, k); empty if unknown."""
        if not any(self.tomogram):
            return [], np.zeros((0, self.clusters.count), np.int64)
        names, index = np.unique(np.asarray(self.tomogram), return_inverse=True)
        k = self.clusters.count
        table = np.bincount(index * k + self.label, minlength=len(names) * k).reshape(len(names), k)
        return [str(name) for name in names], table.astype(np.int64)


def explore(run: VAERun, settings: AnalysisSettings) -> Landscape:
    """Read the latent coordinates of a training and say what is in them.

    Parameters
    ----------
    run : VAERun
    settings : AnalysisSettings

    Raises
    ------
    RequestError
        An epoch that was not kept, more clusters than particles, or no UMAP installed.
    """
    if settings.umap and importlib.util.find_spec("umap") is None:
        raise RequestError("--umap needs the package umap-learn: `pip install umap-learn`, or leave it out.")
    epoch = settings.epoch or max(run.epochs, default=0)
    # the last that is kept, also of a training that is still going on
    latent = run.latent(epoch or None)
    points = np.asarray(latent.mu, np.float64)
    names = [str(name) for name in latent.particle]
    if not np.isfinite(points).all():
        raise RequestError(f"{run.path}: latent coordinates are not finite; the training has gone wrong.")
    if settings.clusters > len(points):
        raise RequestError(f"--clusters {settings.clusters}: there are only {len(points)} particles.")
    structure = find_structure(points, seed=settings.seed)
    clusters = structure.clusters
    if settings.clusters:
        clusters = by_size(k_means(points, settings.clusters, seed=settings.seed))
    components = principal_components(points)
    scores = components.scores(points)
    plane = _umap(points, settings.seed) if settings.umap else None
    known, notes = _known(run, names)
    found = Landscape(
        epoch=epoch,
        particle=names,
        tomogram=[""] * len(names) if known is None else known.tomogram,
        latent=points,
        kl=kl_by_dimension(latent.mu, latent.log_var),
        components=components,
        scores=scores,
        structure=structure,
        clusters=clusters,
        asked=settings.clusters,
        representative=representatives(points, clusters),
        density=local_density(points),
        umap=plane,
        # clusters that k-means alone does not find cannot be followed by it
        movement=_movement(run, settings, 1 if structure.scaled else structure.clusters.count),
        notes=notes,
    )
    if known is not None:
        found.correlates.extend(_correlates(found, known))
    return found


def kept_epochs(run: VAERun, settings: AnalysisSettings) -> list[int]:
    """The epochs that are compared, ascending: the last ones up to the one that is looked at."""
    last = settings.epoch or max(run.epochs, default=0)
    before = sorted(epoch for epoch in run.epochs if epoch <= last)
    return before[-settings.epochs :] if settings.epochs > 1 else []


def _movement(run: VAERun, settings: AnalysisSettings, clusters: int) -> list[Movement]:
    epochs = kept_epochs(run, settings)
    out: list[Movement] = []
    before: Array | None = None
    for i, epoch in enumerate(epochs):
        after = np.asarray(run.latent(epoch).mu, np.float64)
        if before is not None:
            pair = (epochs[i - 1], epoch)
            out.append(latent_movement(before, after, pair, clusters, seed=settings.seed))
        before = after
    return out


def _known(run: VAERun, names: Sequence[str]) -> tuple[TiltParticles | None, list[str]]:
    """The particles of the input in the latent's order; a note where it cannot be read."""
    try:
        particles = run.particles()
    except (WeftError, OSError) as error:
        return None, [
            f"The particles' file cannot be read ({' '.join(str(error).split())}), so tomograms and columns "
            "are not compared with the landscape."
        ]
    if particles.particle == list(names):
        return particles, []
    place = {name: i for i, name in enumerate(particles.particle)}
    missing = [name for name in names if name not in place]
    if missing:
        return None, [
            f"{particles.path} has changed since the training: {len(missing)} particles, {missing[0]} among "
            "them, are not in it, so tomograms and columns are not compared with the landscape."
        ]
    return particles.select(np.array([place[name] for name in names], np.int64)), []


def _correlates(found: Landscape, known: TiltParticles) -> list[Correlate]:
    coordinates = {
        f"pc{i + 1}": found.scores[:, i]
        for i in range(found.scores.shape[1])
        if found.components.variance[i] > 1e-6 * max(found.components.variance[0], 1e-300)
    }
    if found.umap is not None:
        coordinates |= {f"umap{i + 1}": found.umap[:, i] for i in range(2)}
    numbers = {label: np.asarray(column) for label, column in known.columns.items()}
    numbers |= {
        "number of tilt images": np.diff(known.start),
        "place along x": known.place[:, 0],
        "place along y": known.place[:, 1],
        "place along z": known.place[:, 2],
    }
    if known.has_ctf and known.images:
        mean = 0.5 * (known.defocus_u + known.defocus_v)
        numbers["mean defocus"] = np.add.reduceat(mean, known.start[:-1]) / np.diff(known.start)
    groups: dict[str, Sequence[str]] = {"tomogram": known.tomogram}
    if len(set(known.half.tolist())) > 1:
        groups["half-set"] = [str(half) for half in known.half]
    return correlates(coordinates, numbers, groups)


def _umap(points: Array, seed: int) -> Array:
    """McInnes, Healy & Melville 2018, arXiv:1802.03426."""
    umap = importlib.import_module("umap")
    neighbours = min(_UMAP_NEIGHBOURS, len(points) - 1)
    return np.asarray(
        umap.UMAP(n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(points), np.float64
    )
