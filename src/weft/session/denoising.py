"""What a session gives a denoising network to learn from, and the files of trained ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from weft.defocus.micrograph import CTFModel
from weft.denoising.cubes import WORDS
from weft.denoising.micrographs import (
    ImageCTF,
    MicrographDenoisingSettings,
    MicrographTrainingSettings,
    deconvolution_of,
    default_model,
    denoise_micrograph,
    prepared,
    spread_evenly,
)
from weft.denoising.network import Denoiser
from weft.denoising.training import TrainingPair
from weft.errors import ItemError, RequestError, SettingsError
from weft.formats import mrc
from weft.formats.atomic import atomic_write
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.movies.average import AverageSettings, make_average
from weft.movies.motion import MotionModel
from weft.session.config import SessionSettings
from weft.session.records import Record
from weft.session.step import Job, on_device

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = [
    "denoise_files",
    "file_halves",
    "image_ctf",
    "item_halves",
    "kept_simulations",
    "micrograph_pairs",
    "read_model",
]

#: Pixels of all halves together that are held in memory.
_MOST_PIXELS = 1 << 28


def read_model(path: Path, dims: int) -> Denoiser:
    """A trained model, of micrographs (2) or tomograms (3).

    Raises
    ------
    SettingsError
        If it cannot be read.
    RequestError
        If it is something else.
    """
    words = WORDS[dims]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{words.key}: {path} cannot be read ({error.strerror}); make one with `weft denoise train`, or "
            + ('set it to "default"' if dims == 2 else "leave it empty")
        ) from None
    model = Denoiser.from_bytes(data, str(path))
    if model.dims != dims:
        raise RequestError(
            f"{words.key}: {path} is a model for {WORDS[model.dims].thing}s; make one for {words.thing}s "
            "with `weft denoise train`"
        )
    return model


def micrograph_pairs(
    session: Session,
    settings: MicrographDenoisingSettings,
    only: str | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[list[TrainingPair], float, DeconvolutionSettings | None]:
    """Averages of even and odd frames, prepared, their pixel size (Å), and how they have been deconvolved.

    Raises
    ------
    RequestError
        If there are none: saying which setting makes them.
    """
    given: SessionSettings = session.settings
    deconvolution = given.get(DeconvolutionSettings) if settings.deconvolve else None
    needed = ("motion", "ctf") if settings.deconvolve else ("motion",)
    records, without_halves = {}, 0
    for name, status in session.status().items():
        record = session.store.read(name)
        if record is None or record.kind != "movie" or not status.verdict.selected:
            continue
        if only and not fnmatchcase(name, only):
            continue
        if any(step not in record.steps or record.steps[step].status != "done" for step in needed):
            continue
        if {"even", "odd"} <= set(record.steps["motion"].outputs):
            records[name] = record
        else:
            without_halves += 1
    if not records:
        raise RequestError(
            f"{session.root}: the averages of even and odd frames that a network learns from are not "
            "written; set average.halves to true and run again"
            if without_halves
            else f"{session.root} has no finished micrographs that could be learnt from; run "
            f"{' and '.join(needed)} first"
        )
    pairs: list[TrainingPair] = []
    chosen, sizes = spread_evenly(records, settings.micrographs), set()
    held = 0
    for number, name in enumerate(chosen):
        record = records[name]
        ctf = image_ctf(record, given) if deconvolution is not None else None
        halves = []
        for half in ("even", "odd"):
            image, _ = mrc.read(session.root / record.steps["motion"].outputs[half])
            small, pixel_size = prepared(
                torch.from_numpy(np.asarray(image, dtype=np.float32)),
                float(record.metrics["pixel_size"]),
                settings.pixel_size,
                ctf,
                deconvolution,
            )
            halves.append(small.numpy())
        pairs.append(TrainingPair(halves[0], halves[1], name))
        sizes.add(round(pixel_size, 3))
        held += 2 * halves[0].size
        progress(number + 1, len(chosen))
        if number == 0 and held * len(chosen) > _MOST_PIXELS:
            raise RequestError(
                f"{len(chosen)} micrographs at {pixel_size:g} Å do not fit into memory; choose fewer "
                f"(--micrographs {max(1, _MOST_PIXELS // held)}) or a coarser grid (--pixel-size)"
            )
    if max(sizes) > 1.05 * min(sizes):
        listed = ", ".join(f"{size:g}" for size in sorted(sizes))
        raise RequestError(f"the averages have different pixel sizes ({listed} Å); choose some with --only.")
    return pairs, float(np.median(list(sizes))), deconvolution


def image_ctf(record: Record, settings: SessionSettings) -> ImageCTF:
    """The mean CTF of a micrograph."""
    model = CTFModel.from_dict(record.steps["ctf"].results["model"])
    return ImageCTF(model.mean, settings.input.optics(), model.phase_shift)


def kept_simulations(
    folder: Path,
    settings: MicrographTrainingSettings,
    deconvolution: DeconvolutionSettings,
    told: Callable[[str], None] = lambda name: None,
) -> list[tuple[TrainingPair, TrainingPair]]:
    """Simulated pairs, plain and deconvolved; those that are in the folder already are not made again."""
    from weft.denoising.pretraining import simulated_pairs

    found = []
    for number in range(settings.micrographs):
        seed = settings.seed * 1_000_000 + number
        path = folder / f"{seed}.npz"
        if not path.exists():
            made = simulated_pairs(seed, settings.pixel_size, deconvolution)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as handle:
                np.savez(handle, *(half for pair in made for half in (pair.first, pair.second)))
            told(made[0].name)
        with np.load(path) as kept:
            a, b, c, d = (kept[f"arr_{i}"] for i in range(4))
        name = f"simulation {seed}"
        found.append((TrainingPair(a, b, name), TrainingPair(c, d, name)))
    return found


def item_halves(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Averages of even and odd frames of a movie, (y, x) float32 on the job's device.

    Where they have not been written they are made from the movie, as they would have been.

    Raises
    ------
    ItemError
        For a movie that has changed, or has one frame only.
    """
    outputs = job.record.steps["motion"].outputs
    if {"even", "odd"} <= set(outputs):
        even, odd = (
            torch.from_numpy(np.asarray(mrc.read(job.output("motion", name))[0], dtype=np.float32))
            for name in ("even", "odd")
        )
        return even.to(job.device), odd.to(job.device)
    from weft.session.steps.motion import read_movie

    motion = MotionModel.from_dict(job.record.steps["motion"].results["model"])
    if motion.n_frames < 2:
        raise ItemError(
            f"{job.source}: a movie of one frame has no halves, which alone tell signal from noise; it "
            "cannot be denoised"
        )
    frames = job.shared("frames", lambda: read_movie(job))[0]
    if len(frames) != motion.n_frames:
        raise ItemError(
            f"{job.source}: it has {len(frames)} frames, its motion {motion.n_frames}; it was changed, so "
            "run `weft run` again"
        )
    settings = job.settings.get(AverageSettings).model_copy(update={"halves": True})
    made = make_average(on_device(frames, job.device), motion, job.settings.input.optics(), settings)
    assert made.even is not None
    assert made.odd is not None
    return made.even, made.odd


