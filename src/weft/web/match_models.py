"""The shape of every answer about searches for known structures: lengths in Å."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field

__all__ = ["CandidateRules", "MatchList", "PickList", "RecallCurve", "Rules", "Saved", "Search"]

Vector = Annotated[list[float], Field(min_length=3, max_length=3)]


class SearchedTemplate(BaseModel):
    """One of the templates that competed, and the file of its candidates."""

    stem: str
    diameter: float = Field(description="Of the particle.")
    symmetry: str
    file: str | None = Field(description="Candidates that are written, from the session's folder.")
    written: int | None = Field(description="How many there are in it.")
    cut_off: float | None = Field(description="With which they were taken.")


class HandExperiment(BaseModel):
    """What the scores with either hand say about the hand."""

    hand: float = Field(description="+1, -1, or 0 where there is no difference.")
    p: float | None
    places: int | None
    sentence: str
    picture: bool = Field(description="Whether .../hand shows it.")


class Search(BaseModel):
    """A finished search of one tomogram."""

    job: str = Field(description="Its name in addresses.")
    revision: str = Field(description="Changes when the search is made again.")
    time: float = Field(description="When it was made.")
    templates: list[SearchedTemplate]
    voxel_size: float
    shape: list[int] = Field(description="Voxels of the score map: z, y, x.")
    origin: Vector = Field(description="x, y, z: its first voxel from the full volume's first.")
    volume_size: Vector = Field(description="x, y, z, of the full volume.")
    hand: int
    search_space: float = Field(description="Voxels times rotations times templates.")
    mean: float = Field(description="Of all scores that were looked at.")
    std: float
    rotations: int | None
    seconds: float | None
    angular_step: list[float] = Field(description="Degrees, of each template.")
    weighting: str | None
    low: float = Field(description="Score that is grey value 0 in sections of the score map.")
    high: float = Field(description="Score that is grey value 255.")
    verdict: HandExperiment | None


class CandidateRules(BaseModel):
    """The part of [candidates] that pages change."""

    cut_off: float = Field(ge=0.0, le=1.0, description="Lowest score; 0 has it follow from false positives.")
    false_positives: float = Field(gt=0.0, le=1e9, description="That may lie above the cut-off by chance.")
    number: int = Field(ge=1, le=10_000_000, description="Most candidates of one tomogram.")
    tophat: bool = Field(description="Keep only sharp peaks.")


class Rules(CandidateRules):
    """[candidates] of weft.toml."""

    particle_diameter: float = Field(description="0 is what the search was told.")
    separation: float = Field(description="In particle diameters.")
    margin: float = Field(description="In particle diameters.")


class MatchList(BaseModel):
    """The searches of one series, and which of their scores become candidates."""

    searches: list[Search]
    problems: list[str] = Field(description="Searches that cannot be shown, and why.")
    rules: Rules


class PickList(BaseModel):
    """Candidates, best first: those of any higher cut-off and of any smaller number are its beginning."""

    job: str
    revision: str
    tophat: bool
    automatic: float = Field(description="The cut-off that follows from the false positives.")
    lowest: float = Field(description="Down to which score it goes.")
    complete: bool = Field(description="Whether there are no more above that.")
    x: list[float] = Field(description="From the centre of the full volume's first voxel.")
    y: list[float]
    z: list[float]
    score: list[float]
    template: list[int] = Field(description="Which of the search's templates.")


class RecallCurve(BaseModel):
    """How many candidates are particles, by a mixture fitted to their scores."""

    particles: float
    background: float
    lowest: float = Field(description="Score from which on the list was complete.")
    best: float | None = Field(description="The cut-off with the highest F1.")
    cut_offs: list[float]
    recall: list[float]
    false_discovery: list[float]


class Saved(BaseModel):
    """What was written."""

    count: int = Field(description="Candidates of all templates in this tomogram.")
    cut_off: float
    files: list[str] = Field(description="From the session's folder.")
    matches: MatchList
