"""Finished searches of a series for the page: which there are, their candidates, their score maps.

What a job file names is looked for inside the session only, as everything that is served.
"""

from __future__ import annotations

import glob
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import InputFileError, RequestError, WeftError
from weft.formats.star import read_star
from weft.matching.candidates import Candidates, CandidateSettings, cut_off, false_alarm_threshold
from weft.matching.recall import RecallEstimate
from weft.session.candidate_estimates import estimate_job
from weft.session.candidate_files import (
    FOLDER,
    candidate_file,
    job_statistics,
    take_candidates,
    write_candidates,
    write_combined,
)
from weft.session.match_job import MatchJob
from weft.web.details import Missing
from weft.web.files import Outside, check_folder, inside
from weft.web.images import Kept
from weft.web.tomogram_slices import Levels, Tomograms

__all__ = ["MOST_PICKS", "Matches", "Searched"]

#: Candidates that are sent at most, those of lower cut-offs among them.
MOST_PICKS = 20_000
_KEPT_CANDIDATES = 64 << 20  # bytes
_DECIMALS = 7  # of single precision scores


@dataclass(frozen=True)
class Searched:
    """A job file of the session whose maps are inside it, too."""

    root: Path
    path: Path
    job: MatchJob

    @property
    def scores(self) -> Path:
        """The score map."""
        return _inside(self.root, self.job.files["scores"])

    @property
    def revision(self) -> str:
        """Changes when the search is made again."""
        stat = self.scores.stat()
        return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"

    @property
    def verdict_picture(self) -> str:
        """Where the picture of the handedness experiment would be."""
        return f"{FOLDER}/{self.path.stem}_hand.svg"

    def identity(self) -> tuple[Any, ...]:
        """Changes with anything that candidates follow from."""
        names = [self.path.name, *self.sources().values()]
        stats = (_inside(self.root, name).stat() for name in names)
        return tuple((str(self.path), s.st_mtime_ns, s.st_size, s.st_ino) for s in stats)

    def sources(self) -> dict[str, str]:
        """The files that candidates are taken from."""
        wanted = ("scores", "angles", "templates", "refined")
        return {"rotations": self.job.rotations} | {k: v for k, v in self.job.files.items() if k in wanted}


def _inside(root: Path, name: str) -> Path:
    """A file that a job names, from the job's folder; an absolute name is taken as one."""
    return inside(root, str(Path(FOLDER) / name))


def _opened(root: Path, path: Path, item: str) -> Searched | None:
    """A job; None where the file is something else or another item's."""
    raw = json.loads(_inside(root, path.name).read_text())
    if not isinstance(raw, dict) or "rotations" not in raw:
        return None
    job = MatchJob.read(path)
    return Searched(root, path, job) if job.name == item else None


