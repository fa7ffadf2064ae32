"""Learning to denoise tomograms or micrographs by noise2noise, from two halves of each.

Lehtinen et al. 2018: a network that is asked to predict one noisy observation from another one of the same
thing learns to predict their common part, because the noise of the one says nothing of the other's. The mean
square error has its minimum at the expectation of the signal given the input. Tegunov & Cramer 2019,
"Denoising improves particle visibility", use averages of odd and even frames; here it is tomograms made from
them (Buchholz et al. 2019, cryoCARE), or from every second tilt.

docs/science/denoising.md has the equations, what is different for the missing wedge, and figures.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, avg_pool3d

from weft.denoising.cubes import (
    BLOCK,
    FLIPS,
    ROTATIONS,
    SQUARES,
    WORDS,
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

__all__ = ["DenoisingSettings", "TrainingPair", "TrainingSettings", "train"]

#: Cubes that are kept from the training: of each pair at most, and of all together about.
_HELD_OUT, _HELD_OUT_ALL = 8, 64
#: Evaluations of them in a training, and how many may pass without an improvement.
_EVALUATIONS, _PATIENCE = 12, 4
#: Share of cubes that are drawn anywhere, empty ice or not.
_ANYWHERE = 0.25
#: Share of the held-out cubes' variance that chance may seem to predict.
_LEAST = 1e-3
#: Voxels along a cube's faces that count less, because the network has not seen what is behind them.
_EDGE = 4


class TrainingSettings(Settings):
    """How a denoising network is trained, of images or of volumes."""

    steps: int = setting(
        400, "Longest training; it stops when parts that are kept from it stop improving.", ge=1, le=1000000
    )
    batch: int = setting(4, "Pieces of the halves in a step.", ge=1, le=256)
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
    seed: int = setting(0, "Of the random numbers: the same seed, the same network.", ge=0, le=2**31 - 1)

    @property
    def side(self) -> int:
        """Of the pieces, pixels."""
        raise NotImplementedError

    @property
    def fills_wedge(self) -> bool:
        """Whether the missing wedge is to be filled."""
        return False


class DenoisingSettings(TrainingSettings):
    """How a network is trained that denoises tomograms."""

    cube: int = setting(48, "Side of the cubes that it learns from.", unit="px", ge=16, le=256)
    missing_wedge: bool = setting(
        False,
        "Train it to fill the missing wedge too, from other orientations of what the tomogram holds. What it "
        "fills in is a guess: for the eye and for segmentation, never for averaging.",
    )

    @property
    def side(self) -> int:
        """See :class:`TrainingSettings`."""
        return self.cube

    @property
    def fills_wedge(self) -> bool:
        """See :class:`TrainingSettings`."""
        return self.missing_wedge


@dataclass(frozen=True)
class TrainingPair:
    """Two half maps of one specimen, or averages of two halves of a movie.

    Attributes
    ----------
    first, second : (z, y, x) or (y, x) arrays or memory maps
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
    settings: TrainingSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, Loss | None], None] = lambda step, steps, loss: None,
    *,
    start: Denoiser | None = None,
    resume: bytes = b"",
    keep: Callable[[bytes], None] | None = None,
    to_the_end: bool = False,
) -> Denoiser:
    """Learn what the halves of tomograms, or of micrographs, have in common.

    Parameters
    ----------
    pairs : sequence of TrainingPair
        Of one pixel size, all images or all volumes; every pair has its own scale, and equal weight.
    pixel_size : float
        Å.
    settings : TrainingSettings, optional
        As for tomograms if left out.
    device : torch.device or str
    progress : callable
        Gets the step, how many there are at most, and the losses after each evaluation.
    start : Denoiser, optional
        A trained one to begin with, whose network has its own width and depth.
    resume : bytes
        What `keep` was given by a training with the same pairs and settings: goes on from there.
    keep : callable, optional
        Gets, after each evaluation, all that is needed to go on.
    to_the_end : bool
        Take all the steps, and give the last state instead of the best: with many different micrographs
        pieces of a few are a poor judge, and the falling learning rate a good one.

    Returns
    -------
    Denoiser
        In the state in which it predicted the held-out cubes best, or the last one.

    Raises
    ------
    ItemError
        For volumes that are too small, of different shapes, constant or not finite.
    FitError
        If nothing can be predicted: the halves have nothing in common.
    """
    settings = settings or DenoisingSettings()
    device = torch.device(device)
    dims = pairs[0].first.ndim
    random = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        channels = tuple(settings.channels * 2**level for level in range(settings.levels))
        network = (UNet(dims, channels) if start is None else start.network().requires_grad_(True)).to(device)
    wells = [_Well.of(pair, settings, network.stride) for pair in pairs]
    side = min(well.side for well in wells)
    kept = max(1, min(_HELD_OUT, _HELD_OUT_ALL // len(wells)))
    held_out = [well.cubes(side, random, kept, held_out=True) for well in wells]
    if dims == 2:
        held_out = [torch.cat(held_out, 1)]
    window = _window(side, dims).to(device)
    group = SQUARES if dims == 2 else ROTATIONS if settings.fills_wedge else FLIPS
    task = _Task(network, window, [w.pair.wedge if settings.fills_wedge else None for w in wells], device)
    run = _Run(network, settings, random)
    if resume:
        run.restore(resume)
    every = max(1, math.ceil(settings.steps / _EVALUATIONS))
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        for step in range(run.step + 1, settings.steps + 1):
            network.train()
            if dims == 2:
                # micrographs differ more than tomograms: what the normalisations learn must be true of all
                number, chosen = 0, torch.randint(len(wells), (settings.batch,), generator=random).tolist()
                cubes = torch.cat([wells[well].cubes(side, random, 1) for well in chosen], 1)
            else:
                number = int(torch.randint(len(wells), (), generator=random))
                cubes = wells[number].cubes(side, random, settings.batch)
            turn = group[int(torch.randint(len(group), (), generator=random))]
            if torch.rand((), generator=random) < 0.5:
                cubes = cubes.flip(0)
            run.learn(*task.error(number, cubes, turn))
            if step % every and step != settings.steps:
                progress(step, settings.steps, None)
                continue
            going_on = run.judged(task.held_out(held_out, group, settings.batch))
            progress(step, settings.steps, run.losses[-1])
            if keep is not None:
                keep(run.saved())
            if not going_on and not to_the_end:
                break
    least = run.losses[-1 if to_the_end else _best(run.losses)]
    if not least.held_out < 1.0 - _LEAST:
        words = WORDS[dims]
        raise FitError(
            f"{' and '.join(w.pair.name or f'the {words.thing}' for w in wells)}: the {words.things} have "
            f"nothing in common that could be learnt; look at the {words.thing}, or use a model trained on "
            f"others ({words.key})"
        )
    return Denoiser(
        run.last if to_the_end else run.best,
        dims,
        network.channels,
        pixel_size,
        settings.clip,
        settings.fills_wedge,
        least.step,
        tuple(run.losses),
        tuple(pair.name for pair in pairs),
    )


class _Run:
    """A network that is being trained, with all that changes meanwhile.

    Attributes
    ----------
    step : int
        How many have been taken.
    losses : list of Loss
    best : dict
        The network in the best state so far.
    """

    def __init__(self, network: UNet, settings: TrainingSettings, random: torch.Generator) -> None:
        self._network, self._random = network, random
        self._optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=1e-4)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._optimiser, _schedule(settings.steps))
        self._since = torch.zeros(2, dtype=torch.float64)
        self.step = 0
        self.losses: list[Loss] = []
        self.best: dict[str, torch.Tensor] = {}

    def learn(self, error: torch.Tensor, power: torch.Tensor) -> None:
        """Take one step downhill."""
        self._optimiser.zero_grad(set_to_none=True)
        (error / power).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        self._schedule.step()
        self.step += 1
        self._since += torch.tensor([error.item(), power.item()], dtype=torch.float64)

    def judged(self, held_out: float) -> bool:
        """Write down how far it has come; whether to go on."""
        self.losses.append(Loss(self.step, float(self._since[0] / self._since[1]), held_out))
        self._since.zero_()
        if held_out <= min(loss.held_out for loss in self.losses):
            self.best = copy.deepcopy(self.last)
        return len(self.losses) - 1 - _best(self.losses) < _PATIENCE

    @property
    def last(self) -> dict[str, torch.Tensor]:
        """The network as it is."""
        return {name: t.detach().cpu() for name, t in self._network.state_dict().items()}

    def saved(self) -> bytes:
        """All of it."""
        buffer = io.BytesIO()
        state = {
            "network": self._network.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "schedule": self._schedule.state_dict(),
            "random": self._random.get_state(),
            "step": self.step,
            "losses": [astuple(loss) for loss in self.losses],
            "best": self.best,
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, saved: bytes) -> None:
        """Go on from what :meth:`saved` gave."""
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self._network.load_state_dict(state["network"])
        self._optimiser.load_state_dict(state["optimiser"])
        self._schedule.load_state_dict(state["schedule"])
        self._random.set_state(state["random"])
        self.step, self.best = state["step"], state["best"]
        self.losses = [Loss(*loss) for loss in state["losses"]]


