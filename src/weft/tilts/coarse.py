"""Where the images of a tilt series lie, to within what a local search can finish, and along which axis.

Each image is compared with what the others say it should show (:mod:`weft.tilts.reprojection`, after the
projection matching of AreTomo, Zheng et al. 2022): first from the least tilted image outwards, where only
images that are placed already say something, then all against all others. Stretching images by cosines (as
Guckenberger 1982 did for pairs) is contained in it, and so is that a thick specimen keeps less in common at
higher frequencies and larger angles. An axis that is not known is the one about which the images agree best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from weft.errors import ItemError
from weft.physics import fourier
from weft.tilts.reprojection import (
    predict,
    prediction_matrix,
    raised_cosine,
    sample_patches,
    to_image,
)

__all__ = ["CoarseAlignment", "agreement", "coarse_alignment", "peaks", "prepare_images"]

COARSE_PIXELS = 128  # along the longer side: 1/30 of the field is then four pixels
SEARCH_PIXELS = 80  # while the axis is not known
CLIP = 4.0  # standard deviations: beads and defects shall not decide alone
FARTHEST = 0.6  # of the field's side: two images moved by a quarter each way, and a little
LEAST_OVERLAP = 0.3  # of two images' area
LOST = 5.0  # peaks lower than this many standard deviations of their map are found in noise alone
REACH = 4  # nearest images that a first placement looks at
FINEST_AXIS = 0.7  # degrees: the bundle adjustment does the rest
THICKNESS = 0.35  # of the field: of what is supposed to be seen in common


@dataclass(frozen=True)
class CoarseAlignment:
    """The placement of every image.

    Attributes
    ----------
    shift : (tilts, 2) float64
        x, y, Å: where the specimen's centre lies relative to the image's centre. The image of least tilt has
        (0, 0).
    axis : float
        Degrees, counter-clockwise from the image's y axis.
    axis_score : float
        Mean correlation of the images with what the others predict, about this axis.
    height : (tilts,) float64
        Height of the peak over its correlation map, standard deviations.
    agreement : (tilts,) float64
        Correlation coefficient of each image with its prediction.
    lost : (tilts,) bool
        Images that agree with no others; their shift is that of their neighbours.
    notes : tuple of str
        What a person should know.
    """

    shift: torch.Tensor
    axis: float
    axis_score: float
    height: torch.Tensor
    agreement: torch.Tensor
    lost: torch.Tensor
    notes: tuple[str, ...] = ()


def prepare_images(
    images: Sequence[torch.Tensor] | torch.Tensor,
    pixel_size: float,
    target: float,
    band: tuple[float, float],
) -> tuple[torch.Tensor, tuple[float, float], torch.Tensor]:
    """Images reduced to a pixel size, band-passed, clipped, and of standard deviation 1.

    Parameters
    ----------
    images : sequence of (y, x) tensors
    pixel_size, target : float
        Å; the reduced pixels are `target` or a little less, and never smaller than those given.
    band : (float, float)
        Lowest and highest frequency, 1/Å; both fall off smoothly.

    Returns
    -------
    images : (tilts, y, x) float32
    pixel_size : (float, float)
        x, y, Å.
    empty : (tilts,) bool
        Images that show nothing; they are 0.
    """
    shape = (images[0].shape[0], images[0].shape[1])
    size = tuple(min(n, fourier.fast_size(math.ceil(n * pixel_size / target - 1e-6))) for n in shape)
    pixels = (pixel_size * shape[1] / size[1], pixel_size * shape[0] / size[0])
    device = images[0].device
    ky, kx = (
        torch.fft.fftfreq(size[0], pixels[1], device=device)[:, None],
        torch.fft.rfftfreq(size[1], pixels[0], device=device),
    )
    k2 = ky**2 + kx**2
    gain = (1.0 - torch.exp(-k2 / (2 * band[0] ** 2))) * torch.exp(-k2 / (2 * (0.7 * band[1]) ** 2))
    gain *= k2 <= band[1] ** 2 * 1.44
    out = torch.zeros(len(images), *size, device=device)
    empty = torch.zeros(len(images), dtype=torch.bool)
    window = raised_cosine(size[0], 0.1, device)[:, None] * raised_cosine(size[1], 0.1, device)
    for t in range(len(images)):
        if tuple(images[t].shape) != shape:
            raise ItemError(
                f"tilt {t} has another size than tilt 0: all images of a series must have one size"
            )
        image = fourier.resize(images[t].to(torch.float32), size)  # type: ignore[arg-type]
        mean, std = float(image.mean()), float(image.std())
        if not math.isfinite(std) or std <= 1e-6 * abs(mean):
            empty[t] = True
            continue
        image = ((image - mean) / std).clamp(-4 * CLIP, 4 * CLIP) * window
        for _ in range(2):  # clipped, then again: clipping brings back what the band excludes
            image = fourier.irfft2(fourier.rfft2(image) * gain, size)  # type: ignore[arg-type]
            image /= image.std() + 1e-12
            image = image.clamp(-CLIP, CLIP)
        out[t] = image
    return out, pixels, empty


@dataclass(frozen=True)
class _Series:
    """Images on a coarse square grid, to be turned about any axis."""

    images: torch.Tensor
    pixel_size: tuple[float, float]
    angles: torch.Tensor
    usable: torch.Tensor
    size: int
    step: float
    thickness: float
    matrices: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        images: Sequence[torch.Tensor] | torch.Tensor,
        angles: torch.Tensor,
        pixel_size: float,
        pixels: int,
    ) -> _Series:
        field = max(images[0].shape) * pixel_size
        step = max(pixel_size, field / pixels)
        reduced, found, empty = prepare_images(images, pixel_size, step, (4.0 / field, 0.4 / step))
        # wider than the field, so that most of what turns out of it is still there
        size = fourier.fast_size(math.ceil(1.2 * field / step))
        return cls(reduced, found, angles, ~empty, size, step, field * THICKNESS)

    def turned(
        self, axis: float, shift: torch.Tensor, tilts: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, v, u): some images in the frame of the axis, and where they have pixels."""
        images = self.images[list(tilts)]
        h, w = images.shape[-2:]
        centre = 0.5 * torch.tensor([w * self.pixel_size[0], h * self.pixel_size[1]], dtype=torch.float64)
        axes = torch.full((len(images),), axis)
        both = torch.stack([images, torch.ones_like(images)], 1)
        where = ((centre + shift)[:, None], axes, (self.size, self.size), self.step)
        found, seen = sample_patches(both, self.pixel_size, *where)[0].unbind(1)
        return found, seen.clamp(0.0, 1.0)

    def from_near(self, target: int, near: Sequence[int]) -> torch.Tensor:
        """The matrix that predicts one image from some; kept, as the axis does not matter to it."""
        key = (target, *near)
        if key not in self.matrices:
            angles, ones = self.angles[[target]], torch.ones(1, len(near))
            self.matrices[key] = self._matrix(angles, self.angles[list(near)], ones)
        return self.matrices[key]

    def from_others(self, counted: torch.Tensor) -> torch.Tensor:
        """The matrix that predicts every image from all others that are `counted`."""
        key = (-1, *counted.tolist())
        if key not in self.matrices:
            weights = (1.0 - torch.eye(len(counted))) * counted
            self.matrices[key] = self._matrix(self.angles, self.angles, weights)
        return self.matrices[key]

    def _matrix(self, targets: torch.Tensor, angles: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        width = self.thickness / THICKNESS
        return prediction_matrix(targets, angles, weights, self.size, self.step, self.thickness, width=width)


def _correlation(image: torch.Tensor, model: torch.Tensor, covered: torch.Tensor) -> torch.Tensor:
    """Cross-correlation per root of overlap for all shifts; (2n, 2n), 0 where they hardly overlap.

    `covered` holds the two coverages, (2, n, n).
    """
    n = image.shape[-1]
    size = (2 * n, 2 * n)
    a, b, ca, cb = fourier.rfft2(torch.stack([image, model, covered[0], covered[1]]), size)
    maps = fourier.irfft2(torch.stack([a * b.conj(), ca * cb.conj()]), size)
    least = LEAST_OVERLAP * float(torch.minimum(covered[0].sum(), covered[1].sum()))
    return torch.where(maps[1] > least, maps[0] / maps[1].clamp(min=least).sqrt(), torch.zeros_like(maps[0]))


def peaks(score: torch.Tensor, reach: float) -> tuple[torch.Tensor, torch.Tensor]:
    """u, v (px, signed) of the best places of maps (m, n, n) within `reach` px, and their heights.

    Heights are in standard deviations of the maps, where these are not 0.
    """
    m, n = len(score), score.shape[-1]
    at = (torch.arange(n, device=score.device) + n // 2) % n - n // 2
    near = (at[:, None].abs() <= reach) & (at.abs() <= reach)
    seen = score != 0
    best = score.masked_fill(~(near & seen), -math.inf).reshape(m, -1).argmax(-1)
    i, j, every = best // n, best % n, torch.arange(m, device=score.device)

    def vertex(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        curvature = a - 2 * b + c
        found = 0.5 * (a - c) / curvature.where(curvature < 0, torch.ones_like(curvature))
        return found.clamp(-0.5, 0.5).where(curvature < 0, torch.zeros_like(found))

    middle = score[every, i, j]
    dv = vertex(score[every, i - 1, j], middle, score[every, (i + 1) % n, j])
    du = vertex(score[every, i, j - 1], middle, score[every, i, (j + 1) % n])
    count = seen.sum((-1, -2)).clamp(min=2)
    spread = (score.square().sum((-1, -2)) / count - (score.sum((-1, -2)) / count).square()).clamp(min=1e-20)
    return torch.stack([at[j] + du, at[i] + dv], -1).double().cpu(), (middle / spread.sqrt()).double().cpu()


def _moves(series: _Series, uv: torch.Tensor, axis: float) -> torch.Tensor:
    """Pixels u, v in the frame → Å x, y in the image; (n, 2)."""
    return to_image(uv[None] * series.step, torch.full((1,), axis))[0]


def _outwards(series: _Series, axis: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Place images one after the other, from the least tilted one: shifts (tilts, 2) Å and heights."""
    angles, tilts = series.angles, len(series.angles)
    shift = torch.zeros(tilts, 2, dtype=torch.float64)
    height = torch.zeros(tilts, dtype=torch.float64)
    raw, seen = series.turned(axis, shift, range(tilts))
    start = int(torch.where(series.usable, angles.abs(), torch.full_like(angles, 1e3)).argmin())
    aligned, covers = {start: raw[start]}, {start: seen[start]}
    for t in (angles - angles[start]).abs().argsort(stable=True).tolist():
        if t == start or not bool(series.usable[t]):
            continue
        near = sorted(aligned, key=lambda j: abs(float(angles[j] - angles[t])))
        shift[t] = shift[near[0]]
        near = near[:REACH]
        model = predict(series.from_near(t, near), torch.stack([aligned[j] for j in near])[None])[0, 0]
        cover = covers[near[0]]
        score = _correlation(raw[t] * seen[t], model * cover, torch.stack([seen[t], cover]))
        uv, high = peaks(score[None], FARTHEST * series.size / 1.2)
        height[t] = high[0]
        if float(height[t]) < LOST:
            continue
        shift[t] = _moves(series, uv, axis)[0]
        found, cover = series.turned(axis, shift[t : t + 1], [t])
        aligned[t], covers[t] = found[0], cover[0]
    height[start] = max(height[list(aligned)].tolist())
    return shift, height


def _together(
    series: _Series, axis: float, shift: torch.Tensor, counted: torch.Tensor, reaches: Sequence[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Place every image among all others, in rounds: shifts, and how well each agrees with the others."""
    tilts = len(series.angles)
    matrix = series.from_others(counted)
    shift = shift.clone()
    agreement = torch.zeros(tilts, dtype=torch.float64)
    for reach in (*reaches, 0.0):
        found, seen = series.turned(axis, shift, range(tilts))
        model = predict(matrix, found[None])[0] * seen
        products = [
            (a * b).sum((-1, -2)).double() for a, b in ((found, model), (found, found), (model, model))
        ]
        agreement = products[0] / (products[1] * products[2]).sqrt().clamp(min=1e-9)
        if reach == 0.0:
            break
        spectra = fourier.rfft2(found) * fourier.rfft2(model).conj()
        maps = fourier.irfft2(spectra, (series.size, series.size))
        moves, _ = peaks(maps, reach)
        # images that move towards each other at the same time would overshoot
        shift[counted] += 0.7 * _moves(series, moves, axis)[counted]
    return shift, agreement


def _search_axis(
    series: _Series, centre: float | None, reach: float
) -> tuple[float, list[tuple[float, float]]]:
    """The axis about which the images agree best, and the agreement about all that were tried."""
    tried: list[tuple[float, float]] = []

    starts: dict[float, torch.Tensor] = {}

    def score(axis: float) -> float:
        if starts and centre is not None:  # near enough to go on from there
            shift = starts[min(starts, key=lambda a: abs(a - axis))]
        else:
            shift, height = _outwards(series, axis)
            counted[:] = series.usable & (height >= LOST)
        starts[axis], agreement = _together(series, axis, shift, counted, (6.0, 3.0, 2.0))
        value = float(agreement[counted].sum()) / max(1, int(series.usable.sum()))
        tried.append((axis, value))
        return value

    counted = series.usable.clone()
    if centre is None:
        step = 9.0
        best = max((k * step for k in range(round(180 / step))), key=score)
    else:
        step, best = reach, centre
    while step > FINEST_AXIS:
        step *= 0.5
        known = dict(tried)
        options = (best - step, best, best + step)
        best = max(options, key=lambda a: known[a] if a in known else score(a))
    return best, tried


def coarse_alignment(
    images: Sequence[torch.Tensor] | torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float | None,
    *,
    search: float = 5.0,
) -> CoarseAlignment:
    """Place the images of a series, and find its axis.

    Parameters
    ----------
    images : sequence of (y, x) tensors
        In any order; raw counts or any linear scale.
    angles : (tilts,) tensor
        Stage angles, degrees.
    pixel_size : float
        Å.
    axis : float or None
        The nominal axis, degrees counter-clockwise from the image's y axis, refined within ± `search`. None
        looks in all directions; images alone do not tell an axis from the opposite one (with which the
        specimen is mirrored along the beam), so that what is found lies in −90° ≤ axis < 90°.
    search : float
        Degrees; 0 keeps the nominal axis.

    Returns
    -------
    CoarseAlignment

    Raises
    ------
    ItemError
        If fewer than 3 images show something, sizes differ, or angles and images are not as many.
    """
    angles = torch.as_tensor(angles, dtype=torch.float64)
    if len(angles) != len(images):
        raise ItemError(f"{len(images)} images but {len(angles)} tilt angles: give one angle for each image")
    notes: list[str] = []
    small = _Series.of(images, angles, pixel_size, SEARCH_PIXELS)
    if int(small.usable.sum()) < 3:
        raise ItemError("fewer than 3 images of the series show anything: it cannot be aligned")
    found = axis
    if axis is None or search > 0:
        found, tried = _search_axis(small, axis, search)
        if axis is None:
            found = (found + 90.0) % 180.0 - 90.0
            best = max(value for _, value in tried)
            # far from it, as the crow flies on the circle of directions
            far = [v for a, v in tried if abs((a - found + 90.0) % 180.0 - 90.0) >= 20.0]
            middle, spread = torch.tensor(far).median(), torch.tensor(far).std()
            notes.append(
                f"tilt axis found at {found:.1f}° (or {found + 180.0:.1f}°, which images alone cannot tell "
                f"apart): agreement {best:.3f}, at other angles {float(middle):.3f} ± {float(spread):.3f}"
            )
        elif abs(found - axis) > 0.9 * search:
            notes.append(
                f"the images agree best about an axis {found - axis:+.1f}° from the nominal {axis:.1f}°, at "
                "the edge of the search: the nominal axis may be wrong"
            )
    assert found is not None
    series = _Series.of(images, angles, pixel_size, COARSE_PIXELS)
    shift, height = _outwards(series, found)
    counted = series.usable & (height >= LOST)
    shift, agreement = _together(series, found, shift, counted, (8.0, 6.0, 4.0, 3.0))
    lost = ~counted | (agreement < _floor(agreement[counted]))
    shift = _fill(shift, angles, lost)
    first = int(torch.where(lost, torch.full_like(angles, 1e3), angles.abs()).argmin())
    shift -= shift[first].clone()
    for t in torch.where(lost)[0].tolist():
        why = "is empty" if not bool(series.usable[t]) else "agrees with no other"
        notes.append(f"tilt {t} ({float(angles[t]):+.1f}°) {why}: it has been given its neighbours' shift")
    score = float(agreement[~lost].mean()) if bool((~lost).any()) else 0.0
    return CoarseAlignment(shift, found, score, height, agreement, lost, tuple(notes))


def _floor(agreement: torch.Tensor) -> float:
    """Agreement below which an image does not belong to the others."""
    return 0.2 * float(agreement.median()) if len(agreement) else 0.0


def _fill(shift: torch.Tensor, angles: torch.Tensor, lost: torch.Tensor) -> torch.Tensor:
    """Lost images get the mean shift of the nearest ones on both sides."""
    out, good = shift.clone(), torch.where(~lost)[0]
    for t in torch.where(lost)[0].tolist():
        below, above = good[angles[good] <= angles[t]], good[angles[good] >= angles[t]]
        near = [int(side[(angles[side] - angles[t]).abs().argmin()]) for side in (below, above) if len(side)]
        out[t] = shift[near].mean(0)
    return out


def agreement(
    images: Sequence[torch.Tensor] | torch.Tensor,
    angles: torch.Tensor,
    pixel_size: float,
    axis: float,
    shift: torch.Tensor,
    usable: torch.Tensor,
) -> float:
    """Mean correlation coefficient of the `usable` images, so placed, with what the others predict."""
    series = _Series.of(images, torch.as_tensor(angles, dtype=torch.float64), pixel_size, COARSE_PIXELS)
    counted = series.usable & usable
    _, found = _together(series, axis, shift, counted, ())
    return float(found[counted].mean()) if bool(counted.any()) else 0.0
