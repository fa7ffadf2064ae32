"""Motion of the stage and of the specimen during an exposure.

The method follows Tegunov & Cramer 2019 ("Motion model", "Global and local motion correction") with three
changes: every Fourier coefficient is weighted by its measured signal-to-noise ratio, the fit uses exact
gradients with the Fisher information (`patches`), and the freedom of the model is chosen by how well
it predicts coefficients that were left out of the fit (`tracks`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from pydantic import field_validator

from weft.errors import FitError
from weft.movies import patches as pt
from weft.movies import tracks as tk
from weft.movies.drift import FrameStack, low_pass_frames, whole_frame_drift
from weft.physics.dose import dose_of_frames
from weft.physics.optics import Optics
from weft.physics.splines import evaluate_grid
from weft.settings import Settings, setting

__all__ = ["MotionModel", "MotionSettings", "fit_motion"]

ROUNDS = 8
CHOICES = 4  # rounds in which freedom is still chosen
CONVERGED = 0.03  # Å: the largest change of any track that ends the rounds


class MotionSettings(Settings):
    """How motion is estimated."""

    range_min: float = setting(
        200.0, "Lowest spatial frequency used, as a resolution.", unit="Å", gt=20, le=2000
    )
    range_max: float = setting(
        7.0, "Highest spatial frequency used, as a resolution.", unit="Å", ge=1.0, le=40.0
    )
    bfactor: float = setting(
        0.0,
        "Extra attenuation of high frequencies, exp(-B k²/4); every frequency is weighted by its measured "
        "signal-to-noise ratio already, so 0 suits most data.",
        unit="Å²",
        ge=0.0,
        le=5000.0,
    )
    patch: float = setting(
        250.0, "Side of the overlapping patches in which frames are compared.", unit="Å", ge=80.0, le=2000.0
    )
    grid_time: int = setting(
        0, "Control points in time of the global motion; 0 is one for each frame.", ge=0, le=4096
    )
    grid_local: tuple[int, int, int] = setting(
        (5, 5, 3), "Control points of the local motion in x, y and time (1 to 8, 1 to 8, 1 to 5)."
    )
    local: Literal["auto", "on", "off"] = setting(
        "auto",
        "Local motion: as much as predicts data that were left out of the fit (auto), always, or never.",
    )

    @field_validator("grid_local")
    @classmethod
    def _within(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if not all(1 <= v <= limit for v, limit in zip(value, (8, 8, 5), strict=True)):
            raise ValueError("grid_local is three numbers: 1 to 8 in x, 1 to 8 in y, 1 to 5 in time")
        return value


@dataclass(frozen=True)
class MotionModel:
    """Where every place of the aligned average lies in every frame.

    Attributes
    ----------
    n_frames : int
    extent : (float, float)
        Width and height of the field, Å.
    global_shift : (frames, 2) float64
        x, y in Å.
    local : (2, t, y, x) float64 or None
        Control values of the local motion's splines, Å.
    relaxation : float
        Frames after which local motion slows down: see `tracks.time_axis`.
    diagnostics : dict
        Plain numbers about the fit: see docs/science/motion.md.
    """

    n_frames: int
    extent: tuple[float, float]
    global_shift: NDArray[np.float64]
    local: NDArray[np.float64] | None = None
    relaxation: float = math.inf
    diagnostics: dict[str, Any] = field(default_factory=dict)

    def track(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Tracks of places in the aligned average.

        Parameters
        ----------
        xy : (n, 2) array
            x, y in Å.

        Returns
        -------
        (frames, n, 2) float64 array
            Where each place lies in each frame minus where it lies in the average, Å.
        """
        places = np.atleast_2d(np.asarray(xy, dtype=np.float64))
        out = np.repeat(self.global_shift[:, None, :], len(places), axis=1)
        if self.local is not None:
            out += self.local_track(places)
        return out

    def local_track(self, xy: ArrayLike) -> NDArray[np.float64]:
        """The local part of :meth:`track` alone, (frames, n, 2) Å."""
        places = np.atleast_2d(np.asarray(xy, dtype=np.float64))
        if self.local is None:
            return np.zeros((self.n_frames, len(places), 2))
        u = tk.time_axis(self.n_frames, self.relaxation)
        y = np.tile(places[:, 1] / self.extent[1], self.n_frames)
        x = np.tile(places[:, 0] / self.extent[0], self.n_frames)
        values = evaluate_grid(self.local, np.repeat(u, len(places)), y, x)
        return values.reshape(2, self.n_frames, len(places)).transpose(1, 2, 0)

    def centred(self) -> MotionModel:
        """The same motion with the mean of the global shifts, and of each control point's, at zero.

        The average then shows the specimen in the middle of its way instead of where it was at first.
        """
        local = None if self.local is None else self.local - self.local.mean(1, keepdims=True)
        return replace(self, global_shift=self.global_shift - self.global_shift.mean(0), local=local)

    def metrics(self) -> dict[str, float]:
        """Path lengths in Å, as RELION counts them (early: the first 4 e/Å²), and the local motion's size."""
        steps = np.linalg.norm(np.diff(self.global_shift, axis=0), axis=1)
        dose = float(self.diagnostics.get("dose_per_frame", 1.0))
        early = round(4.0 / dose) if dose > 0 else 0
        local = 0.0
        if self.local is not None:
            axes = [np.linspace(0.0, 1.0, 5) * e for e in self.extent]
            places = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
            moved = self.local_track(places)
            local = float(np.sqrt(((moved - moved.mean(0)) ** 2).sum(-1).mean()))
        return {
            "motion_total": float(steps.sum()),
            "motion_early": float(steps[: max(early - 1, 0)].sum()),
            "motion_late": float(steps[max(early - 1, 0) :].sum()),
            "motion_per_frame": float(steps.mean()) if len(steps) else 0.0,
            "motion_local": local,
            "motion_expected_error": float(self.diagnostics.get("expected_error", 0.0)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for a record."""
        return {
            "n_frames": self.n_frames,
            "extent": list(self.extent),
            "global_shift": np.round(self.global_shift, 5).tolist(),
            "local": None if self.local is None else np.round(self.local, 5).tolist(),
            "relaxation": self.relaxation if math.isfinite(self.relaxation) else None,
            "diagnostics": self.diagnostics,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MotionModel:
        """Inverse of :meth:`to_dict`."""
        return cls(
            n_frames=int(data["n_frames"]),
            extent=(float(data["extent"][0]), float(data["extent"][1])),
            global_shift=np.asarray(data["global_shift"], dtype=np.float64).reshape(-1, 2),
            local=None if data["local"] is None else np.asarray(data["local"], dtype=np.float64),
            relaxation=math.inf if data["relaxation"] is None else float(data["relaxation"]),
            diagnostics=dict(data["diagnostics"]),
        )


def fit_motion(frames: FrameStack, optics: Optics, settings: MotionSettings | None = None) -> MotionModel:
    """Estimate global and local motion of a movie.

    Parameters
    ----------
    frames : (frames, y, x) float32 tensor, or anything that gives frames one by one
        Gain-corrected; see :class:`weft.movies.frames.Frames`.
    optics : Optics
        Pixel size, voltage and dose of the raw frames.
    settings : MotionSettings, optional

    Returns
    -------
    MotionModel

    Raises
    ------
    FitError
        The frames are smaller than 64 pixels, or hold no contrast at all.
    """
    settings = settings or MotionSettings()
    n_frames, (ny, nx) = len(frames), frames.shape[-2:]
    extent = (nx * optics.pixel_size, ny * optics.pixel_size)
    if min(ny, nx) < 64:
        raise FitError(f"the frames are {nx}×{ny} pixels; motion needs at least 64 in each direction")
    if n_frames == 1:
        return MotionModel(1, extent, np.zeros((1, 2)), diagnostics={"dose_per_frame": optics.dose_per_frame})
    resolution = max(settings.range_max, 2.0 * optics.pixel_size)
    small, pixels = low_pass_frames(frames, optics.pixel_size, resolution)
    if not float(small.std()) > 0.0:
        raise FitError("the frames hold no contrast at all (every pixel has the same value)")
    band = (1.0 / settings.range_min, 1.0 / resolution)
    drift = whole_frame_drift(small, pixels, band)
    doses = dose_of_frames(n_frames, optics.dose_per_frame, optics.prior_dose).numpy()
    patches = pt.cut_patches(
        small,
        pixels,
        size=settings.patch,
        band=band,
        b_factor=settings.bfactor,
        doses=doses,
        voltage=optics.voltage,
    )
    del small
    grid = settings.grid_local if settings.local != "off" else (1, 1, 1)
    bases = {
        relaxation: tk.TrackBasis.at(n_frames, patches.centers, extent, settings.grid_time, grid, relaxation)
        for relaxation in (tk.RELAXATIONS if settings.local != "off" else tk.RELAXATIONS[:1])
    }
    parameters, freedom, diagnostics = _refine(patches, bases, drift.numpy(), settings.local)
    basis = bases[freedom.relaxation]
    n_global, _ = basis.sizes
    local = None
    if freedom.amplitude > 0.0:
        local = np.moveaxis(parameters[n_global:].reshape(-1, grid[1], grid[0], 2), -1, 0)
    shift = basis.time @ parameters[:n_global]
    diagnostics["dose_per_frame"] = optics.dose_per_frame
    if local is not None:
        local = local - local[:, :1]  # the splines go through their control points
    return MotionModel(n_frames, extent, shift - shift[0], local, freedom.relaxation, diagnostics)


def _refine(
    patches: pt.Patches, bases: dict[float, tk.TrackBasis], drift: NDArray[np.float64], local: str
) -> tuple[NDArray[np.float64], tk.Freedom, dict[str, Any]]:
    """Gauss-Newton rounds from the whole-frame drift; what tracks may be like is chosen anew in each."""
    tracks = np.repeat(drift[None], len(patches.centers), axis=0)
    freedom, gain = tk.Freedom(), 0.0
    for round_ in range(ROUNDS):
        at = torch.as_tensor(tracks, device=patches.data.device)
        sums = pt.shifted_sums(patches, at)
        signal = pt.estimate_signal(patches, sums)
        weights = pt.signal_weights(patches, signal)
        slopes = pt.gradient(patches, at, sums * weights[:, patches.shells])
        information = pt.information(patches, signal)
        if round_ < CHOICES:
            halves = {
                r: [tk.normal_equations(b, tracks, slopes[h], information[h]) for h in (1, 2)]
                for r, b in bases.items()
            }
            freedom, gain = tk.choose(bases, halves, freedom, local)
        basis = bases[freedom.relaxation]
        prior = basis.prior(freedom)
        equations = tk.normal_equations(basis, tracks, slopes[0], information[0])
        parameters = equations.solve(prior)
        new = basis.tracks(parameters)
        moved = float(
            np.abs((new - new.mean(1, keepdims=True)) - (tracks - tracks.mean(1, keepdims=True))).max()
        )
        tracks = new
        if moved < CONVERGED:
            break
    return (
        parameters,
        freedom,
        {
            "rounds": round_ + 1,
            "last_change": moved,
            "acceleration": freedom.acceleration,
            "local_amplitude": freedom.amplitude,
            "local_length": freedom.length,
            "predicted_gain_of_local_motion": gain,
            "expected_error": tk.expected_error(basis, equations.matrix, prior),
            "signal_to_noise": float(signal.spectrum.max()),
            "patches": len(patches.centers),
        },
    )