def _schedule(steps: int) -> Callable[[int], float]:
    warm = max(1, min(20, steps // 10))

    def factor(step: int) -> float:
        return min((step + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1.0)))

    return factor


def _best(losses: Sequence[Loss]) -> int:
    return min(range(len(losses)), key=lambda i: losses[i].held_out)


def _window(side: int, dims: int) -> torch.Tensor:
    """([z,] y, x): 1, falling along the faces."""
    place = torch.arange(side) + 0.5
    line = (torch.minimum(place, side - place) / _EDGE).clamp(max=1.0)
    out = line
    for _ in range(dims - 1):
        out = out[..., None] * line
    return out


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
    def of(cls, pair: TrainingPair, settings: TrainingSettings, stride: int) -> _Well:
        volumes = (pair.first, pair.second)
        same_shape(volumes)
        shape = pair.first.shape
        axis = int(np.argmax(shape))
        side = min(settings.side, *shape, shape[axis] // 2)
        unit = math.lcm(BLOCK, stride)
        side = side // unit * unit
        if side < 2 * unit:
            words = WORDS[len(shape)]
            raise ItemError(
                f"{pair.name or f'the {words.thing}'} has only {'×'.join(str(n) for n in reversed(shape))} "
                f"{words.points}: too few to learn from; use a model that was trained on others ({words.key})"
            )
        if settings.fills_wedge and pair.wedge is None:
            raise ItemError(
                f"{pair.name or 'the tomogram'}: its tilt angles are needed for the missing wedge"
            )
        scale = Scale.of(volumes)
        border = (shape[axis] - max(side, shape[axis] // 8)) // BLOCK * BLOCK
        signal = signal_map(volumes, scale, settings.clip)
        return cls(pair, scale, settings.clip, side, signal, axis, border)

    def cubes(self, side: int, random: torch.Generator, count: int, held_out: bool = False) -> torch.Tensor:
        """(2, count, [z,] y, x): the same random cubes of both halves."""
        shape = self.pair.first.shape
        lows, highs = [0] * len(shape), [n - side for n in shape]
        if held_out:
            lows[self.axis] = min(self.border, highs[self.axis])
        else:
            highs[self.axis] = max(self.border - side, 0)
        inside = self.signal[
            tuple(slice(low // BLOCK, (high + side) // BLOCK) for low, high in zip(lows, highs))
        ]
        pool = avg_pool2d if len(shape) == 2 else avg_pool3d
        weight = pool(inside[None, None], side // BLOCK, stride=1)[0, 0].clamp(min=0.0)
        # beads are not to be learnt at the cost of the rest
        weight = weight.clamp(max=float(weight.quantile(0.9))) if weight.numel() < 1 << 24 else weight
        total = float(weight.sum())
        share = torch.full_like(weight, 1.0 / weight.numel())
        if total > 0.0:
            share = _ANYWHERE * share + (1.0 - _ANYWHERE) * weight / total
        chosen = torch.multinomial(share.flatten(), count, replacement=True, generator=random)
        out = torch.empty(2, count, *[side] * len(shape))
        for i, index in enumerate(chosen.tolist()):
            place = np.unravel_index(index, tuple(share.shape))
            # anywhere in the block, so that all voxels take all places in the network's own grid
            moved = torch.randint(BLOCK, (len(shape),), generator=random).tolist()
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
        error = self._power((found.float() - target) * self.window, seen)
        power = self._power(target * self.window, seen)
        if self.window.ndim == 2:
            # each square in units of its own: one with a strong contaminant has a hundred times the power
            return (error / power.clamp(min=1e-6)).mean(), power.new_ones(())
        return error.mean(), power.mean()

    def _power(self, cubes: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """Of each cube."""
        if seen is None:
            return cubes.square().flatten(1).mean(1)
        # only what has been measured: nobody knows the rest, and the network is not asked for it
        spectrum = torch.fft.fftn(cubes, dim=(1, 2, 3), norm="ortho")
        return (torch.view_as_real(spectrum).square().sum(-1) * seen).flatten(1).mean(1)

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
