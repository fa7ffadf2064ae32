"""The sections of weft.toml that belong to the session itself: [input], [engine] and [live]."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator, model_validator

from weft.movies.source import SourceSettings
from weft.physics.optics import Optics
from weft.settings import Settings, setting

__all__ = ["EngineSettings", "InputSettings", "LiveSettings"]


class _ExposureSettings(Settings):
    """Where the data are, and what the microscope did."""

    frames: tuple[str, ...] = setting(
        (),
        "Movies: one or several glob patterns; ** stands for any depth of folders.",
    )
    mdoc: tuple[str, ...] = setting(
        (),
        "For tilt series: folders or glob patterns of their mdocs (or of .tomostar and RELION's STAR files, "
        "or of stacks with .rawtlt or .tlt beside them); the movies are then tilts.",
    )
    tilt_axis: float | None = setting(
        None,
        "Tilt axis, counter-clockwise from the image's y axis; none takes what the mdocs say.",
        unit="deg",
        ge=-360.0,
        le=360.0,
    )
    recursive: bool = setting(False, "Look in all folders below that of each pattern, too.")
    pixel_size: float = setting(..., "Pixel size of the frames as they are read.", unit="Å", gt=0)
    voltage: float = setting(..., "Acceleration voltage.", unit="kV", gt=0)
    cs: float = setting(..., "Spherical aberration.", unit="mm", ge=0)
    amplitude: float = setting(..., "Amplitude contrast, as a fraction.", ge=0, lt=1)
    dose_per_frame: float = setting(
        ..., "Exposure of each frame as it is read (after EER frames are grouped).", unit="e/Å²", ge=0
    )
    prior_dose: float = setting(0.0, "Exposure before the first frame.", unit="e/Å²", ge=0)
    gain: str | None = setting(None, "Gain reference that multiplies the frames (MRC, TIFF, .gain, DM4).")
    gain_flip_x: bool = setting(False, "Mirror the gain reference left to right.")
    gain_flip_y: bool = setting(False, "Mirror the gain reference top to bottom.")
    gain_transpose: bool = setting(False, "Swap the axes of the gain reference, before mirroring.")
    gain_invert: bool = setting(False, "The gain reference is what to divide by.")
    defects: str | None = setting(None, "Defect map (MRC, TIFF) or text file of x, y, width, height rows.")

    @field_validator("frames", "mdoc", mode="before")
    @classmethod
    def _one_pattern(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _some_data(self) -> _ExposureSettings:
        if not self.frames and not self.mdoc:
            raise ValueError("frames must name the movies, or mdoc the tilt series; both are missing")
        return self

    @property
    def of_tilts(self) -> bool:
        """Whether the movies are tilts of series."""
        return bool(self.mdoc)


class InputSettings(SourceSettings, _ExposureSettings):
    """Where the data are, the physics of the exposure, and how files are read."""

    def optics(self) -> Optics:
        """The constants of the raw frames; frames that are skipped have been exposed, too."""
        return Optics(
            pixel_size=self.pixel_size,
            voltage=self.voltage,
            cs=self.cs,
            amplitude=self.amplitude,
            dose_per_frame=self.dose_per_frame,
            prior_dose=self.prior_dose + self.skip_first * self.dose_per_frame,
        )


class EngineSettings(Settings):
    """How the work is spread over processes; no result depends on it."""

    workers: int | Literal["auto"] = setting(
        "auto", "Worker processes; 0 computes in the calling process; auto takes what the machine has."
    )
    threads: int | Literal["auto"] = setting("auto", "Threads of each worker; auto shares out the cores.")
    attempts: int = setting(
        2, "How many workers an item may kill before it is set aside and the others go on.", ge=1
    )
    worker_timeout: float = setting(
        300.0, "A worker that has not been heard of for so long is given up.", unit="s", gt=0
    )


class LiveSettings(Settings):
    """How `weft live` takes in files and watches the disk; no result depends on it."""

    poll_interval: float = setting(2.0, "Time between two looks for new files.", unit="s", gt=0)
    settle: float = setting(
        2.0, "For so long a file's size and time must stand still before it is taken.", unit="s", ge=0
    )
    give_up: float = setting(
        60.0,
        "A file that stands still but is not complete is taken after so long, and fails with its own error.",
        unit="s",
        ge=0,
    )
    series_quiet: float = setting(
        90.0,
        "A tilt series all of whose movies are processed is taken when nothing was added to it for so long.",
        unit="s",
        ge=0,
    )
    series_deadline: float = setting(
        900.0,
        "A tilt series of which movies are missing is taken without them when nothing has come for so long.",
        unit="s",
        ge=0,
    )
    newest_first: bool = setting(True, "Process the newest movies first, then the backlog.")
    keep_free: float = setting(
        5.0,
        "With less free space than this on the session's disk, work pauses until there is more.",
        unit="GB",
        ge=0,
    )
