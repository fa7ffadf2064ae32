"""A session of one tilt series, made without processing: its records are as the steps write them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import torch

import weft
from weft.defocus.handedness import Handedness
from weft.defocus.quality import Curve
from weft.defocus.tilt_gradients import Gradients
from weft.defocus.tilt_series import TiltCTF
from weft.formats import mrc
from weft.physics.geometry import TiltGeometry
from weft.session.plan import expected_fingerprints
from weft.session.records import FileIdentity, Record, RecordStore, StepRecord
from weft.session.step import plain_values
from weft.session.steps import all_steps
from weft.session.tilt_table import TiltRow, TiltTable, item_identity, table_path, write_table
from weft.tilts.alignment import Levelling, Observations, TiltAlignment

NAME = "TS_01"
#: Left out because it is dark.
DARK = 1
PIXEL = 8.0
TOMOGRAM_PIXEL = 16.0


@dataclass(frozen=True)
class Made:
    """The session and what is true about it."""

    root: Path
    alignment: TiltAlignment
    ctf: TiltCTF
    handedness: Handedness
    tomogram: np.ndarray
    angles: list[float]  # in the order of acquisition


def dose_symmetric(tilts: int, step: float) -> list[float]:
    """Angles in the order of acquisition."""
    out = [0.0]
    for i in range(1, tilts):
        group = (i + 1) // 2
        out.append(step * group * (1 if i % 2 else -1))
    return out


def make(root: Path, tilts: int = 9, side: int = 96, markers: int = 6, seed: int = 1) -> Made:
    """Write a session with everything that the four steps of a series leave behind."""
    rng = np.random.default_rng(seed)
    frames = root.parent / "frames"
    frames.mkdir(parents=True, exist_ok=True)
    (root.parent / "mdoc").mkdir(exist_ok=True)
    session = weft.new(
        root,
        frames=frames / "*.tif",
        mdoc=root.parent / "mdoc",
        pixel_size=PIXEL,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=1.5,
    )
    angles = dose_symmetric(tilts, 120.0 / (tilts - 1))
    rows, stack_rows = [], []
    kept = sorted((i for i in range(tilts) if i != DARK), key=lambda i: angles[i])
    geometry, points = _geometry(rng, [angles[i] for i in kept], side, markers)
    alignment = _alignment(rng, geometry, points)
    images = _images(rng, alignment, side)
    for i, angle in enumerate(angles):
        item = f"{NAME}_{i:03d}_{angle:+.1f}"
        movie = frames / f"{item}.tif"
        movie.write_bytes(b"")
        section = kept.index(i) if i in kept else None
        image = images[section] if section is not None else rng.normal(2, 1, (side, side)).astype(np.float32)
        _movie_record(session, item, movie, image, 1.0 + 0.02 * i)
        print_ = RecordStore(root).read(item)
        assert print_ is not None
        row = TiltRow(
            angle,
            str(movie),
            item,
            name=movie.name,
            exposure=3.0,
            prior_dose=3.0 * i,
            date=f"2026-11-21T10:{i:02d}:00",
            motion=print_.steps["motion"].fingerprint,
        )
        rows.append(row)
        thumb = f"tiltstack/{NAME}/tilt_{i:03d}.png"
        if section is not None:
            _write_png(root / thumb, image)
        stack_rows.append(
            {
                "index": i,
                "item": item,
                "name": row.name,
                "angle": angle,
                "exposure": 3.0,
                "dose": 3.0 * (i + 1),
                "date": row.date,
                "used": section is not None,
                "section": section,
                "reason": "" if section is not None else "dark: 4 % of the counts expected",
                "doubt": "",
                "by_hand": None,
                "thumbnail": thumb,
                "counts": 40.0 * float(np.cos(np.radians(angle))) if section is not None else 1.6,
                "relative_counts": 1.0 + 0.01 * float(rng.normal()) if section is not None else 0.04,
            }
        )
    write_table(root, TiltTable(NAME, str(root.parent / "mdoc" / f"{NAME}.mdoc"), "mdoc", tuple(rows), 85.3))
    mrc.write_stack(root / f"tiltstack/{NAME}/{NAME}.st", images, PIXEL)
    ctf, handedness = _ctf(rng, geometry)
    tomogram = _tomogram(rng, geometry, points)
    _series_record(session, stack_rows, alignment, ctf, handedness, tomogram)
    return Made(root, alignment, ctf, handedness, tomogram, angles)


def _write_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    low, high = np.percentile(image, (0.5, 99.5))
    grey = np.clip((image - low) * (255.0 / (high - low)), 0, 255).astype(np.uint8)
    path.write_bytes(bytes(imagecodecs.png_encode(grey)))


def _movie_record(session: Any, item: str, movie: Path, image: np.ndarray, motion: float) -> None:
    root = session.root
    outputs = {"average": f"average/{item}.mrc", "thumbnail": f"thumbnails/{item}.png"}
    (root / "average").mkdir(exist_ok=True)
    mrc.write(root / outputs["average"], image, PIXEL, sync=False)
    _write_png(root / outputs["thumbnail"], image)
    identity = FileIdentity.of(movie)
    prints = expected_fingerprints("tilt", identity, session.settings, root)
    metrics = {"pixel_size": PIXEL, "frames": 2, "stored_frames": 2, "masked": 0.0, "motion_total": motion}
    reads = all_steps()["motion"].reads(session.settings)
    step = StepRecord("done", prints["motion"], reads, {"metrics": metrics}, outputs)
    (root / "records").mkdir(exist_ok=True)
    RecordStore(root).write(Record(item, "tilt", identity, {"motion": step}, {"motion": 1.0}))


def _geometry(
    rng: np.random.Generator, angles: list[float], side: int, markers: int
) -> tuple[TiltGeometry, torch.Tensor]:
    width = side * PIXEL
    geometry = TiltGeometry.of(
        angles,
        axis=85.3,
        shift=rng.normal(0, 0.02 * width, (len(angles), 2)),
        volume_size=(width, width, 0.35 * width),
        image_size=(width, width),
        level=(2.0, -4.0),
    )
    spread = np.array([0.38, 0.38, 0.12]) * width
    return geometry, torch.as_tensor(rng.uniform(-1, 1, (markers, 3)) * spread)


def _alignment(rng: np.random.Generator, geometry: TiltGeometry, points: torch.Tensor) -> TiltAlignment:
    places = geometry.project(points + 0.5 * geometry.volume_size)[..., :2] - 0.5 * geometry.image_size
    n, m = places.shape[:2]
    predicted = places.reshape(-1, 2)
    observed = predicted + torch.as_tensor(rng.normal(0, 0.35 * PIXEL, predicted.shape))
    weight = torch.ones(n * m, dtype=torch.float64)
    weight[3] = 0.0
    observed[3] += 6.0 * PIXEL
    seen = Observations(
        torch.arange(m).repeat(n), torch.arange(n).repeat_interleave(m), observed, predicted, weight
    )
    return TiltAlignment(
        geometry,
        "fiducials",
        geometry.angles + 0.1,
        PIXEL,
        points,
        seen,
        torch.full((n,), 2.4, dtype=torch.float64),
        torch.ones(n, dtype=torch.bool),
        Levelling(2.0, -4.0, (0.0, 0.0, 0.0), 900.0, 0.4, f"{m} beads on two surfaces"),
        "good",
        ("1 observation does not fit the model",),
    )


def _images(rng: np.random.Generator, alignment: TiltAlignment, side: int) -> np.ndarray:
    """Noise with a dark disk wherever a marker is."""
    images = rng.normal(40, 4, (len(alignment), side, side)).astype(np.float32)
    y, x = np.mgrid[:side, :side]
    places = (alignment.observations.predicted + 0.5 * alignment.geometry.image_size) / PIXEL
    for tilt, (px, py) in zip(alignment.observations.tilt.tolist(), places.tolist(), strict=True):
        images[tilt][np.hypot(x - px, y - py) < 0.015 * side + 1] -= 25
    return images


def _ctf(rng: np.random.Generator, geometry: TiltGeometry) -> tuple[TiltCTF, Handedness]:
    n = len(geometry)
    angles = geometry.angles.numpy()
    k = np.linspace(0.025, 0.062, 120)
    fit = np.sin(np.pi * 0.0197 * 30000 * k**2) ** 2
    curve = Curve(k, 1 + 0.3 * (fit - 0.5) * np.exp(-20 * k), np.ones_like(k), fit, np.exp(-15 * (k - 0.025)))
    fitted = np.ones(n, dtype=bool)
    fitted[0] = False
    ctf = TiltCTF(
        defocus=30000 + rng.normal(0, 60, n),
        delta=np.full(n, 310.0),
        angle=np.full(n, 41.0),
        phase=np.zeros(n),
        level_x=0.3,
        level_y=-0.5,
        level_error=(0.4, 0.6),
        hand=1.0,
        resolution=17.0 + 0.1 * np.abs(angles),
        quality=np.full(n, 0.7),
        defocus_error=np.full(n, 45.0),
        evidence=np.full(n, 80.0),
        fitted=fitted,
        fit_range=(40.0, 16.8),
        series_resolution=16.9,
        score=0.71,
        verdict="good",
        notes=(f"tilt 0 ({angles[0]:.1f}°) shows no rings: its defocus is that of its neighbours",),
        mean_curve=curve,
        tilt_likelihood=np.full(n, 30.0),
    )
    predicted = np.tan(np.radians(angles - 4.0))
    gradients = Gradients(
        angles, predicted, predicted + rng.normal(0, 0.1, n), np.full(n, 0.1), np.ones(n, dtype=bool)
    )
    by_tilt = 2.0 * np.abs(np.radians(angles)) + 0.1 * rng.normal(size=n)
    handedness = Handedness(
        1.0,
        "certain",
        "hand +1 is 98 log-likelihood units better than hand -1, and gradients have a slope of +1.02 ± 0.06",
        (98.0, 0.0),
        by_tilt,
        9.1,
        1.02,
        0.06,
        41.4,
        gradients,
    )
    return ctf, handedness


def _tomogram(rng: np.random.Generator, geometry: TiltGeometry, points: torch.Tensor) -> np.ndarray:
    shape = [max(2, round(float(v) / TOMOGRAM_PIXEL)) for v in reversed(geometry.volume_size.tolist())]
    volume = rng.normal(0, 1, shape).astype(np.float32)
    z, y, x = np.mgrid[: shape[0], : shape[1], : shape[2]]
    for px, py, pz in ((points + 0.5 * geometry.volume_size) / TOMOGRAM_PIXEL).tolist():
        volume[(x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2 < (0.01 * shape[2] + 1) ** 2] += 12
    return volume


def _series_record(
    session: Any,
    stack_rows: list[dict[str, Any]],
    alignment: TiltAlignment,
    ctf: TiltCTF,
    handedness: Handedness,
    tomogram: np.ndarray,
) -> None:
    root = session.root
    table = table_path(root, NAME)
    identity = item_identity(table, "series")
    prints = expected_fingerprints("series", identity, session.settings, root)
    folder = root / "reconstruction"
    (folder / "deconv").mkdir(parents=True)
    raw = f"reconstruction/{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc"
    sharp = f"reconstruction/deconv/{NAME}_{TOMOGRAM_PIXEL:.2f}Apx.mrc"
    mrc.write(root / raw, tomogram, TOMOGRAM_PIXEL, sync=False)
    mrc.write(root / sharp, tomogram * 2, TOMOGRAM_PIXEL, sync=False)
    (root / f"tiltstack/{NAME}/{NAME}.star").write_text("# not looked at by the page")
    middle = tomogram[tomogram.shape[0] // 2]
    _write_png(folder / "pictures" / f"{NAME}_slices.png", middle)
    _write_png(root / f"tiltstack/{NAME}/{NAME}_spectrum.png", middle)
    used = [row for row in stack_rows if row["used"]]
    z, y, x = tomogram.shape
    metrics: dict[str, dict[str, Any]] = {
        "stack": {
            "tilts": len(used),
            "tilts_left_out": len(stack_rows) - len(used),
            "tilt_min": min(row["angle"] for row in used),
            "tilt_max": max(row["angle"] for row in used),
            "series_pixel_size": PIXEL,
            "series_dose": max(row["dose"] for row in used),
        },
        "align": {f"alignment_{name}": value for name, value in alignment.metrics().items()}
        | {"alignment_method": alignment.method, "alignment_verdict": alignment.verdict},
        "tilt_ctf": {f"series_{name}": value for name, value in ctf.metrics().items()}
        | handedness.metrics()
        | {"hand": 1.0, "hand_from": "found"}
        | {f"volume_{axis}": float(v) for axis, v in zip("xyz", alignment.geometry.volume_size, strict=True)},
        "reconstruct": {
            "tomogram_pixel_size": TOMOGRAM_PIXEL,
            "tomogram_x": x,
            "tomogram_y": y,
            "tomogram_z": z,
        },
    }
    results: dict[str, dict[str, Any]] = {
        "stack": {"tilts": stack_rows, "tilt_axis": 85.3, "notes": ["counts fall faster than they should"]},
        "align": {"alignment": alignment.to_dict()},
        "tilt_ctf": {
            "ctf": ctf.to_dict(),
            "handedness": handedness.to_dict(),
            "hand": 1.0,
            "hand_from": "found",
        },
        "reconstruct": {},
    }
    outputs = {
        "stack": {
            "stack": f"tiltstack/{NAME}/{NAME}.st",
            "tilt_picture": f"tiltstack/{NAME}/tilt_000.png",
        },
        "align": {},
        "tilt_ctf": {
            "star": f"tiltstack/{NAME}/{NAME}.star",
            "series_powerspectrum": f"tiltstack/{NAME}/{NAME}_spectrum.png",
        },
        "reconstruct": {
            "tomogram": raw,
            "tomogram_deconvolved": sharp,
            "slices": f"reconstruction/pictures/{NAME}_slices.png",
        },
    }
    steps = {}
    for name in ("stack", "align", "tilt_ctf", "reconstruct"):
        kept = plain_values({"metrics": metrics[name], **results[name]})
        reads = all_steps()[name].reads(session.settings)
        steps[name] = StepRecord("done", prints[name], reads, kept, outputs[name])
    record = Record(NAME, "series", identity, steps, dict.fromkeys(steps, 2.0))
    RecordStore(root).write(record)


def change_step(root: Path, step: str, **changes: Any) -> None:
    """Put other values into a step of the series' record."""
    store = RecordStore(root)
    record = store.read(NAME)
    assert record is not None
    store.write(replace(record, steps={**record.steps, step: replace(record.steps[step], **changes)}))
