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
from weft.session.config import SessionSettings
from weft.session.records import Record

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["denoise_files", "image_ctf", "kept_simulations", "micrograph_pairs", "read_model"]

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
    if len({path.name for path in paths}) < len(paths):
        raise RequestError("some of these files have the same name: denoise them in separate runs.")
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = folder / f"{path.stem}.mrc"
        if target.exists() and path.exists() and target.samefile(path):
            raise RequestError(f"{path} would be overwritten; choose another --output.")
        try:
            image, header = mrc.read(path)
            if image.ndim != 2 or not header.pixel_size:
                raise ItemError("is not a micrograph whose header says its pixel size")
            small, pixel_size = prepared(
                torch.from_numpy(np.asarray(image, dtype=np.float32)).to(device),
                float(header.pixel_size),
                chosen.pixel_size,
            )
            out = denoise_micrograph([small], chosen, pixel_size, device)
        except ItemError as error:
            yield path, error
            continue
        mrc.write(target, out.cpu().numpy(), pixel_size)
        yield path, target
