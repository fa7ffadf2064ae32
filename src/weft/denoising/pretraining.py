"""Simulated micrographs for the model that ships, and for tests of models: halves with their truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from weft.denoising.micrographs import (
    ImageCTF,
    MicrographTrainingSettings,
    prepared,
    train_on_micrographs,
)
from weft.denoising.network import Denoiser
from weft.denoising.training import TrainingPair
from weft.micrographs.deconvolution import DeconvolutionSettings
from weft.physics.optics import Optics
from weft.simulation.micrograph_settings import random_settings
from weft.simulation.micrographs import counts, simulate_micrograph
from weft.simulation.phantoms import random_structure

__all__ = ["SimulatedHalves", "pretrain", "simulated_halves", "simulated_pairs"]

#: Å; half of the grid on which networks work, so that what lies beyond has been there.
_PIXEL_SIZE = 2.5
#: Detective quantum efficiency of cameras at these low frequencies.
_EFFICIENCY = (0.5, 0.9)


@dataclass(frozen=True)
class SimulatedHalves:
    """Two halves of an exposure of the same specimen, and the same without shot noise.

    Attributes
    ----------
    truth, even, odd : (y, x) float32 tensors
        Relative to the mean of clean ice, at 2.5 Å a pixel.
    ctf : ImageCTF
    diameter : float
        Of the particles, Å.
    name : str
    """

    truth: torch.Tensor
    even: torch.Tensor
    odd: torch.Tensor
    ctf: ImageCTF
    diameter: float
    name: str

    @property
    def pixel_size(self) -> float:
        """Å."""
        return self.ctf.optics.pixel_size

    def prepared(
        self, image: torch.Tensor, target: float, deconvolution: DeconvolutionSettings | None
    ) -> torch.Tensor:
        """One of the images as networks see it."""
        ctf = self.ctf if deconvolution is not None else None
        return prepared(image, self.pixel_size, target, ctf, deconvolution)[0]

    def pair(self, target: float, deconvolution: DeconvolutionSettings | None) -> TrainingPair:
        """Both halves as networks see them."""
        even, odd = (self.prepared(half, target, deconvolution).numpy() for half in (self.even, self.odd))
        return TrainingPair(even, odd, self.name)


def simulated_halves(
    seed: int, field: float = 2560.0, structure: int | None = None, **fixed: Any
) -> SimulatedHalves:
    """A made-up structure in ice, imaged as facilities do, at random.

    Parameters
    ----------
    seed : int
        Another one, another structure, microscope and exposure.
    field : float
        Width and height, Å.
    structure : int, optional
        Another one, another structure, where it is not to depend on `seed`.
    **fixed
        Settings of the simulation that are not drawn.
    """
    rng = np.random.default_rng([seed, 0xDE])
    size = 2 * round(0.5 * field / _PIXEL_SIZE)
    given = {"width": size, "height": size, "pixel_size": _PIXEL_SIZE} | fixed
    settings = random_settings(rng, **given)
    specimen = random_structure(rng if structure is None else np.random.default_rng([structure, 0x5E]))
    simulated = simulate_micrograph(specimen, settings, rng)
    efficiency = float(rng.uniform(*_EFFICIENCY))
    even, odd = (
        torch.from_numpy(counts(simulated, 0.5 * settings.dose, rng, efficiency=efficiency)) for _ in range(2)
    )
    half = 0.5e4 * settings.astigmatism
    defocus = (simulated.defocus + half, simulated.defocus - half, settings.astigmatism_angle)
    optics = Optics(settings.pixel_size, settings.voltage, settings.cs, settings.amplitude)
    ctf = ImageCTF(defocus, optics, settings.phase_shift)
    truth = torch.from_numpy(simulated.signal) + 1.0
    return SimulatedHalves(truth, even, odd, ctf, simulated.diameter, f"simulation {seed}")


def simulated_pairs(
    seed: int, pixel_size: float, deconvolution: DeconvolutionSettings
) -> tuple[TrainingPair, TrainingPair]:
    """A simulated pair as it is, and deconvolved."""
    halves = simulated_halves(seed)
    return halves.pair(pixel_size, None), halves.pair(pixel_size, deconvolution)


def pretrain(
    simulations: Sequence[Sequence[TrainingPair]],
    pixel_size: float,
    settings: MicrographTrainingSettings,
    deconvolution: DeconvolutionSettings,
    **more: Any,
) -> Denoiser:
    """The model that ships: it knows micrographs deconvolved and not.

    Parameters
    ----------
    simulations : sequence of (plain, deconvolved) pairs
    pixel_size : float
        Å.
    settings : MicrographTrainingSettings
    deconvolution : DeconvolutionSettings
    **more
        See :func:`weft.denoising.micrographs.train_on_micrographs`.
    """
    # plain and deconvolved in turn, so that whatever is chosen among them evenly holds both
    pairs = [both[number % 2] for number, both in enumerate(simulations)]
    pairs += [both[1 - number % 2] for number, both in enumerate(simulations)]
    model = train_on_micrographs(pairs, pixel_size, settings, deconvolution, to_the_end=True, **more)
    return replace(model, plain=True, sources=(f"{len(simulations)} simulated micrographs",))
