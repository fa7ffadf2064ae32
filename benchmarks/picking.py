"""Pickers side by side: Weft's network, topaz's shipped model and RELION's Laplacian of Gaussian.

    PYTHONPATH=src python benchmarks/picking.py --work DIR [--sets reference,apoferritin,heldout]
        [--pickers weft,topaz,topaz4,log] [--model FILE] [--json FILE] [--curves DIR]

DIR keeps the micrographs, the structures, topaz and every picker's answers: a new model of Weft costs only
its own picking. topaz and LoG are told the particle's diameter, Weft is not.

A pick is right where it is nearer than half of the particle's radius to a particle that no better pick has
taken, the rule of the reference data's own score. Neither right nor wrong are picks of particles that are
cut by the border, lie in an artefact or on top of each other, and, within half a diameter of the border,
picks and particles without a partner.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pickers
from measuring import table
from numpy.typing import NDArray
from pickers import OWN, Answer
from picking_sets import SETS, PickingCase, cases_of_set
from picking_structures import PACKAGES, STRUCTURES
from scipy.spatial import cKDTree

Array = NDArray[Any]

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"weft": "Weft", "topaz": "topaz", "topaz4": "topaz, 4 Å", "log": "LoG"}
DEFAULT_MODEL = ROOT / "src/weft/picking/models/default.safetensors"


@dataclass(frozen=True)
class Score:
    """Of picks in one or more micrographs.

    `right`, `wrong` and `missed` are numbers of picks and particles; `error` is the sum of the distances of
    the right ones, Å.
    """

    right: int = 0
    wrong: int = 0
    missed: int = 0
    error: float = 0.0

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def precision(self) -> float:
        """1 where nothing was picked."""
        return self.right / (self.right + self.wrong) if self.right + self.wrong else 1.0

    @property
    def recall(self) -> float:
        return self.right / max(self.right + self.missed, 1)

    @property
    def f1(self) -> float:
        return 2.0 * self.right / max(2 * self.right + self.wrong + self.missed, 1)

    @property
    def distance(self) -> float:
        """Mean distance of the right ones from the truth, Å."""
        return self.error / self.right if self.right else float("nan")


def matched(xy: Array, case: PickingCase) -> tuple[Array, Array, Array]:
    """Which pick is right (1), wrong (0) or neither (-1), its distance (Å), and the particles found.

    Picks are in order, the best first.
    """
    everything = np.concatenate([case.truth, case.neutral])
    verdict, distance = np.zeros(len(xy), np.int64), np.full(len(xy), np.nan)
    taken = np.zeros(len(everything), bool)
    radius = 0.25 * case.diameter
    if len(xy) and len(everything):
        k = min(8, len(everything))
        far, near = cKDTree(everything).query(xy, k=k, distance_upper_bound=radius)
        for pick, (distances, rows) in enumerate(zip(far.reshape(-1, k), near.reshape(-1, k), strict=True)):
            for d, row in zip(distances, rows, strict=True):
                if d < radius and not taken[row]:
                    taken[row] = True
                    verdict[pick], distance[pick] = (1, d) if row < len(case.truth) else (-1, np.nan)
                    break
    verdict[(verdict == 0) & near_border(xy, case)] = -1
    return verdict, distance, taken[: len(case.truth)]


def near_border(xy: Array, case: PickingCase) -> Array:
    """Places within half a diameter of it."""
    limit = np.array(case.size)
    result: Array = np.minimum(xy, limit - xy).min(axis=1, initial=np.inf) < 0.5 * case.diameter
    return result


def score(xy: Array, case: PickingCase) -> Score:
    """Of one micrograph's picks."""
    verdict, distance, taken = matched(xy, case)
    missed = ~taken & ~near_border(case.truth, case)
    right = verdict == 1
    error = float(distance[right].sum())
    return Score(int(right.sum()), int((verdict == 0).sum()), int(missed.sum()), error)


def average_precision(points: Sequence[tuple[float, float]]) -> float:
    """Area under (recall, precision): at each recall the best precision that is had at it or a higher one."""
    area, before = 0.0, 0.0
    for recall in sorted({r for r, _ in points}):
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    return area


def ranked_points(xy: Array, case: PickingCase) -> list[tuple[float, float]]:
    """Recall and precision after each pick of a list, the best first."""
    verdict, _, taken = matched(xy, case)
    particles = int((taken | ~near_border(case.truth, case)).sum())
    right, wrong = np.cumsum(verdict == 1), np.cumsum(verdict == 0)
    return [(r / max(particles, 1), r / max(r + w, 1)) for r, w in zip(right, wrong, strict=True)]


