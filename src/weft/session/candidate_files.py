"""Candidates of the searches in ``matching/``: taken from their job files, written for other programs.

A search is never repeated for it: another cut-off, diameter or mask reads the score map again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, FormatError, ItemError, RequestError
from weft.formats import mrc
from weft.formats.tomo_particles import (
    Flavour,
    TomoParticles,
    join_particles,
    read_tomo_particles,
    write_tomo_particles,
)
from weft.matching.candidates import (
    Candidates,
    CandidateSettings,
    SearchStatistics,
    cut_off,
    extract_candidates,
)
from weft.matching.peaks import suppressed
from weft.session.match_job import MatchJob

__all__ = [
    "FOLDER",
    "candidate_file",
    "find_jobs",
    "finished_jobs",
    "job_statistics",
    "merge_files",
    "read_candidates",
    "take_candidates",
    "write_candidates",
    "write_combined",
]

FOLDER = "matching"
_OWN = ("rlnCutOff", "rlnSearchStd", "rlnClassNumber")
_REFINED = ("xyz", "euler", "score", "index")


def finished_jobs(folder: Path) -> dict[Path, MatchJob]:
    """The job files of a folder, and what they hold."""
    found: dict[Path, MatchJob] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = MatchJob.read(path)
        except FormatError:
            continue  # other things that are kept there
    return found


def find_jobs(folder: Path, stem: str | None = None, names: Iterable[str] | None = None) -> list[Path]:
    """The job files of a session's ``matching/`` in which a template took part.

    Parameters
    ----------
    folder : Path
        The session, or the folder with the job files.
    stem : str, optional
        Of the template's file; by default that of all jobs, which must be the same.
    names : iterable of str, optional
        Of these items only.

    Raises
    ------
    RequestError
        There are none, or of several templates, so that one must be named.
    """
    inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    chosen = None if names is None else set(names)
    found = finished_jobs(inside)
    stems = sorted({template.stem for job in found.values() for template in job.templates})
    if not stems:
        raise RequestError(f"{inside} has no finished search: run `weft match` first.")
    if stem is None:
        sets = {tuple(template.stem for template in job.templates) for job in found.values()}
        if len(sets) > 1:
            raise RequestError(f"there are searches with several templates ({', '.join(stems)}): choose one.")
    elif stem not in stems:
        raise RequestError(f"no search used the template {stem!r}; there are {', '.join(stems)}.")
    return [
        path
        for path, job in found.items()
        if (stem is None or any(template.stem == stem for template in job.templates))
        and (chosen is None or job.name in chosen)
    ]


def candidate_file(job_path: Path, job: MatchJob, stem: str) -> Path:
    """Where a search's candidates for a template are: ``ITEM_STEM_candidates.star``.

    What a job file's name has after the item's and the template's, as that of a search with the other hand,
    the candidates' name has too.
    """
    return job_path.with_name(f"{job.name}_{stem}{_suffix(job_path, job)}_candidates.star")


def _suffix(job_path: Path, job: MatchJob) -> str:
    stems = [template.stem for template in job.templates]
    for stem in ("+".join(stems), *stems):  # a search with several is called after all of them
        if job_path.stem.startswith(start := f"{job.name}_{stem}"):
            return job_path.stem.removeprefix(start)
    return ""


def job_statistics(job: MatchJob, path: Path) -> SearchStatistics:
    """What a job says about its scores."""
    try:
        values = {key: float(job.statistics[key]) for key in ("search_space", "mean", "std")}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptError(path, f"its statistics are not complete: {error}") from None
    return SearchStatistics(int(values["search_space"]), values["mean"], values["std"])


def take_candidates(
    job_path: Path,
    settings: CandidateSettings | None = None,
    *,
    mask: Path | None = None,
    refined: bool = True,
) -> Candidates:
    """Take candidates from a finished search, without writing them.

    Parameters
    ----------
    job_path : Path
    settings : CandidateSettings, optional
    mask : Path, optional
        A map of the tomogram, or of the part that was searched: candidates come from where it is above 0.5.
        ``{name}`` in it becomes the item's name.
    refined : bool
        Give refined poses where there are some, not those of the search's grid.

    Raises
    ------
    InputFileError, ItemError
    """
    job = MatchJob.read(job_path)
    if not refined:
        job = replace(job, files={key: file for key, file in job.files.items() if key != "refined"})
    return _take(job, job_path, settings or CandidateSettings(), mask)


def _take(job: MatchJob, path: Path, settings: CandidateSettings, mask: Path | None) -> Candidates:
    scores, angles = (_map(job, path, key) for key in ("scores", "angles"))
    table = _numbers(path.parent / job.rotations)
    if table.ndim != 2 or table.shape[1] != 3:
        raise CorruptError(path.parent / job.rotations, f"it has the shape {table.shape}, not (rotations, 3)")
    found = extract_candidates(
        scores,
        angles,
        table,
        voxel_size=job.voxel_size,
        origin=job.origin,
        statistics=job_statistics(job, path),
        settings=settings,
        diameter=min((t.diameter for t in job.templates if t.diameter > 0.0), default=0.0),
        volume_size=job.volume_size,
        mask=_without_beads(job, None if mask is None else _mask(job, mask), settings.beads),
        template=_map(job, path, "templates") if "templates" in job.files else None,
    )
    if len(found) and found.template.max() >= len(job.templates):
        raise CorruptError(path, f"its map of templates names one that is not among its {len(job.templates)}")
    return _refined(found, job, path)


def _map(job: MatchJob, path: Path, key: str) -> NDArray[Any]:
    """One of the search's maps, mapped into memory."""
    if key not in job.files:
        raise CorruptError(path, f"it names no map of {key}")
    file = path.parent / job.files[key]
    try:
        data, _ = mrc.read(file, mmap=True)
    except FileNotFoundError:
        raise ItemError(f"{file}: the map of {key} is gone; run the search of {job.name} again.") from None
    data = data.reshape((1,) * (3 - data.ndim) + data.shape)
    if data.shape != job.shape:
        raise CorruptError(file, f"it has {data.shape} voxels (z, y, x) where the search had {job.shape}")
    return data


