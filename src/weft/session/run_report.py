"""How a run goes, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Progress", "RunReport"]


@dataclass(frozen=True)
class Progress:
    """What `run` tells while it works.

    Attributes
    ----------
    total, finished, failed : int
        Items that this run has to do, and how many of them have ended.
    item : str
        The one that has just ended; empty for a note.
    error : str
        Why it failed; empty otherwise.
    seconds : float
        It took.
    note : str
        Something else that people should know.
    """

    total: int
    finished: int
    failed: int
    item: str = ""
    error: str = ""
    seconds: float = 0.0
    note: str = ""


@dataclass
class RunReport:
    """How a run ended.

    Attributes
    ----------
    done : list of str
        Items that were worked on and are done.
    current : list of str
        Items that needed nothing.
    excluded : list of str
        Items that were excluded by hand.
    failed : dict
        Item → reason; those that failed earlier and were not tried again are in it.
    interrupted : bool
    seconds : float
    """

    done: list[str] = field(default_factory=list)
    current: list[str] = field(default_factory=list)
    excluded: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    interrupted: bool = False
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 done, 1 some items failed, 130 stopped by the user."""
        return 130 if self.interrupted else 1 if self.failed else 0
