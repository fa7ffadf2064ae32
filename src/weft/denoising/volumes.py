"""Denoising of tomograms with a trained network, a slab at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from weft.denoising.applying import check_pixel_size, predicted
from weft.denoising.cubes import Volume
from weft.denoising.network import Denoiser
from weft.denoising.training import DenoisingSettings, TrainingPair, train
from weft.settings import setting

__all__ = ["DenoisingSettings", "TomogramDenoisingSettings", "TrainingPair", "denoise", "train"]


class TomogramDenoisingSettings(DenoisingSettings):
    """How tomograms are denoised, from their half maps ([reconstruction] halves)."""

    write: bool = setting(False, "Write a denoised copy of every tomogram; needs half maps.")
    model: str = setting(
        "",
        "File of a trained model (`weft denoise train`), used for all tomograms; empty: each tomogram trains "
        "its own.",
    )


def denoise(
    volumes: Sequence[Volume],
    model: Denoiser,
    pixel_size: float,
    write: Callable[[int, torch.Tensor], None],
    device: torch.device | str = "cpu",
    *,
    tile: int = 128,
) -> None:
    """Denoise a tomogram: the mean of what the network makes of each of its halves.

    Parameters
    ----------
    volumes : sequence of (z, y, x) arrays or memory maps
        Both half maps, as the network was trained on; or one map.
    model : Denoiser
    pixel_size : float
        Å, of the volumes.
    write : callable
        Takes (first section, (z, y, x) float32), in order; the scale is that of `volumes`.
    device : torch.device or str
    tile : int
        Side of the overlapping cubes, voxels: what is held at once is a slab of this depth.

    Raises
    ------
    ItemError
        For another pixel size than the model's, volumes of different shapes, constant or not finite.
    """
    check_pixel_size(model, pixel_size)
    for first, slab in predicted(volumes, model, device=device, tile=tile):
        write(first, slab)
