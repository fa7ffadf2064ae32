"""What a person may choose about a simulated movie."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from weft.settings import Settings, setting

__all__ = ["MovieSimulationSettings"]


class MovieSimulationSettings(Settings):
    """One movie: specimen, microscope, exposure, motion and detector."""

    width: int = setting(1024, "Width of a frame.", unit="px", ge=64, le=16384)
    height: int = setting(1024, "Height of a frame.", unit="px", ge=64, le=16384)
    frames: int = setting(16, "Number of frames.", ge=1, le=1000)
    pixel_size: float = setting(1.0, "Pixel size.", unit="Å", gt=0.1, le=20.0)

    voltage: float = setting(300.0, "Acceleration voltage.", unit="kV", ge=60.0, le=1000.0)
    cs: float = setting(2.7, "Spherical aberration.", unit="mm", ge=0.0, le=10.0)
    amplitude: float = setting(0.07, "Amplitude contrast.", ge=0.0, lt=1.0)
    phase_shift: float = setting(0.0, "Phase shift of a phase plate.", unit="degrees", ge=0.0, lt=180.0)
    defocus: float = setting(
        1.3, "Mean defocus at the centre, positive for underfocus.", unit="µm", ge=-10.0, le=10.0
    )
    astigmatism: float = setting(0.03, "Defocus U minus defocus V.", unit="µm", ge=0.0, le=2.0)
    astigmatism_angle: float = setting(
        30.0, "From +x to the axis of defocus U, counter-clockwise.", unit="degrees", ge=-180.0, le=180.0
    )
    envelope: float = setting(
        50.0, "B-factor of what the microscope loses at high resolution.", unit="Å²", ge=0.0, le=1000.0
    )

    dose_per_frame: float = setting(2.0, "Exposure of one frame.", unit="e/Å²", gt=0.0, le=100.0)
    damage: float = setting(
        1.0,
        "Radiation damage of the particles relative to the published critical exposure; 0 is none.",
        ge=0.0,
        le=10.0,
    )

    specimen: str = setting("barrel", "A PDB or mmCIF file, or a phantom: barrel, shell, globule or clamp.")
    coverage: float = setting(0.3, "Fraction of the image that the particles' discs cover.", ge=0.0, le=0.45)
    signal: float = setting(
        0.5,
        "Contrast of particles and ice relative to what theory gives; about a half is observed.",
        ge=0.0,
        le=10.0,
    )
    ice_thickness: float = setting(300.0, "Thickness of the ice.", unit="Å", ge=0.0, le=5000.0)
    ice_diffusion: float = setting(
        0.05,
        "Mean squared displacement along one axis of ice molecules in the beam for each e/Å².",
        unit="Å²",
        ge=0.0,
        le=2.0,
    )
    tilt: float = setting(
        0.0,
        "Tilt of the specimen; positive brings +x to greater underfocus.",
        unit="degrees",
        ge=-70.0,
        le=70.0,
    )
    tilt_axis: float = setting(
        0.0, "Tilt axis, counter-clockwise from the image's y axis.", unit="degrees", ge=-180.0, le=180.0
    )
    slab_thickness: float = setting(
        100.0, "All that lies within a slab of this thickness has one defocus.", unit="Å", ge=1.0, le=1000.0
    )

    drift: float = setting(
        15.0, "Way of the whole specimen from the first to the last frame.", unit="Å", ge=0.0, le=500.0
    )
    drift_decay: float = setting(
        6.0,
        "Exposure after which the fast part of the drift has fallen to 37 %.",
        unit="e/Å²",
        gt=0.0,
        le=1000.0,
    )
    jitter: float = setting(0.1, "Random step between frames, along each axis.", unit="Å", ge=0.0, le=20.0)
    local_motion: float = setting(
        1.5,
        "Motion relative to the whole specimen, root mean square over the image.",
        unit="Å",
        ge=0.0,
        le=100.0,
    )
    local_decay: float = setting(
        6.0, "Exposure after which 63 % of the local motion has happened.", unit="e/Å²", gt=0.0, le=1000.0
    )
    local_wavelength: float = setting(
        2000.0, "Shortest wavelength in space of the local motion.", unit="Å", ge=200.0, le=1e5
    )

    gain_variation: float = setting(
        0.04, "Standard deviation of the pixels' gain; 0 makes it 1 everywhere.", ge=0.0, le=0.3
    )
    dead_pixels: int = setting(40, "Pixels that count nothing: zeros in the gain.", ge=0, le=100_000)
    hot_pixels: int = setting(0, "Pixels that count 10 to 40 times too much.", ge=0, le=100_000)
    noise: Literal["poisson", "none"] = setting(
        "poisson", "Counting statistics; without, counts are the rounded expectation."
    )

    @model_validator(mode="after")
    def _pixels_exist(self) -> MovieSimulationSettings:
        if self.dead_pixels + self.hot_pixels > self.width * self.height // 2:
            raise ValueError("dead_pixels and hot_pixels together must be fewer than half of the pixels")
        return self
