"""The background of particle images: mean 0 and standard deviation 1 around the particle, no dust."""

from __future__ import annotations

import torch

__all__ = ["Ground", "background_moments", "background_ramp", "normalise_background", "outside_circle"]

LEAST = 0.02  # part of the box that must be background for its noise to be known
FLAT = 1e-5  # of the mean: what varies less than rounding holds no image


class Ground:
    """Which pixels are background in each image.

    Parameters
    ----------
    outside : (y, x) bool
        Outside of the particle's circle.
    shown : (n, y, x) bool, optional
        Pixels that the micrograph shows; all by default.
    """

    def __init__(self, outside: torch.Tensor, shown: torch.Tensor | None = None) -> None:
        if shown is None:
            shown = torch.ones_like(outside)[None]
        chosen = outside & shown
        few = chosen.sum((-2, -1)) < LEAST * outside.numel()
        self.pixels = torch.where(few[:, None, None], shown, chosen)
        self.shown = shown

    @property
    def count(self) -> torch.Tensor:
        """(n,) pixels."""
        return self.pixels.sum((-2, -1)).clamp(min=2)


def outside_circle(box: int, radius: float, device: torch.device | str = "cpu") -> torch.Tensor:
    """(box, box) bool: further than `radius` pixels from the centre, pixel box//2."""
    offset = torch.arange(box, device=device, dtype=torch.float32) - box // 2
    outside: torch.Tensor = torch.hypot(offset[:, None], offset[None]) > radius
    return outside


def background_moments(images: torch.Tensor, ground: Ground) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the background: (n,), (n,)."""
    mean = (images * ground.pixels).sum((-2, -1)) / ground.count
    centred = (images - mean[:, None, None]) * ground.pixels
    return mean, (centred.square().sum((-2, -1)) / ground.count).sqrt()


def background_ramp(images: torch.Tensor, ground: Ground) -> torch.Tensor:
    """The plane that fits the background best, (n, y, x)."""
    n, ny, nx = images.shape
    y = torch.linspace(-1.0, 1.0, ny, device=images.device, dtype=torch.float64)
    x = torch.linspace(-1.0, 1.0, nx, device=images.device, dtype=torch.float64)
    ones = torch.ones(ny, nx, device=images.device, dtype=torch.float64)
    basis = torch.stack([ones, y[:, None] * ones, x * ones]).reshape(3, -1)
    used = ground.pixels.expand(n, ny, nx).reshape(n, -1).double()
    matrix = torch.einsum("ip,np,jp->nij", basis, used, basis)
    # a background that lies on one line leaves the slope across it free: none
    matrix += 1e-9 * used.sum(1)[:, None, None] * torch.eye(3, dtype=torch.float64, device=images.device)
    values = images.reshape(n, -1).double() * used
    plane: torch.Tensor = torch.linalg.solve(matrix, values @ basis.T) @ basis
    return plane.reshape(n, ny, nx).to(images.dtype)


def normalise_background(
    images: torch.Tensor, ground: Ground, *, ramp: bool = False, dust: float | None = None, seed: int = 0
) -> torch.Tensor:
    """Bring the background of every image to mean 0 and standard deviation 1, in place.

    Parameters
    ----------
    images : (n, y, x) float32
    ground : Ground
    ramp : bool
        Subtract a plane instead of a constant.
    dust : float, optional
        Values further from 0 than this, in standard deviations, become noise of the background.
    seed : int
        Of that noise.

    Returns
    -------
    (n,) bool
        Images that hold nothing: their background does not vary.
    """
    flat = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    for again in (False, True):
        mean, spread = background_moments(images, ground)
        if not again:
            flat = ~(spread > FLAT * mean.abs()) | ~torch.isfinite(spread)
        if ramp:
            images -= background_ramp(images, ground)
            mean, spread = background_moments(images, ground)
        images -= mean[:, None, None]
        images *= ground.shown / spread.clamp(min=1e-20)[:, None, None]
        if again or dust is None:
            break
        wrong = images.abs() > dust
        if not bool(wrong.any()):
            break
        noise = torch.Generator().manual_seed(seed)
        fresh = torch.randn(int(wrong.sum()), generator=noise).to(images.device)
        images[wrong] = fresh
    return flat
