"""`weft pick train`: a picking model taught with what somebody has picked in a session."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.spatial import cKDTree

from weft.errors import ItemError, RequestError
from weft.formats import mrc
from weft.formats.atomic import atomic_write_bytes
from weft.picking.examples import Example
from weft.picking.network import ARTEFACT, PickingModel, SegmentationNetwork
from weft.picking.segmentation import segment
from weft.picking.training import Accuracies, TrainingSettings, retrain
from weft.session.example_files import read_example, simulate_examples
from weft.session.pick_files import MANUAL, pick_path, read_picks
from weft.session.picking import DEFAULT, MODELS, model_file, network_of

if TYPE_CHECKING:
    from weft.session.session import Session

__all__ = ["Retrained", "examples_of", "train_picker"]

#: Simulations that stand for what the network knew before: the first of those that it was trained on.
_OLD, _SEED = 24, 1


@dataclass(frozen=True)
class Retrained:
    """What a training has come to.

    Attributes
    ----------
    path : Path
        The new model.
    micrographs, particles : int
        That it learned from.
    history : list of Accuracies
    skipped : tuple of str
        Micrographs whose picks could not be used, and why.
    """

    path: Path
    micrographs: int
    particles: int
    history: list[Accuracies]
    skipped: tuple[str, ...]


def train_picker(
    session: Session,
    name: str,
    settings: TrainingSettings | None = None,
    *,
    picks: str = MANUAL,
    start: str = DEFAULT,
    only: str | None = None,
    diameter: float | None = None,
    old: bool = True,
    device: str = "cpu",
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[Accuracies], None] = lambda accuracies: None,
) -> Retrained:
    """Teach a model a session's picks and keep it as ``models/picking/<name>.safetensors``.

    Parameters
    ----------
    name : str
        Of the new model.
    picks : str
        Whose picks: the folder in ``picks/``.
    start : str
        The model to begin with.
    only : str, optional
        Pattern of items.
    diameter : float, optional
        Å, of the particles; by default that of the picks' files.
    old : bool
        Mix with simulations that the default model was trained on, 1:1.
    say : callable
        Gets a line about what is going on.
    progress : callable
        Gets the running accuracies.

    Raises
    ------
    RequestError
        No picks, no diameter, or a name that is taken by the model that ships.
    """
    if name in (DEFAULT, MANUAL) or not name or "/" in name or name.startswith("."):
        raise RequestError(f"a model cannot be called {name!r}; choose another name with --name")
    root = session.root
    model, network = network_of(model_file(root, start), device)
    new, skipped = examples_of(session, picks, model, network, only=only, diameter=diameter)
    if not new:
        reasons = f" ({'; '.join(skipped[:3])})" if skipped else ""
        raise RequestError(
            f"no micrograph has picks in picks/{picks} to learn from{reasons}; pick some in the page, or "
            "import them with `weft import picks`"
        )
    particles = sum(len(example.xy) for example in new)
    say(f"{particles} particles in {len(new)} micrographs")
    before: list[Example] = []
    if old:
        for done in simulate_examples(root / MODELS / "simulated", _SEED, _OLD):
            say(f"{done} of {_OLD} simulated micrographs, so that it does not forget")
        before = [read_example(path) for path in sorted((root / MODELS / "simulated").glob("*.npz"))]
    trained, history = retrain(model, new, before, settings, device, progress)
    path = root / MODELS / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, trained.to_bytes())
    return Retrained(path, len(new), particles, history, tuple(skipped))


def examples_of(
    session: Session,
    picks: str,
    model: PickingModel,
    network: SegmentationNetwork,
    *,
    only: str | None = None,
    diameter: float | None = None,
) -> tuple[list[Example], list[str]]:
    """Micrographs with picks as examples, and why others are none.

    What the network takes for an artefact is still one, but where somebody has picked particles.
    """
    examples: list[Example] = []
    skipped: list[str] = []
    for name, item in session.items.items():
        path = session.root / pick_path(picks, name)
        if (only and not fnmatchcase(name, only)) or not path.is_file() or item.kind != "movie":
            continue
        try:
            examples.append(_example(session, name, path, model, network, diameter))
        except ItemError as error:
            skipped.append(f"{name}: {error}")
    return examples, skipped


def _example(
    session: Session,
    name: str,
    path: Path,
    model: PickingModel,
    network: SegmentationNetwork,
    diameter: float | None,
) -> Example:
    record = session[name].record
    done = record.steps.get("motion") if record else None
    if record is None or done is None or "average" not in done.outputs:
        raise ItemError("it has no average yet; run the motion step")
    pixel_size = float(record.metrics["pixel_size"])
    image = np.asarray(mrc.read(session.root / done.outputs["average"])[0], dtype=np.float32)
    picked = read_picks(path, pixel_size)
    diameter = diameter or picked.diameter
    if not math.isfinite(diameter):
        raise ItemError(f"{path} does not say how large the particles are; give --diameter")
    device = next(network.parameters()).device
    seen = segment(torch.from_numpy(image).to(device), pixel_size, model, network)
    xy = picked.xy[np.isfinite(picked.xy).all(1)]
    xy = xy[((xy >= 0.0) & (xy <= np.array(seen.size))).all(1)]
    artefact = seen.probabilities[ARTEFACT] > 0.5
    if len(xy):
        y, x = np.nonzero(artefact)
        steps = np.array([seen.size[0] / artefact.shape[1], seen.size[1] / artefact.shape[0]])
        near = cKDTree(xy).query(np.stack([x, y], axis=1) * steps)[0] < diameter
        artefact[y[near], x[near]] = False
    return Example(seen.image.cpu().numpy(), seen.size, xy, float(diameter), artefact, name=name)
