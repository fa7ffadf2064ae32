"""Preparing micrographs: ten operations, any of them, always in the same order.

crop → logarithm → bad pixels → invert → downsample → denoise → Gaussian → high-pass → low-pass → normalise.

They are those of Xmipp's "preprocess micrographs" (Sorzano et al., J. Struct. Biol. 166, 205, 2009, for the
downsampling), with its values. In four places Xmipp's result is not what its form says, and the default
here is what it says; :attr:`PreprocessSettings.xmipp_compatible` gives Xmipp's:

- outliers are measured against a spread that they do not raise themselves (:mod:`.bad_pixels`);
- denoising goes to the minimum of its energy and keeps the grey scale (:mod:`.total_variation`);
- the Gaussian has the standard deviation that is asked for, not σ/√2 (:mod:`.filters`);
- the pixel size is the one that the image has: n/⌊n/f⌋ times the old one, which is not f for most f.

Neighbouring operations that are linear share one transform.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from weft.errors import ItemError
from weft.micrographs.bad_pixels import fill, fill_in_raster_order, moments, outliers
from weft.micrographs.filters import Filter, apply_filter, filter_gain
from weft.micrographs.total_variation import denoise
from weft.physics import fourier
from weft.settings import Settings, setting

__all__ = ["OPERATIONS", "PreprocessSettings", "Preprocessed", "preprocess"]

#: In the order in which they are done.
OPERATIONS = (
    "crop",
    "log",
    "bad_pixels",
    "invert",
    "downsample",
    "denoise",
    "gaussian",
    "highpass",
    "lowpass",
    "normalize",
)


class PreprocessSettings(Settings):
    """Which operations a micrograph goes through; all are off by default, and `true` takes Xmipp's value."""

    crop: int | None = setting(None, "Remove so many pixels from every border", unit="px", usual=10, gt=0)
    log: bool = setting(False, "Take log_a - log_b ln(x + log_c), from transmission to density")
    log_a: float = setting(4.431, "a of the logarithm (that of a Nikon Coolscan 9000)")
    log_b: float = setting(0.402, "b of the logarithm")
    log_c: float = setting(336.6, "c of the logarithm; every pixel must be above -c")
    bad_pixels: float | None = setting(
        None,
        "Replace pixels so many standard deviations away from the others by the median around them",
        usual=5.0,
        gt=0,
    )
    invert: bool = setting(False, "Multiply by -1")
    downsample: float | None = setting(
        None, "Make the image so many times smaller, by cropping its spectrum", usual=2.0, gt=1, le=100
    )
    denoise: int | None = setting(
        None, "Denoise by total variation, in at most so many rounds", usual=50, gt=0, le=10000
    )
    gaussian: float | None = setting(
        None, "Standard deviation of a Gaussian filter", unit="px", usual=2.0, gt=0
    )
    highpass: float | None = setting(
        None, "Remove frequencies below, of the downsampled image", unit="1/px", usual=0.002, gt=0, lt=0.5
    )
    highpass_angstrom: float | None = setting(
        None, "The same as a length: remove variations over more than this", unit="Å", gt=0
    )
    highpass_width: float = setting(
        0.001, "Width of the high-pass's edge, below the cut-off", unit="1/px", ge=0, lt=0.5
    )
    lowpass: float | None = setting(
        None, "Remove frequencies above, of the downsampled image", unit="1/px", usual=0.4, gt=0, le=0.5
    )
    lowpass_angstrom: float | None = setting(
        None, "The same as a length: remove details finer than this", unit="Å", gt=0
    )
    lowpass_width: float = setting(
        0.001, "Width of the low-pass's edge, above the cut-off", unit="1/px", ge=0, lt=0.5
    )
    normalize: bool = setting(False, "Make the mean 0 and the standard deviation 1")
    xmipp_compatible: bool = setting(
        False,
        "Do as Xmipp does where that differs: outliers, denoising, width of the Gaussian, pixel size",
    )

    @model_validator(mode="after")
    def _one_unit(self) -> PreprocessSettings:
        for name in ("highpass", "lowpass"):
            if getattr(self, name) is not None and getattr(self, f"{name}_angstrom") is not None:
                raise ValueError(f"{name} and {name}_angstrom are the same cut-off; give one of them")
        return self

    def operations(self) -> tuple[str, ...]:
        """The operations that are on, in the order in which they are done."""

        def on(name: str) -> bool:
            values = [getattr(self, name), getattr(self, f"{name}_angstrom", None)]
            return any(value is not None and value is not False for value in values)

        return tuple(name for name in OPERATIONS if on(name))