class Matches:
    """Reads searches, and keeps the candidates that were asked for last. Safe in several threads."""

    def __init__(self) -> None:
        self._candidates: Kept[Candidates] = Kept(
            _KEPT_CANDIDATES, lambda c: c.xyz.nbytes + c.euler.nbytes + c.score.nbytes + c.template.nbytes
        )

    def searches(self, root: Path, item: str) -> tuple[list[Searched], list[str]]:
        """The finished searches of an item, and sentences about those that cannot be used."""
        found, problems = [], []
        for path in sorted((root / FOLDER).glob(f"{glob.escape(item)}_*.json")):
            try:
                one = _opened(root, path, item)
                if one is not None:
                    for name in one.sources().values():
                        _inside(root, name)
                    found.append(one)
            except Outside:
                problems.append(f"{path.name}: it names a file outside the session")
            except FileNotFoundError as error:
                problems.append(f"{path.name}: {Path(str(error)).name} is gone; run the search again")
            except (OSError, ValueError, WeftError) as error:
                problems.append(f"{path.name}: {error}")
        return found, problems

    def search(self, root: Path, item: str, job: str) -> Searched:
        """One of them, by its job file's name without the ending.

        Raises
        ------
        Missing
        """
        for one in self.searches(root, item)[0]:
            if one.path.stem == job:
                return one
        raise Missing(f"{item} has no search {job}")

    def levels(self, one: Searched, tomograms: Tomograms) -> Levels:
        """The grey scale of a score map: what stands out of its background, to the best score."""
        own = tomograms.levels(one.scores)
        low = own.low + own.white / 255.0 * (own.high - own.low)
        high = tomograms.highest(one.scores)
        return Levels(low, high if high > low else low + 1e-6, 0, 255)

    def picks(self, one: Searched, settings: CandidateSettings, limit: int) -> dict[str, Any]:
        """All candidates down to where only background is left, as `match_models.PickList` has them."""
        statistics = job_statistics(one.job, one.path)
        automatic = self.cut_off(one, settings.model_copy(update={"cut_off": 0.0}))
        # among so many scores of background hardly a particle is found
        count = min(20.0 * limit, 0.25 * statistics.search_space)
        lowest = statistics.mean + false_alarm_threshold(statistics.std, statistics.search_space, count)
        lowest = min(lowest, automatic, settings.cut_off or math.inf)
        lowest = min(1.0, max(1e-6, lowest))
        wide = settings.model_copy(update={"cut_off": lowest, "number": limit})
        key = (one.identity(), wide.model_dump_json())
        found = self._candidates.get(key)
        if found is None:
            found = take_candidates(one.path, wide)
            self._candidates.put(key, found)
        complete = len(found) < limit
        x, y, z = np.round(found.xyz, 2).T.tolist()
        return {
            "job": one.path.stem,
            "revision": one.revision,
            "tophat": settings.tophat,
            "automatic": automatic,
            "lowest": lowest if complete else float(found.score[-1]),
            "complete": complete,
            "x": x,
            "y": y,
            "z": z,
            "score": np.round(found.score, _DECIMALS).tolist(),
            "template": found.template.tolist(),
        }

    def cut_off(self, one: Searched, settings: CandidateSettings) -> float:
        """The lowest score of a candidate.

        Raises
        ------
        RequestError
            More false positives than scores.
        ItemError
            No standard deviation.
        """
        try:
            return cut_off(job_statistics(one.job, one.path), settings)
        except ValueError as error:
            raise RequestError(f"{one.path.stem}: {error}.") from None

    def estimate(self, one: Searched, settings: CandidateSettings) -> dict[str, Any]:
        """How many candidates are particles, as `match_models.RecallCurve` has it."""
        result: RecallEstimate = estimate_job(one.path, settings)[1]
        return {
            "particles": result.particles,
            "background": result.background,
            "lowest": result.lowest,
            "best": result.best if math.isfinite(result.best) else None,
            "cut_offs": np.round(result.cut_offs, _DECIMALS).tolist(),
            "recall": np.nan_to_num(result.recall).round(4).tolist(),
            "false_discovery": np.nan_to_num(result.false_discovery).round(4).tolist(),
        }

    def save(self, one: Searched, settings: CandidateSettings) -> dict[str, Any]:
        """Write the candidates of a search, and of all items together; what was written."""
        folder = one.root / FOLDER
        check_folder(one.root, folder)
        found = write_candidates(one.path, settings)
        job = MatchJob.read(one.path)
        files = []
        for template in job.templates:
            files.append(candidate_file(one.path, job, template.stem))
            combined = write_combined(one.root, template.stem)
            if combined is not None:
                files.append(combined[0])
        return {
            "count": len(found),
            "cut_off": self.cut_off(one, settings),
            "files": [f"{FOLDER}/{file.name}" for file in files],
        }

    def describe(self, one: Searched, tomograms: Tomograms) -> dict[str, Any]:
        """A search, as `match_models.Search` has it."""
        job = one.job
        statistics = job_statistics(job, one.path)
        levels = self.levels(one, tomograms)
        steps = job.settings.get("angular_step", [])
        return {
            "job": one.path.stem,
            "revision": one.revision,
            "time": one.scores.stat().st_mtime,
            "templates": [_template(one, template) for template in job.templates],
            "voxel_size": job.voxel_size,
            "shape": list(job.shape),
            "origin": list(job.origin),
            "volume_size": list(job.volume_size),
            "hand": job.hand,
            "search_space": float(statistics.search_space),
            "mean": statistics.mean,
            "std": statistics.std,
            "rotations": _whole(job.statistics.get("rotations")),
            "seconds": job.statistics.get("seconds"),
            "angular_step": [float(step) for step in (steps if isinstance(steps, list) else [steps])],
            "weighting": job.settings.get("weighting"),
            "low": levels.low,
            "high": levels.high,
            "verdict": _verdict(one),
        }


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _template(one: Searched, template: Any) -> dict[str, Any]:
    file = f"{FOLDER}/{candidate_file(one.path, one.job, template.stem).name}"
    out = {"stem": template.stem, "diameter": template.diameter, "symmetry": template.symmetry}
    out |= dict.fromkeys(("file", "written", "cut_off"))
    with suppress(FileNotFoundError, Outside, InputFileError, ValueError):
        for table in read_star(inside(one.root, file)).values():
            if "rlnTomoName" in table and "rlnLCCmax" in table:
                out |= {"file": file, "written": len(table)}
                if len(table) and "rlnCutOff" in table:
                    out["cut_off"] = float(table.floats("rlnCutOff")[0])
    return out


def _verdict(one: Searched) -> dict[str, Any] | None:
    picture = Path(one.verdict_picture)
    try:
        facts: Any = json.loads(inside(one.root, str(picture.with_suffix(".json"))).read_text())
    except (FileNotFoundError, Outside, OSError, ValueError):
        return None
    if not isinstance(facts, Mapping) or not isinstance(facts.get("hand"), int | float):
        return None
    shown = False
    with suppress(FileNotFoundError, Outside):
        shown = inside(one.root, str(picture)).is_file()
    p = facts.get("p")
    return {
        "hand": float(facts["hand"]),
        "p": float(p) if isinstance(p, int | float) and math.isfinite(p) else None,
        "places": _whole(facts.get("places")),
        "sentence": str(facts.get("sentence", "")),
        "picture": shown,
    }
