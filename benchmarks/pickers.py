"""The programs that pick: Weft, topaz and RELION's Laplacian of Gaussian, each with a row of thresholds.

All answers are kept in the work folder; Weft's under the digest of its model and code, so that a new model is
measured without asking the others again. topaz (GPL) and RELION are installed and run as programs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numpy.typing import NDArray
from picking_sets import PickingCase

from weft.formats.star import read_star

__all__ = ["Answer", "log", "topaz", "weft"]

Array = NDArray[Any]

TOPAZ = "topaz-em==0.3.20"
#: What topaz needs besides numpy, scipy and torch, which Weft has.
TOPAZ_NEEDS = ("pandas", "scikit-learn", "joblib", "threadpoolctl", "h5py", "pillow", "pytz", "six")
TOPAZ_NEEDS += ("python-dateutil", "tzdata", "narwhals", "tqdm", "future", "psutil")
#: Runs one command of topaz after another: torch is read once, and what is done stays done. topaz reads
#: torchvision to train only, and PyPI's does not load beside a torch without CUDA.
TOPAZ_MAIN = """
import json, sys, types
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["torchvision.transforms.functional"].rotate = None
from pathlib import Path
from topaz.main import main
for words in json.load(sys.stdin):
    sys.argv = ["topaz", *words]
    main()
    if words[0] == "extract":
        Path(words[words.index("-o") + 1]).with_suffix(".done").touch()
