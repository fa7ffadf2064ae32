"""Denoising of micrographs: how they are prepared, learnt from, and denoised.

Tegunov & Cramer 2019, "Denoising improves particle visibility": a network learns from averages of odd and of
even frames, deconvolved before. Here it works on a coarser grid, where particles are told from noise, and its
result is joined with the input ring by ring (:mod:`weft.denoising.mixing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import torch

from weft.denoising.applying import check_pixel_size, predicted
from weft.denoising.cubes import Scale, same_shape
from weft.denoising.mixing import Pair, combined
from weft.denoising.network import Denoiser, Loss
from weft.denoising.training import TrainingPair, TrainingSettings, train
from weft.errors import ItemError, SettingsError
from weft.micrographs.deconvolution import DeconvolutionSettings, deconvolve
from weft.physics.fourier import resize
from weft.physics.optics import Optics
from weft.settings import setting

__all__ = [
    "DEFAULT_MODEL",
    "ImageCTF",
    "MicrographDenoisingSettings",
    "MicrographTrainingSettings",
    "beginning",
    "deconvolution_of",
    "default_model",
    "denoise_micrograph",
    "prepared",
    "spread_evenly",
    "train_on_micrographs",
]

#: What the setting `model` calls the one that ships.
DEFAULT_MODEL = "default"


class MicrographTrainingSettings(TrainingSettings):
    """How a network is trained that denoises micrographs."""

    steps: int = setting(
        1000, "Longest training; it stops when parts that are kept from it stop improving.", ge=1, le=1000000
    )
    tile: int = setting(128, "Side of the squares that it learns from.", unit="px", ge=16, le=1024)
    channels: int = setting(
        16, "Width of the network's finest level; each coarser one has twice as many.", ge=4, le=512
    )
    levels: int = setting(4, "Levels of the network, each half as fine as the one before.", ge=1, le=5)
    clip: float = setting(
        8.0,
        "Values beyond so many robust standard deviations (ice, gold) are clipped for the network, and what "
        "was cut off is added to its result.",
        ge=2.0,
        le=1000.0,
    )
    pixel_size: float = setting(
        5.0,
        "Grid that micrographs are reduced to before they are learnt from or denoised; a coarser average is "
        "taken as it is.",
        unit="Å",
        gt=0.0,
        le=50.0,
    )
    micrographs: int = setting(
        128, "Learn from at most so many micrographs, spread evenly over the session.", ge=1, le=10000
    )

    @property
    def side(self) -> int:
        """See :class:`TrainingSettings`."""
        return self.tile


class MicrographDenoisingSettings(MicrographTrainingSettings):
    """How micrographs are denoised."""

    write: bool = setting(False, "Write a denoised copy of every average, for viewing and picking.")
    model: str = setting(
        DEFAULT_MODEL,
        'File of a trained model (`weft denoise train`); "default" is the one that ships with Weft.',
    )
    deconvolve: bool = setting(
        True,
        "Deconvolve micrographs before they are denoised, as [deconvolution] says when a network is trained; "
        "a trained one keeps to what it has learnt.",
    )
    full_size: bool = setting(
        False, "Write them on the grid of the average, instead of the coarser one that they were denoised on."
    )


@dataclass(frozen=True)
class ImageCTF:
    """The mean CTF of a micrograph.

    Attributes
    ----------
    defocus : (float, float, float)
        U, V (Å) and angle (degrees).
    optics : Optics
    phase_shift : float
        Degrees.
    """

    defocus: tuple[float, float, float]
    optics: Optics
    phase_shift: float = 0.0


@cache
def default_model() -> Denoiser:
    """The model that ships with Weft: docs/models/denoising.md."""
    place = files("weft.denoising") / "models" / "micrographs.safetensors"
    return Denoiser.from_bytes(place.read_bytes(), "Weft's own model")


def prepared(
    image: torch.Tensor,
    pixel_size: float,
    target: float,
    ctf: ImageCTF | None = None,
    deconvolution: DeconvolutionSettings | None = None,
) -> tuple[torch.Tensor, float]:
    """A micrograph as networks see it.

    Parameters
    ----------
    image : (y, x) float32
    pixel_size : float
        Å.
    target : float
        Pixel size to be reduced to, Å; a coarser image stays as it is.
    ctf, deconvolution
        Both are needed for it to be deconvolved.

    Returns
    -------
    (y, x) float32 and its pixel size (Å)

    Raises
    ------
    ItemError
        For values that are not finite.
    """
    if not bool(torch.isfinite(image).all()):
        raise ItemError("the micrograph holds values that are not finite; average it again")
    if target > pixel_size:
        ny, nx = (max(2, round(n * pixel_size / target / 2) * 2) for n in image.shape)
        pixel_size *= image.shape[1] / nx
        image = resize(image, (ny, nx))
    if ctf is not None and deconvolution is not None:
        optics = ctf.optics.at_pixel_size(pixel_size)
        image = deconvolve(image, ctf.defocus, optics, deconvolution, ctf.phase_shift)
    return image, pixel_size


def deconvolution_of(model: Denoiser, wanted: bool) -> DeconvolutionSettings | None:
    """How micrographs are to be deconvolved for a model; None if they are not.

    Raises
    ------
    SettingsError
        If the model has not learnt what is wanted.
    """
    if wanted and model.deconvolution is None:
        raise SettingsError(
            "denoising.model was trained on micrographs that were not deconvolved: set denoising.deconvolve "
            "= false, or train another"
        )
    if not wanted and not model.plain:
        raise SettingsError(
            "denoising.model was trained on deconvolved micrographs, which these would not be: set "
            "denoising.deconvolve = true, or use another model"
        )
    return DeconvolutionSettings.model_validate(dict(model.deconvolution or {})) if wanted else None


def denoise_micrograph(
    halves: Pair, model: Denoiser, pixel_size: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Denoise a prepared micrograph.

    Parameters
    ----------
    halves : two (y, x) float32
        Averages of even and odd frames, which tell how far the network is to be believed at each frequency.
    model : Denoiser
    pixel_size : float
        Å.
    device : torch.device or str

    Returns
    -------
    (y, x) float32
        In the grey values of the input.

    Raises
    ------
    ItemError
        For another pixel size than the model's, images of different shapes, constant or not finite.
    """
    check_pixel_size(model, pixel_size)
    arrays = [half.cpu().numpy() for half in halves]
    same_shape(arrays)
    scale = Scale.of(arrays)
    first, second = (
        torch.cat([slab for _, slab in predicted([array], model, scale, device, tile=512)])[0]
        for array in arrays
    )
    return combined(halves, (first.to(halves[0].device), second.to(halves[0].device)))


