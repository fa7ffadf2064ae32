"""What a step of an item is, and what it gets to work with."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch

from weft.session.config import SessionSettings
from weft.session.records import FileIdentity, Record
from weft.settings import Settings

__all__ = ["Job", "Step", "StepResult", "fingerprint_basis", "inside", "on_device", "plain_values"]

T = TypeVar("T")


@dataclass(frozen=True)
class StepResult:
    """What a step hands back: small things only; images lie in the session's folders already.

    Attributes
    ----------
    metrics : dict
        Plain numbers for tables, plots and selection, by name. NaN becomes None.
    outputs : dict
        Name → path relative to the session.
    details : dict
        Anything else that is JSON-able and worth keeping: ``model``, notes.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)


class Job:
    """One item in work: its files, its settings, what the steps before have made.

    Attributes
    ----------
    root : Path
        The session.
    source : Path
        The item's own file.
    settings : SessionSettings
    record : Record
        As of the last finished step.
    device : str
        ``"cpu"``, ``"cuda:0"`` ...
    """

    def __init__(
        self, root: Path, source: Path, settings: SessionSettings, record: Record, device: str
    ) -> None:
        self.root = root
        self.source = source
        self.settings = settings
        self.record = record
        self.device = device
        self._shared: dict[str, Any] = {}

    @property
    def item(self) -> str:
        """The item's name: the stem of every file it owns."""
        return self.record.item

    def place(self, relative: str) -> Path:
        """Where to write a file of the session; its folder exists on return."""
        path = self.root / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def output(self, step: str, name: str) -> Path:
        """A file that an earlier step wrote."""
        return self.root / self.record.steps[step].outputs[name]

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """Something that several steps need and is costly to make (the frames): made once."""
        if name not in self._shared:
            self._shared[name] = make()
        value: T = self._shared[name]
        return value


class Step(ABC):
    """Binds files to a science function. One file in ``session/steps`` holds one, named ``STEP``.

    Attributes
    ----------
    name : str
        What ``--steps`` and the records call it.
    version : int
        Raised when the same settings give another result than before.
    kinds : tuple of str
        Items that it applies to: ``"movie"``, ``"tilt"`` (a movie of a tilt series), ``"series"``.
    after : tuple of str
        Steps of the same item whose results it uses.
    of_tilts : tuple of str
        For a series: steps of its tilts whose results it uses.
    sections : dict
        Its sections of weft.toml; it reads all of their keys.
    input_keys : tuple of str
        Keys of [input] that it reads.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kinds: ClassVar[tuple[str, ...]] = ("movie",)
    after: ClassVar[tuple[str, ...]] = ()
    of_tilts: ClassVar[tuple[str, ...]] = ()
    sections: ClassVar[Mapping[str, type[Settings]]] = {}
    input_keys: ClassVar[tuple[str, ...]] = ()

    def reads(self, settings: SessionSettings) -> dict[str, Any]:
        """The settings that its results depend on, as plain values."""
        plain = settings.plain()
        out: dict[str, Any] = {name: plain[name] for name in self.sections}
        out["input"] = {key: plain["input"][key] for key in self.input_keys}
        return out

    def files(self, settings: SessionSettings, root: Path) -> dict[str, Path]:
        """Files besides the item's own whose content its results depend on."""
        return {}

    def wanted(self, settings: SessionSettings) -> bool:
        """Whether the settings ask for this step at all."""
        return True

    @abstractmethod
    def run(self, job: Job) -> StepResult:
        """Do the work and write the files.

        Raises
        ------
        ItemError
            When this item cannot be processed.
        """


def fingerprint_basis(step: Step, settings: SessionSettings, root: Path) -> dict[str, Any]:
    """What the fingerprint of a step has in common for all items: its version, its settings, its files."""
    files = {}
    for name, path in step.files(settings, root).items():
        try:
            files[name] = FileIdentity.of(path).content
        except OSError:
            files[name] = "missing"
    # where the file lies does not matter, what is in it does
    reads = step.reads(settings)
    reads["input"] = {key: value for key, value in reads["input"].items() if key not in files}
    return {"step": step.name, "version": step.version, "settings": reads, "files": files}


def inside(root: Path, name: str) -> Path:
    """A path of the settings: relative ones are relative to the session."""
    return root / Path(name).expanduser()


def plain_values(value: Any) -> Any:
    """JSON-able copy: NumPy and torch scalars and arrays become numbers and lists, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(item) for item in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    if hasattr(value, "tolist"):
        return plain_values(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


class _Moved:
    """Frames that arrive on another device one by one."""

    def __init__(self, frames: Any, device: str) -> None:
        self._frames = frames
        self._device = device
        self.shape = frames.shape
        self.device = torch.device(device)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Any:
        return self._frames[index].to(self._device)


def on_device(frames: Any, device: str) -> Any:
    """Frames whose tensors lie on `device`; the science follows its inputs."""
    return frames if device == "cpu" else _Moved(frames, device)
