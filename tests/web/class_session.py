"""Classes of a training in a session of one series."""

from __future__ import annotations

import numpy as np
from series_session import NAME, TOMOGRAM_PIXEL, Made

from weft.session.heterogeneity.class_tables import ClassPlaces, session_table, write_class_table

DIAMETER = 90.0
LABELS = np.array([1, 2, 1, 1, 3, 2, 1, 2, 1, 3, 1, 1])


def add_classes(made: Made, name: str, seed: int = 5, elsewhere: bool = False) -> np.ndarray:
    """Write a training's table; the places of its particles, Å from the first voxel's centre."""
    random = np.random.default_rng(seed)
    n = len(LABELS)
    size = np.array(made.tomogram.shape[::-1]) * TOMOGRAM_PIXEL
    places = random.uniform(0.15, 0.85, (n, 3)) * size
    tomogram = f"{NAME}_other" if elsewhere else NAME
    table = ClassPlaces(
        run=made.root.parent / "trainings" / name,
        diameter=DIAMETER,
        particle=[f"{NAME}_{i:06d}" for i in range(n)],
        tomogram=[tomogram] * n,
        label=LABELS,
        place=places,
        matrix=np.tile(np.eye(3), (n, 1, 1)),
        centred=np.zeros(n, np.bool_),
        mirrored=np.zeros(n, np.bool_),
        size={tomogram: size},
    )
    write_class_table(session_table(made.root, name), table)
    return places
