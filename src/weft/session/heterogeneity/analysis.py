"""`weft vae analyze`: what a training has found, in tables, volumes, pictures and words."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weft.__about__ import __version__
from weft.formats.atomic import atomic_write, atomic_write_text
from weft.heterogeneity.advice import Advice, ClusterFacts, Facts, advise
from weft.heterogeneity.convergence import LossTrend, VolumeAgreement, loss_trend
from weft.session.heterogeneity.analysis_settings import AnalysisSettings
from weft.session.heterogeneity.landscape import Landscape, explore
from weft.session.heterogeneity.landscape_volumes import (
    Series,
    convergence_of_volumes,
    make_volumes,
    planned_series,
)

if TYPE_CHECKING:
    from weft.session.heterogeneity.run_folder import VAERun

__all__ = ["Analysis", "analyze"]

#: Correlates in analysis.json.
_MOST = 500


@dataclass(frozen=True)
class Analysis:
    """What `weft vae analyze` has made.

    Attributes
    ----------
    folder : Path
        ``DIR/analysis``.
    run : Path
        ``DIR``.
    settings : AnalysisSettings
    written : str
    found : Landscape
    series : list of Series
        Volumes.
    volumes : list of VolumeAgreement
        Between kept epochs.
    loss : LossTrend or None
    history : list of dict
    advice : list of Advice
    pixel_size : float
        Å, of the volumes.
    box : int
        Of the volumes.
    seconds : float
    """

    folder: Path
    run: Path
    settings: AnalysisSettings
    written: str
    found: Landscape
    series: list[Series]
    volumes: list[VolumeAgreement]
    loss: LossTrend | None
    history: list[dict[str, Any]]
    advice: list[Advice]
    pixel_size: float
    box: int
    seconds: float

    @property
    def report(self) -> Path:
        """The page."""
        return self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """What ``analysis.json`` holds: all of it but what other files have."""
        found = self.found
        first = found.structure.first
        return {
            "weft": __version__,
            "written": self.written,
            "run": str(self.run),
            "epoch": found.epoch,
            "settings": self.settings.model_dump(),
            "particles": len(found.particle),
            "latent": found.latent.shape[1],
            "kl": found.kl.tolist(),
            "explained": found.components.explained.tolist(),
            "structure": {
                "found": found.structure.found,
                "clusters": found.structure.clusters.count,
                "line": first.line if first else None,
                "data": first.data if first else None,
                "scaled": found.structure.scaled,
            },
            "clusters": [
                {
                    "cluster": i + 1,
                    "particles": int(size),
                    "representative": found.particle[found.representative[i]],
                    "centre": found.clusters.centre[i].tolist(),
                }
                for i, size in enumerate(found.clusters.size)
            ],
            "volumes": [
                {
                    "file": f"volumes/{one.file}",
                    "series": group.name,
                    "caption": one.caption,
                    "particle": found.particle[one.particle] if one.particle >= 0 else None,
                    "contrast": contrast,
                    "latent": one.latent.tolist(),
                }
                for group in self.series
                for one, contrast in zip(group.volumes, group.contrast, strict=True)
            ],
            "pixel_size": self.pixel_size,
            "box": self.box,
            "loss": asdict(self.loss) if self.loss else None,
            "movement": [asdict(one) for one in found.movement],
            "volume_agreement": [asdict(one) for one in self.volumes],
            "correlates": [asdict(one) for one in found.correlates[:_MOST]],
            "advice": [asdict(one) for one in self.advice],
            "seconds": round(self.seconds, 2),
        }


def analyze(
    run: VAERun,
    settings: AnalysisSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Analysis:
    """Look at a training from all sides, and write ``DIR/analysis``.

    ``clusters.csv`` (a line a particle), ``analysis.json``, ``volumes/*.mrc``, ``mask.mrc``, ``umap.npz`` and
    ``report.html``. What an earlier analysis left is replaced.

    Parameters
    ----------
    run : VAERun
    settings : AnalysisSettings, optional
    progress : callable, optional
        Called with how many volumes are made, and how many there will be.

    Raises
    ------
    RequestError
        An epoch that was not kept, more clusters than particles, no UMAP installed.
    """
    from weft.session.heterogeneity.analysis_page import page

    began = time.monotonic()
    settings = settings or AnalysisSettings()
    found = explore(run, settings)
    folder = Path(run.path) / "analysis"
    folder.mkdir(parents=True, exist_ok=True)
    # of an earlier analysis with more volumes
    for old in (folder / "volumes").glob("*.mrc"):
        old.unlink()
    series = planned_series(found, settings)
    mask = make_volumes(run, settings, series, folder, progress)
    volumes = convergence_of_volumes(run, found, settings, mask)
    history = [line for line in run.history if line.get("epoch", 0) <= found.epoch or not settings.epoch]
    loss = loss_trend(history)
    size = len(mask)
    result = Analysis(
        folder=folder,
        run=Path(run.path),
        settings=settings,
        written=time.strftime("%Y-%m-%d %H:%M %Z"),
        found=found,
        series=series,
        volumes=volumes,
        loss=loss,
        history=history,
        advice=advise(_facts(found, series, volumes, loss)),
        pixel_size=(settings.pixel_size or run.pixel_size) * run.box / size,
        box=size,
        seconds=time.monotonic() - began,
    )
    if found.umap is not None:
        with atomic_write(folder / "umap.npz") as file:
            np.savez(file, umap=found.umap, particle=np.array(found.particle))
    else:
        (folder / "umap.npz").unlink(missing_ok=True)
    atomic_write_text(folder / "clusters.csv", _table(found))
    atomic_write_text(folder / "analysis.json", json.dumps(_plain(result.to_dict()), indent=1))
    atomic_write_text(result.report, page(result))
    return result


def _facts(
    found: Landscape, series: list[Series], volumes: list[VolumeAgreement], loss: LossTrend | None
) -> Facts:
    names, table = found.composition()
    contrast = next(group.contrast for group in series if group.name == "cluster")
    clusters = [
        ClusterFacts(str(i + 1), int(size), contrast[i], table[:, i] if names else np.zeros(0, np.int64))
        for i, size in enumerate(found.clusters.size)
    ]
    return Facts(
        particles=len(found.particle),
        kl=found.kl,
        heaps=found.structure.clusters.count,
        asked=found.asked,
        clusters=clusters,
        loss=loss,
        movement=found.movement,
        volumes=volumes,
        correlates=found.correlates,
        notes=found.notes,
    )


def _table(found: Landscape) -> str:
    """``clusters.csv``: clusters count from 1."""
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    d = found.scores.shape[1]
    umap = found.umap
    head = ["particle", "tomogram", "cluster", *(f"pc{i + 1}" for i in range(d))]
    out.writerow(head + (["umap1", "umap2"] if umap is not None else []))
    for i, name in enumerate(found.particle):
        row: list[object] = [name, found.tomogram[i], int(found.label[i]) + 1]
        row += [f"{value:.6g}" for value in found.scores[i]]
        row += [f"{value:.6g}" for value in umap[i]] if umap is not None else []
        out.writerow(row)
    return text.getvalue()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return (
        int(value) if isinstance(value, np.integer) else bool(value) if isinstance(value, np.bool_) else value
    )
