"""Classes of particles for the page: the tables of trainings that `weft vae map-back` puts into a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weft.errors import WeftError
from weft.session.heterogeneity.class_colours import class_colour
from weft.session.heterogeneity.class_tables import FOLDER, read_class_table
from weft.web.files import Outside, inside

__all__ = ["class_list"]


def class_list(root: Path, item: str) -> dict[str, Any]:
    """The trainings that have particles in an item's tomogram, as `class_models.ClassList` has them."""
    found, problems = [], []
    for path in sorted((root / FOLDER).glob("*.star")):
        try:
            own = _training(inside(root, f"{FOLDER}/{path.name}"), item)
        except Outside:
            problems.append(f"{path.name}: it lies outside the session")
        except (OSError, KeyError, ValueError, WeftError) as error:
            problems.append(f"{path.name}: {error}")
        else:
            if own is not None:
                found.append({"name": path.stem, **own})
    return {"trainings": found, "problems": problems}


def _training(path: Path, item: str) -> dict[str, Any] | None:
    table = read_class_table(path)
    mine = np.array([name == item for name in table.tomogram], np.bool_)
    if not mine.any():
        return None
    label = table.label[mine]
    x, y, z = table.place[mine].round(2).T.tolist()
    # a class that has no particle here has its place in the legend all the same
    numbers = np.unique(table.label).tolist()
    return {
        "folder": table.training,
        "time": path.stat().st_mtime,
        "diameter": table.diameter,
        "classes": [
            {"number": number, "colour": class_colour(number), "particles": int((label == number).sum())}
            for number in numbers
        ],
        "x": x,
        "y": y,
        "z": z,
        "label": label.tolist(),
    }
