"""The images of particles from their files, and as the training takes them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.tilt_particles import TiltParticles
from weft.heterogeneity.consensus import Consensus
from weft.heterogeneity.lattice import Lattice
from weft.heterogeneity.model import Batch
from weft.heterogeneity.preparation import ImageFacts, PreparationSettings, Prepared, prepare
from weft.particles.backprojection import brightness, low_passed
from weft.particles.fsc import soft_sphere

__all__ = ["TiltData", "TiltImageFiles"]

_OPEN = 256  # headers that are remembered
_COARSE = 6.0  # periods over the box up to which the contrast is looked at
_AT_ONCE = 32


class TiltImageFiles:
    """The stacks that particles' images are in.

    Parameters
    ----------
    particles : TiltParticles
    """

    def __init__(self, particles: TiltParticles) -> None:
        self.particles = particles
        self._stacks: OrderedDict[int, mrc.MrcStack] = OrderedDict()

    def _stack(self, number: int) -> mrc.MrcStack:
        if number not in self._stacks:
            self._stacks[number] = mrc.MrcStack(self.particles.files[number])
            if len(self._stacks) > _OPEN:
                self._stacks.popitem(last=False)
        self._stacks.move_to_end(number)
        return self._stacks[number]

    def read(self, index: int) -> NDArray[np.float32]:
        """(tilts, n, n): the images of one particle.

        Raises
        ------
        ItemError
            A file that cannot be read or is cut short, images of another size, or values that are no numbers.
        """
        of, name = self.particles, self.particles.particle[index]
        rows = range(int(of.start[index]), int(of.start[index + 1]))
        images = np.empty((len(rows), of.box, of.box), np.float32)
        for i, row in enumerate(rows):
            path: Path = of.files[of.file[row]]
            section = int(of.section[row])
            stack = self._stack(int(of.file[row]))
            if section >= len(stack):
                raise ItemError(
                    f"{path}: particle {name} needs its section {section + 1}, it has {len(stack)}; "
                    "export the particles again"
                )
            image = stack.read(section)
            if image.shape != (of.box, of.box):
                raise ItemError(
                    f"{path}: its images are {image.shape[1]} × {image.shape[0]} pixels, those of other "
                    f"particles {of.box} × {of.box}"
                )
            if not np.isfinite(image).all():
                raise ItemError(
                    f"{path}: section {section + 1} (particle {name}) holds values that are no numbers"
                )
            images[i] = image
        return images


def facts_of(particles: TiltParticles, rows: slice) -> ImageFacts:
    """What is known of some images, as tensors."""

    def of(values: NDArray[np.float64]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[rows], np.float32))

    p = particles
    return ImageFacts(**{field.name: of(getattr(p, field.name)) for field in fields(ImageFacts)})


class TiltData:
    """Particles as coefficients; kept in memory as far as they fit, and read again where they don't.

    Parameters
    ----------
    particles : TiltParticles
    settings : PreparationSettings
    memory : float
        GB.

    Attributes
    ----------
    sign : float
        What images are multiplied by so that particles are light.
    failed : dict of str to str
        Particles that cannot be read, and why.
    kept : (p) int64
        The others' indices; all else counts these.
    """

    def __init__(self, particles: TiltParticles, settings: PreparationSettings, memory: float = 4.0) -> None:
        self.particles, self.settings = particles, settings
        self.lattice = Lattice.of(particles.box, particles.pixel_size, settings.resolution)
        self.diameter = settings.diameter_of(particles.box, particles.pixel_size)
        self.sign = -1.0 if settings.contrast == "dark" else 1.0
        self.failed: dict[str, str] = {}
        self.kept = np.arange(len(particles))
        self._files = TiltImageFiles(particles)
        self._memory = memory * 1e9
        self._held: dict[int, Prepared] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def names(self) -> list[str]:
        """Of the particles, in the input's order."""
        return [self.particles.particle[i] for i in self.kept]

    @property
    def tilts(self) -> int:
        """Greatest number of images of a particle."""
        return int(self.particles.count[self.kept].max())

    def _prepared(self, index: int) -> Prepared:
        """With the images' own contrast."""
        if index in self._held:
            return self._held[index]
        p = self.particles
        images = torch.from_numpy(self._files.read(index))
        rows = slice(int(p.start[index]), int(p.start[index + 1]))
        found = prepare(
            images,
            facts_of(p, rows),
            self.lattice,
            self.settings,
            has_ctf=p.has_ctf,
            premultiplied=p.premultiplied,
        )
        if self._bytes + found.nbytes <= self._memory:
            self._held[index] = found
            self._bytes += found.nbytes
        return found

    def consensus(self, progress: Callable[[int], None] | None = None) -> Consensus:
        """The mean structure, with particles light; leaves out particles that cannot be read."""
        self.leave_out_unreadable(progress)
        found = Consensus.of(self._images, self.lattice, self.diameter)
        if self.settings.contrast == "auto" and self._dark(found):
            self.sign = -self.sign
            found = replace(found, volume=-found.volume)
        return found

    def leave_out_unreadable(self, progress: Callable[[int], None] | None = None) -> None:
        """Read all particles once; those that cannot be read are left out from now on.

        Raises
        ------
        RequestError
            None can be read: why the first cannot is said.
        """
        good = []
        for index in range(len(self.particles)):
            try:
                self._prepared(index)
            except (ItemError, OSError) as error:
                self.failed[self.particles.particle[index]] = str(error)
            else:
                good.append(index)
            if progress is not None:
                progress(index + 1)
        self.kept = np.array(good, np.int64)
        if not good:
            name, why = next(iter(self.failed.items()))
            raise RequestError(f"none of the particles can be read; {name}: {why}")

    def _dark(self, consensus: Consensus) -> bool:
        box = self.lattice.box
        coarse = low_passed(consensus.volume, 1.0, box / _COARSE)
        core = soft_sphere(box, 0.5 * self.diameter / self.lattice.pixel_size, 0.125 * box)
        return brightness(coarse, core) < 0.0

    def _images(self) -> Iterator[Prepared]:
        for first in range(0, len(self.kept), _AT_ONCE):
            yield self.batch(range(first, min(first + _AT_ONCE, len(self.kept))))

    def batch(self, which: Sequence[int]) -> Batch:
        """Particles by their place among those that can be read."""
        parts = [self._prepared(int(self.kept[i])) for i in which]
        owner = torch.repeat_interleave(
            torch.arange(len(parts)), torch.tensor([len(part.values) for part in parts])
        )
        values = torch.cat([part.values for part in parts])
        return Batch(
            values if self.sign > 0.0 else -values,
            torch.cat([part.transfer for part in parts]),
            torch.cat([part.weight for part in parts]),
            torch.cat([part.rotation for part in parts]),
            owner,
            len(parts),
        )
