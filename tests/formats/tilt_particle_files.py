"""Small files of tilt particles in every flavour, for tests; stacks hold their own section's number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from weft.formats import mrc
from weft.formats.star import Table, write_star

BOX, PIXEL = 8, 4.0
#: Tilts of the particles: ragged.
TILTS = (3, 2, 4)


def write_stack(path: Path, sections: int, box: int = BOX) -> None:
    """A stack whose section i is filled with i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mrc.write_stack(path, [np.full((box, box), float(i), np.float32) for i in range(sections)], PIXEL)


def rows(count: tuple[int, ...] = TILTS) -> dict[str, Any]:
    """Columns that all flavours with a row an image share, of particles with so many tilts."""
    m = sum(count)
    which = np.repeat(np.arange(len(count)), count)
    tilt = np.concatenate([np.arange(n) for n in count])
    rng = np.random.default_rng(4)
    return {
        "rlnDefocusU": 20000.0 + 100.0 * np.arange(m),
        "rlnDefocusV": 19000.0 + 100.0 * np.arange(m),
        "rlnDefocusAngle": rng.uniform(-90.0, 90.0, m),
        "rlnPhaseShift": np.full(m, 5.0),
        "rlnImageName": [f"{i + 1:06d}@stacks/all.mrcs" for i in range(m)],
        "rlnAngleRot": rng.uniform(-180.0, 180.0, m),
        "rlnAngleTilt": rng.uniform(0.0, 180.0, m),
        "rlnAnglePsi": rng.uniform(-180.0, 180.0, m),
        "rlnCtfBfactor": -12.0 * (tilt + 1),
        "rlnCtfScalefactor": np.cos(np.radians(3.0 * tilt)),
        "rlnRandomSubset": which % 2 + 1,
        "rlnMicrographName": [f"frames/TS_0{p + 1}_{10 + t}.mrc" for p, t in zip(which, tilt, strict=True)],
        "rlnCoordinateX": rng.uniform(0.0, 100.0, m),
        "rlnCoordinateY": rng.uniform(0.0, 100.0, m),
    }


def _named(count: tuple[int, ...], label: str = "rlnGroupName", form: str = "TS_{:05d}") -> dict[str, Any]:
    return {label: [form.format(p + 1) for p, n in enumerate(count) for _ in range(n)]}


def _optics(m: int) -> dict[str, Any]:
    return {
        "rlnVoltage": np.full(m, 300.0),
        "rlnSphericalAberration": np.full(m, 2.7),
        "rlnAmplitudeContrast": np.full(m, 0.07),
    }


def warp1(count: tuple[int, ...] = TILTS) -> dict[str, Table]:
    """A particle series as M writes it."""
    m = sum(count)
    pixel = {"rlnMagnification": np.full(m, 10000), "rlnDetectorPixelSize": np.full(m, PIXEL)}
    return {"": Table(pixel | _optics(m) | rows(count) | _named(count))}


def cryosrpnt(count: tuple[int, ...] = TILTS) -> dict[str, Table]:
    """As cryoSRPNT: no magnification, no micrographs, origins in pixels."""
    given = rows(count)
    for label in ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY", "rlnRandomSubset"):
        del given[label]
    m = sum(count)
    shifts = {"rlnOriginX": np.linspace(-1.0, 1.0, m), "rlnOriginY": np.linspace(2.0, -2.0, m)}
    return {
        "": Table({"rlnDetectorPixelSize": np.full(m, PIXEL)} | _optics(m) | given | shifts | _named(count))
    }


def nextpyp(count: tuple[int, ...] = TILTS) -> dict[str, Table]:
    """As NextPYP: optics, origins in Å, particles by number."""
    m = sum(count)
    optics: dict[str, Any] = {
        "rlnOpticsGroupName": ["opticsGroup1"],
        "rlnOpticsGroup": [1],
        "rlnMicrographOriginalPixelSize": [1.0],
        **{label: values[:1] for label, values in _optics(1).items()},
        "rlnImagePixelSize": [PIXEL],
        "rlnImageSize": [BOX],
        "rlnImageDimensionality": [2],
    }
    more = {
        "rlnOpticsGroup": np.ones(m, int),
        "rlnOriginXAngst": np.linspace(-4.0, 4.0, m),
        "rlnOriginYAngst": np.linspace(8.0, -8.0, m),
        "rlnLogLikeliContribution": np.arange(m) * 1.5,
        "rlnTiltIndex": np.concatenate([np.arange(n) for n in count]),
    }
    number = {"rlnGroupNumber": [p + 1 for p, n in enumerate(count) for _ in range(n)]}
    return {"optics": Table(optics), "particles": Table(rows(count) | more | number)}


