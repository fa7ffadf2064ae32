"""What a person may choose about a simulated tilt series."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from weft.settings import Settings, setting
from weft.simulation.settings import MovieSimulationSettings

__all__ = ["SMALL_SERIES", "TiltSimulationSettings", "camera_settings"]

#: What makes a series that is simulated in seconds, for tests and demonstrations.
SMALL_SERIES: dict[str, Any] = {
    "width": 288,
    "height": 288,
    "pixel_size": 5.0,
    "tilt_range": 54.0,
    "tilt_increment": 6.0,
    "dose_per_tilt": 6.0,
    "thickness": 700.0,
    "particles": 24,
    "beads": 8,
}


class TiltSimulationSettings(Settings):
    """One tilt series: tilt scheme, microscope, specimen, stage, detector, and faults of the acquisition."""

    width: int = setting(512, "Width of a frame.", unit="px", ge=64, le=8192)
    height: int = setting(512, "Height of a frame.", unit="px", ge=64, le=8192)
    frames: int = setting(2, "Frames of each tilt's movie.", ge=1, le=100)
    pixel_size: float = setting(4.4, "Pixel size.", unit="Å", gt=0.3, le=20.0)

    scheme: Literal["dose-symmetric", "bidirectional", "unidirectional"] = setting(
        "dose-symmetric", "The order in which the angles are taken."
    )
    tilt_range: float = setting(
        60.0, "Tilts lie within this on both sides of the start angle.", unit="degrees", ge=0.0, le=75.0
    )
    tilt_increment: float = setting(3.0, "Step between neighbouring tilts.", unit="degrees", gt=0.0, le=75.0)
    start_angle: float = setting(
        0.0,
        "Angle in the middle of the range, where all schemes but the unidirectional begin.",
        unit="degrees",
        ge=-45.0,
        le=45.0,
    )
    group: int = setting(
        1, "Dose-symmetric: so many tilts of one side are taken, then those of the other.", ge=1, le=20
    )
    angle_error: float = setting(
        0.0,
        "Standard deviation of the stage's angles from the nominal ones, which mdocs and names of files say.",
        unit="degrees",
        ge=0.0,
        le=2.0,
    )
    tilt_axis: float = setting(
        85.0, "Tilt axis, counter-clockwise from the image's y axis.", unit="degrees", ge=-180.0, le=180.0
    )
    hand: Literal[1, -1] = setting(
        1, "With 1 a positive tilt brings +x of the specimen to greater underfocus, with -1 to smaller."
    )
    level_x: float = setting(
        0.0, "Inclination of the specimen about the stage's x axis.", unit="degrees", ge=-20.0, le=20.0
    )
    level_y: float = setting(
        0.0, "Inclination of the specimen about the tilt axis.", unit="degrees", ge=-20.0, le=20.0
    )

    voltage: float = setting(300.0, "Acceleration voltage.", unit="kV", ge=60.0, le=1000.0)
    cs: float = setting(2.7, "Spherical aberration.", unit="mm", ge=0.0, le=10.0)
    amplitude: float = setting(0.07, "Amplitude contrast of all but gold.", ge=0.0, lt=1.0)
    phase_shift: float = setting(0.0, "Phase shift of a phase plate.", unit="degrees", ge=0.0, lt=180.0)
    defocus: float = setting(
        2.5, "Mean defocus of the specimen's centre, positive for underfocus.", unit="µm", ge=-10.0, le=10.0
    )
    defocus_scatter: float = setting(
        0.1, "Standard deviation of the tilts' defocus around it.", unit="µm", ge=0.0, le=2.0
    )
    astigmatism: float = setting(0.03, "Defocus U minus defocus V.", unit="µm", ge=0.0, le=2.0)
    astigmatism_angle: float = setting(
        40.0, "From +x to the axis of defocus U, counter-clockwise.", unit="degrees", ge=-180.0, le=180.0
    )
    envelope: float = setting(
        100.0, "B-factor of what the microscope loses at high resolution.", unit="Å²", ge=0.0, le=1000.0
    )
    slab_thickness: float = setting(
        150.0, "All that lies within a slab of this thickness has one defocus.", unit="Å", ge=1.0, le=1000.0
    )

    dose_per_tilt: float = setting(3.0, "Exposure of one tilt.", unit="e/Å²", gt=0.0, le=100.0)
    damage: float = setting(
        1.0,
        "Radiation damage of particles and membranes relative to the published critical exposure; 0 is none.",
        ge=0.0,
        le=10.0,
    )

    specimen: str = setting("barrel", "A PDB or mmCIF file, or a phantom: barrel, shell, globule or clamp.")
    other_specimen: str = setting(
        "",
        "Another conformation that some of the particles have, in the coordinates of the first: a file, a "
        "phantom, clamp-open (its arm is turned by 40 degrees) or clamp-core (it has no arm).",
    )
    other_share: float = setting(0.5, "Part of the particles that have the other one.", ge=0.0, le=1.0)
    particles: int = setting(80, "Particles, without overlap, anywhere in the ice.", ge=0, le=20_000)
    vesicles: int = setting(0, "Closed membranes, spheres of 150 to 350 Å.", ge=0, le=100)
    sheets: int = setting(0, "Flat membranes across the field, each inclined at random.", ge=0, le=20)
    beads: int = setting(12, "Gold beads, in turn on the lower and on the upper surface.", ge=0, le=1000)
    bead_diameter: float = setting(100.0, "Diameter of the beads.", unit="Å", ge=20.0, le=400.0)
    bead_contrast: float = setting(
        0.7, "Fraction of the electrons that the middle of a bead takes away.", ge=0.0, le=0.9
    )
    field: float = setting(
        0.85,
        "Side of the square that holds particles and beads, relative to the image's; beyond 1 some enter "
        "the image with the tilt.",
        gt=0.0,
        le=3.0,
    )
    signal: float = setting(
        1.0,
        "Contrast of particles, membranes and ice relative to theory.",
        ge=0.0,
        le=10.0,
    )
    thickness: float = setting(1000.0, "Thickness of the ice.", unit="Å", ge=100.0, le=5000.0)
    crowding: float = setting(
        20.0, "Small proteins, 35 Å across, that make the ice granular.", unit="mg/ml", ge=0.0, le=400.0
    )
    mean_free_path: float = setting(
        3500.0,
        "Path through the ice after which 37 % of the electrons are left; the filter takes the others.",
        unit="Å",
        ge=500.0,
        le=1e6,
    )

    shift_walk: float = setting(
        15.0,
        "Random step of the image from one tilt to the next, along each axis.",
        unit="Å",
        ge=0.0,
        le=500.0,
    )
    shift_jitter: float = setting(
        30.0, "Random shift of each tilt besides, along each axis.", unit="Å", ge=0.0, le=500.0
    )
    drift: float = setting(8.0, "Way of the image during one tilt's movie.", unit="Å", ge=0.0, le=500.0)

    gain_variation: float = setting(
        0.0, "Standard deviation of the pixels' gain; 0 makes it 1 everywhere.", ge=0.0, le=0.3
    )
    dead_pixels: int = setting(0, "Pixels that count nothing: zeros in the gain.", ge=0, le=100_000)
    hot_pixels: int = setting(0, "Pixels that count 10 to 40 times too much.", ge=0, le=100_000)
    noise: Literal["poisson", "none"] = setting(
        "poisson", "Counting statistics; without, counts are the rounded expectation."
    )

    black_tilts: tuple[int, ...] = setting(
        (), "Fault: exposures (from 0, in order of acquisition) that are taken with the beam all but blocked."
    )
    missing_tilts: tuple[int, ...] = setting(
        (), "Fault: exposures that are in the mdoc and whose movie does not exist."
    )
    repeated_tilts: tuple[int, ...] = setting(
        (), "Fault: angles (from 0, in order of the scheme) that are taken twice, as after a restart."
    )
    duplicate_entries: tuple[int, ...] = setting(
        (), "Fault: exposures that the mdoc lists twice with the same movie."
    )
    unsorted: bool = setting(False, "Fault: the mdoc's entries are in mixed order.")
    doses: bool = setting(True, "Write the doses into the mdoc; without, it has none, which is a fault.")

    @model_validator(mode="after")
    def _consistent(self) -> TiltSimulationSettings:
        if self.dead_pixels + self.hot_pixels > self.width * self.height // 2:
            raise ValueError("dead_pixels and hot_pixels together must be fewer than half of the pixels")
        steepest = abs(self.start_angle) + self.tilt_range + abs(self.level_y) + 4.0 * self.angle_error
        if steepest > 80.0:
            raise ValueError(
                f"start_angle, tilt_range, level_y and angle_error together reach {steepest:g} degrees; "
                "no more than 80 can be simulated"
            )
        angles = 2 * int(self.tilt_range / self.tilt_increment + 1e-6) + 1
        for name in ("black_tilts", "missing_tilts", "repeated_tilts", "duplicate_entries"):
            taken = angles if name == "repeated_tilts" else angles + len(set(self.repeated_tilts))
            wrong = [i for i in getattr(self, name) if not 0 <= i < taken]
            if wrong:
                raise ValueError(f"{name} names exposure {wrong[0]}, but the series has 0 to {taken - 1}")
        return self

    @classmethod
    def small(cls, **changes: Any) -> TiltSimulationSettings:
        """A series of 19 tilts of 288 x 288 px that is simulated in seconds, with `changes`."""
        return cls(**{**SMALL_SERIES, **changes})


def camera_settings(settings: TiltSimulationSettings) -> MovieSimulationSettings:
    """What the optics and the camera of a single movie need to know of a tilt's movie."""
    shared = set(MovieSimulationSettings.model_fields) & set(TiltSimulationSettings.model_fields)
    # the specimen's place and motion are made here; they mean something else for a single movie
    shared -= {"drift", "tilt_axis", "specimen"}
    return MovieSimulationSettings(
        **settings.model_dump(include=shared), dose_per_frame=settings.dose_per_tilt / settings.frames
    )
