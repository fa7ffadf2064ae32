"""Template matching of tomograms as files: templates and masks in, score maps and a job file out.

The same for a session's series and for any tomogram: what differs is where the
:class:`~weft.session.tomogram_source.TomogramSource` comes from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.formats import mrc
from weft.matching.binning import binned_template, binned_tomogram
from weft.matching.candidates import CandidateSettings, extract_candidates
from weft.matching.matcher import Matcher
from weft.matching.refinement import refine_places
from weft.matching.search import SearchResult, run_search
from weft.session.match_inputs import MatchingSettings, matcher_of
from weft.session.match_job import MatchJob, MatchTemplate
from weft.session.match_keeper import PartKeeper, save_array, save_arrays
from weft.session.step import inside
from weft.session.tomogram_source import TomogramSource

__all__ = ["job_name", "match_tomogram"]


def job_name(name: str, templates: Sequence[str]) -> str:
    """What the files of a search start with: ``ITEM_STEM``."""
    return f"{name}_{'+'.join(Path(template).stem for template in templates)}"


def match_tomogram(
    source: TomogramSource,
    settings: MatchingSettings,
    folder: Path,
    *,
    root: Path,
    device: str = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> tuple[Path, MatchJob]:
    """Search a tomogram and write what was found.

    Writes ``ITEM_STEM_scores.mrc``, ``_angles.mrc`` (rows of ``_rotations.npy``), with several templates
    ``_templates.mrc``, ``_refined.npz`` and the job file ``ITEM_STEM.json``. A search that was interrupted
    goes on from what it has kept in ``.partial/``.

    Parameters
    ----------
    source : TomogramSource
    settings : MatchingSettings
    folder : Path
        Where to write.
    root : Path
        From which relative paths in the settings count.
    device : str
    progress : callable, optional
        Takes the fraction that is done and the seconds that are left.

    Returns
    -------
    Path, MatchJob
    """
    matcher = matcher_of(source, settings, root, device)
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name(source.name, settings.template)
    allowed = _allowed(source, settings, root)
    keeper = PartKeeper.of(folder / ".partial" / name, source, settings, root)
    fine = matcher
    if settings.binning > 1:
        matcher, fine = _binned(matcher, settings.binning, keeper.folder)
        allowed = None if allowed is None else _every(allowed, settings.binning, matcher.tomogram.shape)
    start, shape = matcher.plan.region
    voxel = matcher.voxel_size
    x, y, z = (o + s * voxel for o, s in zip(matcher.origin, start[::-1], strict=True))
    origin = (x, y, z)
    scores = np.memmap(keeper.folder / "scores.tmp", dtype=np.float32, mode="w+", shape=shape)
    numbers = np.memmap(keeper.folder / "numbers.tmp", dtype=np.int32, mode="w+", shape=shape)
    found = run_search(
        matcher, allowed=allowed, scores=scores, numbers=numbers, keeper=keeper, progress=progress
    )
    files = {"scores": f"{name}_scores.mrc", "angles": f"{name}_angles.mrc"}
    mrc.write_stack(folder / files["scores"], found.scores, voxel, volume=True, origin=origin)
    # every number of an orientation is exact as a float32: there are fewer than 2²⁴
    mrc.write_stack(folder / files["angles"], found.numbers, voxel, volume=True, origin=origin)
    if len(settings.template) > 1:
        files["templates"] = f"{name}_templates.mrc"
        owner = found.owner.numpy().astype(np.int8)
        sections = (owner[section] for section in found.numbers)
        path = folder / files["templates"]
        mrc.write_stack(path, sections, voxel, dtype=np.int8, volume=True, origin=origin)
    rotations = f"{name}_rotations.npy"
    save_array(folder / rotations, found.rotations.numpy().astype(np.float32))
    if settings.refine:
        refined = _refine(matcher, fine, found, settings)
        if refined is not None:
            files["refined"] = f"{name}_refined.npz"
            save_arrays(folder / files["refined"], refined)
    steps = [round(step, 4) for step in found.steps]
    facts = {"angular_step": steps, "parts": found.parts, "seconds": round(found.seconds, 2)}
    job = MatchJob(
        name=source.name,
        tomogram=os.path.relpath(source.path, folder),
        voxel_size=voxel,
        shape=shape,
        origin=origin,
        volume_size=_triple(source.geometry.volume_size.tolist()),
        image_pixel_size=source.image_pixel_size,
        templates=[
            MatchTemplate(
                str(inside(root, path)),
                str(inside(root, settings.mask)) if settings.mask else "",
                settings.particle_diameter,
                settings.symmetry,
            )
            for path in settings.template
        ],
        rotations=rotations,
        statistics=asdict(found.statistics)
        | {
            "rotations": len(found.rotations),
            "seconds": found.seconds,
            "projected": found.projected,
        },
        files=files,
        settings=settings.model_dump(mode="json") | {"found": facts},
        hand=round(float(matcher.imaging.geometry.hand)) if matcher.imaging is not None else 0,
        beads=[_quad(bead) for bead in source.beads],
    )
    job.write(folder / f"{name}.json")
    keeper.clear()
    return folder / f"{name}.json", job


def _binned(matcher: Matcher, factor: int, folder: Path) -> tuple[Matcher, Matcher]:
    """A matcher at voxels `factor` times as large, and the given one with the same orientations."""
    shape = tuple(n // factor for n in matcher.tomogram.shape)
    room = np.memmap(folder / "binned.tmp", dtype=np.float32, mode="w+", shape=shape)
    settings = matcher.settings
    # what the step is at full resolution, it is so many times as much at the lower one
    step = factor * matcher.plan.steps[0]
    coarse = settings.model_copy(
        update={
            "angular_step": step,
            "low_pass": settings.low_pass if settings.low_pass > 2 * factor * matcher.voxel_size else 0.0,
        }
    )
    shift = 0.5 * (factor - 1) * matcher.voxel_size
    x, y, z = (o + shift for o in matcher.origin)
    small = Matcher.of(
        binned_tomogram(matcher.tomogram, factor, room),
        factor * matcher.voxel_size,
        [binned_template(template, factor) for template in matcher.templates],
        matcher.imaging,
        coarse,
        origin=(x, y, z),
        device=matcher.device,
    )
    plan = replace(
        matcher.plan, steps=small.plan.steps, rotations=small.plan.rotations, owner=small.plan.owner
    )
    return small, replace(matcher, plan=plan)


def _every(allowed: NDArray[np.bool_], factor: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The middle voxel of every cube."""
    part = tuple(slice(factor // 2, n * factor, factor) for n in shape)
    return allowed[part]


def _refine(
    matcher: Matcher, fine: Matcher, found: SearchResult, settings: MatchingSettings
) -> dict[str, NDArray[Any]] | None:
    """Poses of the best places beyond the grid, and which voxels of the score map they come from."""
    peaks = extract_candidates(
        found.scores,
        found.numbers,
        found.rotations.numpy(),
        voxel_size=matcher.voxel_size,
        origin=(0.0, 0.0, 0.0),
        statistics=found.statistics,
        settings=CandidateSettings(
            number=settings.refine, particle_diameter=settings.particle_diameter, margin=0.0
        ),
    )
    if not len(peaks):
        return None
    voxels = np.rint(peaks.xyz[:, ::-1] / matcher.voxel_size).astype(np.int64)
    index = np.ravel_multi_index(tuple(voxels.T), found.scores.shape)
    numbers = np.asarray(found.numbers).reshape(-1)[index]
    places = (voxels + np.array(found.start)) * settings.binning + settings.binning // 2
    coarse = matcher if settings.binning > 1 else None
    refined = refine_places(fine, places, numbers, around=settings.binning + 1, coarse=coarse)
    xyz = refined.xyz * fine.voxel_size + np.array(fine.origin)
    return {"xyz": xyz, "euler": refined.euler, "score": refined.score, "index": index}


def _allowed(source: TomogramSource, settings: MatchingSettings, root: Path) -> NDArray[np.bool_] | None:
    if not settings.tomogram_mask:
        return None
    path = inside(root, settings.tomogram_mask.replace("{name}", source.name))
    if not path.is_file():
        raise ItemError(f"{source.name}: there is no tomogram mask {path}")
    mask, _ = mrc.read(path, mmap=True)
    if mask.shape != source.shape:
        here, there = ("×".join(map(str, shape[::-1])) for shape in (mask.shape, source.shape))
        raise ItemError(f"{path.name} has {here} voxels and the tomogram of {source.name} {there}")
    return np.asarray(np.asarray(mask) > 0.5)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return (float(x), float(y), float(z))


def _quad(values: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, z, radius = values
    return (float(x), float(y), float(z), float(radius))
