"""`weft vae select`: particles by cluster, lasso, label or likeness, as a STAR file like the input's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats.tilt_particles import TiltParticles, write_tilt_particles
from weft.heterogeneity.lasso import inside_lasso
from weft.session.heterogeneity.analysis_table import AnalysisTable, is_analysed, read_analysis
from weft.session.heterogeneity.choice import choose_particles
from weft.session.heterogeneity.labels import with_label

if TYPE_CHECKING:
    from weft.session.heterogeneity.run_folder import Latent, VAERun

__all__ = ["Chosen", "Wanted", "Written", "choose", "write_selection"]

Mask = NDArray[np.bool_]

#: Particles that are named in a message.
_NAMED = 3


@dataclass(frozen=True)
class Wanted:
    """What particles must be; all that is said must hold.

    Attributes
    ----------
    cluster : tuple of int
        Any of these, from 1.
    lasso : str
        Corners, ``x1,y1 x2,y2 x3,y3 ...``, in the plane of `axes`.
    axes : str
        Two of ``pc1``, ``pc2`` ..., ``umap1``, ``umap2``, and the latent space's own ``z0``, ``z1`` ...
    label : tuple of str
        ``FILE:column=value``, or ``column=value`` of the input (see `weft.session.heterogeneity.labels`).
    names, exclude : Path or None
        Files of names or indices: only these, and not these.
    near : str
        A particle's name ...
    count : int
        ... and so many that are nearest to it in latent space, itself among them.
    invert : bool
        Take all others instead.
    """

    cluster: tuple[int, ...] = ()
    lasso: str = ""
    axes: str = "pc1,pc2"
    label: tuple[str, ...] = ()
    names: Path | None = None
    exclude: Path | None = None
    near: str = ""
    count: int = 0
    invert: bool = False


@dataclass(frozen=True)
class Chosen:
    """A selection.

    Attributes
    ----------
    particles : TiltParticles
        All of the input.
    keep : (k) int64
        Indices of those that were chosen.
    known : (p) bool
        Those that have a place in latent space; only they can be chosen.
    notes : list of str
    """

    particles: TiltParticles
    keep: NDArray[np.int64]
    known: Mask
    notes: list[str] = field(default_factory=list)

    def tomograms(self) -> dict[str, tuple[int, int]]:
        """Of each tomogram, how many of how many were chosen; empty where tomograms are not known."""
        names = self.particles.tomogram
        if not any(names):
            return {}
        chosen = Counter(names[i] for i in self.keep.tolist())
        return {name: (chosen[name], count) for name, count in Counter(names).items()}


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    files : list of Path
    chosen : Chosen
    """

    files: list[Path]
    chosen: Chosen


class _Landscape:
    """A training as the criteria ask for it: each part is read when the first of them needs it."""

    def __init__(self, run: VAERun) -> None:
        self.run = run
        self.particles = run.particles()
        self._table: AnalysisTable | None = None
        self._latent: Latent | None = None

    @property
    def table(self) -> AnalysisTable:
        if self._table is None:
            self._table = read_analysis(self.run)
        return self._table

    @property
    def latent(self) -> Latent:
        """At the epoch that was analysed, so that all criteria speak of one landscape."""
        if self._latent is None:
            epoch = max(self.run.epochs, default=0)
            if is_analysed(self.run):
                epoch = self.table.epoch
            self._latent = self.run.latent(epoch or None)
        return self._latent

    def places(self, names: list[str], source: str) -> NDArray[np.int64]:
        """Index of each among the input's particles."""
        at = {name: i for i, name in enumerate(self.particles.particle)}
        missing = [name for name in names if name not in at]
        if missing:
            raise RequestError(
                f"{self.particles.path} has changed since {source}: {len(missing)} particles, "
                f"{', '.join(missing[:_NAMED])} among them, are not in it."
            )
        return np.array([at[name] for name in names], np.int64)

    def mask(self, names: list[str], which: Mask, source: str) -> Mask:
        """The same, of the input's particles."""
        out = np.zeros(len(self.particles), np.bool_)
        out[self.places(names, source)[which]] = True
        return out

    def coordinates(self, axis: str) -> tuple[list[str], NDArray[np.float64]]:
        """Along one axis, and of which particles."""
        name = axis.strip().lower()
        if name.startswith("z") and name[1:].isdecimal():
            latent = self.latent
            if int(name[1:]) >= latent.mu.shape[1]:
                raise RequestError(f"--axes: latent coordinates go from z0 to z{latent.mu.shape[1] - 1}.")
            return latent.particle, latent.mu[:, int(name[1:])].astype(np.float64)
        columns = self.table.columns
        if name in columns:
            return self.table.particle, columns[name]
        if name in ("umap1", "umap2"):
            raise RequestError(
                f"--axes: {self.run.path} was analysed without UMAP; `weft vae analyze {self.run.path} "
                "--umap` adds it."
            )
        raise RequestError(f"--axes: there is no {axis!r}; there are {', '.join(columns)}, z0, z1 ...")