def _mask(job: MatchJob, pattern: Path) -> NDArray[Any]:
    file = Path(str(pattern).replace("{name}", job.name))
    data, _ = mrc.read(file, mmap=True)
    if data.shape == job.shape:
        return data
    start = [round(o / job.voxel_size) for o in reversed(job.origin)]
    full = tuple(round(size / job.voxel_size) for size in reversed(job.volume_size))
    part = tuple(slice(s, s + n) for s, n in zip(start, job.shape, strict=True))
    if data.ndim == 3 and data[part].shape == job.shape and data.shape == full:
        return data[part]
    raise FormatError(
        file,
        f"the mask has {data.shape} voxels (z, y, x), {job.name} has {full} and {job.shape} were searched",
    )


def _without_beads(job: MatchJob, mask: NDArray[Any] | None, leave_out: bool) -> NDArray[Any] | None:
    """Where candidates may lie: not on gold, and not so near to it that both would share voxels."""
    if not job.beads or not leave_out:
        return mask
    allowed = np.ones(job.shape, dtype=bool) if mask is None else np.asarray(mask) > 0.5
    quarter = 0.25 * min(template.diameter for template in job.templates)
    for x, y, z, radius in job.beads:
        centre = (np.array([z, y, x]) - np.array(job.origin[::-1])) / job.voxel_size
        reach = (radius + quarter) / job.voxel_size
        window = tuple(
            slice(max(0, int(np.ceil(c - reach))), max(0, int(np.floor(c + reach)) + 1)) for c in centre
        )
        axes = [np.arange(part.start, min(part.stop, n)) for part, n in zip(window, job.shape, strict=True)]
        if not all(map(len, axes)):
            continue
        squares = [(axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)]
        away = squares[0][:, None, None] + squares[1][:, None] + squares[2] > reach * reach
        allowed[window] &= away
    return allowed


