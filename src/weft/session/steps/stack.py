"""Stack: the averages of a series' tilts in the order of their angles, without those that are no good."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from weft.errors import ItemError
from weft.formats import imod, mrc
from weft.session.pictures import thumbnail, write_png
from weft.session.records import FileIdentity, Record, RecordStore
from weft.session.step import Job, Step, StepResult
from weft.session.tilt_table import TiltRow, TiltTable, read_table
from weft.settings import Settings
from weft.tilts.quality import TiltJudgement, TiltQualitySettings, block_means, judge_tilts

__all__ = ["STEP", "Exposures", "StackStep"]

#: Longest side of the small picture of a tilt.
_SMALL = 256
_FEWEST = 3


class Exposures:
    """The images of a series, as they come from the movies or from a stack.

    Parameters
    ----------
    job : Job
        Of the series.
    table : TiltTable
    """

    def __init__(self, job: Job, table: TiltTable) -> None:
        self.table = table
        self._root = job.root
        self._stack = mrc.MrcStack(table.stack) if table.stack else None
        if table.stack_content and FileIdentity.of(table.stack).content != table.stack_content:
            raise ItemError(
                f"{table.name}: {table.stack} is another file than when its table was made; run the session "
                "again"
            )
        store = RecordStore(job.root)
        self._records: dict[int, Record] = {}
        for i, row in enumerate(table.tilts):
            if row.usable and row.image < 0:
                record = store.read(row.item)
                motion = record.steps.get("motion") if record else None
                if record is None or motion is None or motion.fingerprint != row.motion:
                    raise ItemError(
                        f"{table.name}: the average of {row.item} is not the one that the series' table "
                        "speaks of; run the session again"
                    )
                self._records[i] = record
        sizes = {round(self._metric(i, "pixel_size", 0.0), 6) for i in self._records}
        if len(sizes) > 1:
            raise ItemError(f"{table.name}: its tilts have different pixel sizes: {sorted(sizes)} Å")
        given = job.settings.input.pixel_size
        self.pixel_size = sizes.pop() if sizes else table.pixel_size or given
        self._per_frame = job.settings.input.dose_per_frame
        self._frames = [self._metric(i, "stored_frames", 1.0) for i in self._records]

    def _metric(self, row: int, name: str, default: float) -> float:
        value = self._records[row].metrics.get(name) if row in self._records else None
        return default if value is None else float(value)

    def image(self, row: int, half: str = "") -> NDArray[np.float32]:
        """The average of a tilt in counts per pixel of the whole exposure, or one of its halves."""
        if self._stack is not None:
            return np.asarray(self._stack.read(self.table.tilts[row].image), np.float32)
        path = self._root / self._records[row].steps["motion"].outputs[half or "average"]
        return np.asarray(mrc.read(path)[0], np.float32) * np.float32(self._metric(row, "frames", 1.0))

    def has_halves(self, rows: list[int]) -> bool:
        """Whether there are averages of even and of odd frames of all of these."""
        outputs = [self._records[i].steps["motion"].outputs if i in self._records else {} for i in rows]
        return all("even" in found and "odd" in found for found in outputs)

    def masked(self, row: int) -> float:
        """Part of an image that was filled in: defects."""
        return self._metric(row, "masked", 0.0)

    def exposure(self, row: int) -> float:
        """Of one tilt, e/Å²."""
        known = self.table.tilts[row].exposure
        if known is not None:
            return known
        # one that is left out has exposed the specimen like the others
        usual = float(np.median(self._frames)) if self._frames else 1.0
        return self._metric(row, "stored_frames", usual) * self._per_frame


class StackStep(Step):
    """Judge the tilts, write the stack (and its halves), its angles and a small picture of every tilt."""

    name = "stack"
    kinds = ("series",)
    of_tilts = ("motion",)
    sections: ClassVar[Mapping[str, type[Settings]]] = {"tilts": TiltQualitySettings}
    input_keys = ("pixel_size", "dose_per_frame")

    def run(self, job: Job) -> StepResult:
        """See :class:`Step`."""
        table = read_table(job.source)
        found = Exposures(job, table)
        usable = [i for i, row in enumerate(table.tilts) if row.usable]
        if len(usable) < _FEWEST:
            raise ItemError(_too_few(table, usable))
        judgement = _judge(job, found, usable)
        why = dict(zip(usable, judgement.bad, strict=True))
        doubts = dict(zip(usable, judgement.doubts, strict=True))
        rows = [i for i in usable if not why[i] or table.tilts[i].decision is True]
        if len(rows) < _FEWEST:
            bad = "; ".join(f"{table.tilts[i].angle:g}°: {why[i]}" for i in usable if why[i])
            raise ItemError(f"{table.name}: only {len(rows)} of its tilts are good enough ({bad})")
        rows.sort(key=lambda i: (table.tilts[i].angle, i))
        outputs = _write(job, found, rows)
        doses = _doses(found)
        tilts = []
        for i, row in enumerate(table.tilts):
            reason = _left_out(row) or ("" if i in rows else why.get(i, ""))
            tilts.append(
                {
                    "index": i,
                    "item": row.item,
                    "name": row.name,
                    "angle": row.angle,
                    "exposure": found.exposure(i),
                    "dose": doses[i],
                    "date": row.date,
                    "used": i in rows,
                    "section": rows.index(i) if i in rows else None,
                    "reason": reason,
                    "doubt": (why.get(i, "") or doubts.get(i, "")) if i in rows else "",
                    "by_hand": row.decision,
                    "thumbnail": _small_path(job.item, i) if i in why else None,
                }
            )
        for position, i in enumerate(usable):
            tilts[i]["counts"] = float(judgement.counts[position])
            tilts[i]["relative_counts"] = float(judgement.relative[position])
        angles = [table.tilts[i].angle for i in rows]
        metrics = {
            "tilts": len(rows),
            "tilts_left_out": len(table.tilts) - len(rows),
            "tilt_min": min(angles),
            "tilt_max": max(angles),
            "series_pixel_size": found.pixel_size,
            "series_dose": max(doses[i] for i in rows),
        }
        details = {
            "tilts": tilts,
            "tilt_axis": table.tilt_axis,
            "notes": [*table.notes, *judgement.notes],
        }
        return StepResult(metrics, outputs, details)


def _left_out(row: TiltRow) -> str:
    if row.left_out:
        return row.left_out
    if row.decision is False:
        return "left out by hand"
    if row.failure:
        return f"its movie failed: {row.failure}"
    return "" if row.usable else "its movie has not been processed"


def _too_few(table: TiltTable, usable: list[int]) -> str:
    reasons = "; ".join(f"{row.angle:g}°: {_left_out(row)}" for row in table.tilts if _left_out(row))
    return (
        f"{table.name}: {len(usable)} of its {len(table.tilts)} tilts can be used, a series needs {_FEWEST}"
        + (f" ({reasons})" if reasons else "")
    )


def _judge(job: Job, found: Exposures, rows: list[int]) -> TiltJudgement:
    """Look at every image, and make a small picture of it on the way."""
    settings = job.settings.get(TiltQualitySettings)
    blocks = []
    for i in rows:
        image = torch.from_numpy(found.image(i))
        blocks.append(block_means(image))
        write_png(job, _small_path(job.item, i), thumbnail(image, found.pixel_size, _SMALL))
    means = torch.stack(blocks)
    angles = torch.tensor([found.table.tilts[i].angle for i in rows], dtype=torch.float64)
    masked = torch.tensor([found.masked(i) for i in rows], dtype=torch.float64)
    doses = torch.tensor([found.exposure(i) for i in rows], dtype=torch.float64)
    return judge_tilts(angles, means, masked, settings, doses)


def _doses(found: Exposures) -> list[float]:
    """What the specimen had received by the end of each exposure, e/Å²."""
    out, so_far = [], 0.0
    for i, row in enumerate(found.table.tilts):
        prior = so_far if row.prior_dose is None else row.prior_dose
        out.append(prior + found.exposure(i))
        so_far = out[-1]
    return out


def _small_path(item: str, row: int) -> str:
    return f"tiltstack/{item}/tilt_{row:03d}.png"


def _write(job: Job, found: Exposures, rows: list[int]) -> dict[str, str]:
    folder, name = f"tiltstack/{job.item}", job.item
    outputs = {"stack": f"{folder}/{name}.st", "angles": f"{folder}/{name}.rawtlt"}

    def images(half: str = "") -> Iterator[NDArray[np.float32]]:
        shape: tuple[int, ...] = ()
        for i in rows:
            image = found.image(i, half)
            if shape and image.shape != shape:
                raise ItemError(
                    f"{name}: {found.table.tilts[i].name} has {image.shape[1]}×{image.shape[0]} pixels, the "
                    f"tilts before it {shape[1]}×{shape[0]}; leave it out"
                )
            shape = image.shape
            yield image

    mrc.write_stack(job.place(outputs["stack"]), images(), found.pixel_size)
    if found.has_halves(rows):
        for half in ("even", "odd"):
            outputs[f"stack_{half}"] = f"{folder}/{name}_{half}.st"
            mrc.write_stack(job.place(outputs[f"stack_{half}"]), images(half), found.pixel_size)
    imod.write_tlt(job.place(outputs["angles"]), [found.table.tilts[i].angle for i in rows])
    middle = min(rows, key=lambda i: abs(found.table.tilts[i].angle))
    outputs["tilt_picture"] = _small_path(name, middle)
    return outputs


def used_tilts(record: Record) -> list[dict[str, Any]]:
    """Of a series: the tilts of its stack, in the stack's order."""
    tilts = [tilt for tilt in record.steps["stack"].results["tilts"] if tilt["used"]]
    return sorted(tilts, key=lambda tilt: tilt["section"])


STEP = StackStep()