def cistem(count: tuple[int, ...] = TILTS) -> dict[str, Table]:
    """As emClarity writes cisTEM's."""
    m = sum(count)
    given = rows(count)
    tilt = np.concatenate([np.arange(n) for n in count])
    columns: dict[str, Any] = {
        "cisTEMPositionInStack": np.arange(1, m + 1),
        "cisTEMAnglePsi": given["rlnAnglePsi"],
        "cisTEMAngleTheta": given["rlnAngleTilt"],
        "cisTEMAnglePhi": given["rlnAngleRot"],
        "cisTEMXShift": np.linspace(4.0, -4.0, m),
        "cisTEMYShift": np.linspace(-8.0, 8.0, m),
        "cisTEMDefocus1": given["rlnDefocusU"],
        "cisTEMDefocus2": given["rlnDefocusV"],
        "cisTEMDefocusAngle": given["rlnDefocusAngle"],
        "cisTEMPhaseShift": np.radians(given["rlnPhaseShift"]),
        "cisTEMOccupancy": np.full(m, 100.0),
        "cisTEMPixelSize": np.full(m, PIXEL),
        "cisTEMMicroscopeVoltagekV": np.full(m, 300.0),
        "cisTEMMicroscopeCsMM": np.full(m, 2.7),
        "cisTEMAmplitudeContrast": np.full(m, 0.07),
        "cisTEMParticleGroup": [p + 1 for p, n in enumerate(count) for _ in range(n)],
        "cisTEMPreExposure": 3.0 * tilt,
        "cisTEMTotalExposure": 3.0 * (tilt + 1),
        "cisTEMTiltAngle": 3.0 * tilt,
    }
    return {"": Table(columns)}


#: Flavour → its tables, and the label by which rows belong to particles.
IMAGE_ROWS = {
    "warp1": (warp1, "rlnGroupName"),
    "cryosrpnt": (cryosrpnt, "rlnGroupName"),
    "nextpyp": (nextpyp, "rlnGroupNumber"),
    "cistem": (cistem, "cisTEMParticleGroup"),
}


def write_rows(folder: Path, blocks: dict[str, Table], count: tuple[int, ...] = TILTS) -> Path:
    """Write a table with a row an image, and its stack (also by the name that cisTEM's would have)."""
    path = folder / "particles.star"
    folder.mkdir(parents=True, exist_ok=True)
    write_star(path, blocks)
    for name in ("stacks/all.mrcs", "particles.mrcs"):
        write_stack(folder / name, sum(count))
    return path


#: Å, x, y, z: of the tomograms of sets.
VOLUME = (400.0, 480.0, 240.0)
#: rlnTomoVisibleFrames of the particles of sets; TS_1 has 4 tilts, TS_2 3.
VISIBLE = ("[1,1,0,1]", "[1,1,1,1]", "[0,1,1]")
SERIES = ("TS_1", "TS_1", "TS_2")


def angles(tilts: int) -> np.ndarray[Any, Any]:
    """XTilt, YTilt, ZRot of the tilts of a series of sets."""
    return np.stack([np.full(tilts, 2.0), np.linspace(-40.0, 30.0, tilts), np.full(tilts, 84.0)], axis=1)