class Measured:
    """One picker on the micrographs of one set."""

    def __init__(self, picker: str, cases: Sequence[PickingCase], answers: dict[str, Answer]) -> None:
        self.picker, self.cases, self.answers = picker, cases, answers
        first = answers[cases[0].name]
        self.default, self.levels = first.default, [level for level in first.picks if level != OWN]
        self.scores = {
            case.name: {
                level: score(answers[case.name].picks[level][0], case)
                for level in {*self.levels, self.default}
            }
            for case in cases
        }

    def of(self, names: Sequence[str], level: float) -> Score:
        return sum((self.scores[name][level] for name in names), Score())

    def curve(self, names: Sequence[str]) -> list[tuple[float, float]]:
        """(recall, precision) of these micrographs together, at each threshold."""
        together = [self.of(names, level) for level in self.levels]
        return [(s.recall, s.precision) for s in together]

    def best(self) -> float:
        """The threshold with the highest mean F1 over the micrographs."""
        return max(self.levels, key=self.mean_f1)

    def mean_f1(self, level: float) -> float:
        return float(np.mean([s[level].f1 for s in self.scores.values()]))

    def average_precision(self, names: Sequence[str]) -> float:
        """Of all thresholds."""
        return average_precision(self.curve(names))

    def average_precision_at_default(self, case: PickingCase) -> float:
        """Of the list at the default threshold, ranked by score."""
        return average_precision(ranked_points(self.answers[case.name].picks[self.default][0], case))

    def row(self, cases: Sequence[PickingCase], what: str, level: float, threshold: str) -> dict[str, Any]:
        """Of a table; several micrographs are pooled."""
        names = [case.name for case in cases]
        s = self.of(names, level)
        return {
            "micrographs": what,
            "picker": NAMES[self.picker],
            "threshold": threshold if level == OWN else f"{threshold} ({level:g})",
            "precision": s.precision,
            "recall": s.recall,
            "F1": s.f1,
            "AP": self.average_precision(names),
            "error Å": s.distance,
        }


def table_of_set(measured: Sequence[Measured], groups: dict[str, list[PickingCase]]) -> str:
    """Rows of each group of micrographs, at the default threshold and at the set's best."""
    rows = []
    for what, cases in groups.items():
        for one in measured:
            rows.append(one.row(cases, what, one.default, "default"))
            rows.append(one.row(cases, what, one.best(), "best"))
    return table(rows)


def structures_table() -> str:
    """Where the held-out structures come from."""
    rows = [
        {
            "structure": s.name,
            "what": s.title,
            "kDa": round(s.mass),
            "from": f"{s.package} {PACKAGES[s.package]}" if s.package else "reference data",
            "file": s.file,
            "assembly": s.assembly or "–",
        }
        for s in STRUCTURES
    ]
    return table(rows)


def heldout_table(measured: Sequence[Measured], cases: Sequence[PickingCase]) -> str:
    """F1 of every micrograph at the default threshold, and the means."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        about = case.about
        row = {
            "structure": about["name"],
            "kDa": round(about["mass"]),
            "Å": round(case.diameter),
            "condition": about["condition"],
            "µm": about["defocus"] * 1e-4,
            "d′": about["detectability"],
            "n": len(case.truth),
        }
        for one in measured:
            s = one.scores[case.name]
            row[NAMES[one.picker]] = s[one.default].f1
            row[f"{NAMES[one.picker]} AP"] = one.average_precision([case.name])
            if one.picker == "log":
                row["LoG, better"] = s[one.best()].f1
        rows.append(row)
    for what in ("fair", "crowded", "contaminated", "weak", "all"):
        some = [r for r in rows if what in (r["condition"], "all")]
        mean: dict[str, Any] = {"structure": "mean", "condition": what}
        for key in list(rows[0])[7:]:
            mean[key] = float(np.mean([r[key] for r in some]))
        rows.append(mean)
    return table(rows, list(rows[0]))


def means_table(measured: Sequence[Measured], cases: Sequence[PickingCase]) -> str:
    """Means over all micrographs of the held-out set, at each picker's thresholds."""
    rows = []
    for one in measured:
        for threshold, level in {"default": one.default, "best": one.best()}.items():
            scores = [one.scores[case.name][level] for case in cases]
            listed = float("nan")
            if threshold == "default":
                listed = float(np.mean([one.average_precision_at_default(case) for case in cases]))
            rows.append(
                {
                    "picker": NAMES[one.picker],
                    "threshold": threshold if level == OWN else f"{threshold} ({level:g})",
                    "mean precision": float(np.mean([s.precision for s in scores])),
                    "mean recall": float(np.mean([s.recall for s in scores])),
                    "mean F1": float(np.mean([s.f1 for s in scores])),
                    "mean AP": float(np.mean([one.average_precision([c.name]) for c in cases])),
                    "mean AP of the list": listed,
                    "error Å": float(np.nanmean([s.distance for s in scores])),
                }
            )
    return table(rows)


