"""What may be chosen about a simulated micrograph, and how it is drawn at random."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from weft.settings import Settings, setting

__all__ = ["MicrographSimulationSettings", "random_settings"]


class MicrographSimulationSettings(Settings):
    """One micrograph: field, microscope, specimen, arrangement and contamination."""

    width: int = setting(1024, "Width of the micrograph.", unit="px", ge=64, le=16384)
    height: int = setting(1024, "Height of the micrograph.", unit="px", ge=64, le=16384)
    pixel_size: float = setting(4.0, "Pixel size.", unit="Å", gt=0.1, le=20.0)

    voltage: float = setting(300.0, "Acceleration voltage.", unit="kV", ge=60.0, le=1000.0)
    cs: float = setting(2.7, "Spherical aberration.", unit="mm", ge=0.0, le=10.0)
    amplitude: float = setting(0.07, "Amplitude contrast.", ge=0.0, lt=1.0)
    phase_shift: float = setting(0.0, "Phase shift of a phase plate.", unit="degrees", ge=0.0, lt=180.0)
    defocus: float = setting(1.5, "Mean defocus, positive for underfocus.", unit="µm", ge=-10.0, le=10.0)
    astigmatism: float = setting(0.03, "Defocus U minus defocus V.", unit="µm", ge=0.0, le=2.0)
    astigmatism_angle: float = setting(
        30.0, "From +x to the axis of defocus U, counter-clockwise.", unit="degrees", ge=-180.0, le=180.0
    )
    blur: float = setting(
        120.0, "B-factor of residual motion and of the microscope.", unit="Å²", ge=0.0, le=1000.0
    )
    dose: float = setting(
        40.0, "Exposure that damages the specimen and makes the noise.", unit="e/Å²", gt=0.0, le=500.0
    )
    signal: float = setting(
        0.6, "Contrast of particles and ice relative to what theory gives.", ge=0.0, le=10.0
    )
    contaminant_signal: float = setting(0.8, "The same of the phase of contaminants.", ge=0.0, le=10.0)

    ice_thickness: float = setting(350.0, "Mean thickness of the ice.", unit="Å", gt=10.0, le=5000.0)
    ice_variation: float = setting(
        0.2, "Change of the thickness over the field relative to its mean.", ge=0.0, le=2.0
    )
    slab_thickness: float = setting(
        150.0, "Particles within a slab of this thickness have one defocus.", unit="Å", ge=1.0, le=2000.0
    )

    arrangement: Literal["random", "dense", "patchy"] = setting(
        "random", "How particles lie: apart from each other, in a packed layer, or in patches."
    )
    coverage: float = setting(0.25, "Fraction of the field that their discs cover.", ge=0.0, le=0.85)
    spacing: float = setting(1.05, "Least distance of their centres, in diameters.", ge=0.3, le=3.0)
    overlapping: float = setting(0.02, "Part of them that lie anywhere, over others too.", ge=0.0, le=1.0)
    aggregates: int = setting(0, "Clumps of particles on top of each other.", ge=0, le=200)
    preferred: float = setting(0.0, "Part of them that show one view.", ge=0.0, le=1.0)
    broken: float = setting(
        0.0, "Coverage with broken particles, which are not to be picked.", ge=0.0, le=0.5
    )
    small_proteins: float = setting(0.0, "Coverage with a small other protein.", ge=0.0, le=0.5)
    film: float = setting(0.05, "Part of a layer of denatured protein on the surfaces.", ge=0.0, le=5.0)

    clouds: float = setting(
        0.005, "Smudges of 100 to 1000 Å: standard deviation of the intensity.", ge=0.0, le=0.3
    )

    crystals: int = setting(0, "Clusters of ice crystals.", ge=0, le=100)
    blobs: int = setting(0, "Drops of frost or ethane.", ge=0, le=100)
    specks: int = setting(0, "Groups of small, dark lumps of frost.", ge=0, le=500)
    plates: int = setting(0, "Hexagonal plates of ice.", ge=0, le=100)
    beads: int = setting(0, "Gold beads, or small clusters of them.", ge=0, le=1000)
    cracks: int = setting(0, "Cracks and holes in the ice.", ge=0, le=20)
    carbon: int = setting(0, "Edges of the carbon film.", ge=0, le=2)
    shadows: int = setting(0, "Shadows of grid bars or apertures.", ge=0, le=4)

    def contaminants(self) -> dict[str, int]:
        """Their numbers by the names of :data:`weft.simulation.contamination.CONTAMINANTS`."""
        return {
            "crystal": self.crystals,
            "blob": self.blobs,
            "speck": self.specks,
            "plate": self.plates,
            "bead": self.beads,
            "crack": self.cracks,
            "carbon": self.carbon,
            "shadow": self.shadows,
        }


def random_settings(rng: np.random.Generator, **fixed: Any) -> MicrographSimulationSettings:
    """A micrograph as a facility might see it: most are ordinary, some crowded, some bad, few empty.

    Parameters
    ----------
    rng : numpy Generator
    **fixed
        Settings that are not drawn.
    """

    def between(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def log_between(low: float, high: float) -> float:
        return math.exp(rng.uniform(math.log(low), math.log(high)))

    voltage, cs, amplitude = [(300.0, 2.7, 0.07), (300.0, 2.7, 0.1), (200.0, 2.7, 0.1), (200.0, 1.4, 0.1)][
        int(rng.choice(4, p=[0.45, 0.25, 0.2, 0.1]))
    ]
    phase_plate = rng.random() < 0.05
    values: dict[str, Any] = {
        "voltage": voltage,
        "cs": cs,
        "amplitude": between(amplitude - 0.01, amplitude + 0.01),
        "phase_shift": between(30.0, 120.0) if phase_plate else 0.0,
        "defocus": log_between(0.2, 1.0) if phase_plate else log_between(0.5, 4.0),
        "astigmatism": min(abs(float(rng.normal(scale=0.03))), 0.2),
        "astigmatism_angle": between(-90.0, 90.0),
        "blur": log_between(50.0, 400.0),
        "dose": log_between(15.0, 80.0),
        "signal": log_between(0.2, 1.0),
        "contaminant_signal": between(0.15, 1.0),
        "ice_thickness": log_between(150.0, 800.0),
        "ice_variation": log_between(0.02, 0.6),
        "clouds": log_between(0.002, 0.03),
        "film": log_between(0.005, 0.3),
        "preferred": between(0.0, 0.9) if rng.random() < 0.2 else 0.0,
        "overlapping": log_between(0.002, 0.12),
    }
    layout = rng.random()
    if layout < 0.06:
        values.update(arrangement="random", coverage=0.0)
    elif layout < 0.50:
        values.update(arrangement="random", coverage=log_between(0.02, 0.35), spacing=between(0.85, 1.3))
    elif layout < 0.80:
        spacing = between(0.97, 1.15)
        fullest = 0.88 / spacing**2
        values.update(
            arrangement="dense",
            coverage=min(0.85, between(0.35, 1.0) * fullest),
            spacing=spacing,
            overlapping=log_between(0.002, 0.04),
        )
    else:
        values.update(arrangement="patchy", coverage=log_between(0.03, 0.4), spacing=between(0.9, 1.2))
    values["aggregates"] = int(rng.integers(1, 9)) if rng.random() < 0.2 else 0
    values["broken"] = log_between(0.003, 0.08) if rng.random() < 0.35 else 0.0
    values["small_proteins"] = log_between(0.003, 0.08) if rng.random() < 0.3 else 0.0
    if rng.random() < 0.6:  # the rest are clean
        for name, often, most in (
            ("crystals", 0.3, 3),
            ("blobs", 0.4, 4),
            ("specks", 0.35, 8),
            ("plates", 0.12, 2),
            ("beads", 0.25, 25),
            ("cracks", 0.15, 1),
            ("carbon", 0.25, 1),
            ("shadows", 0.08, 1),
        ):
            if rng.random() < often:
                values[name] = round(log_between(1.0, most + 0.49))
    return MicrographSimulationSettings(**{**values, **fixed})
