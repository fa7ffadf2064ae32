"""The shape of every answer about tilt series.

Lengths (defocus, too) are in Å, angles in degrees, doses in e/Å², unless a name says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from weft.web.models import State, Step

__all__ = [
    "AlignmentDetails",
    "CtfDetails",
    "HandDetails",
    "Kept",
    "SeriesDetails",
    "SeriesHead",
    "SeriesList",
    "SessionHand",
    "Tilt",
    "TiltDecision",
    "TiltList",
    "Tomogram",
]

Verdict = Literal["good", "doubtful", "bad"]
HandVerdict = Literal["certain", "likely", "undecidable"]
Map = Literal["raw", "deconvolved", "denoised"]


class AlignmentHead(BaseModel):
    """How well a series is aligned."""

    method: str
    verdict: Verdict
    axis: float | None = Field(description="Of the tilt, counter-clockwise from the image's y axis.")
    residual: float | None = Field(description="Mean distance of markers from where they should be.")
    residual_px: float | None = Field(description="The same in pixels of the images.")
    expected_error: float | None = Field(description="Of the median tilt.")
    markers: int | None


class CtfHead(BaseModel):
    """What the CTF fit of a series came to."""

    defocus: float | None = Field(description="Median of the tilts.")
    resolution: float | None = Field(description="To which rings of all tilts together agree with the fit.")
    score: float | None
    verdict: str | None


class HandHead(BaseModel):
    """Which way the defocus goes with the tilt."""

    hand: float | None = Field(description="+1 or -1: what the results were made with.")
    origin: Literal["found", "set", "assumed"] | None = Field(description="Where that is from.")
    verdict: HandVerdict | None = Field(description="How sure the series itself is.")
    significance: float | None = Field(description="Standard errors; positive for +1.")


class TomogramHead(BaseModel):
    """The volume."""

    pixel_size: float | None
    shape: list[int] | None = Field(description="Voxels: z, y, x.")
    maps: list[Map]


class SeriesHead(BaseModel):
    """One tilt series, as lists show it."""

    id: str
    name: str
    state: State
    reason: str = Field(description="Why it is failed or stale.")
    step: str = Field(description="The step that failed or is stale.")
    waiting: str = Field(description="Why it is not processed yet; empty when nothing stands in its way.")
    time: float = Field(description="When its table was last changed.")
    processed: float | None
    revision: str = Field(description="Changes when its results or its tilts have changed.")
    tilts: int = Field(description="Exposures of which it consists.")
    used: int = Field(description="Those that take part.")
    to_come: int = Field(description="Those whose movies are still to be processed.")
    angle_min: float | None
    angle_max: float | None
    dose: float | None = Field(description="All that the specimen received.")
    alignment: AlignmentHead | None
    ctf: CtfHead | None
    hand: HandHead | None
    tomogram: TomogramHead | None
    pictures: list[str] = Field(description="Names for /api/series/{id}/picture/...")


class SeriesList(BaseModel):
    """All tilt series of the session, in natural order of their names."""

    series: list[SeriesHead]


class SeriesDetails(SeriesHead):
    """One tilt series, with what its own page shows."""

    origin: str = Field(description="The file that describes the series.")
    form: str
    pixel_size: float | None = Field(description="Of the images in the stack.")
    changes: list[str] = Field(description="What has been decided or has come since its stack was made.")
    notes: list[str]
    steps: list[Step]
    error: str | None


class Tilt(BaseModel):
    """One exposure of a series."""

    index: int = Field(description="Place in the order of acquisition, as far as that is known.")
    item: str = Field(description="The movie's item; empty where there is none.")
    name: str
    angle: float
    date: str
    exposure: float | None
    dose: float | None = Field(description="What the specimen had received by the end of this exposure.")
    used: bool = Field(
        description="Whether the results were made with it; before there are any, whether it can be used."
    )
    position: int | None = Field(description="Its section of the stack.")
    reason: str = Field(description="Why it takes no part.")
    doubt: str = Field(description="What speaks against it, though it takes part.")
    decision: bool | None = Field(description="By hand: true keeps it, false leaves it out.")
    pending: bool = Field(description="Whether that was decided after the results were made.")
    pictured: bool
    counts: float | None = Field(description="Mean counts per pixel.")
    relative_counts: float | None = Field(description="Of what the other tilts let expect.")
    motion: float | None
    defocus: float | None
    defocus_error: float | None
    astigmatism: float | None
    resolution: float | None
    fitted: bool | None = Field(description="Whether the CTF was found from this tilt itself.")
    residual: float | None = Field(description="Mean distance of its markers from where they should be.")
    residual_max: float | None
    observations: int | None
    expected_error: float | None
    aligned: bool | None = Field(description="False where its place is that of its neighbours.")


class TiltList(BaseModel):
    """The exposures of a series, in the order of acquisition."""

    revision: str
    tilts: list[Tilt]


class TiltDecision(BaseModel):
    """Tilts decided by hand."""

    tilts: Annotated[list[Annotated[int, Field(ge=0, le=100_000)]], Field(min_length=1, max_length=10_000)]
    keep: bool | None = Field(description="null leaves them to Weft again")


class Kept(TiltList):
    """The series after a decision."""

    steps: list[Step]


class ObservationTable(BaseModel):
    """Where markers were seen, by column."""

    marker: list[int]
    tilt: list[int] = Field(description="The tilt's index.")
    x: list[float] = Field(description="From the centre of the image's first pixel.")
    y: list[float]
    dx: list[float] = Field(description="Observed minus predicted.")
    dy: list[float]
    weight: list[float] = Field(description="0 took no part.")


class MarkerRow(BaseModel):
    """One marker in the specimen."""

    xyz: list[float] = Field(description="From the volume's centre.")
    observations: int
    residual: float | None = Field(description="Mean distance from where it should be.")


class AlignedTilt(BaseModel):
    """How one image sees the specimen."""

    index: int
    stage_angle: float
    angle: float
    axis: float
    shift: list[float]


class AlignmentDetails(AlignmentHead):
    """The alignment of a series."""

    notes: list[str]
    levelling: str = Field(description="What the inclination was found from.")
    level_x: float
    level_y: float
    thickness: float | None = Field(description="Of the specimen, where it was found.")
    pixel_size: float
    image_size: list[float] = Field(description="x, y")
    volume_size: list[float] = Field(description="x, y, z")
    tilts: list[AlignedTilt] = Field(description="In the order of the stack.")
    positions: list[MarkerRow] = Field(description="One row a marker.")
    observations: ObservationTable


class CtfCurve(BaseModel):
    """All tilts' spectra at one defocus."""

    frequency: list[float] = Field(description="1/Å")
    data: list[float | None] = Field(description="Background removed, oscillations brought to 0 to 1.")
    fit: list[float | None]
    quality: list[float | None] = Field(description="Correlation of data and fit along a sliding window.")


