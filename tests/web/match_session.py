"""A finished search in a session of one series: particles at known places of a noisy score map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from series_session import NAME, TOMOGRAM_PIXEL, Made

from weft.formats import mrc
from weft.session.match_job import MatchJob, MatchTemplate

SIGMA, DIAMETER, ROTATIONS = 0.02, 64.0, 40
PARTICLES = 40


def add_search(
    made: Made, templates: tuple[str, ...] = ("ribosome",), seed: int = 3, hand: bool = False, **change: Any
) -> np.ndarray:
    """Write a job whose particles have falling scores; their places, Å from the first voxel's centre."""
    random = np.random.default_rng(seed)
    shape = made.tomogram.shape
    folder = made.root / "matching"
    folder.mkdir(exist_ok=True)
    stem = f"{NAME}_{'+'.join(templates)}"
    # the best of many looks at noise
    scores = (SIGMA * random.gumbel(3.2, 0.25, shape)).astype(np.float32).clip(0, 5.5 * SIGMA)
    places = _apart(random, shape, round(DIAMETER / TOMOGRAM_PIXEL))
    zyx = tuple(places.T)
    scores[zyx] = SIGMA * np.linspace(14.0, 6.0, len(places), dtype=np.float32)
    mrc.write(folder / f"{stem}_scores.mrc", scores, TOMOGRAM_PIXEL, sync=False)
    angles = random.integers(0, ROTATIONS, shape).astype(np.float32)
    mrc.write(folder / f"{stem}_angles.mrc", angles, TOMOGRAM_PIXEL, sync=False)
    np.save(folder / f"{stem}_rotations.npy", random.uniform(0, 170, (ROTATIONS, 3)).astype(np.float32))
    files = {"scores": f"{stem}_scores.mrc", "angles": f"{stem}_angles.mrc"}
    if len(templates) > 1:
        which = np.zeros(shape, np.float32)
        which[zyx] = np.arange(len(places)) % len(templates)
        mrc.write(folder / f"{stem}_templates.mrc", which, TOMOGRAM_PIXEL, sync=False)
        files["templates"] = f"{stem}_templates.mrc"
    given: dict[str, Any] = {
        "name": NAME,
        "tomogram": f"../reconstruction/{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc",
        "voxel_size": TOMOGRAM_PIXEL,
        "shape": shape,
        "origin": (0.0, 0.0, 0.0),
        "volume_size": tuple(n * TOMOGRAM_PIXEL for n in reversed(shape)),
        "image_pixel_size": 8.0,
        "templates": [MatchTemplate(f"/elsewhere/{one}.mrc", "", DIAMETER) for one in templates],
        "rotations": f"{stem}_rotations.npy",
        "statistics": {
            "search_space": int(np.prod(shape)) * ROTATIONS,
            "mean": 0.0,
            "std": SIGMA,
            "rotations": ROTATIONS,
            "seconds": 12.5,
        },
        "files": files,
        "settings": {"angular_step": [15.0], "weighting": "ctf"},
    }
    job = folder / f"{stem}.json"
    MatchJob(**{**given, **change}).write(job)
    if hand:
        facts = {"hand": 1, "p": 0.0004, "places": 31, "sentence": "hand +1 scores higher (p = 0.0004)"}
        job.with_name(f"{stem}_hand.json").write_text(json.dumps(facts))
        job.with_name(f"{stem}_hand.svg").write_text(_SVG)
    return places[:, ::-1] * TOMOGRAM_PIXEL


_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 360"><rect width="640" height="360" '
    'fill="white"/><path d="M40 300 Q320 20 600 260" fill="none" stroke="blue" stroke-width="4"/></svg>'
)


def _apart(random: np.random.Generator, shape: tuple[int, ...], distance: int) -> np.ndarray:
    """Voxels, z, y, x, no two of them nearer than a diameter, nor near the faces."""
    found: list[np.ndarray] = []
    for _ in range(100_000):
        place = np.array([random.integers(distance, n - distance) for n in shape])
        if all(np.linalg.norm(place - other) > distance for other in found):
            found.append(place)
        if len(found) == PARTICLES:
            return np.array(found)
    raise AssertionError("there is no room for the particles")


def star_of(root: Path, stem: str = "ribosome") -> Path:
    """Where the page writes the candidates of the series."""
    return root / "matching" / f"{NAME}_{stem}_candidates.star"