def file_halves(path: Path) -> tuple[Path, Path]:
    """Averages of even and odd frames that lie beside a micrograph, under the names that programs give them.

    Raises
    ------
    ItemError
        If there are none.
    """
    for even, odd in (
        (path.parent / "even" / path.name, path.parent / "odd" / path.name),  # Weft, Warp
        (path.with_name(f"{path.stem}_EVN.mrc"), path.with_name(f"{path.stem}_ODD.mrc")),  # RELION, MotionCor
    ):
        if even.exists() and odd.exists():
            return even, odd
    raise ItemError(
        f"has no averages of even and odd frames beside it (even/{path.name} and odd/{path.name}, or "
        f"{path.stem}_EVN.mrc and {path.stem}_ODD.mrc), which alone tell signal from noise; make them with "
        "the program that aligned the movie"
    )


def denoise_files(
    paths: Sequence[Path], model: Path | None, folder: Path, device: str
) -> Iterator[tuple[Path, Path | ItemError]]:
    """Denoise micrographs that belong to no session; gives what was written, or why nothing was.

    Raises
    ------
    SettingsError, RequestError
        For a model that cannot be used, or files of one name.
    """
    chosen = default_model() if model is None else read_model(model.expanduser(), 2)
    deconvolution_of(chosen, False)  # the CTF of a file is not known
    # halves that a pattern has caught together with their micrograph
    whole = {path.with_name(f"{path.stem}{end}.mrc") for path in paths for end in ("_EVN", "_ODD")}
    paths = [path for path in paths if path not in whole]
    if len({path.name for path in paths}) < len(paths):
        raise RequestError("some of these files have the same name: denoise them in separate runs.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = folder / f"{path.stem}.mrc"
        if target.exists() and path.exists() and target.samefile(path):
            raise RequestError(f"{path} would be overwritten; choose another --output.")
        try:
            even, odd = (_from_file(half, chosen, device) for half in file_halves(path))
            out = denoise_micrograph((even[0], odd[0]), chosen, even[1], device)
        except ItemError as error:
            yield path, error
            continue
        mrc.write(target, out.cpu().numpy(), even[1])
        yield path, target


def _from_file(path: Path, model: Denoiser, device: str) -> tuple[torch.Tensor, float]:
    """A half, prepared, and its pixel size (Å)."""
    image, header = mrc.read(path)
    if image.ndim != 2 or not header.pixel_size:
        raise ItemError(f"{path} is not a micrograph whose header says its pixel size")
    half = torch.from_numpy(np.asarray(image, dtype=np.float32)).to(device)
    return prepared(half, float(header.pixel_size), model.pixel_size)