def contamination_table(measured: Sequence[Measured], cases: Sequence[PickingCase]) -> str:
    """Which part of the artefacts is masked, how much else is, and the picks within artefacts."""
    rows = []
    for one in measured:
        covered = area = clean = lost = inside = total = 0
        for case in cases:
            mask = case.artefact_mask()
            if mask is None:
                continue
            answer = one.answers[case.name]
            xy = answer.picks[one.default][0]
            inside += int(at(mask, xy, case).sum())
            total += len(xy)
            area += int(mask.sum())
            if answer.mask is not None:
                full = resized(answer.mask, mask.shape)
                covered += int((full & mask).sum())
                clean += int((~mask).sum())
                lost += int((full & ~mask).sum())
        rows.append(
            {
                "picker": NAMES[one.picker],
                "artefact area masked %": 100.0 * covered / max(area, 1) if clean else float("nan"),
                "clean area masked %": 100.0 * lost / clean if clean else float("nan"),
                "picks": total,
                "picks inside artefacts %": 100.0 * inside / max(total, 1),
            }
        )
    return table(rows)


def at(mask: Array, xy: Array, case: PickingCase) -> Array:
    """Values of a mask over the whole field at places in Å."""
    index = np.rint(xy / np.array(case.size) * np.array(mask.shape[::-1])).astype(int)
    x, y = (np.clip(index[:, i], 0, mask.shape[1 - i] - 1) for i in (0, 1))
    result: Array = mask[y, x]
    return result


def resized(mask: Array, shape: tuple[int, int]) -> Array:
    """To the nearest pixel; the centres of the first pixels are in one place."""
    rows, columns = (
        np.clip(np.rint(np.arange(n) * (m / n)).astype(int), 0, m - 1)
        for n, m in zip(shape, mask.shape, strict=True)
    )
    result: Array = mask[rows[:, None], columns[None]]
    return result


def draw_curves(path: Path, title: str, measured: Sequence[Measured]) -> None:
    """Precision and recall of all of a set's micrographs together, one line a picker."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(4.5, 4.0), layout="constrained")
    for one in measured:
        names = [case.name for case in one.cases]
        points = sorted((s.recall, s.precision) for s in (one.of(names, v) for v in one.levels) if s.right)
        (line,) = axes.plot(*zip(*points, strict=True), label=NAMES[one.picker])
        s = one.of(names, one.default)
        axes.plot(s.recall, s.precision, "o", color=line.get_color())
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=title)
    axes.legend(loc="lower left", title="dot: default threshold")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--pickers", default="weft,topaz,log", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="Weft's")
    given = os.environ.get("WEFT_REFERENCE_DATA", ROOT.parent / "shared" / "data")
    parser.add_argument("--reference", type=Path, default=Path(given), metavar="DIR", help="reference data")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score there")
    parser.add_argument("--curves", type=Path, metavar="DIR", help="draw precision and recall there")
    options = parser.parse_args()
    work = options.work.resolve()
    ask = {
        "weft": lambda cases: pickers.weft(cases, work, options.model),
        "topaz": lambda cases: pickers.topaz(cases, work),
        "topaz4": lambda cases: pickers.topaz(cases, work, 4.0),
        "log": lambda cases: pickers.log(cases, work),
    }
    written: dict[str, Any] = {}
    for group in options.sets.split(","):
        cases = cases_of_set(group, work, options.reference)
        measured = []
        for picker in options.pickers.split(","):
            begin = time.perf_counter()
            measured.append(Measured(picker, cases, ask[picker](cases)))
            print(f"{group}, {NAMES[picker]}: {time.perf_counter() - begin:.0f} s", flush=True)
        print(f"\n### {group}\n")
        if group == "heldout":
            print(structures_table(), "\n")
            print(heldout_table(measured, cases), "\n")
            print(means_table(measured, cases), "\n")
            print(contamination_table(measured, cases), "\n", flush=True)
        else:
            groups = {case.name: [case] for case in cases} if group == "reference" else {"all six": cases}
            print(table_of_set(measured, groups), "\n", flush=True)
        if options.curves:
            for what, some in (
                {c.name: [c] for c in cases} if group == "reference" else {group: cases}
            ).items():
                part = [Measured(one.picker, some, one.answers) for one in measured]
                draw_curves(options.curves / f"{what}.svg", what, part)
        written[group] = {
            one.picker: {
                name: {f"{level:g}": vars(s) for level, s in levels.items()}
                for name, levels in one.scores.items()
            }
            for one in measured
        }
    if options.json:
        options.json.write_text(json.dumps(written, indent=1))


if __name__ == "__main__":
    main()
