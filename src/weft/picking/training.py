"""Teaching a picking network: from scratch on simulations, or what users have picked beside what it knew.

Tegunov & Cramer 2019, "Initial training of BoxNet" and "Retraining of BoxNet": tiles at random places,
turned, flipped, sheared and with noise added; retraining mixes new and old data 1:1 and watches four
numbers, the accuracy of the old and of the new network on old and on new data.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from weft.errors import ItemError
from weft.picking.examples import Example, Targets, targets
from weft.picking.network import CLASSES, PARTICLE, PickingModel, SegmentationNetwork, Shape
from weft.settings import Settings, setting

__all__ = ["Accuracies", "Trainer", "TrainingSettings", "balanced_accuracy", "retrain"]

#: Å² of the filters exp(-B k²/4) that images are seen through: detectors and motion differ.
_BLUR = (-300.0, 900.0)
#: Noise that is added to images which have their own, standard deviations: as in the paper.
_NOISE = 0.6
#: How much stronger than counting electrons the noise of a camera may be.
_CAMERA = (1.0, 1.8)
#: Exposures that simulations are given, relative to their own.
_EXPOSURES = (0.5, 2.0)
_SHEAR, _ZOOM = 0.1, 0.12
_WARM_UP = 0.05


class TrainingSettings(Settings):
    """How a picking network is trained."""

    steps: int = setting(200, "Batches.", ge=1, le=10_000_000)
    batch: int = setting(8, "Tiles in a batch.", ge=2, le=1024)
    tile: int = setting(256, "Side of a tile, a multiple of 32.", unit="px", ge=64, le=1024, multiple_of=32)
    learning_rate: float = setting(0.0005, "Greatest learning rate (AdamW).", gt=0.0, le=1.0)
    particle_weight: float = setting(
        2.0, "How much a particle's pixel counts beside one of the background.", gt=0.0, le=100.0
    )
    seed: int = setting(0, "Of the random numbers.", ge=0, le=2**31 - 1)


@dataclass(frozen=True)
class Accuracies:
    """Running accuracies of a retraining: means over classes of the pixels that are right.

    Attributes
    ----------
    step : int
    old_on_old, old_on_new, new_on_old, new_on_new : float
        Which network on which data; NaN where there are no old data.
    """

    step: int
    old_on_old: float
    old_on_new: float
    new_on_old: float
    new_on_new: float


class Trainer:
    """A training that can be stopped and taken up again.

    Parameters
    ----------
    settings : TrainingSettings
    label_scale : float
        See :class:`~weft.picking.network.PickingModel`.
    start : PickingModel, optional
        Where to begin; random otherwise.
    shape : Shape, optional
        Of a network that begins at random.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        *,
        label_scale: float = 0.55,
        start: PickingModel | None = None,
        shape: Shape | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.label_scale = label_scale
        self.device = torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = SegmentationNetwork(start.shape if start else shape)
        if start is not None:
            network.load_state_dict(dict(start.state))
        self.network = network.to(self.device)
        #: Follows the network slowly: the one that is used.
        self.mean = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), settings.learning_rate, weight_decay=1e-4
        )
        self.step = 0
        self._random = np.random.default_rng(settings.seed)
        self._weights = torch.ones(len(CLASSES), device=self.device)
        self._weights[PARTICLE] = settings.particle_weight
        self._targets: dict[Example, Targets] = {}

    def batch(
        self, examples: Sequence[Example], size: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Tiles of random examples: images ``(b, 1, y, x)``, classes and weights ``(b, y, x)``."""
        drawn: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        while len(drawn) < size:
            example = examples[int(self._random.integers(len(examples)))]
            if example not in self._targets:
                self._targets[example] = targets(example, self.label_scale)
            drawn.append(_tile(example, self._targets[example], self.settings.tile, self._random))
        images, classes, weights = (torch.stack(part).to(self.device) for part in zip(*drawn, strict=True))
        return images[:, None], classes, weights

    def learn(
        self, images: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor
    ) -> tuple[float, torch.Tensor]:
        """One step; the loss, and the logits before it."""
        rate = self.settings.learning_rate * _schedule(self.step / self.settings.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, classes, self._weights, reduction="none")
        loss = (loss * weights).sum() / (weights * self._weights[classes]).sum().clamp(min=1.0)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.step += 1
        # the mean's memory grows with the training, so that the random beginning is forgotten
        memory = min(0.998, (1.0 + self.step) / (20.0 + self.step))
        with torch.no_grad():
            for mine, theirs in zip(self.mean.parameters(), self.network.parameters(), strict=True):
                mine.lerp_(theirs, 1.0 - memory)
            for kept, now in zip(self.mean.buffers(), self.network.buffers(), strict=True):
                if kept.is_floating_point():
                    kept.lerp_(now, 1.0 - memory)
        return float(loss.item()), logits.detach()

    def model(self, **facts: Any) -> PickingModel:
        """What it has become so far; `facts` are attributes of the model."""
        state = {name: tensor.detach().cpu().clone() for name, tensor in self.mean.state_dict().items()}
        return PickingModel(state, self.network.shape, label_scale=self.label_scale, **facts)

    def state(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "random": self._random.bit_generator.state,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = int(state["step"])
        self._random.bit_generator.state = state["random"]


def retrain(
    model: PickingModel,
    new: Sequence[Example],
    old: Sequence[Example],
    settings: TrainingSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Accuracies], None] = lambda accuracies: None,
) -> tuple[PickingModel, list[Accuracies]]:
    """Teach a network what somebody has picked, half of every batch being what it knew before.

    Parameters
    ----------
    model : PickingModel
        Where to begin.
    new : sequence of Example
    old : sequence of Example
        May be empty: then it learns from the new ones alone, and may forget.
    progress : callable
        Gets the running accuracies about fifty times.

    Returns
    -------
    PickingModel
    list of Accuracies

    Raises
    ------
    ItemError
        Without new examples.
    """
    if not any(len(example.xy) for example in new):
        raise ItemError("there are no particles to learn from; pick some first")
    settings = settings or TrainingSettings()
    trainer = Trainer(settings, label_scale=model.label_scale, start=model, device=device)
    before = model.network(device)
    history: list[Accuracies] = []
    running = np.full(4, math.nan)
    every = max(1, settings.steps // 50)
    for step in range(1, settings.steps + 1):
        n_old = settings.batch // 2 if old else 0
        parts = [trainer.batch(new, settings.batch - n_old)]
        if n_old:
            parts.append(trainer.batch(old, n_old))
        images, classes, weights = (torch.cat(part) for part in zip(*parts, strict=True))
        _, logits = trainer.learn(images, classes, weights)
        if step % every == 0 or step == settings.steps:
            with torch.no_grad(), torch.autocast(trainer.device.type, torch.bfloat16):
                theirs = before(images).float()
            cut = settings.batch - n_old
            now = [
                balanced_accuracy(found[part], classes[part], weights[part])
                for found in (theirs, logits)
                for part in (slice(cut, None), slice(0, cut))
            ]
            running = np.where(np.isnan(running), now, 0.8 * running + 0.2 * np.asarray(now))
            history.append(Accuracies(step, *running.tolist()))
            progress(history[-1])
    sizes = [example.diameter for example in new if len(example.xy)]
    about = {**model.about, "retrained": {"micrographs": len(new), "particles": sum(len(e.xy) for e in new)}}
    trained = trainer.model(
        least_chance=model.least_chance, chances=model.chances, diameter=float(np.median(sizes)), about=about
    )
    return trained, history


def balanced_accuracy(logits: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor) -> float:
    """Mean over the classes that there are of the part of their pixels that is right; NaN without pixels."""
    right = (logits.argmax(1) == classes) & (weights >= 1.0)
    parts = []
    for number in range(len(CLASSES)):
        of_class = (classes == number) & (weights >= 1.0)
        if n := int(of_class.sum()):
            parts.append(int((right & of_class).sum()) / n)
    return float(np.mean(parts)) if parts else math.nan


def _schedule(part: float) -> float:
    """Rises, then falls as a cosine."""
    if part < _WARM_UP:
        return (part + 1e-3) / (_WARM_UP + 1e-3)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (part - _WARM_UP) / (1.0 - _WARM_UP)))


def _tile(
    example: Example, truth: Targets, side: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A part of an example as it might have been recorded as well."""
    whole = torch.from_numpy(np.asarray(example.image, dtype=np.float32))
    exact = math.isinf(example.exposure)
    # turning a recorded image blurs its noise, which a simulated one gets later
    turned = random.random() < (0.3 if exact else 0.7)
    image, classes, weight = (_warped if turned else _cut)(whole, truth, side, random)
    noise = torch.from_numpy(random.standard_normal((side, side), dtype=np.float32))
    if exact:
        image = image + float(random.uniform(0.0, _NOISE)) * noise
    else:
        pixel = example.size[0] / example.image.shape[1]
        exposure = example.exposure * float(np.exp(random.uniform(*np.log(_EXPOSURES))))
        sigma = float(random.uniform(*_CAMERA)) / (math.sqrt(exposure) * pixel)
        image = image + sigma * noise
        # as the whole micrograph would be normalised, from a part of its pixels
        seen = whole[::4, ::4]
        seen = seen + sigma * torch.from_numpy(random.standard_normal(seen.shape, dtype=np.float32))
        median = seen.median()
        deviation = 1.4826 * (seen - median).abs().median()
        image = (image - median) / deviation.clamp(min=1e-6)
    if random.random() < 0.6:
        image = _filtered(image, example.size[0] / example.image.shape[1], float(random.uniform(*_BLUR)))
    return image.clamp(-10.0, 10.0), classes, weight


def _cut(
    whole: torch.Tensor, truth: Targets, side: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A part of the grid, turned by right angles and flipped."""
    parts = []
    starts = [int(random.integers(0, max(0, n - side) + 1)) for n in whole.shape]
    quarter, flip = int(random.integers(4)), random.random() < 0.5
    for array in (whole, truth.classes, truth.weight):
        part = array[starts[0] : starts[0] + side, starts[1] : starts[1] + side]
        missing = (side - part.shape[0], side - part.shape[1])
        if any(missing):
            part = functional.pad(part, (0, missing[1], 0, missing[0]))
        part = torch.rot90(part, quarter)
        parts.append(part.flip(0) if flip else part)
    return parts[0], parts[1].long(), parts[2].float()


def _warped(
    whole: torch.Tensor, truth: Targets, side: int, random: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A part turned by any angle, flipped, sheared and scaled a little."""
    ny, nx = whole.shape
    angle = random.uniform(0.0, 2.0 * math.pi)
    zoom = math.exp(random.uniform(-_ZOOM, _ZOOM))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1.0, random.uniform(-_SHEAR, _SHEAR)], [0.0, 1.0]]) * zoom
    if random.random() < 0.5:
        matrix = matrix @ np.diag([1.0, -1.0])
    room = [max(0.0, n - 0.8 * side) for n in (nx, ny)]
    centre = np.array(
        [random.uniform(0.5 * (n - r), 0.5 * (n + r)) for n, r in zip((nx, ny), room, strict=True)]
    )
    # from pixels of the tile to grid_sample's coordinates, -1 to 1 between the outer borders
    scale = np.array([2.0 / nx, 2.0 / ny])
    theta = torch.from_numpy(
        np.concatenate(
            [scale[:, None] * matrix * (0.5 * side), (scale * (centre + 0.5) - 1.0)[:, None]], axis=1
        ).astype(np.float32)
    )
    grid = functional.affine_grid(theta[None], [1, 1, side, side], align_corners=False)
    image = functional.grid_sample(whole[None, None], grid, padding_mode="reflection", align_corners=False)
    marks = torch.stack([truth.classes.float(), truth.weight.float()])[None]
    marks = functional.grid_sample(marks, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    return image[0, 0], marks[0, 0].long(), marks[0, 1]


def _filtered(image: torch.Tensor, pixel: float, blur: float) -> torch.Tensor:
    """Seen through exp(-blur k²/4), with the deviation that it had."""
    side = image.shape[0]
    ky, kx = torch.fft.fftfreq(side, pixel)[:, None], torch.fft.rfftfreq(side, pixel)[None]
    out = torch.fft.irfft2(torch.fft.rfft2(image) * torch.exp(-0.25 * blur * (ky**2 + kx**2)), s=image.shape)
    part, whole = out[::2, ::2], image[::2, ::2]
    deviations = [(x - x.median()).abs().median() for x in (whole, part)]
    result: torch.Tensor = (out - part.median()) * (
        deviations[0] / deviations[1].clamp(min=1e-6)
    ) + whole.median()
    return result
