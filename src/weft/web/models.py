"""The shape of every answer: what the OpenAPI schema is made from.

Lengths of the specimen are in Å, times of day in seconds since 1970, durations in seconds, unless a
name or a unit beside it says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Advice",
    "Alert",
    "ByHand",
    "Changes",
    "Columns",
    "Curve",
    "Decision",
    "Defocus",
    "Item",
    "ItemDetails",
    "ItemPage",
    "Names",
    "Preview",
    "Problem",
    "Ranges",
    "Selection",
    "SettingsForm",
    "SettingsProblem",
    "Status",
    "Taken",
    "Tracks",
]

State = Literal["new", "processing", "done", "failed", "stale"]
ByHand = Literal["include", "exclude"]
Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=255)]
XY = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Problem(BaseModel):
    """Why a request was not done."""

    detail: str = Field(description="One sentence: what is wrong and what to do.")


class SettingsProblem(Problem):
    """Why settings were not changed."""

    errors: dict[str, str] = Field(default={}, description="Key → what is wrong with its new value.")


class Counts(BaseModel):
    """How many items there are of each kind."""

    total: int
    done: int
    failed: int
    stale: int
    new: int
    processing: int
    excluded: int
    selected: int


class Throughput(BaseModel):
    """Items an hour: since the start, and lately."""

    per_hour: float | None
    recent_per_hour: float | None


class Disk(BaseModel):
    """The disk that holds the session, bytes."""

    free: int
    total: int


class Worker(BaseModel):
    """One process that computes."""

    name: str
    state: str
    item: str | None
    seconds: float | None = Field(description="For how long it has worked on the item.")


class Waiting(BaseModel):
    """A file that is there but not taken yet."""

    name: str
    reason: str


class Alert(BaseModel):
    """Something that a person should look at."""

    model_config = ConfigDict(extra="allow")

    id: str
    level: Literal["warning", "error"]
    text: str
    items: list[str]


class Status(BaseModel):
    """How the session stands as a whole."""

    model_config = ConfigDict(extra="allow")

    session: str
    version: str
    readonly: bool = Field(description="Whether the asker may only look.")
    of_tilts: bool = Field(description="Whether the movies are tilts of series.")
    items: Counts
    throughput: Throughput
    backlog: int
    time_left_s: float | None
    disk: Disk
    workers: list[Worker]
    watching: bool
    paused: str | None = Field(description="Why no work is done; null while it is.")
    waiting: list[Waiting]
    alerts: list[Alert]


class Item(BaseModel):
    """One movie or tilt series, as lists show it."""

    id: str
    name: str
    kind: str
    state: State
    reason: str = Field(description="Why it is failed or stale.")
    step: str = Field(description="The step that failed or is running.")
    selected: bool
    reasons: list[str] = Field(description="Why it is not selected, or who decided.")
    manual: ByHand | None
    time: float = Field(description="Of the input file.")
    processed: float | None = Field(description="When its record was written.")
    folder: str = Field(description="Of the input file.")
    metrics: dict[str, Any] = Field(description="As in the record: lengths in Å.")
    shown: dict[str, float | None] = Field(
        description="In the names and units of /api/columns; empty of numbers for tilt series."
    )
    outputs: list[str] = Field(description="Names of what was written for it.")
    revision: str = Field(description="Changes when its pictures may have changed.")


class Step(BaseModel):
    """One step of one item."""

    name: str
    state: str
    reason: str
    seconds: float | None
    settings: dict[str, dict[str, Any]] = Field(description="Section → key → value that it used.")


class ItemDetails(Item):
    """One movie, with all that its own page shows."""

    source: str
    size: int | None = Field(description="Of the input file, bytes.")
    shape: list[int] | None = Field(description="Of the movie: frames, rows, columns.")
    pixel_size: float | None = Field(description="Of the average, Å.")
    extent: XY | None = Field(description="Width and height of the field, Å.")
    steps: list[Step]
    error: str | None
    notes: list[str]


class ItemPage(BaseModel):
    """A part of the list of items."""

    total: int = Field(description="How many items the filters leave.")
    items: list[Item]


class Curve(BaseModel):
    """The rotational average of the power spectrum."""

    frequency: list[float] = Field(description="1/Å")
    data: list[float | None] = Field(description="Background removed, oscillations brought to 0 to 1.")
    fit: list[float | None] = Field(description="CTF²")
    quality: list[float | None] = Field(description="Correlation of data and fit along a sliding window.")


class LocalTrack(BaseModel):
    """The track of one place."""

    at: XY = Field(description="Å")
    track: list[XY] = Field(description="One point a frame, Å; global motion included.")


class Tracks(BaseModel):
    """Where features lie in each frame, minus where they lie in the average."""

    model_config = ConfigDict(populate_by_name=True)

    extent: XY
    whole: list[XY] = Field(alias="global", description="One point a frame, Å.")
    local: list[LocalTrack]


class Defocus(BaseModel):
    """Mean defocus over the field."""

    extent: XY
    rows: list[list[float]] = Field(description="µm, at the centres of equal cells; row 0 at y = 0.")


class Names(BaseModel):
    """Some items."""

    items: list[Name] = Field(max_length=100_000)


class Decision(Names):
    """Items decided by hand."""

    accept: bool | None = Field(description="null leaves them to the ranges again")


class Taken(BaseModel):
    """What was accepted."""

    items: list[str]


class Column(BaseModel):
    """One quantity of all items."""

    label: str
    unit: str
    values: list[float | None] = Field(description="In `unit`.")


class Columns(BaseModel):
    """All movies by column, in natural order of their names; tilt series have requests of their own."""

    version: int
    ids: list[str]
    time: list[float]
    state: list[State]
    selected: list[int] = Field(description="1 or 0")
    kind: list[str]
    folder: list[str] = Field(description="Of the input file.")
    reason: list[str] = Field(description="Why it is failed or stale.")
    revision: list[str] = Field(description="Changes when its pictures may have changed.")
    metrics: dict[str, Column]


Range = Annotated[list[Number | None], Field(min_length=2, max_length=2)]


class Ranges(BaseModel):
    """Ranges to set."""

    ranges: dict[str, Range | None] = Field(
        description="Quantity → [low, high] in its unit, null for no limit; null removes the range.",
        max_length=100,
    )


class Quantity(BaseModel):
    """Something to select by."""

    name: str
    label: str
    unit: str
    min: float | None = Field(description="Among the items.")
    max: float | None
    passes: int = Field(description="Items that its range accepts.")
    only: int = Field(description="Items that this range alone excludes.")


class Selection(BaseModel):
    """Ranges and decisions by hand."""

    ranges: dict[str, Range]
    include: list[str]
    exclude: list[str]
    quantities: list[Quantity]
    selected: int


class SettingField(BaseModel):
    """One key of weft.toml."""

    name: str
    key: str = Field(description="section.name")
    description: str
    unit: str
    kind: Literal["bool", "int", "float", "text", "choice", "list"]
    choices: list[str]
    allowed: str = Field(description="Type and limits in words.")
    required: bool
    default: Any
    value: Any


class SettingsSection(BaseModel):
    """One section of weft.toml."""

    name: str
    description: str
    fields: list[SettingField]


class SettingsForm(BaseModel):
    """All settings, as a form shows them."""

    sections: list[SettingsSection]


class Changes(BaseModel):
    """Settings to change."""

    changes: dict[str, Annotated[str, Field(max_length=10_000)]] = Field(
        description="section.key → text as a person types it", max_length=1000
    )


class Preview(BaseModel):
    """What a change of settings would do."""

    errors: dict[str, str]
    steps: dict[str, int] = Field(description="Step → items whose result would become stale.")
    items: int = Field(description="Items with anything that would become stale.")


class Advice(BaseModel):
    """What could be changed at the microscope."""

    model_config = ConfigDict(extra="allow")

    kind: str
    folder: str
    text: str
    evidence: dict[str, Any]
