"""What a person says about a tomogram that another program has made."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator

from weft.settings import Settings, setting

__all__ = ["ForeignTomogramSettings"]


class ForeignTomogramSettings(Settings):
    """What is to be known about a tomogram that another program has made."""

    tilts: str = setting(
        "",
        "File with its tilt angles: .tlt, .rawtlt, AreTomo's .aln, RELION's STAR, Warp's .xml or .tomostar.",
    )
    tilt_range: tuple[float, ...] = setting(
        (), "Instead of such a file: lowest and highest tilt angle, two numbers.", unit="deg"
    )
    tilt_step: float = setting(3.0, "Step between angles of that range.", unit="deg", gt=0.0, le=30.0)
    series: str = setting(
        "", "Which series of a STAR file of many; by default the one that the tomogram is called after."
    )
    name: str = setting("", "What the tomogram is called in tables (rlnTomoName); by default as its file.")
    voxel_size: float | None = setting(
        None, "Size of its voxels, where its header does not say it.", unit="Å", gt=0
    )
    volume_size: tuple[float, ...] = setting(
        (), "Of the full volume, where the tomogram is a part of it: x, y, z, three numbers.", unit="Å"
    )
    origin: tuple[float, ...] = setting(
        (), "First voxel of such a part, from that of the full volume: x, y, z, three numbers.", unit="Å"
    )
    mirrored: bool = setting(
        False,
        "Its z axis runs downwards (clip flipyz, trimvol -yz, AreTomo's volumes that were mirrored): the "
        "specimen is its own mirror image.",
    )
    x_axis_tilt: float = setting(0.0, "XAXISTILT of IMOD's tilt.com, for angles of text files.", unit="deg")
    angle_offset: float = setting(
        0.0, "OFFSET of IMOD's tilt.com: added to all angles of text files.", unit="deg"
    )
    tilt_axis: float | None = setting(
        None,
        "Tilt axis in the images, counter-clockwise from y: needed for astigmatism where the file of tilts "
        "does not say it.",
        unit="deg",
    )
    dose: str = setting(
        "", "File with the dose that the specimen had received by each tilt, e/Å², one a line as the angles."
    )
    dose_per_tilt: float | None = setting(
        None, "Instead of such a file: dose of every tilt; say the order, too.", unit="e/Å²", gt=0
    )
    acquisition: str = setting(
        "",
        "Order in which tilts were recorded: symmetric, bidirectional, up, down, or a file with the number "
        "of each tilt in that order, one a line as the angles.",
    )
    start_angle: float = setting(0.0, "Where symmetric and bidirectional schemes start.", unit="deg")
    defocus: str = setting(
        "",
        "Defocus: a number in µm, IMOD's .defocus, a table by CTFFIND or AreTomo (_CTF.txt), a STAR file, or "
        "Warp's .xml; by default what the file of tilts says.",
    )
    ctf: Literal["auto", "yes", "no"] = setting(
        "auto", "Whether to use the CTF: auto does where the defocus is known."
    )
    phase_shift: float | None = setting(
        None, "Of a phase plate, where no file says it.", unit="deg", ge=-180.0, le=360.0
    )
    voltage: float | None = setting(
        None, "Acceleration voltage, where no file says it.", unit="kV", gt=0, le=3000.0
    )
    cs: float | None = setting(None, "Spherical aberration, where no file says it.", unit="mm", ge=0, le=20)
    amplitude: float | None = setting(None, "Amplitude contrast, where no file says it.", ge=0, le=1)
    hand: Literal[-1, 0, 1] | None = setting(
        None,
        "+1: at positive angles of the file, +x of the specimen is at greater underfocus (rlnTomoHand -1); "
        "-1: at smaller; 0: the defocus does not depend on the place. By default what the file of tilts "
        "says, else 0.",
    )
    image_pixel_size: float | None = setting(
        None, "Pixel size of the tilt images, where no file says it.", unit="Å", gt=0
    )
    tomogram_is: Literal["wbp", "flipped", "ctf-corrected", "warp"] = setting(
        "wbp",
        "What was done about the CTF. wbp: nothing; flipped: phases flipped; ctf-corrected: divided by the "
        "sum of CTF² (RELION 5); warp: by the sum of |CTF| (Warp, M).",
    )
    dose_weighted: bool = setting(False, "Images were weighted by their dose before or while reconstructing.")
    dose_model: Literal["warp", "grant"] = setting(
        "warp", "How signal is lost with dose: 4 Å² for each e/Å², or Grant & Grigorieff's critical exposure."
    )
    dark: bool = setting(False, "Dense matter is dark in the tomogram.")

    @field_validator("tilt_range")
    @classmethod
    def _two_angles(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (len(value) != 2 or not -90.0 <= value[0] < value[1] <= 90.0):
            raise ValueError("a range of angles is two numbers, the lower first, within -90 and 90")
        return value

    @field_validator("volume_size", "origin")
    @classmethod
    def _three(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (len(value) != 3 or not all(map(math.isfinite, value))):
            raise ValueError("this takes three numbers: x, y, z")
        return value
