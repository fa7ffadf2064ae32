"""Learning to denoise tomograms by noise2noise, from two half maps.

Lehtinen et al. 2018: a network that is asked to predict one noisy observation from another one of the same
thing learns to predict their common part, because the noise of the one says nothing of the other's. The mean
square error has its minimum at the expectation of the signal given the input. Tegunov & Cramer 2019,
"Denoising improves particle visibility", use averages of odd and even frames; here it is tomograms made from
them (Buchholz et al. 2019, cryoCARE), or from every second tilt.

docs/science/denoising.md has the equations, what is different for the missing wedge, and figures.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool3d

from weft.denoising.cubes import (
    BLOCK,
    FLIPS,
    ROTATIONS,
    Scale,
    Turn,
    Volume,
    Wedge,
    read_cube,
    same_shape,
    signal_map,
)
from weft.denoising.network import Denoiser, Loss, UNet, autocast
from weft.errors import FitError, ItemError
from weft.settings import Settings, setting

__all__ = ["DenoisingSettings", "TrainingPair", "train"]

#: Cubes that are kept from the training, of each pair.
_HELD_OUT = 8
#: Evaluations of them in a training, and how many may pass without an improvement.
_EVALUATIONS, _PATIENCE = 12, 4
#: Share of cubes that are drawn anywhere, empty ice or not.
_ANYWHERE = 0.25
#: Share of the held-out cubes' variance that chance may seem to predict.
_LEAST = 1e-3
#: Voxels along a cube's faces that count less, because the network has not seen what is behind them.
_EDGE = 4


class DenoisingSettings(Settings):
    """How a denoising network is trained."""

    steps: int = setting(
        400, "Longest training; it stops when held-out cubes stop improving.", ge=1, le=1000000
    )
    cube: int = setting(48, "Side of the cubes that it learns from.", unit="px", ge=16, le=256)
    batch: int = setting(4, "Cubes in a step.", ge=1, le=256)
    channels: int = setting(
        32, "Width of the network's finest level; each coarser one has twice as many.", ge=4, le=512
    )
    levels: int = setting(2, "Levels of the network, each half as fine as the one before.", ge=1, le=5)
    learning_rate: float = setting(0.002, "Greatest learning rate (AdamW).", gt=0.0, le=1.0)
    clip: float = setting(
        4.0,
        "Values beyond so many robust standard deviations (gold beads) are clipped for the network, and "
        "what was cut off is added to its result.",
        ge=2.0,
        le=1000.0,
    )
    missing_wedge: bool = setting(
        False,
        "Train it to fill the missing wedge too, from other orientations of what the tomogram holds. What it "
        "fills in is a guess: for the eye and for segmentation, never for averaging.",
    )
    seed: int = setting(0, "Of the random numbers: the same seed, the same network.", ge=0, le=2**31 - 1)


@dataclass(frozen=True)
class TrainingPair:
    """Two half maps of one specimen.

    Attributes
    ----------
    first, second : (z, y, x) arrays or memory maps
    name : str
    wedge : Wedge, optional
        What the tilts have seen; needed with `missing_wedge`.
    """

    first: Volume
    second: Volume
    name: str = ""
    wedge: Wedge | None = None


def train(
    pairs: Sequence[TrainingPair],
    pixel_size: float,
    settings: DenoisingSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Loss | None], None] = lambda step, steps, loss: None,
) -> Denoiser:
    """Learn what the halves of tomograms have in common.

    Parameters
    ----------
    pairs : sequence of TrainingPair
        Of one pixel size; every pair has its own scale, and equal weight.
    pixel_size : float
        Å.
    settings : DenoisingSettings, optional
    device : torch.device or str
    progress : callable
        Gets the step, how many there are at most, and the losses after each evaluation.

    Returns
    -------
    Denoiser
        In the state in which it predicted the held-out cubes best.

    Raises
    ------
    ItemError
        For volumes that are too small, of different shapes, constant or not finite.
    FitError
        If nothing can be predicted: the halves have nothing in common.
    """
    settings = settings or DenoisingSettings()
    device = torch.device(device)
    random = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        channels = tuple(settings.channels * 2**level for level in range(settings.levels))
        network = UNet(3, channels).to(device)
    wells = [_Well.of(pair, settings, network.stride) for pair in pairs]
    side = min(well.side for well in wells)
    held_out = [well.cubes(side, random, _HELD_OUT, held_out=True) for well in wells]
    window = _window(side).to(device)
    group = ROTATIONS if settings.missing_wedge else FLIPS
    task = _Task(network, window, [w.pair.wedge if settings.missing_wedge else None for w in wells], device)
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(settings.steps))
    every = max(1, math.ceil(settings.steps / _EVALUATIONS))
    losses: list[Loss] = []
    best: dict[str, torch.Tensor] = {}
    since = torch.zeros(2, dtype=torch.float64)
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        for step in range(1, settings.steps + 1):
            network.train()
            number = int(torch.randint(len(wells), (), generator=random))
            cubes = wells[number].cubes(side, random, settings.batch)
            turn = group[int(torch.randint(len(group), (), generator=random))]
            if torch.rand((), generator=random) < 0.5:
                cubes = cubes.flip(0)
            error, power = task.error(number, cubes, turn)
            optimiser.zero_grad(set_to_none=True)
            (error / power).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            since += torch.tensor([error.item(), power.item()], dtype=torch.float64)
            if step % every and step != settings.steps:
                progress(step, settings.steps, None)
                continue
            value = task.held_out(held_out, group, settings.batch)
            losses.append(Loss(step, float(since[0] / since[1]), value))
            since.zero_()
            progress(step, settings.steps, losses[-1])
            if value <= min(loss.held_out for loss in losses):
                best = copy.deepcopy({name: t.detach().cpu() for name, t in network.state_dict().items()})
            elif len(losses) - 1 - _best(losses) >= _PATIENCE:
                break
    least = losses[_best(losses)]
    if not least.held_out < 1.0 - _LEAST:
        raise FitError(
            f"{' and '.join(w.pair.name or 'the tomogram' for w in wells)}: the half maps have nothing in "
            "common that could be learnt; look at the tomogram, or use a model trained on others "
            "(tomogram_denoising.model)"
        )
    return Denoiser(
        best,
        3,
        channels,
        pixel_size,
        settings.clip,
        settings.missing_wedge,
        least.step,
        tuple(losses),
        tuple(pair.name for pair in pairs),
    )


def _schedule(steps: int) -> Callable[[int], float]:
    warm = max(1, min(20, steps // 10))

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1.0)))

    return factor


def _best(losses: Sequence[Loss]) -> int:
    return min(range(len(losses)), key=lambda i: losses[i].held_out)


def _window(side: int) -> torch.Tensor:
    """(z, y, x): 1, falling along the faces."""
    place = torch.arange(side) + 0.5
    line = (torch.minimum(place, side - place) / _EDGE).clamp(max=1.0)
    return line[:, None, None] * line[:, None] * line


@dataclass(frozen=True)
class _Well:
    """Where cubes of one pair are drawn from.

    The last part of its longest axis is kept from the training: cubes between would be neighbours of it.
    """

    pair: TrainingPair
    scale: Scale
    clip: float
    side: int
    signal: torch.Tensor
    axis: int
    border: int

    @classmethod
    def of(cls, pair: TrainingPair, settings: DenoisingSettings, stride: int) -> _Well:
        volumes = (pair.first, pair.second)
        same_shape(volumes)
        shape = pair.first.shape
        axis = int(np.argmax(shape))
        side = min(settings.cube, *shape, shape[axis] // 2)
        unit = math.lcm(BLOCK, stride)
        side = side // unit * unit
        if side < 2 * unit:
            raise ItemError(
                f"{pair.name or 'the tomogram'} has only {'×'.join(str(n) for n in reversed(shape))} voxels: "
                "too few to learn from; use a model that was trained on others (tomogram_denoising.model)"
            )
        if settings.missing_wedge and pair.wedge is None:
            raise ItemError(
                f"{pair.name or 'the tomogram'}: its tilt angles are needed for the missing wedge"
            )
        scale = Scale.of(volumes)
        border = (shape[axis] - max(side, shape[axis] // 8)) // BLOCK * BLOCK
        signal = signal_map(volumes, scale, settings.clip)
        return cls(pair, scale, settings.clip, side, signal, axis, border)

    def cubes(self, side: int, random: torch.Generator, count: int, held_out: bool = False) -> torch.Tensor:
        """(2, count, z, y, x): the same random cubes of both halves."""
        shape = self.pair.first.shape
        lows, highs = [0, 0, 0], [n - side for n in shape]
        if held_out:
            lows[self.axis] = min(self.border, highs[self.axis])
        else:
            highs[self.axis] = max(self.border - side, 0)
        inside = self.signal[
            tuple(slice(low // BLOCK, (high + side) // BLOCK) for low, high in zip(lows, highs))
        ]
        weight = avg_pool3d(inside[None, None], side // BLOCK, stride=1)[0, 0].clamp(min=0.0)
        # beads are not to be learnt at the cost of the rest
        weight = weight.clamp(max=float(weight.quantile(0.9))) if weight.numel() < 1 << 24 else weight
        total = float(weight.sum())
        share = torch.full_like(weight, 1.0 / weight.numel())
        if total > 0.0:
            share = _ANYWHERE * share + (1.0 - _ANYWHERE) * weight / total
        chosen = torch.multinomial(share.flatten(), count, replacement=True, generator=random)
        out = torch.empty(2, count, side, side, side)
        for i, index in enumerate(chosen.tolist()):
            place = np.unravel_index(index, tuple(share.shape))
            # anywhere in the block, so that all voxels take all places in the network's own grid
            moved = torch.randint(BLOCK, (3,), generator=random).tolist()
            corner = [
                min(low + BLOCK * int(p) + m, high)
                for low, high, p, m in zip(lows, highs, place, moved, strict=True)
            ]
            for half, volume in enumerate((self.pair.first, self.pair.second)):
                cube = self.scale.normalised(read_cube(volume, corner, side))
                out[half, i] = cube.clamp_(-self.clip, self.clip)
        return out


@dataclass(frozen=True)
class _Task:
    """The error that is made small."""

    network: UNet
    window: torch.Tensor
    wedges: list[Wedge | None]
    device: torch.device

    def _mask(self, number: int, turn: Turn) -> torch.Tensor:
        wedge = self.wedges[number]
        assert wedge is not None
        return wedge.seen(len(self.window), turn).to(self.device)

    def error(self, number: int, cubes: torch.Tensor, turn: Turn) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean square of what the network leaves of the second cubes, and of these cubes themselves."""
        given, target = turn.of_cubes(cubes.to(self.device))
        seen = None
        if self.wedges[number] is not None:
            # the cube has lost its own wedge, which has turned with it; now it loses that of upright cubes,
            # too, of which the target knows a part
            upright = self._mask(number, FLIPS[0])
            given = torch.fft.ifftn(torch.fft.fftn(given, dim=(1, 2, 3)) * upright, dim=(1, 2, 3)).real
            seen = self._mask(number, turn)
        with autocast(self.device):
            found = self.network(given[:, None].contiguous())[:, 0]
        return self._power((found.float() - target) * self.window, seen), self._power(
            target * self.window, seen
        )

    def _power(self, cubes: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        if seen is None:
            return cubes.square().mean()
        # only what has been measured: nobody knows the rest, and the network is not asked for it
        spectrum = torch.fft.fftn(cubes, dim=(1, 2, 3), norm="ortho")
        return (torch.view_as_real(spectrum).square().sum(-1) * seen).mean()

    @torch.no_grad()
    def held_out(self, cubes: Sequence[torch.Tensor], group: Sequence[Turn], batch: int) -> float:
        """The error of both directions on held-out cubes, relative to that of predicting nothing."""
        self.network.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        for number, both in enumerate(cubes):
            for first in range(0, both.shape[1], batch):
                part = both[:, first : first + batch]
                turn = group[(7 * first) % len(group)]
                for pair in (part, part.flip(0)):
                    error, power = self.error(number, pair, turn)
                    sums += torch.tensor([error.item(), power.item()], dtype=torch.float64) * part.shape[1]
        return float(sums[0] / sums[1])