class CtfDetails(CtfHead):
    """The CTF of a series."""

    notes: list[str]
    fit_range: list[float]
    level_x: float = Field(description="Inclination that the CTF sees beyond that of the alignment.")
    level_y: float
    level_error: list[float]
    fitted: int
    curve: CtfCurve | None


class HandTilt(BaseModel):
    """What one tilt says about the hand."""

    index: int
    angle: float
    predicted: float = Field(description="Change of defocus across the tilt axis, Å/Å, with hand +1.")
    measured: float
    error: float
    used: bool
    difference: float = Field(description="Log-likelihood with +1 minus that with -1.")


class HandDetails(HandHead):
    """The handedness of one series, with its evidence."""

    found: float = Field(description="+1, -1, or 0 where the series itself cannot decide.")
    reason: str
    scores: list[float] = Field(description="Log-likelihoods with +1 and -1, each minus the lower one.")
    slope: float = Field(description="Of measured against predicted gradients: the hand.")
    slope_error: float
    tilts: list[HandTilt]


class SessionHand(BaseModel):
    """What all series together say about the hand."""

    hand: float | None = Field(description="+1, -1, or 0 where they cannot decide; null without any series.")
    verdict: HandVerdict | None
    reason: str
    log_odds: float
    plus: int = Field(description="Series that by themselves decide for +1.")
    minus: int
    series: int = Field(description="Series that were judged.")
    contradicting: list[str]
    setting: str | None = Field(description="handedness.hand as it is set; null where there is none.")


class Tomogram(BaseModel):
    """A map of a series: what its sections are shown with."""

    map: Map
    shape: list[int] = Field(description="Voxels: z, y, x.")
    pixel_size: float | None
    low: float = Field(description="Density that is grey value 0 in every section.")
    high: float = Field(description="Density that is grey value 255.")
    black: int = Field(description="Proposed contrast: this grey value and lower ones are shown black.")
    white: int
