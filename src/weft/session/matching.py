"""Template matching of tomograms as files: templates and masks in, score maps and a job file out.

The same for a session's series and for any tomogram: what differs is where the
:class:`~weft.session.tomogram_source.TomogramSource` comes from.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.matching.binning import binned_template, binned_tomogram
from weft.matching.candidates import CandidateSettings, SearchStatistics, extract_candidates
from weft.matching.kernel import Found
from weft.matching.mask import MaskSettings, create_mask
from weft.matching.matcher import Matcher
from weft.matching.plan import SearchSettings, Template
from weft.matching.refinement import refine_places
from weft.matching.search import SearchResult, run_search
from weft.matching.weights import Imaging
from weft.session.match_job import MatchJob, MatchTemplate
from weft.session.tomogram_source import TomogramSource
from weft.settings import setting

__all__ = ["MatchingSettings", "job_name", "match_tomogram", "matcher_of"]

#: Voxel sizes that differ by less than this fraction are one.
_SAME = 0.01


class MatchingSettings(SearchSettings):
    """Which templates tomograms are searched for, and how."""

    template: tuple[str, ...] = setting(
        (), "Maps to look for, made by `weft template create`; several compete for the same places."
    )
    mask: str = setting(
        "",
        "Mask of the templates, made by `weft mask create`; by default a sphere of the particle's diameter.",
    )
    particle_diameter: float = setting(
        0.0, "Of the particle, along its longest side.", unit="Å", ge=0.0, le=10000.0
    )
    symmetry: str = setting("C1", "Of the templates: C1, C2 ..., D2 ..., T, O, I1, I2.")
    binning: int = setting(
        1,
        "Search at voxels so many times as large, with as many times the step, and refine the best places at "
        "full resolution; 2 takes about a fiftieth of the time.",
        ge=1,
        le=8,
    )
    tomogram_mask: str = setting(
        "",
        "Map of the tomogram's size: search only where it is above 0.5. {name} stands for the item's name.",
    )


def job_name(name: str, templates: Sequence[str], suffix: str = "") -> str:
    """What the files of a search start with: ``ITEM_STEM``."""
    return f"{name}_{'+'.join(Path(template).stem for template in templates)}{suffix}"


# ------------------------------------------------------------------------------------------ what goes in


def load_templates(
    settings: MatchingSettings, root: Path, voxel_size: float, density_positive: bool
) -> list[Template]:
    """Templates with their mask, as the tomogram would show them.

    Raises
    ------
    RequestError
        Nothing is to be looked for, or the diameter is not known.
    ItemError
        A voxel size or a box that does not fit.
    """
    if not settings.template:
        raise RequestError("which structure? Give --template FILE; `weft template create` makes one.")
    if not settings.particle_diameter > 0.0:
        raise RequestError("the particle's diameter is needed: --particle-diameter, in Å.")
    out = []
    for given in settings.template:
        path = inside(root, given)
        volume = _cube(path, voxel_size, "template")
        n = len(volume)
        if settings.mask:
            mask = _cube(inside(root, settings.mask), voxel_size, "mask")
            if not (mask.min() >= -1e-3 and 0.0 < mask.max() <= 1.001):
                raise ItemError(f"{settings.mask}: a mask's values lie between 0 and 1")
        else:
            radius = 0.5 * settings.particle_diameter / voxel_size
            if 2.0 * radius + 2.0 > n:
                raise ItemError(
                    f"{path.name}: a box of {n} voxels ({n * voxel_size:.0f} Å) is too small for a particle "
                    f"of {settings.particle_diameter:g} Å: make the template with a larger --box"
                )
            mask = create_mask(MaskSettings(box=n, radius=radius, soft=1.0)).numpy()
        signed = volume if density_positive else -volume
        out.append(
            Template(
                torch.from_numpy(signed.astype(np.float32)),
                torch.from_numpy(mask.astype(np.float32)).clamp(0.0, 1.0),
                settings.particle_diameter,
                settings.symmetry,
            )
        )
    return out


def _cube(path: Path, voxel_size: float, what: str) -> NDArray[Any]:
    if not path.is_file():
        raise RequestError(f"there is no {what} {path}.")
    volume, info = mrc.read(path)
    if volume.ndim != 3 or len(set(volume.shape)) != 1:
        raise ItemError(
            f"{path.name}: a {what} is a cube, this has {'×'.join(map(str, volume.shape[::-1]))} voxels"
        )
    if not np.isfinite(volume).all():
        raise ItemError(f"{path.name}: the {what} holds values that are not finite")
    written = (info.voxel_size or (0.0,))[0]
    if written > 0.0 and abs(written / voxel_size - 1.0) > _SAME:
        raise ItemError(
            f"{path.name} has voxels of {written:g} Å and the tomogram of {voxel_size:g} Å: make the {what} "
            f"again with --voxel-size {voxel_size:g}"
        )
    return np.asarray(volume, dtype=np.float32)


def imaging_of(source: TomogramSource, settings: SearchSettings) -> Imaging:
    """What is known about how a tomogram came to be.

    Raises
    ------
    ItemError
        The CTF is to be used and not known.
    """
    if settings.weighting == "ctf" and not source.has_ctf:
        raise ItemError(
            f"{source.name}: its defocus is not known: give it (--defocus), or match with --weighting wedge"
        )
    geometry = source.geometry
    if settings.hand != "auto":
        geometry = replace(geometry, hand=float(settings.hand))
    return Imaging(
        geometry,
        source.contrast,
        source.method,
        source.has_ctf,
        source.dose_weighted,
        source.cosine,
        source.regularisation,
        source.dose_model,
    )


def matcher_of(
    source: TomogramSource, settings: MatchingSettings, root: Path, device: str = "cpu"
) -> Matcher:
    """A tomogram and its templates, read and checked.

    Raises
    ------
    RequestError, ItemError
    """
    templates = load_templates(settings, root, source.voxel_size, source.density_positive)
    volume, _ = mrc.read(source.path, mmap=True)
    return Matcher.of(
        volume,
        source.voxel_size,
        templates,
        imaging_of(source, settings),
        settings,
        origin=source.origin,
        device=device,
    )


# ----------------------------------------------------------------------------------------- what comes out


def match_tomogram(
    source: TomogramSource,
    settings: MatchingSettings,
    folder: Path,
    *,
    root: Path,
    device: str = "cpu",
    suffix: str = "",
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
    suffix : str
        Added to the files' names.
    progress : callable, optional
        Takes the fraction that is done and the seconds that are left.

    Returns
    -------
    Path, MatchJob
    """
    matcher = matcher_of(source, settings, root, device)
    folder.mkdir(parents=True, exist_ok=True)
    name = job_name(source.name, settings.template, suffix)
    allowed = _allowed(source, settings, root)
    keeper = _Keeper.of(folder / ".partial" / name, source, settings, root)
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
    _save_array(folder / rotations, found.rotations.numpy().astype(np.float32))
    if settings.refine:
        refined = _refine(matcher, fine, found, settings)
        if refined is not None:
            files["refined"] = f"{name}_refined.npz"
            _save_arrays(folder / files["refined"], refined)
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
            "std": found.statistics.std,
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


