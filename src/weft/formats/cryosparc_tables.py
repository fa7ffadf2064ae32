"""What cryoSPARC's tables say of micrographs and of particles; see :mod:`weft.formats.cryosparc`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from weft.formats.cryosparc import Rows, uid_of
from weft.physics.optics import Optics

__all__ = ["Exposure", "ParticleColumns", "exposure_table", "particle_table"]


@dataclass(frozen=True)
class Exposure:
    """One micrograph with its CTF.

    Attributes
    ----------
    uid : int
    path : str
        Of the micrograph.
    shape : (int, int)
        Rows, columns.
    optics : Optics
        At the micrograph's pixel size.
    group : int
        Of exposures with the same optics, from 1.
    defocus_u, defocus_v, angle : float
        Å and degrees, as RELION has them.
    phase_shift : float
        Degrees.
    resolution : float
        Å, to which the CTF fits.
    correlation : float
        Of the fit.
    dose : float
        e/Å², in all.
    """

    uid: int
    path: str
    shape: tuple[int, int]
    optics: Optics
    group: int
    defocus_u: float
    defocus_v: float
    angle: float
    phase_shift: float = 0.0
    resolution: float = 0.0
    correlation: float = 0.0
    dose: float = 0.0


_CTF: dict[str, Any] = {
    "exp_group_id": "<u4",
    "accel_kv": "<f4",
    "cs_mm": "<f4",
    "amp_contrast": "<f4",
    "df1_A": "<f4",
    "df2_A": "<f4",
    "df_angle_rad": "<f4",
    "phase_shift_rad": "<f4",
}


def exposure_table(exposures: Sequence[Exposure]) -> Rows:
    """Results ``micrograph_blob``, ``mscope_params`` and ``ctf`` of micrographs."""
    n = len(exposures)
    o = [e.optics for e in exposures]
    group = [e.group for e in exposures]
    mscope = {
        "mscope_params/accel_kv": ("<f4", [x.voltage for x in o]),
        "mscope_params/cs_mm": ("<f4", [x.cs for x in o]),
        "mscope_params/total_dose_e_per_A2": ("<f4", [e.dose for e in exposures]),
        "mscope_params/phase_plate": ("<u4", [int(e.phase_shift != 0.0) for e in exposures]),
        "mscope_params/neg_stain": ("<u4", np.zeros(n)),
        "mscope_params/exp_group_id": ("<u4", group),
    }
    blob = {
        "micrograph_blob/path": ("S", [e.path for e in exposures]),
        "micrograph_blob/idx": ("<u4", np.zeros(n)),
        "micrograph_blob/shape": ("<u4", np.array([e.shape for e in exposures], np.int64).reshape(n, 2)),
        "micrograph_blob/psize_A": ("<f4", [x.pixel_size for x in o]),
        "micrograph_blob/format": ("S", ["MRC/1"] * n),
        "micrograph_blob/is_background_subtracted": ("<u4", np.zeros(n)),
    }
    ctf = _ctf_columns(
        group,
        o,
        [e.defocus_u for e in exposures],
        [e.defocus_v for e in exposures],
        [e.angle for e in exposures],
        [e.phase_shift for e in exposures],
    )
    rest = {
        "ctf/type": ("S", ["imported"] * n),
        "ctf/path": ("S", [""] * n),
        "ctf/cross_corr_ctffind4": ("<f4", [e.correlation for e in exposures]),
        "ctf/ctf_fit_to_A": ("<f4", [e.resolution for e in exposures]),
        "ctf/fig_of_merit_gctf": ("<f4", np.zeros(n)),
    }
    return _table({"uid": ("<u8", [e.uid for e in exposures]), **blob, **mscope, **ctf, **rest}, n)


@dataclass(frozen=True)
class ParticleColumns:
    """Particles with their images, CTF and places; all sequences of one length n.

    Attributes
    ----------
    uid : of int
    path : of str
        Stacks.
    index : of int
        In the stack, from 0.
    box : int
        Side of the images, pixels.
    optics : of Optics
        At the images' pixel size.
    group : of int
    defocus_u, defocus_v, angle, phase_shift : of float
        Å and degrees.
    exposure : of Exposure
        The micrograph of each.
    xy : (n, 2) array-like
        Pixels of the micrograph.
    score : of float
    dark : bool
        The particles are dark in their images, as in a micrograph.
    """

    uid: Sequence[int]
    path: Sequence[str]
    index: Sequence[int]
    box: int
    optics: Sequence[Optics]
    group: Sequence[int]
    defocus_u: ArrayLike
    defocus_v: ArrayLike
    angle: ArrayLike
    phase_shift: ArrayLike
    exposure: Sequence[Exposure]
    xy: ArrayLike
    score: ArrayLike
    dark: bool = False


def particle_table(p: ParticleColumns) -> Rows:
    """Results ``blob``, ``ctf``, ``location`` and ``pick_stats`` of particles."""
    n = len(p.uid)
    zeros = np.zeros(n)
    shapes = np.array([e.shape for e in p.exposure], np.int64).reshape(n, 2)
    fractions = np.asarray(p.xy, np.float64).reshape(n, 2) / shapes[:, ::-1]
    blob = {
        "blob/path": ("S", p.path),
        "blob/idx": ("<u4", p.index),
        "blob/shape": ("<u4", np.full((n, 2), p.box)),
        "blob/psize_A": ("<f4", [o.pixel_size for o in p.optics]),
        "blob/sign": ("<f4", np.full(n, -1.0 if p.dark else 1.0)),
        "blob/import_sig": ("<u8", [uid_of(path) for path in p.path]),
    }
    ctf = _ctf_columns(p.group, p.optics, p.defocus_u, p.defocus_v, p.angle, p.phase_shift)
    corrections = {
        "ctf/type": ("S", ["imported"] * n),
        "ctf/scale": ("<f4", zeros + 1),
        "ctf/scale_const": ("<f4", zeros),
        "ctf/shift_A": ("<f4", np.zeros((n, 2))),
        "ctf/tilt_A": ("<f4", np.zeros((n, 2))),
        "ctf/trefoil_A": ("<f4", np.zeros((n, 2))),
        "ctf/tetra_A": ("<f4", np.zeros((n, 4))),
        "ctf/anisomag": ("<f4", np.zeros((n, 4))),
        "ctf/bfactor": ("<f4", zeros),
    }
    location = {
        "location/micrograph_uid": ("<u8", [e.uid for e in p.exposure]),
        "location/exp_group_id": ("<u4", p.group),
        "location/micrograph_path": ("S", [e.path for e in p.exposure]),
        "location/micrograph_shape": ("<u4", shapes),
        "location/micrograph_psize_A": ("<f4", [e.optics.pixel_size for e in p.exposure]),
        "location/center_x_frac": ("<f4", fractions[:, 0]),
        "location/center_y_frac": ("<f4", fractions[:, 1]),
    }
    stats = {
        "pick_stats/ncc_score": ("<f4", np.nan_to_num(np.asarray(p.score, np.float64))),
        "pick_stats/power": ("<f4", zeros),
        "pick_stats/template_idx": ("<u4", zeros),
        "pick_stats/angle_rad": ("<f4", zeros),
    }
    return _table({"uid": ("<u8", p.uid), **blob, **ctf, **corrections, **location, **stats}, n)


def _ctf_columns(
    group: Sequence[int],
    optics: Sequence[Optics],
    u: ArrayLike,
    v: ArrayLike,
    angle: ArrayLike,
    phase: ArrayLike,
) -> dict[str, tuple[str, Any]]:
    values = (
        group,
        [o.voltage for o in optics],
        [o.cs for o in optics],
        [o.amplitude for o in optics],
        u,
        v,
        np.deg2rad(np.asarray(angle, np.float64)),
        np.deg2rad(np.asarray(phase, np.float64)),
    )
    return {f"ctf/{name}": (kind, column) for (name, kind), column in zip(_CTF.items(), values, strict=True)}


def _table(columns: Mapping[str, tuple[str, Any]], n: int) -> Rows:
    arrays = {}
    for label, (kind, values) in columns.items():
        if kind == "S":
            # text of length 0 would be a column without bytes, which NumPy files cannot hold
            texts = [str(value).encode() for value in values]
            kind = f"S{max((len(text) for text in texts), default=0) or 1}"
            arrays[label] = np.array(texts, kind).reshape(n)
        elif kind == "<u8":
            arrays[label] = np.array(list(values), np.uint64).reshape(n)  # never through float
        else:
            arrays[label] = np.asarray(values, kind)
    dtype = [(label, array.dtype.str, array.shape[1:]) for label, array in arrays.items()]
    rows = np.zeros(n, dtype)
    for label, array in arrays.items():
        rows[label] = array
    return rows
