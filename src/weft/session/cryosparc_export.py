"""``weft export cryosparc``: micrographs and particles as groups of results that cryoSPARC imports."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from weft.errors import RequestError, WeftError
from weft.formats import mrc
from weft.formats.cryosparc import Rows, uid_of, write_cs, write_group
from weft.formats.cryosparc_tables import Exposure, exposure_table, particle_table
from weft.physics.optics import Optics
from weft.session.cryosparc_particles import ParticleStack, read_particles
from weft.session.discovery import natural_key

if TYPE_CHECKING:
    from weft.session.records import Record
    from weft.session.session import Session

__all__ = ["CryosparcReport", "export_cryosparc"]

MICROGRAPHS, PARTICLES = "micrographs", "particles"
_EXPOSURE_FILE, _PARTICLE_FILE = "weft_exposures", "weft_particles"


@dataclass(frozen=True)
class CryosparcReport:
    """What was written.

    Attributes
    ----------
    exposures, particles : int
    groups : list of Path
        The .csg files.
    skipped : dict of str to int
        Why something was left out → how many.
    problems : list of str
    """

    exposures: int
    particles: int
    groups: list[Path]
    skipped: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, or 1 where something is wrong."""
        return 1 if self.problems or not self.exposures else 0

    def describe(self) -> str:
        """For people."""
        lines = [f"{count} left out: {why}" for why, count in self.skipped.items()]
        lines += self.problems
        said = f"{self.exposures} micrographs"
        if self.particles:
            said += f", {self.particles} particles"
        return "\n".join([*lines, ": ".join([said, ", ".join(map(str, self.groups))])])


def export_cryosparc(
    session: Session, output: str | Path, *, particles: str | Path | None = None, dark: bool = False
) -> CryosparcReport:
    """Write ``weft_exposures.csg`` and, where there are particles, ``weft_particles.csg``.

    Images are linked beside them, not copied: in ``micrographs/`` and ``particles/``.

    Parameters
    ----------
    session : Session
    output : path-like
        Folder.
    particles : path-like, optional
        ``particles.star`` as ``weft export particles`` writes it, or its folder.
    dark : bool
        The particles are dark in their images: these were not inverted.

    Raises
    ------
    RequestError
        No micrograph has a CTF, or none is selected.
    FormatError, CorruptError, TruncatedError
        The particles cannot be read.
    """
    output = Path(output)
    found = session.store.read_all()
    movies = {name: record for name, record in found.items() if record.kind == "movie"}
    verdicts = session.selection.judge({name: record.metrics for name, record in movies.items()})
    skipped: dict[str, int] = {}
    problems: list[str] = []
    chosen: dict[str, Record] = {}
    for name in sorted(movies, key=natural_key):
        steps = movies[name].steps
        if not verdicts[name].selected:
            _count(skipped, "micrographs that are not selected")
        elif any(step not in steps or steps[step].status != "done" for step in ("motion", "ctf")):
            _count(skipped, "micrographs without a CTF")
        else:
            chosen[name] = movies[name]
    if not chosen:
        raise RequestError(
            f"{session.root} has no selected micrograph with a CTF: run the motion and ctf steps."
        )
    # read before anything is written
    stack = None if particles is None else read_particles(particles, session.root, list(movies))
    folder = output / MICROGRAPHS
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[float, ...], int] = {}
    exposures: dict[str, Exposure] = {}
    for name, record in chosen.items():
        average = session.root / record.steps["motion"].outputs["average"]
        try:
            exposures[name] = _exposure(name, record, average, groups)
            _link(folder / average.name, average)
        except (WeftError, OSError) as error:
            problems.append(f"{name}: {error}")
            exposures.pop(name, None)
    written = [
        _write(
            output, "exposure", _EXPOSURE_FILE, "Micrographs of Weft", exposure_table([*exposures.values()])
        )
    ]
    count = 0
    if stack is not None:
        count = _write_particles(output, stack, exposures, dark, skipped, written)
    return CryosparcReport(len(exposures), count, written, skipped, problems)


def _count(skipped: dict[str, int], why: str, count: int = 1) -> None:
    skipped[why] = skipped.get(why, 0) + count


def _exposure(name: str, record: Record, average: Path, groups: dict[tuple[float, ...], int]) -> Exposure:
    motion, metrics = record.steps["motion"], record.metrics
    shape = mrc.read_header(average).shape
    used = motion.settings["input"]
    raw = Optics(used["pixel_size"], used["voltage"], used["cs"], used["amplitude"], used["dose_per_frame"])
    optics = raw.at_pixel_size(float(metrics["pixel_size"]))
    key = (optics.pixel_size, optics.voltage, optics.cs, optics.amplitude)
    return Exposure(
        uid_of(str(average)),
        f">{MICROGRAPHS}/{average.name}",
        (shape[-2], shape[-1]),
        optics,
        groups.setdefault(key, len(groups) + 1),
        metrics["defocus"] + metrics["astigmatism"] / 2,
        metrics["defocus"] - metrics["astigmatism"] / 2,
        metrics["astigmatism_angle"],
        metrics["phase_shift"] or 0.0,
        metrics["resolution"] or 0.0,
        metrics["ctf_score"] or 0.0,
        float(motion.results["model"]["n_frames"]) * raw.dose_per_frame,
    )


def _write_particles(
    output: Path,
    stack: ParticleStack,
    exposures: Mapping[str, Exposure],
    dark: bool,
    skipped: dict[str, int],
    written: list[Path],
) -> int:
    rows = [i for i, item in enumerate(stack.item) if item in exposures]
    if left := len(stack.item) - len(rows):
        _count(skipped, "particles whose micrograph is not among these", left)
    if not rows:
        return 0
    folder = output / PARTICLES
    folder.mkdir(parents=True, exist_ok=True)
    names = _unique(list(dict.fromkeys(stack.file[i] for i in rows)))
    for file, name in names.items():
        _link(folder / name, file)
    table = particle_table(
        stack.columns(rows, exposures, {file: f">{PARTICLES}/{name}" for file, name in names.items()}, dark)
    )
    written.append(_write(output, "particle", _PARTICLE_FILE, "Particles of Weft", table))
    return len(rows)


def _unique(files: Sequence[Path]) -> dict[Path, str]:
    """A name for each file that no other has; cryoSPARC knows stacks by .mrc and .mrcs."""
    taken: dict[str, int] = {}
    out = {}
    for file in files:
        number = taken[file.name] = taken.get(file.name, 0) + 1
        out[file] = file.name if number == 1 else f"{file.stem}__{number}{file.suffix}"
    return out


def _link(place: Path, target: Path) -> None:
    """A link that may replace an older one, never a file."""
    if place.is_symlink():
        place.unlink()
    os.symlink(os.path.relpath(target.resolve(), place.parent.resolve()), place)


def _write(output: Path, kind: str, name: str, title: str, rows: Rows) -> Path:
    write_cs(output / f"{name}.cs", rows)
    path = output / f"{name}.csg"
    write_group(path, kind, f"{kind}s", title, f"{name}.cs", rows)
    return path