"""
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


#: The threshold that a picker chooses for each micrograph.
OWN = math.inf


@dataclass(frozen=True)
class Answer:
    """What a picker found in one micrograph.

    Attributes
    ----------
    picks : dict
        From a threshold to places (Å) and scores, ``(n, 2)`` and ``(n,)``, the best first.
    default : float
        The threshold that it has by default.
    mask : (y, x) bool array or None
        Where it sees artefacts, over the whole field.
    """

    picks: Mapping[float, tuple[Array, Array]]
    default: float
    mask: Array | None = None


def topaz_environment(folder: Path) -> dict[str, str]:
    """The environment in which topaz runs; it is installed where it is not."""
    site = folder / "topaz_site"
    if not (site / "topaz").exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(site)]
        subprocess.run([*command, TOPAZ, *TOPAZ_NEEDS], check=True)
    return {**os.environ, **THREADS, "PYTHONPATH": str(site)}


def topaz(cases: Sequence[PickingCase], work: Path, grid: float = 8.0) -> dict[str, Answer]:
    """topaz's shipped model (resnet16, 64 units) on micrographs shrunk to about `grid` Å a pixel.

    Its radius of extraction is the particle's. Scores are logarithms of odds; it has no default but to list
    all down to -6, so that 0, where both are equally likely, is taken.
    """
    folder = work / "topaz" / f"{grid:g}A"
    folder.mkdir(parents=True, exist_ok=True)
    commands: list[list[Any]] = []
    for case in cases:
        if not (folder / f"{case.name}.done").exists():
            scale = max(1, round(grid / case.pixel_size))
            radius = max(1, round(0.5 * case.diameter / (scale * case.pixel_size)))
            found = folder / f"{case.name}.txt"
            every = ["-d", -1, "-j", 1]
            commands.append(["preprocess", *every, "-s", scale, "-o", folder / "small", case.image])
            small = folder / "small" / case.image.name
            commands.append(["extract", *every, "-r", radius, "-x", scale, "-o", found, small])
    if commands:
        words = json.dumps([[str(word) for word in command] for command in commands])
        with open(folder / "log", "w") as said:
            program = [sys.executable, "-c", TOPAZ_MAIN]
            environment = topaz_environment(work)
            subprocess.run(
                program, input=words, text=True, stdout=said, stderr=said, env=environment, check=True
            )
    levels = np.arange(-6.0, 8.01, 0.25)
    answers = {}
    for case in cases:
        lines = (folder / f"{case.name}.txt").read_text().splitlines()[1:]
        table = np.array([[float(v) for v in line.split("\t")[1:4]] for line in lines]).reshape(-1, 3)
        table = table[np.argsort(-table[:, 2], kind="stable")]
        xy, score = table[:, :2] * case.pixel_size, table[:, 2]
        answers[case.name] = Answer({float(t): (xy[score >= t], score[score >= t]) for t in levels}, 0.0)
    return answers


def log(cases: Sequence[PickingCase], work: Path) -> dict[str, Answer]:
    """``relion_autopick --LoG``, told the diameter to 10 %, at a row of adjustments of its threshold.

    It is run with ``--LoG_adjust_threshold`` -1, 0 (its default) and 1. An adjustment only moves a limit of
    the figure of merit, by as much for each unit: what is found at others is a part of what is found at -1.
    """
    environment = {**os.environ, **THREADS}
    answers = {}
    for case in cases:
        folder = work / "log" / case.name
        folder.mkdir(parents=True, exist_ok=True)
        link = folder / "micrograph.mrc"
        if not link.is_symlink():
            link.symlink_to(case.image.resolve())
        picks = {}
        for level in (-1.0, 0.0, 1.0):
            star = folder / "out" / f"micrograph_{level:g}.star"
            if not star.exists():
                command = ["relion_autopick", "--i", "micrograph.mrc", "--odir", "out/"]
                command += ["--pickname", f"{level:g}", "--LoG", "--angpix", case.pixel_size, "--shrink", 0]
                command += ["--LoG_diam_min", 0.9 * case.diameter, "--LoG_diam_max", 1.1 * case.diameter]
                command += ["--LoG_adjust_threshold", level]
                words = [str(word) for word in command]
                with open(folder / "log", "w") as said:
                    subprocess.run(words, cwd=folder, env=environment, stdout=said, stderr=said, check=True)
            picks[level] = _of_star(star, case.pixel_size)
        xy, merit = picks[-1.0]
        limits = [_limit(merit, len(picks[level][1])) for level in (-1.0, 0.0, 1.0)]
        for level in np.arange(-1.0, 3.01, 0.25):
            if level not in picks:
                side = slice(0, 2) if level < 0.0 else slice(1, 3)
                low, high = limits[side]
                limit = low + (level - math.floor(min(level, 0.0))) * (high - low)
                picks[float(level)] = (xy[merit >= limit], merit[merit >= limit])
        answers[case.name] = Answer(dict(sorted(picks.items())), 0.0)
    return answers


def _limit(merit: Array, count: int) -> float:
    """Half-way between the last that passes and the first that does not; merits fall."""
    if count >= len(merit):
        return float(merit[-1]) if len(merit) else 0.0
    return float(0.5 * (merit[count - 1] + merit[count])) if count else 1.001 * float(merit[0])


def _of_star(path: Path, pixel_size: float) -> tuple[Array, Array]:
    if not path.exists():
        return np.empty((0, 2)), np.empty(0)
    table = next(iter(read_star(path).values()))
    columns = ("rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit")
    if columns[0] not in table:
        return np.empty((0, 2)), np.empty(0)
    x, y, score = (table.floats(name) for name in columns)
    best = np.argsort(-score, kind="stable")
    return np.stack([x, y], axis=1)[best] * pixel_size, score[best]


def weft(cases: Sequence[PickingCase], work: Path, model: Path) -> dict[str, Answer]:
    """Weft's network; it is told no diameter. Its default threshold is each micrograph's own."""
    import torch

    import weft.picking as package
    from weft.picking.chances import Chances, best_threshold
    from weft.picking.components import PickingSettings, artefact_mask, find_particles
    from weft.picking.examples import normalised, on_grid
    from weft.picking.network import ARTEFACT, PARTICLE, PickingModel
    from weft.picking.segmentation import compared_peaks, probabilities

    torch.set_num_threads(1)
    data = model.read_bytes()
    loaded = PickingModel.from_bytes(data, str(model))
    digest = hashlib.sha256(data)
    source = Path(str(package.__file__)).parent
    for name in ("network.py", "segmentation.py", "examples.py", "components.py", "chances.py"):
        digest.update((source / name).read_bytes())
    folder = work / "weft" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    network = loaded.network()
    grid = {*np.round(np.linspace(0.05, 0.95, 19), 2).tolist(), 0.02, 0.98}
    answers = {}
    for case in cases:
        path = folder / f"{case.name}.npz"
        settings = PickingSettings()
        if loaded.diameter > 0.0:
            settings = settings.model_copy(update={"diameter": loaded.diameter})
        if not path.exists():
            with mrcfile.open(case.image) as file:
                image = torch.from_numpy(np.array(file.data, dtype=np.float32))
            small = normalised(on_grid(image, case.pixel_size, loaded.pixel_size))
            seen = probabilities(small, network).numpy()
            dirt = artefact_mask(seen[ARTEFACT], settings)
            peaks = compared_peaks(small, seen[PARTICLE], dirt, network, settings)
            chosen = best_threshold(peaks.values, Chances(loaded.chances).of(peaks), loaded.least_chance)
            np.savez(path, found=seen.astype(np.float16), chosen=chosen)
        with np.load(path) as kept:
            found, chosen = kept["found"].astype(np.float32), round(float(kept["chosen"]), 4)
        mask = artefact_mask(found[ARTEFACT], settings)
        picks = {}
        for level in sorted(grid):
            some = find_particles(found[PARTICLE], mask, case.size, level, loaded.label_scale, settings)
            picks[float(level)] = (some.xy, some.score)
        own = find_particles(found[PARTICLE], mask, case.size, chosen, loaded.label_scale, settings)
        picks[OWN] = own.xy, own.score
        answers[case.name] = Answer(picks, OWN, mask)
    return answers
