"""The result of aligning a tilt series, and the settings of doing it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, cast

import torch

from weft.physics.geometry import TiltGeometry
from weft.settings import setting
from weft.tilts.bundle import BundleSettings, BundleSolution
from weft.tilts.cameras import Tracks
from weft.tilts.verdict import Verdict, judged

__all__ = ["AlignmentSettings", "Levelling", "Observations", "TiltAlignment", "Verdict", "judged"]

MAGNIFICATION_NOTE = 0.003  # a change of magnification that is worth a word: 3 px at 1000 px from the centre


class AlignmentSettings(BundleSettings):
    """How tilt series are aligned."""

    method: Literal["auto", "fiducials", "patches", "none"] = setting(
        "auto",
        "fiducials: gold beads; patches: pieces of the specimen followed from tilt to tilt; auto: beads "
        "where there are enough of them, else patches; none: stage angles and the nominal axis as they are.",
    )
    bead_diameter: float = setting(
        0.0, "Diameter of the gold beads; 0 finds it from the images.", unit="nm", ge=0.0, le=100.0
    )
    thickness: float = setting(
        2000.0,
        "Thickness of the volume that the alignment describes (and that is reconstructed): that of the "
        "specimen and some more. Most cellular and single-particle lamellae and films are thinner.",
        unit="Å",
        ge=100.0,
        le=100000.0,
    )
    search_axis: bool = setting(
        True, "Search the tilt axis around the nominal one, or everywhere if there is none."
    )
    patch_size: float = setting(
        420.0,
        "patches: diameter of the pieces of the specimen that are followed. They should hold something that "
        "can be recognised, such as a whole particle.",
        unit="Å",
        ge=50.0,
        le=10000.0,
    )
    patches: int = setting(200, "patches: as many places in the specimen are followed.", ge=10, le=5000)
    patch_resolution: float = setting(
        25.0, "patches: the finest detail that they are compared by.", unit="Å", ge=5.0, le=500.0
    )
    level: bool = setting(True, "Find the specimen's inclination, so that it lies flat in the volume.")


@dataclass(frozen=True)
class Levelling:
    """The specimen's inclination to the stage.

    Attributes
    ----------
    level_x, level_y : float
        Degrees, as in TiltGeometry.
    centre : (float, float, float)
        Å, in the frame of the bundle adjustment: what shall be the volume's centre.
    thickness : float
        Å, between the surfaces that were found; 0 where unknown.
    error : float
        Degrees, of the inclination; NaN where unknown.
    how : str
        What it was found from, for people: "23 beads on two surfaces", "not levelled" ...
    """

    level_x: float = 0.0
    level_y: float = 0.0
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    thickness: float = 0.0
    error: float = math.nan
    how: str = "not levelled"


@dataclass(frozen=True)
class Observations:
    """Each place at which a marker was seen, and where the alignment says that it is.

    Attributes
    ----------
    marker, tilt : (m,) int64
    observed, predicted : (m, 2) float64
        Å, relative to the image's centre.
    weight : (m,) float64
        0 … 1; 0 took no part.
    """

    marker: torch.Tensor
    tilt: torch.Tensor
    observed: torch.Tensor
    predicted: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def none(cls) -> Observations:
        """No markers at all."""
        whole, pair = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.float64)
        return cls(whole, whole, pair, pair, torch.zeros(0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.marker)

    @property
    def residuals(self) -> torch.Tensor:
        """(m, 2): observed minus predicted, Å."""
        return self.observed - self.predicted


@dataclass(frozen=True)
class TiltAlignment:
    """An aligned tilt series. Tilts are in the order of the images that were given.

    Attributes
    ----------
    geometry : TiltGeometry
        With refined angles and axes, levelled; defocus 0 and hand +1: they are not an alignment's to know.
    method : str
        "fiducials", "patches" or "none".
    stage_angles : (tilts,)
        Degrees, as they were given.
    pixel_size : float
        Å, of the images.
    markers : (n, 3)
        Å relative to the volume's centre, levelled.
    observations : Observations
    expected_error : (tilts,)
        Å: how far a point of the specimen may be seen from where the geometry says; NaN where unknown.
    aligned : (tilts,) bool
        False for tilts without observations, which were given what lies between their neighbours.
    levelling : Levelling
    verdict : str
        "good", "doubtful" or "bad"; `notes` say why.
    notes : tuple of str
    extras : dict of str to float
        Further figures of the method, for `metrics`.
    """

    geometry: TiltGeometry
    method: Literal["fiducials", "patches", "none"]
    stage_angles: torch.Tensor
    pixel_size: float
    markers: torch.Tensor
    observations: Observations
    expected_error: torch.Tensor
    aligned: torch.Tensor
    levelling: Levelling = field(default_factory=Levelling)
    verdict: Verdict = "doubtful"
    notes: tuple[str, ...] = ()
    extras: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        solution: BundleSolution,
        tracks: Tracks,
        stage_angles: torch.Tensor,
        image_size: tuple[float, float],
        pixel_size: float,
        settings: AlignmentSettings,
        method: Literal["fiducials", "patches"],
        levelling: Levelling | None = None,
        verdict: Verdict = "doubtful",
        notes: tuple[str, ...] = (),
        extras: dict[str, float] | None = None,
    ) -> TiltAlignment:
        """From what bundle adjustment found.

        Parameters
        ----------
        solution : BundleSolution
        tracks : Tracks
            What it was solved for.
        stage_angles : (tilts,) tensor
            Degrees.
        image_size : (float, float)
            x, y, Å.
        pixel_size : float
            Å.
        settings : AlignmentSettings
        method : str
        levelling : Levelling, optional
        verdict : str
        notes : tuple of str
        extras : dict, optional
        """
        levelling = levelling or Levelling()
        centre = torch.tensor(levelling.centre, dtype=torch.float64)
        cameras = solution.cameras.moved(centre)
        geometry = cameras.geometry(
            image_size, (*image_size, settings.thickness), (levelling.level_x, levelling.level_y)
        )
        level = TiltGeometry.of([0.0], level=(levelling.level_x, levelling.level_y)).matrices[0]
        observations = Observations(
            tracks.marker, tracks.tilt, tracks.xy, tracks.xy - solution.residuals, solution.weights
        )
        missing = stage_angles[solution.missing].tolist()
        if missing:
            named = ", ".join(f"{angle:.1f}°" for angle in missing)
            notes = (
                *notes,
                f"too few markers were seen at {named}: put between the neighbours",
            )
        return cls(
            geometry,
            method,
            torch.as_tensor(stage_angles, dtype=torch.float64),
            pixel_size,
            (solution.markers - centre) @ level,
            observations,
            solution.expected_error,
            ~solution.missing,
            levelling,
            verdict,
            notes,
            dict(extras or {}),
        )

    def __len__(self) -> int:
        return len(self.stage_angles)

    @property
    def axis(self) -> float:
        """Degrees: the mean axis of the aligned tilts."""
        axis = self.geometry.axis.expand(len(self))
        return float(axis[self.aligned].mean() if bool(self.aligned.any()) else axis.mean())

    def reordered(self, order: torch.Tensor) -> TiltAlignment:
        """The same with its tilts in another order; `order` (tilts,) names the present index of each."""
        place = torch.argsort(order)
        return replace(
            self,
            geometry=self.geometry.select(order),
            stage_angles=self.stage_angles[order],
            observations=replace(self.observations, tilt=place[self.observations.tilt]),
            expected_error=self.expected_error[order],
            aligned=self.aligned[order],
        )

    def per_tilt(self) -> dict[str, torch.Tensor]:
        """Columns (tilts,) for tables and pictures.

        stage_angle, angle, axis (degrees), shift_x, shift_y, expected_error (Å), aligned, observations,
        residual_mean, residual_max (Å; NaN without observations).
        """
        kept = self.observations.weight > 0.0
        tilt, n = self.observations.tilt[kept], len(self)
        lengths = self.observations.residuals[kept].norm(dim=-1)
        count = torch.bincount(tilt, minlength=n)
        mean = torch.zeros(n, dtype=torch.float64).index_add_(0, tilt, lengths) / count
        most = torch.full((n,), torch.nan, dtype=torch.float64)
        for t in torch.unique(tilt).tolist():
            most[t] = lengths[tilt == t].max()
        return {
            "stage_angle": self.stage_angles,
            "angle": self.geometry.angles,
            "axis": self.geometry.axis.expand(n),
            "shift_x": self.geometry.shift[:, 0],
            "shift_y": self.geometry.shift[:, 1],
            "expected_error": self.expected_error,
            "aligned": self.aligned,
            "observations": count,
            "residual_mean": mean,
            "residual_max": most,
        }

    def metrics(self) -> dict[str, float]:
        """Flat figures for tables: in Å and degrees where the name says nothing else."""
        kept = self.observations.weight > 0.0
        lengths = self.observations.residuals[kept].norm(dim=-1)
        centred = self.geometry.shift - self.geometry.shift.mean(0)
        found: dict[str, float] = {
            "tilts": float(len(self)),
            "tilts_aligned": float(self.aligned.sum()),
            "axis": self.axis,
            "level_x": float(self.geometry.level_x),
            "level_y": float(self.geometry.level_y),
            "thickness_found": self.levelling.thickness,
            "shift_range": float(centred.norm(dim=-1).max()),
            "angle_change_max": float((self.geometry.angles - self.stage_angles).abs().max()),
            "markers": float(len(self.markers)),
            "observations": float(kept.sum()),
            "observations_rejected": float((~kept).sum()),
        }
        axes = self.geometry.axis.expand(len(self))
        found["axis_spread"] = float((axes - axes.mean()).abs().max())
        if bool(kept.any()):
            counts = torch.bincount(self.observations.tilt[kept], minlength=len(self))
            found |= {
                "residual_mean": float(lengths.mean()),
                "residual_median": float(lengths.median()),
                "residual_max": float(lengths.max()),
                "residual_mean_px": float(lengths.mean()) / self.pixel_size,
                "residual_median_px": float(lengths.median()) / self.pixel_size,
                "residual_max_px": float(lengths.max()) / self.pixel_size,
                "observations_per_tilt_min": float(counts[self.aligned].min()),
                "observations_per_tilt_mean": float(counts[self.aligned].double().mean()),
            }
        known = self.expected_error[torch.isfinite(self.expected_error)]
        if len(known):
            found["expected_error_median"] = float(known.median())
            found["expected_error_max"] = float(known.max())
        return found | self.extras

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` gives back exactly the same alignment."""
        g, o = self.geometry, self.observations
        named = {f.name: getattr(g, f.name) for f in fields(g)}
        return {
            "geometry": {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in named.items()},
            "method": self.method,
            "stage_angles": self.stage_angles.tolist(),
            "pixel_size": self.pixel_size,
            "markers": self.markers.tolist(),
            "observations": {f.name: getattr(o, f.name).tolist() for f in fields(o)},
            "expected_error": [_null(v) for v in self.expected_error.tolist()],
            "aligned": self.aligned.tolist(),
            "levelling": {
                "level_x": self.levelling.level_x,
                "level_y": self.levelling.level_y,
                "centre": list(self.levelling.centre),
                "thickness": self.levelling.thickness,
                "error": _null(self.levelling.error),
                "how": self.levelling.how,
            },
            "verdict": self.verdict,
            "notes": list(self.notes),
            "extras": {k: _null(v) for k, v in self.extras.items()},
        }

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> TiltAlignment:
        """From :meth:`to_dict`'s values."""

        def real(values: Any, *shape: int) -> torch.Tensor:
            tensor = torch.tensor(values, dtype=torch.float64)
            return tensor.reshape(shape) if shape else tensor

        g, o, level = given["geometry"], given["observations"], given["levelling"]
        parts = {k: real(v) for k, v in g.items() if k not in ("hand", "shift")}
        return cls(
            TiltGeometry(**parts, shift=real(g["shift"], -1, 2), hand=float(g["hand"])),
            given["method"],
            real(given["stage_angles"]),
            float(given["pixel_size"]),
            real(given["markers"], -1, 3),
            Observations(
                torch.tensor(o["marker"], dtype=torch.int64),
                torch.tensor(o["tilt"], dtype=torch.int64),
                real(o["observed"], -1, 2),
                real(o["predicted"], -1, 2),
                real(o["weight"]),
            ),
            real([_number(v) for v in given["expected_error"]]),
            torch.tensor(given["aligned"], dtype=torch.bool),
            Levelling(
                level["level_x"],
                level["level_y"],
                cast(tuple[float, float, float], tuple(level["centre"])),
                level["thickness"],
                _number(level["error"]),
                level["how"],
            ),
            given["verdict"],
            tuple(given["notes"]),
            {k: _number(v) for k, v in given["extras"].items()},
        )


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
