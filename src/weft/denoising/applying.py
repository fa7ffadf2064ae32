"""What a trained network makes of an image or a volume, tile by tile."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.nn.functional import pad

from weft.denoising.cubes import WORDS, Scale, Span, Volume, joined, same_shape, spans
from weft.denoising.network import Denoiser, autocast
from weft.errors import ItemError

__all__ = ["check_pixel_size", "predicted"]

#: By how much pixel sizes may differ.
_PIXEL_TOLERANCE = 0.05


def check_pixel_size(model: Denoiser, pixel_size: float) -> None:
    """Complain about another pixel size (Å) than the model's."""
    if abs(pixel_size / model.pixel_size - 1.0) > _PIXEL_TOLERANCE:
        words = WORDS[model.dims]
        raise ItemError(
            f"the model was trained at {model.pixel_size:g} Å a {words.points[:-1]}, the {words.thing} has "
            f"{pixel_size:g}: train one at this size"
        )


def predicted(
    volumes: Sequence[Volume],
    model: Denoiser,
    scale: Scale | None = None,
    device: torch.device | str = "cpu",
    *,
    tile: int = 128,
) -> Iterator[tuple[int, torch.Tensor]]:
    """The mean of what the network makes of each of these volumes, as slabs (first section, (z, y, x)).

    Parameters
    ----------
    volumes : sequence of (z, y, x) or (y, x) arrays
        An image is a slab of one section.
    model : Denoiser
        Of as many dimensions.
    scale : Scale, optional
        Of the volumes; without, that of all of them together.
    device : torch.device or str
    tile : int
        Side of the overlapping cubes, pixels: what is held at once is a slab of this depth.

    Raises
    ------
    ItemError
        For volumes of different shapes, constant or not finite.
    """
    same_shape(volumes)
    words = WORDS[model.dims]
    if volumes[0].ndim != model.dims:
        raise ItemError(f"the model was trained on {words.thing}s, which this is not: use another model")
    device = torch.device(device)
    scale = Scale.of(volumes) if scale is None else scale
    network = model.network(device)
    plan = [spans(n, tile, network.reach, network.stride) for n in volumes[0].shape]
    flat = model.dims == 2
    if flat:
        volumes = [volume[None] for volume in volumes]
        plan = [[Span(0, 1, 1, torch.ones(1))], *plan]
    nz, ny, nx = volumes[0].shape

    def make(place: tuple[Span, Span, Span]) -> torch.Tensor:
        z, y, x = place
        out = torch.zeros(z.stop - z.start, y.stop - y.start, x.stop - x.start)
        for volume in volumes:
            given = scale.normalised(volume[z.start : z.stop, y.start : y.stop, x.start : x.stop])
            if not bool(torch.isfinite(given).all()):
                raise ItemError(f"the {words.thing} holds values that are not finite; {words.remedy}")
            clipped = given.clamp(-model.clip, model.clip)
            beyond = [n for s in (x, y, z) for n in (0, s.padded - (s.stop - s.start))]
            padded = pad(clipped[None, None], beyond, mode="replicate").to(device)
            with torch.inference_mode(), autocast(device):
                found = network(padded[:, :, 0])[:, :, None] if flat else network(padded)
            out += found[0, 0, : out.shape[0], : out.shape[1], : out.shape[2]].float().cpu() + given - clipped
        return out.mul_(scale.spread / len(volumes)).add_(scale.centre)

    yield from joined((nz, ny, nx), plan, make)