def write_set(
    folder: Path, flavour: str, *, whole: bool = False, centred: bool = False, origins: bool = True
) -> Path:
    """Write an optimisation set with three particles in two tomograms; the path of the set.

    flavour : "relion5", "relion4" (matrices), "warptools" (matrices without shifts, ``.tomostar``).
    whole : stacks hold all tilts, not the visible ones only.
    """
    ending = ".tomostar" if flavour == "warptools" else ""
    names = [name + ending for name in SERIES]
    rng = np.random.default_rng(8)
    place = rng.uniform(0.3, 0.7, (3, 3)) * VOLUME
    unit = PIXEL if flavour == "warptools" else 2.0
    label, at = ("rlnCenteredCoordinate{}Angst", place - 0.5 * np.array(VOLUME)) if centred else (
        "rlnCoordinate{}", place / unit)  # fmt: skip
    particles: dict[str, Any] = {
        "rlnTomoName": names,
        "rlnTomoParticleId": [1, 2, 1],
        "rlnTomoParticleName": ["TS_1/1", "TS_1/2", "TS_2/1"],
        **{label.format(axis): at[:, k] for k, axis in enumerate("XYZ")},
        **{f"rlnAngle{name}": rng.uniform(0.0, 90.0, 3) for name in ("Rot", "Tilt", "Psi")},
        "rlnImageName": [f"stacks/{name.replace('/', '_')}.mrcs" for name in ("TS_1/1", "TS_1/2", "TS_2/1")],
        "rlnOpticsGroup": [1, 1, 2],
        "rlnTomoVisibleFrames": list(VISIBLE),
        "rlnRandomSubset": [1, 2, 1],
        "rlnLCCmax": [0.5, 0.25, 0.75],
    }
    if origins:
        particles |= {f"rlnOrigin{axis}Angst": rng.uniform(-9.0, 9.0, 3) for axis in "XYZ"}
    if flavour == "relion5":
        particles |= {f"rlnTomoSubtomogram{n}": rng.uniform(0.0, 90.0, 3) for n in ("Rot", "Tilt", "Psi")}
    optics: dict[str, Any] = {
        "rlnOpticsGroup": [1, 2],
        "rlnOpticsGroupName": ["opticsGroup1", "opticsGroup2"],
        **{k: [v[0], v[0]] for k, v in _optics(1).items()},
        "rlnTomoTiltSeriesPixelSize": [2.0, 2.0],
        "rlnCtfDataAreCtfPremultiplied": [1, 1],
        "rlnImageDimensionality": [2, 2],
        "rlnImagePixelSize": [PIXEL, PIXEL],
        "rlnImageSize": [BOX, BOX],
    }
    folder.mkdir(parents=True, exist_ok=True)
    general = Table({"rlnTomoSubTomosAre2DStacks": [1]}, loop=False)
    write_star(
        folder / "particles.star",
        {"general": general, "optics": Table(optics), "particles": Table(particles)},
    )
    for name, shown in zip(particles["rlnImageName"], VISIBLE, strict=True):
        write_stack(folder / name, len(shown.strip("[]").split(",")) if whole else shown.count("1"))
    _write_tomograms(folder, flavour, ending)
    both: dict[str, Any] = {
        "rlnTomoParticlesFile": ["particles.star"],
        "rlnTomoTomogramsFile": ["tomograms.star"],
    }
    write_star(folder / "optimisation_set.star", {"": Table(both, loop=False)})
    return folder / "optimisation_set.star"


def _write_tomograms(folder: Path, flavour: str, ending: str) -> None:
    counts = {"TS_1": 4, "TS_2": 3}
    general: dict[str, Any] = {
        "rlnTomoName": [name + ending for name in counts],
        "rlnTomoTiltSeriesPixelSize": [2.0, 2.0],
        "rlnTomoHand": [-1.0, -1.0],
        **{f"rlnTomoSize{axis}": [round(v / 2.0)] * 2 for axis, v in zip("XYZ", VOLUME, strict=True)},
    }
    blocks: dict[str, Table] = {}
    for name, n in counts.items():
        tilts: dict[str, Any] = {
            "rlnDefocusU": 30000.0 + 100.0 * np.arange(n),
            "rlnDefocusV": 29000.0 + 100.0 * np.arange(n),
            "rlnDefocusAngle": 10.0 * np.arange(n),
            "rlnCtfScalefactor": np.cos(np.radians(angles(n)[:, 1])),
            "rlnMicrographPreExposure": 3.0 * np.arange(n),
        }
        if flavour == "relion5":
            tilts |= dict(zip(("rlnTomoXTilt", "rlnTomoYTilt", "rlnTomoZRot"), angles(n).T, strict=True))
            tilts |= {"rlnTomoXShiftAngst": np.zeros(n), "rlnTomoYShiftAngst": np.zeros(n)}
        else:
            shift = 0.0 if flavour == "warptools" else 7.0
            for k, axis in enumerate("XYZ"):
                tilts[f"rlnTomoProj{axis}"] = [
                    "[" + ",".join(f"{v:.9g}" for v in row) + f",{shift}]" for row in matrices(n)[:, k]
                ]
            tilts["rlnTomoProjW"] = ["[0,0,0,1]"] * n
        blocks[name + ending] = Table(tilts)
    if flavour == "relion5":
        (folder / "tilt_series").mkdir(parents=True, exist_ok=True)
        for name, block in blocks.items():
            write_star(folder / f"tilt_series/{name}.star", {name: block})
        general["rlnTomoTiltSeriesStarFile"] = [f"tilt_series/{name}.star" for name in blocks]
        blocks = {}
    write_star(folder / "tomograms.star", {"global": Table(general), **blocks})


def matrices(tilts: int) -> np.ndarray[Any, Any]:
    """Rz(ZRot) Ry(YTilt) Rx(XTilt), right-handed, by scipy."""
    from scipy.spatial.transform import Rotation

    return np.asarray(Rotation.from_euler("xyz", angles(tilts), degrees=True).as_matrix())
