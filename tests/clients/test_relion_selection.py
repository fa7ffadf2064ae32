"""relion_reconstruct reads what `weft vae select` writes, and makes the map of the class that was chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from weft.formats import mrc
from weft.formats.tilt_particles import read_tilt_particles
from weft.particles.fsc import shell_correlation, soft_sphere
from weft.session.heterogeneity.selection import Wanted, write_selection

Relion = Callable[..., str]
MASK = soft_sphere(32, 12.0, 3.0)


def volume(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(mrc.read(path)[0], np.float32)) * MASK


@pytest.mark.parametrize(("chosen", "other"), [("D", "E"), ("E", "D")])
def test_the_map_of_a_selection(
    relion: Relion, reference_data: Path, tmp_path: Path, chosen: str, other: str
) -> None:
    folder = reference_data / "real" / "bpowell122__tomodrgn"
    star = folder / "10076_both_32_sim.star"
    particles = read_tilt_particles(star)
    stack = next(i for i, file in enumerate(particles.files) if f"class{chosen}" in file.name)
    of_class = particles.file[particles.start[:-1]] == stack
    names = tmp_path / "names.txt"
    names.write_text("\n".join(np.array(particles.particle)[of_class]))
    latent = SimpleNamespace(particle=particles.particle, mu=np.zeros((len(particles), 2), np.float32))
    run: Any = SimpleNamespace(
        path=tmp_path,
        facts=SimpleNamespace(input=star),
        epochs=[1],
        particles=lambda: particles,
        latent=lambda epoch: latent,
    )
    write_selection(run, Wanted(names=names), tmp_path / "in.star")
    relion("reconstruct", *("--i", "in.star", "--o", "out.mrc", "--ctf", "--angpix", "13.1"), cwd=tmp_path)
    found = volume(tmp_path / "out.mrc")
    # RELION takes this old kind of table without its CTF's scale, so shells 2 to 4 only; the images are dark.
    # measured 0.86 and 0.76, 0.83 and 0.76
    to_own, to_other = (
        -float(shell_correlation(found, volume(folder / f"10076_class{name}_32.mrc"))[2:5].mean())
        for name in (chosen, other)
    )
    assert to_own > 0.8
    assert to_own > to_other + 0.04
