"""Where pieces of the specimen are seen in every tilt, compared with what all the other tilts say.

Around a place of the specimen a patch is cut from every image, where the present alignment sees that place.
Each is correlated with its prediction from the others (:mod:`weft.tilts.reprojection`), in which it has no
part itself. What comes out is not yet the error e of the place in tilt t, as the others have errors too:

    d_t = e_t − Σ_j w_tj e_j                                                                       (1)

with w_tj the share that tilt j has in the prediction of t. Errors that change slowly from tilt to tilt hardly
show in d, and an iteration that takes d for e would creep. (1) is solved for e instead, place by place. That
amplifies what noise puts into d at slow changes by 30 and more, so that it is solved as far as d is known
better than the alignment before (:class:`Response`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from weft.physics import fourier
from weft.tilts.cameras import Cameras, Tracks
from weft.tilts.coarse import peaks
from weft.tilts.reprojection import predict, prediction_matrix, sample_patches, to_frame, to_image

__all__ = ["PatchTracks", "Response", "disc", "follow_patches"]

DEPTH = 0.7  # of a patch's diameter: how thick what is followed is taken to be
COVERED = 0.8  # of a patch must lie in the image
LEAST_CORRELATION = 0.1  # of a patch with its prediction
LEAST_MEAN = 0.15  # over all tilts, where unseen ones count 0: places below hold nothing to follow
SIGNAL = 60.0  # Å: detail that decides where a low-resolution correlation peaks
MASKED = 0.41  # of the square of a patch's diameter: the area that its mask leaves
STABILITY = 1e-5  # of equation (1), where d is known exactly
SLOWNESS = 1e-3  # of the power with which a coarse alignment's error changes from tilt to tilt
BATCH = 1 << 25  # pixels of patches at a time


@dataclass(frozen=True)
class PatchTracks:
    """What was measured.

    Attributes
    ----------
    places : (n, 3) float64
        Å, in the frame of the cameras.
    expected : (n, tilts, 2) float64
        Where the cameras see them, Å relative to the image's centre.
    moved : (n, tilts, 2) float64
        d: how far from there they agree best with the other tilts, u and v in the frame of the axis, Å.
    correlation : (n, tilts) float64
    seen : (n, tilts) bool
        Measurements to go by.
    """

    places: torch.Tensor
    expected: torch.Tensor
    moved: torch.Tensor
    correlation: torch.Tensor
    seen: torch.Tensor

    @property
    def good(self) -> torch.Tensor:
        """(n,) bool: places that hold something to follow."""
        share = (self.correlation * self.seen).sum(1) / self.seen.any(0).sum().clamp(min=1)
        enough: torch.Tensor = (share > LEAST_MEAN) & (self.seen.sum(1) >= 3)
        return enough

    def tracks(self, axis: torch.Tensor, errors: torch.Tensor | None = None) -> Tracks:
        """Observations of the good places; with e instead of d where `errors` (n, tilts, 2) are given."""
        moved = self.moved if errors is None else errors
        xy = self.expected + to_image(moved.transpose(0, 1), axis).transpose(0, 1)
        which = torch.nonzero(self.good)[:, 0]
        marker, tilt = torch.nonzero(self.seen[which], as_tuple=True)
        sigma = 1.0 / self.correlation[which][marker, tilt].clamp(min=LEAST_CORRELATION)
        return Tracks(marker, tilt, xy[which][marker, tilt], sigma)

    def independent(self, area: float, diameter: float) -> float:
        """As how many places that share nothing they count in a tilt (median), in `area` Å² of specimen."""
        count = self.seen[self.good].sum(0).double()
        count = count[count > 0].median() if bool((count > 0).any()) else torch.tensor(0.0)
        return 1.0 / (1.0 / max(1.0, float(count)) + MASKED * diameter**2 / area)

    def noise(self) -> float:
        """Å: scatter of d over the good places, along either direction; median of the tilts."""
        moved = self.moved.masked_fill(~self.seen[..., None], math.nan)[self.good]
        spread = 1.4826 * (moved - moved.nanmedian(0).values).abs().nanmedian(0).values
        return float((0.5 * spread.square().sum(-1)).sqrt().nanmedian())


@dataclass(frozen=True)
class Response:
    """How errors of an alignment show in what is measured, and how far one can go back from that.

    Equation (1) is solved with the errors' own size as knowledge beforehand (Tikhonov; Wiener's filter for
    each mode of change with the tilt): Σ_t weight_t (d_t − (A e)_t)² + looseness |e + moved|² is least, where
    `moved` is what has been corrected since the alignment that the knowledge is about, less what moving the
    place explains.

    Attributes
    ----------
    angles : (tilts,) float64
        Degrees.
    apart : (tilts, tilts) float64
        A = 1 − w.
    looseness : float
        (noise of d, averaged over places / size of the errors)².
    """

    angles: torch.Tensor
    apart: torch.Tensor
    looseness: float

    @classmethod
    def of(cls, angles: torch.Tensor, usable: torch.Tensor, depth: float, looseness: float) -> Response:
        """For patches in which something `depth` Å wide and thick is followed."""
        apart = torch.eye(len(angles), dtype=torch.float64) - _shares(angles, usable, depth)
        return cls(angles, apart * usable.double()[:, None], max(looseness, STABILITY))

    def _bending(self) -> torch.Tensor:
        """(2, tilts, tilts): takes from u and v over the tilts what moving the place explains."""
        theta = torch.deg2rad(self.angles.double())
        eye = torch.eye(len(theta), dtype=torch.float64)
        explained = (torch.stack([theta.cos(), theta.sin()], 1), torch.ones_like(theta)[:, None])
        bases = [torch.linalg.qr(one).Q for one in explained]
        return torch.stack([eye - q @ q.T for q in bases])

    def errors(self, found: PatchTracks, before: Cameras, now: Cameras) -> torch.Tensor:
        """e; (n, tilts, 2), u and v in the frame of the axis, Å.

        Parameters
        ----------
        found : PatchTracks
            With `now`.
        before : Cameras
            Those that the looseness is about.
        now : Cameras
        """
        moved = to_frame(now.project(found.places) - before.project(found.places), now.axis)
        known = torch.einsum("cts,snc->ntc", self._bending(), moved)
        weight = (found.seen * found.correlation).double()
        pull = self.looseness * weight.mean().clamp(min=1e-9)
        normal = torch.einsum("ti,nt,tj->nij", self.apart, weight, self.apart)
        normal = normal + pull * torch.eye(len(self.angles), dtype=torch.float64)
        d = found.moved.where(found.seen[..., None], torch.zeros_like(found.moved))
        right = torch.einsum("ti,nt,ntc->nic", self.apart, weight, d) - pull * known
        solved: torch.Tensor = torch.linalg.solve(normal, right)
        return solved

    def common(self, errors: torch.Tensor) -> torch.Tensor:
        """(tilts, 2): what the errors (n, tilts, 2) of all places have in common, their own depths aside."""
        found: torch.Tensor = torch.einsum("cts,nsc->ntc", self._bending(), errors).median(0).values
        return found

    def left(self, size: float) -> torch.Tensor:
        """(tilts,) Å: how much remains of errors of the `size` (Å RMS) in which slow changes prevail.

        An alignment of whole images goes by the same displacements; what it leaves are their errors,
        amplified by the inverse of A.
        """
        square = self.apart.T @ self.apart
        eye = torch.eye(len(square), dtype=torch.float64)
        keeps = self.looseness * torch.linalg.inv(square + self.looseness * eye)
        bending = self._bending()
        prior = bending @ torch.linalg.inv(square + SLOWNESS * eye) @ bending
        prior = prior * size**2 / prior.diagonal(dim1=-2, dim2=-1).sum(0).mean()
        left = bending @ keeps @ prior @ keeps.T @ bending
        found: torch.Tensor = left.diagonal(dim1=-2, dim2=-1).sum(0).clamp(min=0.0).sqrt()
        return found


def _shares(angles: torch.Tensor, usable: torch.Tensor, depth: float) -> torch.Tensor:
    """w of equation (1): each tilt's part of each prediction, as far as it decides on the peak's place."""
    theta = torch.deg2rad(angles.double())
    slope = (theta[:, None] - theta).sin().abs()
    k = torch.linspace(0.0, 4.0 / SIGNAL, 65, dtype=torch.float64)
    kappa = (1.0 - depth * k * slope[..., None]).clamp(min=0.0)
    kappa = kappa * ((1.0 - torch.eye(len(theta))) * usable).double()[..., None]
    kappa = kappa / (kappa.sum(1, keepdim=True) + 0.3)
    # curvature of the correlation's peak: k² times the power, summed over k_v
    decides = torch.exp(-0.5 * (k * SIGNAL).square()) * (k.square() + SIGNAL**-2)
    share = (kappa * decides).sum(-1)
    return share / share.sum(1, keepdim=True).clamp(min=1e-12)


def follow_patches(
    images: torch.Tensor,
    pixel_size: tuple[float, float],
    cameras: Cameras,
    places: torch.Tensor,
    usable: torch.Tensor,
    *,
    diameter: float,
    step: float,
    reach: float,
    depth: float | None = None,
) -> PatchTracks:
    """Measure where places of the specimen are in every tilt.

    Parameters
    ----------
    images : (tilts, y, x) float32
        Band-passed (:func:`~weft.tilts.coarse.prepare_images`).
    pixel_size : (float, float)
        x, y, Å.
    cameras : Cameras
    places : (n, 3) tensor
        Å, in the frame of the cameras.
    usable : (tilts,) bool tensor
        Images to go by.
    diameter, step : float
        Of the patches, and their pixel size, Å.
    reach : float
        Å: how far from where it is expected a place is looked for.
    depth : float, optional
        Å: how thick what is followed is taken to be.

    Returns
    -------
    PatchTracks
    """
    h, w = images.shape[-2:]
    middle = 0.5 * torch.tensor([w * pixel_size[0], h * pixel_size[1]], dtype=torch.float64)
    n = fourier.fast_size(math.ceil(diameter / step))
    thick = DEPTH * diameter if depth is None else depth
    weights = (1.0 - torch.eye(len(images))) * usable
    matrix = prediction_matrix(cameras.angles, cameras.angles, weights, n, step, thick)
    mask = disc(n, images.device)
    at = (torch.arange(n, device=images.device) + n // 2) % n - n // 2
    near = (at[:, None].abs() <= reach / step) & (at.abs() <= reach / step)
    both = torch.stack([images, torch.ones_like(images)], 1)
    expected = cameras.project(places)
    moved, correlation, covered = [], [], []
    batch = max(1, BATCH // (len(images) * n * n))
    for first in range(0, len(places), batch):
        part = expected[:, first : first + batch] + middle
        found = sample_patches(both, pixel_size, part, cameras.axis, (n, n), step)
        patches, inside = found.unbind(2)
        model = predict(matrix, patches) * mask
        patches = patches * mask
        norm = (patches.square().sum((-1, -2)) * model.square().sum((-1, -2))).sqrt().clamp(min=1e-9)
        maps = fourier.irfft2(fourier.rfft2(patches) * fourier.rfft2(model).conj(), (n, n))
        maps /= norm[..., None, None]
        uv, _ = peaks(maps.reshape(-1, n, n), reach / step)
        moved.append(uv.reshape(*maps.shape[:2], 2) * step)
        correlation.append(maps.masked_fill(~near, -1.0).amax((-1, -2)).double().cpu())
        covered.append(((inside * mask).sum((-1, -2)) / mask.sum()).cpu())
    d, c = torch.cat(moved), torch.cat(correlation)
    # a peak at the edge of the search is none
    seen = (torch.cat(covered) > COVERED) & (c > LEAST_CORRELATION) & (d.abs().amax(-1) < reach - step)
    return PatchTracks(places, expected.transpose(0, 1), d, c, seen & usable.bool())


def disc(n: int, device: torch.device) -> torch.Tensor:
    """(n, n): 1 in the inner half of a disc, falling to 0 at its edge."""
    at = torch.arange(n, device=device) - n // 2
    r = torch.hypot(at[:, None].float(), at.float()) / (n / 2)
    return 0.5 + 0.5 * torch.cos(math.pi * ((r - 0.5) / 0.5).clamp(0.0, 1.0))
