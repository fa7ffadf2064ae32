"""Denoising of tomograms with a trained network, a slab at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from weft.denoising.cubes import Scale, Span, Volume, joined, same_shape, spans
from weft.denoising.network import Denoiser, autocast
from weft.denoising.training import DenoisingSettings, TrainingPair, train
from weft.errors import ItemError
from weft.settings import setting

__all__ = ["DenoisingSettings", "TomogramDenoisingSettings", "TrainingPair", "denoise", "train"]

#: By how much pixel sizes may differ.
_PIXEL_TOLERANCE = 0.05


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
    if abs(pixel_size / model.pixel_size - 1.0) > _PIXEL_TOLERANCE:
        raise ItemError(
            f"the model was trained at {model.pixel_size:g} Å a voxel, the tomogram has {pixel_size:g}: "
            "train one at this size"
        )
    same_shape(volumes)
    device = torch.device(device)
    scale = Scale.of(volumes)
    network = model.network(device)
    nz, ny, nx = volumes[0].shape
    plan = [spans(n, tile, network.reach, network.stride) for n in (nz, ny, nx)]

    def make(place: tuple[Span, Span, Span]) -> torch.Tensor:
        z, y, x = place
        out = torch.zeros(z.stop - z.start, y.stop - y.start, x.stop - x.start)
        for volume in volumes:
            given = scale.normalised(volume[z.start : z.stop, y.start : y.stop, x.start : x.stop])
            if not bool(torch.isfinite(given).all()):
                raise ItemError("the tomogram holds values that are not finite; reconstruct it again")
            clipped = given.clamp(-model.clip, model.clip)
            beyond = [n for s in (x, y, z) for n in (0, s.padded - (s.stop - s.start))]
            padded = pad(clipped[None, None], beyond, mode="replicate").to(device)
            with torch.inference_mode(), autocast(device):
                found = network(padded)[0, 0, : len(given), : given.shape[1], : given.shape[2]]
            out += found.float().cpu() + given - clipped
        return out.mul_(scale.spread / len(volumes)).add_(scale.centre)

    for first, slab in joined((nz, ny, nx), plan, make):
        write(first, slab)