def choose(run: VAERun, wanted: Wanted) -> Chosen:
    """The particles that are as wanted.

    Raises
    ------
    RequestError
        Nothing is said, no analysis, an unknown cluster, axis, particle or column, a lasso without inside.
    """
    land = _Landscape(run)
    criteria: list[tuple[bool, Callable[[], Mask]]] = [
        (bool(wanted.cluster), lambda: _by_cluster(land, wanted.cluster)),
        (bool(wanted.lasso), lambda: _by_lasso(land, wanted.lasso, wanted.axes)),
        (bool(wanted.near), lambda: _by_likeness(land, wanted.near, wanted.count)),
        (wanted.names is not None, lambda: _by_names(land, wanted.names)),
        (wanted.exclude is not None, lambda: ~_by_names(land, wanted.exclude)),
        *((True, lambda text=text: with_label(land.particles, text)) for text in wanted.label),
    ]
    if wanted.count and not wanted.near:
        raise RequestError("--count: say with --near PARTICLE to which they are nearest.")
    asked = [make for given, make in criteria if given]
    if not asked:
        raise RequestError("say which particles: --cluster, --lasso, --label, --names, --exclude or --near.")
    keep = np.logical_and.reduce([make() for make in asked])
    if wanted.invert:
        keep = ~keep
    names = land.latent.particle
    known = land.mask(names, np.ones(len(names), np.bool_), "the training")
    return Chosen(land.particles, np.flatnonzero(keep & known), known, _notes(land, known))


def write_selection(run: VAERun, wanted: Wanted, output: str | Path) -> Written:
    """Write the particles that are as wanted, their rows unchanged; an optimisation set, too.

    Parameters
    ----------
    run : VAERun
    wanted : Wanted
    output : path-like
        A STAR file; a name that ends in ``optimisation_set.star`` is the set's.

    Raises
    ------
    RequestError
        As `choose` does; or `output` is the training's own input.
    ItemError
        No particle is as wanted; nothing was written.
    """
    output = Path(output)
    if output.suffix != ".star":
        raise RequestError(f"--output {output}: name a file that ends in .star.")
    chosen = choose(run, wanted)
    particles = chosen.particles
    files = _files(output, particles)
    own = {Path(run.facts.input), particles.path, particles.tomograms or particles.path}
    for file in files:
        if file.resolve() in {path.resolve() for path in own}:
            raise RequestError(f"--output {output}: {file} is what the training was made of; name another.")
    if len(chosen.keep) == 0:
        raise ItemError(
            f"{run.path}: none of its {int(chosen.known.sum())} particles is as asked; nothing was written."
        )
    write_tilt_particles(output, particles, chosen.keep)
    return Written(files, chosen)


def _files(output: Path, particles: TiltParticles) -> list[Path]:
    """What `write_tilt_particles` makes of a name: the particles' file, and the optimisation set's."""
    both = output.with_name(f"{output.stem}_optimisation_set.star")
    if output.stem.endswith("optimisation_set"):
        stem = output.stem.removesuffix("optimisation_set").rstrip("_-.")
        output, both = output.with_name(f"{stem or 'particles'}.star"), output
    return [output] if particles.tomograms is None else [output, both]


def _notes(land: _Landscape, known: Mask) -> list[str]:
    notes = []
    out = int((~known).sum())
    if out:
        word = "particle has" if out == 1 else "particles have"
        notes.append(f"{out} {word} no place in the latent space and cannot be chosen")
    last = max(land.run.epochs, default=0)
    if is_analysed(land.run) and land.table.epoch != last:
        notes.append(
            f"the analysis is of epoch {land.table.epoch}, the training has gone on to {last}; "
            f"`weft vae analyze {land.run.path}` looks at that"
        )
    return notes


def _by_cluster(land: _Landscape, wanted: tuple[int, ...]) -> Mask:
    table = land.table
    unknown = [str(number) for number in wanted if number not in table.clusters]
    if unknown:
        there = ", ".join(map(str, table.clusters))
        raise RequestError(f"--cluster {','.join(unknown)}: {land.run.path} has the clusters {there}.")
    return land.mask(table.particle, np.isin(table.cluster, wanted), "the analysis")


def _by_lasso(land: _Landscape, text: str, axes: str) -> Mask:
    pair = axes.split(",")
    if len(pair) != 2:
        raise RequestError(f"--axes {axes}: name two, as in pc1,pc2.")
    (names, x), (others, y) = (land.coordinates(axis) for axis in pair)
    if names != others:
        # an analysis lists particles as the latent space does, unless either was changed by hand
        raise RequestError(f"--axes {axes}: the analysis is of other particles; make it again.")
    try:
        inside = inside_lasso(np.stack([x, y], axis=1), _corners(text))
    except ValueError as error:
        raise RequestError(f'--lasso: {error}. Write corners as "x1,y1 x2,y2 x3,y3".') from None
    return land.mask(names, inside, "the training")


def _corners(text: str) -> NDArray[np.float64]:
    corners = [corner.split(",") for corner in text.replace(";", " ").split()]
    if any(len(corner) != 2 for corner in corners):
        bad = next(",".join(corner) for corner in corners if len(corner) != 2)
        raise ValueError(f"{bad!r} is no corner")
    return np.array([[float(value) for value in corner] for corner in corners], np.float64).reshape(-1, 2)


def _by_likeness(land: _Landscape, near: str, count: int) -> Mask:
    if count < 1:
        raise RequestError("--near: say with --count how many particles.")
    latent = land.latent
    if near not in latent.particle:
        raise RequestError(
            f"--near {near}: {land.run.path} has no such particle; one of them is {latent.particle[0]}."
        )
    z = latent.mu.astype(np.float64)
    distance = np.linalg.norm(z - z[latent.particle.index(near)], axis=1)
    which = np.zeros(len(z), np.bool_)
    which[np.argsort(distance, kind="stable")[:count]] = True
    return land.mask(latent.particle, which, "the training")


def _by_names(land: _Landscape, path: Path | None) -> Mask:
    assert path is not None
    out = np.zeros(len(land.particles), np.bool_)
    out[choose_particles(path, land.particles)] = True
    return out
