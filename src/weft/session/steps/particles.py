"""Particles: cut from the movie as soon as it is picked; particles.star grows while a session is recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from weft.errors import ItemError
from weft.session.config import SessionSettings
from weft.session.particle_export import usual_picker
from weft.session.particle_extraction import cut_item
from weft.session.particle_parts import SESSION_STACKS
from weft.session.step import Job, Step, StepResult
from weft.session.wanted_particles import ParticleSettings, picked
from weft.settings import Settings

__all__ = ["STEP", "ParticlesStep"]


class ParticlesStep(Step):
    """Write ``particles/<item>.mrcs`` and its rows for particles.star."""

    name = "particles"
    after = ("motion", "ctf", "pick")
    sections: ClassVar[Mapping[str, type[Settings]]] = {"particles": ParticleSettings}

    def wanted(self, settings: SessionSettings) -> bool:
        """See :class:`Step`."""
        return settings.get(ParticleSettings).write

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        settings = job.settings.get(ParticleSettings)
        names = [name.strip() for name in settings.picks.split(",") if name.strip()]
        names = names or [name for name in [usual_picker(job.settings)] if name]
        wanted = picked(job.root, job.item, names, settings.min_score)
        if wanted is None:
            raise ItemError(
                f"{job.item}: there are no picks of {', '.join(names) or 'any picker'}; particles.picks "
                "names the picker"
            )
        part, _ = cut_item(job, wanted, settings, job.root / SESSION_STACKS)
        outputs = {"particle_rows": f"{SESSION_STACKS}/{job.item}.json"}
        for half, name in part.stacks().items():
            outputs[f"particles_{half}" if half else "particles"] = f"{SESSION_STACKS}/{name}"
        metrics = {"particles_cut": len(part), "particles_left_out": sum(part.skipped.values())}
        return StepResult(metrics, outputs, {"left_out": dict(part.skipped)})


STEP = ParticlesStep()
