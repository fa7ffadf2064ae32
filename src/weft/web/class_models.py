"""The shape of every answer about classes of particles in tomograms: lengths in Å."""

from __future__ import annotations

from pydantic import BaseModel, Field

__all__ = ["ClassList", "Training"]


class ParticleClass(BaseModel):
    """One class of a training."""

    number: int = Field(description="From 1.")
    colour: str = Field(description="#rrggbb.")
    particles: int = Field(description="In this tomogram.")


class Training(BaseModel):
    """A training whose classes were put back into this tomogram."""

    name: str
    folder: str = Field(description="Of the training.")
    time: float = Field(description="When its classes were put back.")
    diameter: float = Field(description="Of the particles.")
    classes: list[ParticleClass]
    x: list[float] = Field(description="Of each particle, from the centre of the full volume's first voxel.")
    y: list[float]
    z: list[float]
    label: list[int] = Field(description="The class of each particle.")


class ClassList(BaseModel):
    """What `weft vae map-back` has put into the session about one series."""

    trainings: list[Training]
    problems: list[str] = Field(description="Tables that cannot be shown, and why.")
