"""`weft pick pretrain`: the model that ships, from nothing but simulations. It can be stopped and goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from weft.formats.atomic import atomic_write, atomic_write_bytes
from weft.picking.agreement import Agreement, agreement, pairs_within
from weft.picking.chances import Chances, Peaks, best_threshold, fit_chances
from weft.picking.components import PickingSettings, artefact_mask, candidate_peaks, find_particles
from weft.picking.examples import Example, normalised
from weft.picking.network import ARTEFACT, PARTICLE, PickingModel
from weft.picking.segmentation import compared_peaks, probabilities
from weft.picking.training import Trainer, TrainingSettings
from weft.session.example_files import read_example, simulate_examples
from weft.settings import setting

__all__ = ["HeldOut", "PretrainingSettings", "judge_model", "noisy", "pretrain"]

_Array = NDArray[np.float64]

#: Seeds of simulations: what the network learns from, and what it is judged by.
_LEARNT, _HELD_OUT = 1, 2
#: Least chances that are tried.
_CHANCES = tuple(round(0.1 + 0.05 * i, 2) for i in range(11))
#: Steps between looks into the folder for new micrographs, and between files from which to go on.
_LOOK, _KEEP = 50, 100


class PretrainingSettings(TrainingSettings):
    """How the model that ships is trained."""

    steps: int = setting(6000, "Batches.", ge=1, le=10_000_000)
    learning_rate: float = setting(0.002, "Greatest learning rate (AdamW).", gt=0.0, le=1.0)
    micrographs: int = setting(
        600, "Simulated micrographs, each of another made-up structure, that it learns from.", ge=4, le=10**6
    )
    held_out: int = setting(32, "More of them, by which it is judged.", ge=4, le=10**5)
    first: int = setting(60, "It begins to learn when there are so many of them.", ge=1, le=10**6)


@dataclass(frozen=True)
class HeldOut:
    """What a model is worth on simulations that it has not seen.

    Attributes
    ----------
    least_chance : float
        With which the mean F1 was best.
    f1 : float
        Mean over micrographs.
    precision, recall : float
        Of all of them together.
    masked : float
        Part of the artefacts' area that masks cover.
    wasted : float
        Part of the rest that they cover.
    """

    least_chance: float
    f1: float
    precision: float
    recall: float
    masked: float
    wasted: float


def pretrain(
    work: Path,
    output: Path,
    settings: PretrainingSettings,
    *,
    processes: int = 1,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> PickingModel:
    """Simulate, learn, judge, write the model.

    Simulations and the state of the training are kept in `work`; called again, it goes on from there.

    Parameters
    ----------
    work : Path
    output : Path
        The safetensors file.
    processes : int
        That simulate beside the training.
    say : callable
        Gets a line now and then.
    """
    learnt, held = work / "learnt", work / "held_out"
    state = work / "state.pt"
    with ProcessPoolExecutor(1) as background:
        making = background.submit(_simulate_all, work, settings.held_out, settings.micrographs, processes)
        trainer = Trainer(settings, device=device)
        if state.exists():
            trainer.load(torch.load(state, map_location=device, weights_only=True))
            say(f"going on from step {trainer.step}")
        examples: dict[Path, Example] = {}
        while True:
            _look(learnt, examples)
            if len(examples) >= min(settings.first, settings.micrographs):
                break
            if making.done():
                making.result()
            say(f"{len(examples)} micrographs simulated")
            time.sleep(10.0)
        losses: list[float] = []
        began = time.monotonic()
        while trainer.step < settings.steps:
            loss, _ = trainer.learn(*trainer.batch(list(examples.values()), settings.batch))
            losses.append(loss)
            if trainer.step % _LOOK == 0:
                _look(learnt, examples)
                rate = (time.monotonic() - began) / len(losses)
                left = (settings.steps - trainer.step) * rate / 60.0
                say(
                    f"step {trainer.step}: loss {np.mean(losses[-_LOOK:]):.4f}, {len(examples)} micrographs, "
                    f"{rate:.2f} s a step, {left:.0f} min left"
                )
            if trainer.step % _KEEP == 0 or trainer.step == settings.steps:
                with atomic_write(state) as handle:
                    torch.save(trainer.state(), handle)
        making.result()
    judged = [read_example(path) for path in sorted(held.glob("*.npz"))]
    model = trainer.model()
    model, scores = judge_model(model, judged, device)
    particles = sum(len(example.xy) for example in examples.values())
    model = model.with_about(
        data={"micrographs": len(examples), "particles": particles, "seed": _LEARNT},
        training=settings.model_dump(mode="json"),
        held_out={"micrographs": len(judged), "seed": _HELD_OUT, **asdict(scores)},
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(output, model.to_bytes())
    say(f"{output}: {scores}")
    return model


def judge_model(
    model: PickingModel, examples: Sequence[Example], device: str = "cpu"
) -> tuple[PickingModel, HeldOut]:
    """Judge a model by simulations: what its probabilities are worth, and how well it does.

    A pick is right within half a radius of a particle. What the labels leave open counts neither way.
    """
    network = model.network(device)
    settings = PickingSettings()
    images = [noisy(example, i).to(device) for i, example in enumerate(examples)]
    seen = [probabilities(image, network).cpu().numpy() for image in images]
    masks = [artefact_mask(p[ARTEFACT], settings) for p in seen]
    peaks = [
        compared_peaks(image, p[PARTICLE], mask, network, settings)
        for image, p, mask in zip(images, seen, masks, strict=True)
    ]
    model = replace(model, chances=_chances(seen, masks, peaks, examples, settings).coefficients)
    found: dict[float, list[Agreement]] = {}
    for least in _CHANCES:
        found[least] = []
        for p, mask, of_one, example in zip(seen, masks, peaks, examples, strict=True):
            threshold = best_threshold(of_one.values, Chances(model.chances).of(of_one), least)
            picks = find_particles(p[PARTICLE], mask, example.size, threshold, model.label_scale, settings)
            found[least].append(_judged(picks.xy, example))
    best = max(_CHANCES, key=lambda t: float(np.mean([a.f1 for a in found[t]])))
    total = sum(found[best][1:], found[best][0])
    dirt = sum(int(e.artefact.sum()) for e in examples)
    clean = sum(int((~e.artefact).sum()) for e in examples)
    covered = sum(int((m & e.artefact).sum()) for m, e in zip(masks, examples, strict=True))
    wasted = sum(int((m & ~e.artefact).sum()) for m, e in zip(masks, examples, strict=True))
    f1 = float(np.mean([a.f1 for a in found[best]]))
    scores = HeldOut(best, f1, total.precision, total.recall, covered / max(1, dirt), wasted / max(1, clean))
    return replace(model, least_chance=best), scores


def _chances(
    seen: Sequence[NDArray[np.float32]],
    masks: Sequence[NDArray[np.bool_]],
    peaks: Sequence[Peaks],
    examples: Sequence[Example],
    settings: PickingSettings,
) -> Chances:
    """How likely candidates are to be particles, learnt from those of examples."""
    chosen: list[Peaks] = []
    right: list[NDArray[np.bool_]] = []
    for p, mask, of_one, example in zip(seen, masks, peaks, examples, strict=True):
        _, places = candidate_peaks(p[PARTICLE], mask, settings.smallest)
        xy = places[:, ::-1] * (example.size[0] / example.image.shape[1])
        hits = np.zeros(len(xy), dtype=bool)
        truth = np.asarray(example.xy, dtype=np.float64)
        hits[pairs_within(xy, truth, 0.35 * example.diameter)[:, 0]] = True
        known = _known(xy, example)
        chosen.append(replace(of_one, values=of_one.values[known]))
        right.append(hits[known])
    return fit_chances(chosen, right)


def noisy(example: Example, seed: int) -> torch.Tensor:
    """A simulated example as it might be recorded: with shot noise, normalised."""
    image = np.asarray(example.image, dtype=np.float32)
    if np.isfinite(example.exposure):
        pixel = example.size[0] / image.shape[1]
        noise = np.random.default_rng(seed).standard_normal(image.shape, dtype=np.float32)
        image = image + noise * np.float32(1.0 / (np.sqrt(example.exposure) * pixel))
    return normalised(torch.from_numpy(image))


def _judged(xy: _Array, example: Example) -> Agreement:
    """Picks in what the labels leave open are no picks."""
    xy = xy[_known(xy, example)]
    return agreement(xy, np.asarray(example.xy, dtype=np.float64), 0.25 * example.diameter)


def _known(xy: _Array, example: Example) -> NDArray[np.bool_]:
    """Which places the truth says something about."""
    if not len(example.unknown) or not len(xy):
        return np.ones(len(xy), dtype=bool)
    unknown = np.asarray(example.unknown, dtype=np.float64)
    to_known = np.full(len(xy), np.inf)
    if len(example.xy):
        to_known = cKDTree(np.asarray(example.xy, dtype=np.float64)).query(xy)[0]
    inside = (np.linalg.norm(xy[:, None] - unknown[None, :, :2], axis=-1) < unknown[:, 2]).any(1)
    result: NDArray[np.bool_] = ~(inside & (to_known > 0.25 * example.diameter))
    return result


def _look(folder: Path, examples: dict[Path, Example]) -> None:
    """Take in what has been simulated since."""
    for path in sorted(folder.glob("*.npz")):
        if path not in examples:
            examples[path] = read_example(path)


def _simulate_all(work: Path, held_out: int, micrographs: int, processes: int) -> None:
    os.nice(5)  # the training is what one waits for
    # a first part of what is learnt, then what is judged by, then the rest
    for folder, seed, count in (
        ("learnt", _LEARNT, min(60, micrographs)),
        ("held_out", _HELD_OUT, held_out),
        ("learnt", _LEARNT, micrographs),
    ):
        for _ in simulate_examples(work / folder, seed, count, processes):
            pass
