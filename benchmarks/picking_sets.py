"""Micrographs whose particles are known: what pickers are measured with.

`reference`: the averages of the three reference movies. `apoferritin`: six real, dense micrographs with picks
by hand. `heldout`: simulated from deposited structures (`picking_structures.py`), which no network
was taught.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from cases import REFERENCE, Case, new_session, weft_command, weft_environment
from measuring import measure
from numpy.typing import NDArray
from picking_structures import STRUCTURES, Structure, load_structure

__all__ = ["SETS", "PickingCase", "cases_of_set"]

Array = NDArray[Any]

SETS = ("reference", "apoferritin", "heldout")
APOFERRITIN_PIXEL, APOFERRITIN_DIAMETER = 1.5, 120.0  # Å; the shell's outside in the mean of all picks
PIXEL = 2.5  # Å, of what is simulated
#: px, of micrographs of structures lighter than so many kDa: each has some dozens of particles.
SIDES = {150.0: 640, 800.0: 768, math.inf: 1152}


@dataclass(frozen=True)
class PickingCase:
    """One micrograph.

    Attributes
    ----------
    name, group : str
    image : path
        MRC, protein dark.
    pixel_size, diameter : float
        Å.
    truth : ``(n, 2)`` array
        Centres that are to be picked, Å from the centre of the first pixel.
    neutral : ``(m, 2)`` array
        Centres that are neither right nor wrong: cut by the border, in an artefact, on top of each other.
    size : (float, float)
        Of the field, x and y, Å.
    artefact : path or None
        ``.npz`` with `mask`, the artefacts' pixels, packed to bits.
    about : dict
        What a table says of it.
    """

    name: str
    group: str
    image: Path
    pixel_size: float
    diameter: float
    truth: Array
    neutral: Array
    size: tuple[float, float]
    artefact: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def artefact_mask(self) -> Array | None:
        """(y, x) bool, or None where nothing is known of artefacts."""
        if self.artefact is None:
            return None
        with np.load(self.artefact) as file:
            shape = tuple(int(n) for n in file["shape"])
            mask: Array = np.unpackbits(file["mask"], count=shape[0] * shape[1]).reshape(shape).astype(bool)
        return mask


def cases_of_set(group: str, work: Path, data: Path) -> list[PickingCase]:
    """All micrographs of a set; they are made in `work` where they are not there yet."""
    folder = work / "sets" / group
    folder.mkdir(parents=True, exist_ok=True)
    make = {"reference": _reference, "apoferritin": _apoferritin, "heldout": _heldout}[group]
    return make(folder, data)


def _write(path: Path, image: Array, pixel_size: float) -> None:
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(image, dtype=np.float32))
        file.voxel_size = pixel_size


def _reference(folder: Path, data: Path) -> list[PickingCase]:
    cases = []
    for name in REFERENCE:
        source = data / "reference" / f"movie_{name}.tif"
        truth = json.loads(source.with_suffix(".json").read_text())
        movie = Case(name, source, source.with_name(truth["gain"]), truth)
        root = folder / name
        average = root / "average" / f"{source.stem}.mrc"
        if not average.exists():
            new_session(movie, root)
            command = weft_command("run", root, "--steps", "motion,ctf", "--workers", 0, "--device", "cpu")
            measure(command, env=weft_environment(), log=root.with_suffix(".log"))
        xy = np.asarray(truth["particles_xy"], dtype=np.float64)
        ny, nx = movie.shape
        pixel = truth["optics"]["pixel"]
        cases.append(
            PickingCase(
                f"movie_{name}",
                "reference",
                average,
                pixel,
                2.0 * truth["radius"],
                xy,  # an average shows the specimen as it was in the first frame
                np.empty((0, 2)),
                (nx * pixel, ny * pixel),
            )
        )
    return cases


def _apoferritin(folder: Path, data: Path) -> list[PickingCase]:
    from PIL import Image

    source = data / "real" / "jianlin-cheng__AutoCryoPicker" / "micrographs_frame_average"
    picks: dict[str, list[tuple[float, float]]] = {}
    for line in (data / "real" / "_answers" / "apoferritin_picks.csv").read_text().splitlines():
        words = line.split(",")
        if not line.startswith("#") and words[0] != "micrograph":
            picks.setdefault(words[0], []).append((float(words[1]), float(words[2])))
    cases = []
    for name, places in picks.items():
        # RELION takes what follows a dot for an ending
        stem = name.removesuffix(".bin_avg.png").replace(".", "_")
        path = folder / f"{stem}.mrc"
        # the picks fit the rows as they are in the file
        image = np.asarray(Image.open(source / name), dtype=np.float32)
        if not path.exists():
            _write(path, image, APOFERRITIN_PIXEL)
        size = (image.shape[1] * APOFERRITIN_PIXEL, image.shape[0] * APOFERRITIN_PIXEL)
        truth = np.array(places) * APOFERRITIN_PIXEL
        none = np.empty((0, 2))
        cases.append(
            PickingCase(stem, "apoferritin", path, APOFERRITIN_PIXEL, APOFERRITIN_DIAMETER, truth, none, size)
        )
    return cases


# Two micrographs of each structure: `fair`, and one of the others in turn.
_FAIR = {"dose": 50.0, "signal": 0.7, "blur": 100.0, "ice_thickness": 300.0}
_HARD = {"dose": 40.0, "signal": 0.6, "blur": 120.0, "ice_thickness": 350.0}
_WEAK = {"dose": 30.0, "signal": 0.5, "blur": 150.0, "ice_thickness": 450.0}
_DIRT = {"crystals": 1, "blobs": 1, "specks": 3, "beads": 6, "broken": 0.02}
_MORE = ("carbon", "plates", "cracks")
CONDITIONS = ("crowded", "contaminated", "weak")


def conditions(index: int) -> dict[str, dict[str, Any]]:
    """Settings of the micrographs of structure number `index`, by their names."""
    rng = np.random.default_rng([7, index])
    hard = CONDITIONS[index % len(CONDITIONS)]
    settings: dict[str, Any] = {
        "crowded": {**_HARD, "arrangement": "dense", "coverage": 0.6, "spacing": 1.05},
        "contaminated": {**_HARD, **_DIRT, _MORE[index // 3 % 3]: 1},
        "weak": _WEAK,
    }[hard]
    fair = {**_FAIR, "coverage": rng.uniform(0.12, 0.25), "defocus": rng.uniform(1.5, 2.5)}
    near = (0.9, 1.4) if hard == "weak" else (1.0, 2.0)
    both = {"coverage": rng.uniform(0.12, 0.25), "defocus": rng.uniform(*near)}
    return {"fair": fair, hard: {**both, **settings}}


def _heldout(folder: Path, data: Path) -> list[PickingCase]:
    cases = []
    for index, structure in enumerate(STRUCTURES):
        for number, (condition, settings) in enumerate(conditions(index).items()):
            stem = folder / f"{structure.name}_{condition}"
            if not stem.with_suffix(".json").exists():
                _simulate(stem, structure, condition, settings, [index, number], folder.parent.parent, data)
            known = json.loads(stem.with_suffix(".json").read_text())
            xy = {key: np.array(known.pop(key)).reshape(-1, 2) for key in ("truth", "neutral")}
            known["size"] = tuple(known["size"])
            cases.append(
                PickingCase(
                    image=stem.with_suffix(".mrc"), artefact=stem.with_suffix(".npz"), **{**known, **xy}
                )
            )
    return cases


def _simulate(
    stem: Path,
    structure: Structure,
    condition: str,
    settings: dict[str, Any],
    seed: list[int],
    work: Path,
    data: Path,
) -> None:
    from weft.simulation.micrographs import MicrographSimulationSettings, counts, simulate_micrograph

    rng = np.random.default_rng(seed)
    side = next(side for mass, side in SIDES.items() if structure.mass < mass)
    if condition == "contaminated":
        side = max(side, 1024)  # most of a small field would be covered
    specimen = load_structure(structure, work, data)
    chosen = MicrographSimulationSettings(width=side, height=side, pixel_size=PIXEL, **settings)
    made = simulate_micrograph(specimen, chosen, rng)
    _write(stem.with_suffix(".mrc"), counts(made, rng=rng, poisson=True), PIXEL)
    np.savez(stem.with_suffix(".npz"), mask=np.packbits(made.artefact), shape=made.artefact.shape)
    neutral = np.concatenate([made.cut_xy, made.hidden_xy, made.xy[made.crowded]])
    known = {
        "name": stem.name,
        "group": "heldout",
        "pixel_size": PIXEL,
        "diameter": made.diameter,
        "truth": made.xy[~made.crowded].tolist(),
        "neutral": neutral.tolist(),
        "size": [side * PIXEL, side * PIXEL],
        "about": {
            **{key: value for key, value in asdict(structure).items() if key != "chains"},
            "condition": condition,
            "defocus": made.defocus,
            "detectability": _detectability(made),
            "settings": settings,
        },
    }
    stem.with_suffix(".json").write_text(json.dumps(known))


def _detectability(made: Any) -> float:
    """Signal-to-noise ratio of the ideal matched filter for one particle among shot noise alone."""
    area = (made.particles.astype(np.float64) ** 2).sum() * made.dose * made.pixel_size**2
    n = len(made.xy) + 0.5 * len(made.cut_xy) + len(made.hidden_xy)
    return float(np.sqrt(area / max(n, 1)))