@dataclass(frozen=True)
class Preprocessed:
    """A prepared micrograph, and what was done to it.

    Attributes
    ----------
    image : (y, x) float32 tensor
    pixel_size : (float, float)
        Å along y and x. The two differ by less than one part in the number of pixels, where cropping the
        spectrum cannot make both axes smaller by the same factor.
    factor : (float, float)
        Old pixels in a new one, y and x.
    crop : int
        Pixels that were removed from every border before that.
    facts : dict
        For records and summaries: ``bad_pixels`` and ``unloggable`` as fractions, ``mean`` and ``std`` that
        were normalised away.
    """

    image: torch.Tensor
    pixel_size: tuple[float, float]
    factor: tuple[float, float]
    crop: int
    facts: dict[str, Any] = field(default_factory=dict)


def preprocess(image: Any, settings: PreprocessSettings, pixel_size: float = 1.0) -> Preprocessed:
    """Prepare one micrograph.

    Parameters
    ----------
    image : (y, x) tensor or array
        Any real type; it is not changed.
    settings : PreprocessSettings
    pixel_size : float
        Å. Only the cut-offs in Å and the result's pixel size depend on it.

    Returns
    -------
    Preprocessed

    Raises
    ------
    ItemError
        When the image is too small for the crop or the downsampling, has no usable pixel, or is constant
        where it is to be normalised.
    """
    tensor = torch.as_tensor(np.require(image, requirements="W") if isinstance(image, np.ndarray) else image)
    if tensor.ndim != 2:
        raise ItemError(f"a micrograph has two dimensions, not {tuple(tensor.shape)}")
    on = settings.operations()
    crop = settings.crop or 0
    ny, nx = (n - 2 * crop for n in tensor.shape)
    if min(ny, nx) < 1:
        raise ItemError(
            f"cropping {crop} pixels from every border leaves nothing of {tensor.shape[1]}×{tensor.shape[0]}"
        )
    facts: dict[str, Any] = {}
    # a copy, whatever the type was: all that follows is done in place
    work = torch.empty((ny, nx), dtype=torch.float32, device=tensor.device)
    work.copy_(tensor[crop : crop + ny, crop : crop + nx])
    # the image is work + level: single precision is kept for what differs from pixel to pixel
    level = 0.0
    bad = torch.empty(0, dtype=torch.int64)
    if "log" in on:
        level, bad = _logarithm(work, settings)
        facts["unloggable"] = len(bad) / work.numel()
    if "bad_pixels" in on:
        bad = outliers(work, settings.bad_pixels or 0.0, plain=settings.xmipp_compatible)
        facts["bad_pixels"] = len(bad) / work.numel()
    if len(bad):
        (fill_in_raster_order if settings.xmipp_compatible else fill)(work, bad)
    elif not bool(torch.isfinite(work.sum())):
        count = int((~torch.isfinite(work)).sum())
        raise ItemError(f"{count} pixels are not finite numbers; switch bad_pixels on to have them replaced")
    if "invert" in on:
        work.neg_()
        level = -level
    new_size = _new_size((ny, nx), settings.downsample)
    factor = (ny / new_size[0], nx / new_size[1])
    said = (settings.downsample or 1.0,) * 2
    scale_y, scale_x = said if settings.xmipp_compatible else factor
    new_pixel = (scale_y * pixel_size, scale_x * pixel_size)
    wanted = _filter(settings, (new_pixel[0] * new_pixel[1]) ** 0.5)
    if new_size != (ny, nx) or wanted or "normalize" in on:
        mean = moments(work)[0]
        work -= mean
        level += mean
    if settings.denoise is not None:
        work = _transformed(work, new_size, Filter())
        rounds, like_xmipp = settings.denoise, settings.xmipp_compatible
        work = denoise(work, rounds, xmipp_compatible=like_xmipp, overwrite=True)
        level = 0.0 if like_xmipp else level  # its result lies between 0 and 1
    work = _transformed(work, new_size, wanted)
    level *= float(filter_gain(wanted, (1, 1)))
    if "normalize" in on:
        mean, facts["std"] = moments(work)
        facts["mean"] = mean + level
        if not facts["std"] > 0.0:
            raise ItemError("all pixels have the same value; there is nothing to normalise")
        work.sub_(mean).div_(facts["std"])
    elif level:
        work += level
    return Preprocessed(work, new_pixel, factor, crop, facts)