def inside(root: Path, given: str) -> Path:
    """A path of the settings: absolute, or counted from the session."""
    path = Path(given).expanduser()
    return path if path.is_absolute() else root / path


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    x, y, z = values
    return (float(x), float(y), float(z))


def _quad(values: Sequence[float]) -> tuple[float, float, float, float]:
    x, y, z, radius = values
    return (float(x), float(y), float(z), float(radius))


def _save_array(path: Path, array: NDArray[Any]) -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    atomic_write_bytes(path, buffer.getvalue())


def _save_arrays(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    atomic_write_bytes(path, buffer.getvalue())


# ------------------------------------------------------------------------------------------- interrupted


@dataclass(frozen=True)
class _Keeper:
    """Parts of a search that are done, in a folder: one file each."""

    folder: Path

    @classmethod
    def of(cls, folder: Path, source: TomogramSource, settings: MatchingSettings, root: Path) -> _Keeper:
        """Of this very search: what another one has left is deleted."""
        files = [source.path, *(inside(root, path) for path in settings.template)]
        masks = [settings.mask, settings.tomogram_mask.replace("{name}", source.name)]
        files += [inside(root, mask) for mask in masks if mask]
        stamps = [(str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        wanted = settings.model_dump(mode="json", exclude={"refine"})
        # the parts that are kept depend on the memory and the threads
        text = json.dumps([stamps, wanted, torch.get_num_threads(), _physics(source)])
        key = hashlib.sha256(text.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        note = folder / "search.txt"
        if not note.is_file() or note.read_text() != key:
            for old in folder.iterdir():
                old.unlink()
            note.write_text(key)
        return cls(folder)

    def load(self, unit: int) -> tuple[int, Found] | None:
        """See :class:`~weft.matching.search.Keeper`; a file that is broken counts as none."""
        try:
            with np.load(self.folder / f"{unit}.npz", allow_pickle=False) as saved:
                noise = torch.from_numpy(saved["noise"]) if "noise" in saved else None
                done, count = (int(v) for v in saved["counts"])
                total, squares = (float(v) for v in saved["sums"])
                best, number = torch.from_numpy(saved["best"]), torch.from_numpy(saved["number"])
                return done, Found(best, number, noise, count, total, squares)
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def save(self, unit: int, done: int, found: Found) -> None:
        """See :class:`~weft.matching.search.Keeper`."""
        arrays: dict[str, Any] = {
            "best": found.best.cpu().numpy(),
            "number": found.number.cpu().numpy(),
            "counts": np.array([done, found.count]),
            "sums": np.array([found.total, found.squares]),
        }
        if found.noise is not None:
            arrays["noise"] = found.noise.cpu().numpy()
        _save_arrays(self.folder / f"{unit}.npz", arrays)

    def clear(self) -> None:
        """After the results have been written."""
        for old in self.folder.iterdir():
            old.unlink()
        self.folder.rmdir()
        if not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()


def _physics(source: TomogramSource) -> list[Any]:
    """All that template weights depend on."""
    geometry, contrast = source.geometry, source.contrast
    tensors = [geometry.matrices, geometry.defocus, geometry.volume_size, contrast.dose, contrast.weight]
    tensors += [contrast.astigmatism, contrast.angle, contrast.phase_shift]
    made = [source.method, source.dose_weighted, source.dose_model, source.cosine, source.regularisation]
    rest = [geometry.hand, source.has_ctf, source.density_positive, source.origin, str(contrast.optics)]
    return [tensor.tolist() for tensor in tensors] + made + rest


def statistics_of(job: MatchJob) -> SearchStatistics:
    """Of a job's scores."""
    values = job.statistics
    return SearchStatistics(int(values["search_space"]), float(values["mean"]), float(values["std"]))
