"""What teaching does: F1 on micrographs of a new structure before and after learning from three others.

    PYTHONPATH=src python benchmarks/retraining.py STRUCTURE [--steps 200] [--defocus 1.2] [--dose 25]

STRUCTURE is a PDB or mmCIF file that the model has not seen. Six micrographs are simulated: three to learn
from, three to judge by.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from measuring import table

from weft.picking.agreement import Agreement, agreement
from weft.picking.chances import Chances, best_threshold
from weft.picking.components import PickingSettings, artefact_mask, find_particles
from weft.picking.examples import Example
from weft.picking.network import ARTEFACT, PARTICLE, PickingModel
from weft.picking.segmentation import compared_peaks, probabilities
from weft.picking.training import TrainingSettings, retrain
from weft.session.example_files import GRID, simulated_example
from weft.session.picking import DEFAULT, model_file, read_model
from weft.session.pretraining import noisy
from weft.simulation.micrograph_settings import MicrographSimulationSettings
from weft.simulation.micrographs import downsampled, simulate_micrograph
from weft.simulation.specimen import load_specimen


def examples(options: argparse.Namespace) -> list[Example]:
    """Six micrographs as a user would have them: with their noise, and picked."""
    specimen = load_specimen(str(options.structure))
    made = []
    for number in range(6):
        rng = np.random.default_rng([11, number])
        settings = MicrographSimulationSettings(
            defocus=options.defocus, dose=options.dose, signal=options.signal, coverage=0.2, film=0.05
        )
        seen = simulate_micrograph(specimen, settings, rng)
        image = downsampled(seen.signal, settings.pixel_size, GRID)
        size = (settings.width * settings.pixel_size, settings.height * settings.pixel_size)
        cut = np.concatenate([seen.cut_xy, seen.xy[seen.crowded]])
        unknown = np.concatenate([cut, np.full((len(cut), 1), 0.5 * seen.diameter)], axis=1)
        known = seen.xy[~seen.crowded]
        clean = np.zeros(image.shape, dtype=bool)
        plain = Example(image, size, known, seen.diameter, clean, unknown, settings.dose)
        recorded = noisy(plain, number).numpy()
        made.append(Example(recorded, size, known, seen.diameter, clean, unknown))
    return made


def judged(model: PickingModel, tested: list[Example]) -> Agreement:
    """At the thresholds that the model chooses."""
    network, settings = model.network(), PickingSettings()
    if model.diameter > 0.0:
        settings = settings.model_copy(update={"diameter": model.diameter})
    total = Agreement(0, 0, 0)
    for example in tested:
        image = torch.from_numpy(np.asarray(example.image, dtype=np.float32))
        seen = probabilities(image, network).numpy()
        mask = artefact_mask(seen[ARTEFACT], settings)
        peaks = compared_peaks(image, seen[PARTICLE], mask, network, settings)
        threshold = best_threshold(peaks.values, Chances(model.chances).of(peaks), model.least_chance)
        picks = find_particles(seen[PARTICLE], mask, example.size, threshold, model.label_scale, settings)
        inner = 0.5 * example.diameter
        inside = ((picks.xy > inner) & (picks.xy < np.array(example.size) - inner)).all(1)
        total += agreement(
            picks.xy[inside], np.asarray(example.xy, dtype=np.float64), 0.25 * example.diameter
        )
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--steps", type=int, default=TrainingSettings().steps)
    parser.add_argument("--defocus", type=float, default=1.2)
    parser.add_argument("--dose", type=float, default=25.0)
    parser.add_argument("--signal", type=float, default=0.4)
    options = parser.parse_args()
    made = examples(options)
    model = read_model(model_file(None, DEFAULT))
    old = [simulated_example(1, number) for number in range(24)]
    began = time.monotonic()
    trained, history = retrain(model, made[:3], old, TrainingSettings(steps=options.steps))
    seconds = time.monotonic() - began
    rows = []
    for name, one in (("before", model), ("after", trained)):
        found = judged(one, made[3:])
        rows.append({"model": name, "precision": found.precision, "recall": found.recall, "F1": found.f1})
    print(table(rows))
    last = history[-1]
    print(
        f"{sum(len(e.xy) for e in made[:3])} particles in three micrographs, {options.steps} steps in "
        f"{seconds:.0f} s; right on old data {last.old_on_old:.3f} before, {last.new_on_old:.3f} now; "
        f"on new {last.old_on_new:.3f}, {last.new_on_new:.3f}"
    )


if __name__ == "__main__":
    main()