def _numbers(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise FormatError(path, f"it cannot be read as an array ({error})") from None


def _refined(found: Candidates, job: MatchJob, path: Path) -> Candidates:
    """Refined poses for those whose maximum was refined; scores, and the order by them, stay the grid's."""
    if "refined" not in job.files or not len(found):
        return found
    file = path.parent / job.files["refined"]
    try:
        with np.load(file, allow_pickle=False) as saved:
            xyz, euler, score, index = (np.asarray(saved[key]) for key in _REFINED)
    except (OSError, ValueError, KeyError) as error:
        raise CorruptError(file, f"it holds no refined candidates ({error})") from None
    if not len(xyz) == len(euler) == len(score) == len(index):
        raise CorruptError(file, "its arrays are of unequal length")
    voxels = np.rint((found.xyz - np.asarray(job.origin)) / job.voxel_size).astype(np.int64)
    flat = np.ravel_multi_index(tuple(voxels[:, ::-1].T), job.shape)
    row = {int(place): i for i, place in enumerate(index)}
    pairs = [(i, row[int(place)]) for i, place in enumerate(flat) if int(place) in row]
    if not pairs:
        return found
    here, there = np.array(pairs).T
    new_xyz, new_euler = found.xyz.copy(), found.euler.copy()
    new_xyz[here], new_euler[here] = xyz[there], euler[there]
    return replace(found, xyz=new_xyz, euler=new_euler)


def _particles(job: MatchJob, found: Candidates, lowest: float, std: float) -> TomoParticles:
    n = len(found)
    extra: dict[str, Any] = {"rlnCutOff": np.full(n, lowest), "rlnSearchStd": np.full(n, std)}
    if len(job.templates) > 1:
        extra["rlnClassNumber"] = found.template + 1
    return TomoParticles(
        [job.name] * n, found.xyz - 0.5 * np.asarray(job.volume_size), found.euler, found.score, extra
    )


def write_candidates(
    job_path: Path,
    settings: CandidateSettings | None = None,
    *,
    mask: Path | None = None,
    flavour: Flavour = "relion5",
) -> Candidates:
    """Take candidates from a finished search and write a file for each of its templates.

    ``ITEM_STEM_candidates.star`` beside the job file; for Dynamo a ``.tbl`` and a ``.doc`` beside that.

    Returns
    -------
    Candidates
        Of all templates.

    Raises
    ------
    InputFileError, ItemError
    RequestError
        The flavour needs the tilt series' pixel size, which the job does not know.
    """
    settings = settings or CandidateSettings()
    job = MatchJob.read(job_path)
    found = _take(job, job_path, settings, mask)
    statistics = job_statistics(job, job_path)
    listed = _particles(job, found, cut_off(statistics, settings), statistics.std)
    files = dict(job.files)
    for number, template in enumerate(job.templates):
        path = candidate_file(job_path, job, template.stem)
        _write(path, listed.select(found.template == number), flavour, [job])
        files["candidates" if number == 0 else f"candidates {template.stem}"] = path.name
    if files != dict(job.files):
        replace(job, files=files).write(job_path)
    return found


def _write(path: Path, particles: TomoParticles, flavour: Flavour, jobs: Sequence[MatchJob]) -> None:
    images = flavour == "relion4"
    pixel = {job.name: job.image_pixel_size if images else job.voxel_size for job in jobs}
    unknown = next((name for name in pixel if not pixel[name] > 0.0), None)
    if unknown is not None:
        raise RequestError(f"{unknown}: RELION 4 counts pixels of the tilt series, whose size is not known.")
    size = {job.name: job.volume_size for job in jobs}
    tomograms = {job.name: Path(job.tomogram).name for job in jobs}
    extra = None
    if flavour == "relion3":
        extra = {"rlnMicrographName": [tomograms[name] for name in particles.tomogram]}
    star: Flavour = "relion5" if flavour == "dynamo" else flavour
    write_tomo_particles(path, particles, star, pixel_size=pixel, volume_size=size, extra=extra)
    if flavour == "dynamo":
        table = path.with_suffix(".tbl")
        write_tomo_particles(table, particles, flavour, pixel_size=pixel, volume_size=size)


def read_candidates(job_path: Path, stem: str | None = None) -> TomoParticles:
    """What has been written for a job: of one template, or of all together."""
    job = MatchJob.read(job_path)
    stems = [template.stem for template in job.templates if stem is None or template.stem == stem]
    files = [candidate_file(job_path, job, one) for one in stems]
    return join_particles([read_tomo_particles(file) for file in files if file.is_file()])


def write_combined(
    folder: Path, stem: str, flavour: Flavour = "relion5"
) -> tuple[Path, TomoParticles] | None:
    """Join the candidates of all items for one template: ``STEM_candidates.star``; None if there are none."""
    inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    jobs: dict[str, MatchJob] = {}
    parts = []
    for path in find_jobs(inside, stem):
        job = MatchJob.read(path)
        file = candidate_file(path, job, stem)
        if file.is_file() and job.name not in jobs and not _suffix(path, job):
            jobs[job.name] = job
            parts.append(read_tomo_particles(file))
    if not parts:
        return None
    joined = join_particles([part for part in parts if len(part)])
    # others are of the flavour that an earlier call wrote
    joined = replace(joined, extra={k: v for k, v in joined.extra.items() if k in _OWN})
    path = inside / f"{stem}_candidates.star"
    _write(path, joined, flavour, list(jobs.values()))
    return path, joined


def merge_files(paths: Sequence[Path], distance: float) -> TomoParticles:
    """One list of several files; of two nearer than `distance` (Å) in a tomogram the better score stays.

    Raises
    ------
    FormatError
        Files that say nothing about the tomogram's centre, as RELION 5's and Weft's do.
    """
    joined = join_particles([read_tomo_particles(path) for path in paths])
    kept: list[int] = []
    names = np.array(joined.tomogram)
    score = np.where(np.isnan(joined.score), -np.inf, joined.score)
    for name in dict.fromkeys(joined.tomogram):
        here = np.flatnonzero(names == name)
        ranked = here[np.argsort(-score[here], kind="stable")]
        kept += ranked[suppressed(joined.xyz[ranked], distance)].tolist()
    return joined.select(kept) if kept else joined
