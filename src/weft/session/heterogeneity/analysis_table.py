"""What `weft vae analyze` has said of every particle, read again."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from weft.errors import CorruptError, RequestError

if TYPE_CHECKING:
    from weft.session.heterogeneity.run_folder import VAERun

__all__ = ["AnalysisTable", "is_analysed", "read_analysis"]

FOLDER, TABLE, FACTS = "analysis", "clusters.csv", "analysis.json"


@dataclass(frozen=True)
class AnalysisTable:
    """Of each particle, its cluster and its place among the others.

    Attributes
    ----------
    folder : Path
        ``DIR/analysis``.
    epoch : int
        That was looked at.
    particle : list of str
        (n)
    cluster : (n) int64
        From 1.
    columns : mapping of str to (n) float64
        ``pc1``, ``pc2`` ..., and ``umap1``, ``umap2`` where they were made.
    volumes : mapping of int to Path
        The volume of each cluster.
    inverted : bool
        Density is dark in them.
    """

    folder: Path
    epoch: int
    particle: list[str]
    cluster: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]
    volumes: Mapping[int, Path]
    inverted: bool = False

    @property
    def clusters(self) -> list[int]:
        """Those that there are."""
        return [int(number) for number in np.unique(self.cluster)]


def is_analysed(run: VAERun) -> bool:
    """Whether there is an analysis to be read."""
    folder = Path(run.path) / FOLDER
    return (folder / TABLE).is_file() and (folder / FACTS).is_file()


def read_analysis(run: VAERun) -> AnalysisTable:
    """Read ``DIR/analysis``.

    Raises
    ------
    RequestError
        There is none.
    CorruptError
        It is not as `weft vae analyze` writes it.
    """
    folder = Path(run.path) / FOLDER
    table, facts = folder / TABLE, folder / FACTS
    if not is_analysed(run):
        raise RequestError(f"{run.path} has no analysis yet; `weft vae analyze {run.path}` makes it.")
    try:
        with table.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file))
        at = {name: i for i, name in enumerate(head)}
        numbers = [name for name in head if name not in ("particle", "tomogram", "cluster")]
        said: dict[str, Any] = json.loads(facts.read_text(encoding="utf-8"))
        volumes = [one["file"] for one in said["volumes"] if one["series"] == "cluster"]
        return AnalysisTable(
            folder=folder,
            epoch=int(said["epoch"]),
            particle=[row[at["particle"]] for row in rows],
            cluster=np.array([int(row[at["cluster"]]) for row in rows], np.int64),
            columns={name: np.array([float(row[at[name]]) for row in rows]) for name in numbers},
            volumes={i: folder / name for i, name in enumerate(volumes, 1)},
            inverted=bool(said.get("settings", {}).get("invert", False)),
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        what = f"it does not read as an analysis ({error!r}); `weft vae analyze {run.path}` makes it again"
        raise CorruptError(table, what) from error
