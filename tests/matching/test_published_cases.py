"""Numbers of pytom-match-pick: published, or given by its version 0.14 on a NumPy stand-in for CuPy.

Others of the same kind are beside what they are about: counts of orientations in test_angles, the planted
block in test_kernel, the cut-off in test_candidates, the mask's sum in test_mask.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weft.matching.weights import Imaging, local_weights
from weft.physics.geometry import TiltGeometry
from weft.physics.optics import Optics
from weft.session.foreign_tilts import tilts_of_angles
from weft.tilts.gridding import TiltContrast

ANGLES = np.arange(-60.0, 61.0, 3.0)
VOXEL, BOX = 10.0, 48


def _dose() -> list[float]:
    """3 e/Å² a tilt, from the middle outwards, negative angles first."""
    order = np.argsort(np.abs(ANGLES) + 1e-3 * (ANGLES > 0.0), kind="stable")
    dose = np.empty(len(ANGLES))
    dose[order] = 3.0 * np.arange(1, len(ANGLES) + 1)
    return [float(d) for d in dose]


def _weights(
    angles: np.ndarray = ANGLES, dose: bool = False, ctf: bool = False, plate: float = 0.0
) -> torch.Tensor:
    """H of 48³ voxels of 10 Å, where pytom's files of angles are read."""
    n = len(angles)
    wave = 1e4 * (3.0 + 0.05 * np.sin(np.arange(n)))
    turned = tilts_of_angles(Path("a.tlt"), angles).geometry.angles
    geometry = TiltGeometry.of(turned, defocus=wave if ctf else 0.0, volume_size=(1000.0,) * 3, hand=0.0)
    contrast = TiltContrast.of(
        Optics(VOXEL, 300.0, 2.7, 0.08), n, dose=_dose() if dose else 0.0, phase_shift=plate
    )
    imaging = Imaging(
        geometry,
        contrast,
        "uncorrected",
        has_ctf=ctf,
        dose_weighted=False,
        cosine=True,
        dose_model="warp" if dose else "none",
    )
    place = torch.full((3,), 500.0, dtype=torch.float64)
    return local_weights(imaging, place, (BOX,) * 3, VOXEL, BOX * VOXEL).signal


# ------------------------------------------------------------------------------------ defocus of a place


def test_published_defocus_offsets() -> None:
    """`get_defocus_offsets(1000, 100, ±60°)`: −816.03 … 916.03 Å for hand +1, the reverse for −1.

    They are z cos a ± x sin a. Weft's hand turns the sign of the whole third component, pytom's that of the
    angle; so pytom's −1 is a geometry whose angles have the other sign.
    """
    place = torch.tensor([[1000.0, 0.0, 100.0]], dtype=torch.float64)
    plus = TiltGeometry.of(ANGLES, hand=1.0).project(place)[:, 0, 2].numpy()
    minus = TiltGeometry.of(-ANGLES, hand=1.0).project(place)[:, 0, 2].numpy()
    assert plus[[0, -1]] == pytest.approx([-816.0254, 916.0254], abs=1e-3)
    assert plus[[1, 10, 19, 20, 21, 30]] == pytest.approx(
        [-784.2067, -413.3975, 47.5270, 100.0, 152.1989, 586.6025], abs=1e-3
    )
    assert minus == pytest.approx(plus[::-1], abs=1e-6)


def test_pytoms_hand_of_an_imod_volume() -> None:
    """Read from a .tlt, hand −1 is pytom's −1; with +1 the gradient along x is pytom's, that along z is not.

    The wedge that pytom gives its template is that of a point at X cos t + Z sin t, whose depth is
    ±(Z cos t − X sin t); its hand +1 takes Z cos t + X sin t, which belongs to the mirror image.
    """
    x, z = (torch.tensor([row], dtype=torch.float64) for row in ((1000.0, 0.0, 0.0), (0.0, 0.0, 100.0)))
    read = tilts_of_angles(Path("a.tlt"), ANGLES)
    t = np.radians(ANGLES)
    for hand in (1.0, -1.0):
        geometry = replace(read.geometry, hand=read.sign * hand, defocus=torch.zeros(len(t)).double())
        assert geometry.project(x)[:, 0, 2].numpy() == pytest.approx(hand * 1000.0 * np.sin(t), abs=1e-9)
        assert geometry.project(z)[:, 0, 2].numpy() == pytest.approx(-hand * 100.0 * np.cos(t), abs=1e-9)


# --------------------------------------------------------------------------------- weights of a template

#: kz, ky, kx in a box of 48, and pytom's weights there: cosine; and dose; CTF; CTF with a phase plate of 40°;
#: CTF and dose. All lie on a tilt's section and away from Nyquist's frequency.
RECORDED = [
    ((0, 0, 6), (1.0003, 0.9994, 0.3635, 0.8775, 0.3632)),
    ((0, 0, 10), (1.0001, 0.9983, 0.7817, 0.9998, 0.7802)),
    ((0, 4, 14), (1.0096, 1.0063, 0.9803, 0.5954, 0.9771)),
    ((8, 5, 11), (0.8181, 0.7640, 0.7991, 0.4997, 0.7463)),
    ((-9, -8, 10), (0.7522, 0.6880, 0.6696, 0.2926, 0.6124)),
    ((0, 12, 8), (1.0014, 0.9971, 0.9804, 0.6193, 0.9762)),
]


@pytest.mark.parametrize(
    ("column", "options"),
    [
        (0, {}),
        (1, {"dose": True}),
        (2, {"ctf": True}),
        (3, {"ctf": True, "plate": 40.0}),
        (4, {"ctf": True, "dose": True}),
    ],
    ids=["cosine", "dose", "ctf", "plate", "ctf and dose"],
)
def test_weights_are_those_of_pytom(column: int, options: dict[str, float]) -> None:
    """Signs of CTF, phase plate and dose, the scale of frequencies: 0.015.

    pytom lays slices into the volume by cubic splines and Weft by triangles.
    """
    found = _weights(**options)  # type: ignore[arg-type]
    for (z, y, x), recorded in RECORDED:
        assert float(found[z, y, x]) == pytest.approx(recorded[column], abs=0.015), (z, y, x)


def test_weights_do_tell_signs_apart() -> None:
    """The test above would see a phase plate of the other sign, another dose, another voxel size."""
    recorded = np.array([weights for _, weights in RECORDED])
    at = tuple(np.array([k for k, _ in RECORDED]).T)
    wrong = _weights(ctf=True, plate=-40.0).numpy()[at]
    assert np.abs(wrong - recorded[:, 3]).max() > 0.5
    assert np.abs(_weights(ctf=True).numpy()[at] - recorded[:, 4]).max() > 0.03


@pytest.mark.parametrize(("kz", "ky", "kx"), [(10, 0, 7), (10, 5, 7), (10, -9, 7)])
def test_which_side_of_an_uneven_wedge_is_missing(kz: int, ky: int, kx: int) -> None:
    """Of tilts from −50° to 64° pytom sees kz = +10 at kx = 7 (0.572), and not −10 (−0.040)."""
    found = _weights(np.arange(-50.0, 65.0, 3.0))
    assert float(found[kz, ky, kx]) == pytest.approx(0.5722, abs=0.015)
    assert float(found[-kz, ky, kx]) == 0.0
