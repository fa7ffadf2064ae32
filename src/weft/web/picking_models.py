"""The shape of every answer about picks, and about teaching the network that makes them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from weft.web.models import Number

__all__ = ["PickChanges", "PickerName", "Picks", "Training", "TrainingOrder"]

Diameter = Annotated[float, Field(gt=0, le=100_000, allow_inf_nan=False)]
#: Of a folder in picks/, or of a model.
PickerName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^./\\][^/\\]*$")]


class Pick(BaseModel):
    """Where a particle is, Å from the centre of the first pixel."""

    x: Number
    y: Number


class ScoredPick(Pick):
    """A particle, and how sure its picker is."""

    score: float | None = Field(description="null where it has none: picked by hand.")


class Picks(BaseModel):
    """The particles of one micrograph."""

    picks: list[ScoredPick]
    diameter: float | None = Field(description="Å")
    picker: str = Field(description="Whose picks these are: manual for those of people.")
    pickers: list[str] = Field(description="Who has picked in this micrograph.")


class PickChanges(BaseModel):
    """The particles of one micrograph after somebody has changed them."""

    picks: list[Pick] = Field(max_length=100_000)
    diameter: Diameter | None = Field(default=None, description="Å")
    picker: PickerName | None = Field(
        default=None,
        description="Whose picks were changed: scores of those that stay are kept. "
        "By default those that are shown by default.",
    )


class TrainingOrder(BaseModel):
    """What a picking model is to be taught."""

    picks: PickerName = Field(default="manual", description="Whose picks it learns.")
    name: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")] = Field(
        default="retrained", description="Of the new model."
    )
    start: PickerName = Field(default="default", description="The model to begin with.")
    diameter: Diameter | None = Field(
        default=None, description="Å, of the particles, where their files do not say it."
    )


class Accuracies(BaseModel):
    """Parts of the pixels that are right, means over the classes: which network on which data."""

    step: int
    old_on_old: float | None
    new_on_old: float | None
    old_on_new: float | None
    new_on_new: float | None


class Training(BaseModel):
    """The training that is running, or the last one of this server."""

    state: Literal["none", "running", "done", "failed", "stopped"]
    order: TrainingOrder | None
    text: str = Field(description="What it is doing, what has come of it, or why it has failed.")
    left_out: list[str] = Field(description="Micrographs whose picks could not be used, and why.")
    steps: int | None = Field(description="How many there will be.")
    history: list[Accuracies]
    seconds: float | None = Field(description="That it has taken so far.")
    model: str = Field(description="With which micrographs are picked now: picking.model.")
    models: list[str] = Field(description="What can be begun with.")
    pickers: dict[str, int] = Field(description="Whose picks can be learned: in how many micrographs.")
