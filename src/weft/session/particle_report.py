"""What comes of exporting particles, from micrographs or from tomograms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ParticleReport"]


@dataclass
class ParticleReport:
    """What was written.

    Attributes
    ----------
    path : Path or None
        The table of particles; None where there are none.
    written : dict of str to int
        Micrograph or tomogram → its particles in the table.
    cut : list of str
        Micrographs whose particles were cut now; those of others were there already.
    skipped : dict of str to int
        Why particles were left out → how many.
    problems, notes : list of str
        What could not be done, and why; what else is worth knowing.
    """

    path: Path | None = None
    written: dict[str, int] = field(default_factory=dict)
    cut: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Particles in the table."""
        return sum(self.written.values())

    @property
    def exit_code(self) -> int:
        """0, or 1 where something could not be done or nothing was written."""
        return 1 if self.problems or not self.count else 0

    def leave_out(self, skipped: Mapping[str, int]) -> None:
        """Count particles that are left out."""
        for why, count in skipped.items():
            self.skipped[why] = self.skipped.get(why, 0) + count

    def lines(self) -> list[str]:
        """For people: all but the last line."""
        left = [f"{count} particles left out: {why}" for why, count in self.skipped.items()]
        return [*self.problems, *self.notes, *left]