def train_on_micrographs(
    pairs: Sequence[TrainingPair],
    pixel_size: float,
    settings: MicrographTrainingSettings | None = None,
    deconvolution: DeconvolutionSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Loss | None], None] = lambda step, steps, loss: None,
    **more: Any,
) -> Denoiser:
    """Learn from prepared pairs.

    Parameters
    ----------
    pairs : sequence of TrainingPair
    pixel_size : float
        Å.
    settings : MicrographTrainingSettings, optional
    deconvolution : DeconvolutionSettings, optional
        How the pairs have been deconvolved.
    device, progress, **more
        See :func:`weft.denoising.training.train`.

    Raises
    ------
    ItemError, FitError
        See :func:`weft.denoising.training.train`.
    """
    model = train(pairs, pixel_size, settings or MicrographTrainingSettings(), device, progress, **more)
    how = None if deconvolution is None else deconvolution.model_dump(exclude={"write"})
    return replace(model, deconvolution=how, plain=deconvolution is None)


def beginning(settings: MicrographTrainingSettings, pixel_size: float) -> Denoiser | None:
    """The shipped model, where a training can begin with it: it has that width, depth and pixel size."""
    model = default_model()
    channels = tuple(settings.channels * 2**level for level in range(settings.levels))
    return model if model.channels == channels and abs(pixel_size / model.pixel_size - 1.0) < 0.05 else None


def spread_evenly(names: Iterable[str], most: int) -> list[str]:
    """At most so many of these, spread evenly."""
    every = list(names)
    return (
        [every[(2 * i + 1) * len(every) // (2 * most)] for i in range(most)] if len(every) > most else every
    )