def _new_size(size: tuple[int, int], factor: float | None) -> tuple[int, int]:
    if factor is None:
        return size
    # a size that is whole but for rounding is whole
    new_size = (int(size[0] / factor + 1e-6), int(size[1] / factor + 1e-6))
    if min(new_size) < 2:
        raise ItemError(f"downsampling {size[1]}×{size[0]} pixels by {factor:g} leaves no image")
    return new_size


def _logarithm(work: torch.Tensor, settings: PreprocessSettings) -> tuple[float, torch.Tensor]:
    """Take the logarithm in place, but for a level that is returned; and the places where there is none."""
    work += settings.log_c
    flat = work.view(-1)
    bad = torch.empty(0, dtype=torch.int64, device=work.device)
    low, middle = float(flat.min()), moments(flat)[0]
    if not low > 0.0:  # also where there are NaNs
        usable = flat > 0.0
        bad = torch.nonzero(~usable).reshape(-1)
        if 2 * len(bad) > len(flat):
            raise ItemError(
                f"{100 * len(bad) / len(flat):.0f} % of the pixels have no logarithm: they are not above "
                f"-log_c = {-settings.log_c:g}; set log_c above {settings.log_c - low:.6g}"
            )
        middle = moments(flat[usable])[0]
        flat[bad] = torch.nan
    work /= middle
    if work.device.type == "cpu":
        np.log(work.numpy(), out=work.numpy())  # several times faster than torch's
    else:
        work.log_()
    work *= -settings.log_b
    return settings.log_a - settings.log_b * math.log(middle), bad


def _filter(settings: PreprocessSettings, pixel_size: float) -> Filter:
    """The filter in cycles per pixel of the downsampled image."""

    def edge(name: str) -> tuple[float, float] | None:
        cut, length = getattr(settings, name), getattr(settings, f"{name}_angstrom")
        width = getattr(settings, f"{name}_width")
        if length is not None:
            cut = pixel_size / length
        return None if cut is None else (cut, width)

    sigma = settings.gaussian or 0.0
    if settings.xmipp_compatible:
        sigma /= 2.0**0.5
    return Filter(sigma, edge("highpass"), edge("lowpass"))


def _transformed(work: torch.Tensor, new_size: tuple[int, int], wanted: Filter) -> torch.Tensor:
    """The image at another size, filtered: in one visit to Fourier space, or none."""
    size = (work.shape[0], work.shape[1])
    if size == new_size and not wanted:
        return work
    spectrum = fourier.rfft2(work)
    if size != new_size:
        spectrum = fourier.crop_half(spectrum, size, new_size)
    apply_filter(spectrum, wanted, new_size, new_size[0] * new_size[1] / (size[0] * size[1]))
    return fourier.irfft2(spectrum, new_size)
