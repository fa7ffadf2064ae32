"""A session of thousands of items with records, pictures and averages that look real and cost nothing.

    python benchmarks/many_items.py SESSION [--items 10000]

For measuring what does not depend on the arithmetic: starting the manager, its memory, the page. Every
item has its own record, metrics and source file; pictures and averages are a few small ones that all
items share by hard links. Metrics drift as in a real session, some items failed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import time
from pathlib import Path

import imagecodecs
import numpy as np

import weft
from weft.defocus.micrograph import CTFModel
from weft.formats import mrc
from weft.movies.motion import MotionModel
from weft.session.plan import Expectations
from weft.session.records import FileIdentity, Record, StepError, StepRecord
from weft.session.session import Session

_VARIANTS = 16  # of pictures
_LINKS = 60_000  # that a file may have


def make_session(
    root: Path, items: int = 10_000, *, thumbnail: int = 128, failed: float = 0.01, squares: int = 50
) -> Session:
    """Write the session and the files that it seems to be made from.

    Parameters
    ----------
    root : Path
        A folder that is not there yet.
    items : int
    thumbnail : int
        Size of the pictures, pixels.
    failed : float
        Part of the items that failed.
    squares : int
        Folders over which the movies are spread.
    """
    frames = root.absolute().parent / f"{root.name}_frames"
    session = weft.new(
        root,
        frames=str(frames / "square_*" / "*.tif"),
        pixel_size=0.85,
        voltage=300.0,
        cs=2.7,
        amplitude=0.07,
        dose_per_frame=1.0,
        picking={"model": ""},
    )
    for number in range(squares):
        (frames / f"square_{number:02d}").mkdir(parents=True)
    places = {
        "average": ("average", "mrc"),
        "motion_star": ("average", "star"),
        "thumbnail": ("thumbnails", "png"),
        "powerspectrum": ("powerspectrum", "png"),
        "powerspectrum_curve": ("powerspectrum", "npz"),
    }
    for folder in ("records", "logs", "average", "thumbnails", "powerspectrum"):
        (root / folder).mkdir()
    rng = np.random.default_rng(1)
    metrics = _metrics(items, rng)
    expected = Expectations(session.settings, session.root)
    bad = rng.random(items) < failed
    begin = time.time() - 12.0 * items
    shapes = [_templates(root / f".template_{n}", thumbnail, rng) for n in range(_VARIANTS)]
    for n in range(items):
        name = f"grid1_{n:05d}"
        source = frames / f"square_{n * squares // items:02d}" / f"{name}.tif"
        source.write_text(f"movie {n}")
        os.utime(source, (begin + 12.0 * n,) * 2)
        identity = FileIdentity.of(source)
        record = Record(name, "movie", identity)
        prints = expected.fingerprints("movie", identity.content)
        if bad[n]:
            text = f"{source}: the file ends in frame 31 of 40; copy it again"
            step = StepRecord("failed", prints["motion"], error=StepError("TruncatedError", text, True))
            record = record.with_step("motion", step, 0.4)
        else:
            outputs = {key: f"{folder}/{name}.{end}" for key, (folder, end) in places.items()}
            for key, path in outputs.items():
                template = shapes[n % _VARIANTS][key]
                if template.stat().st_nlink > _LINKS:
                    template.write_bytes(template.read_bytes())
                os.link(template, root / path)
            row = {key: float(column[n]) for key, column in metrics.items()}
            record = _finished(record, row, outputs, prints, expected, rng)
        path = session.store.path(name)
        path.write_text(json.dumps(record.to_dict(), ensure_ascii=False))
        os.utime(path, (begin + 12.0 * n + 20.0,) * 2)
    for shape in shapes:
        for template in shape.values():
            template.unlink()
    return session


def _metrics(items: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    t = np.linspace(0.0, 1.0, items)
    targets = np.tile(np.linspace(0.8, 2.4, 9), items // 9 + 1)[:items]
    defocus = (targets + 0.25 * np.sin(7.0 * t) + rng.normal(0, 0.08, items)) * 1e4
    resolution = 3.3 + 0.8 * rng.gamma(1.5, 0.5, items) + 1.2 * (t > 0.9)
    return {
        "defocus": defocus.round(2),
        "astigmatism": np.abs(rng.normal(180.0, 90.0, items)).round(2),
        "astigmatism_angle": rng.normal(40.0, 15.0, items).round(3) % 180.0,
        "resolution": resolution.round(4),
        "ctf_score": np.clip(rng.normal(0.85, 0.06, items), 0.0, 1.0).round(5),
        "ctf_evidence": rng.gamma(4.0, 200.0, items).round(2),
        "tilt": np.abs(rng.normal(0.0, 3.0, items)).round(3),
        "ice_ring": rng.gamma(2.0, 0.1, items).round(5),
        "motion_total": rng.gamma(6.0, 2.5, items).round(4),
        "contrast": rng.normal(0.05, 0.008, items).round(6),
        "counts": (rng.normal(8.0, 0.1, items) - 0.3 * t).round(5),
        "masked": np.abs(rng.normal(0.0, 0.01, items)).round(6),
    }


def _finished(
    record: Record,
    row: dict[str, float],
    outputs: dict[str, str],
    prints: dict[str, str],
    expected: Expectations,
    rng: np.random.Generator,
) -> Record:
    extent = (3838 * 0.85, 3710 * 0.85)
    t = np.arange(40)[:, None]
    shift = row["motion_total"] * (1.0 - np.exp(-t / 6.0)) * np.array([[0.8, -0.6]])
    motion = MotionModel(40, extent, shift - shift.mean(0), rng.normal(0, 0.5, (2, 5, 5, 5)), 6.0)
    surface = row["defocus"] + rng.normal(0, 80.0, (5, 5))
    ctf = CTFModel(
        surface,
        extent,
        row["astigmatism"],
        row["astigmatism_angle"],
        0.0,
        row["resolution"],
        (30.0, row["resolution"]),
        row["ctf_score"],
        {"defocus": 20.0, "astigmatism": 15.0},
        row["ice_ring"],
        row["ctf_evidence"],
    )
    names = ("counts", "masked", "contrast")
    of_motion = {
        "pixel_size": 0.85,
        "frames": 40,
        "stored_frames": 40,
        "hot_pixels": 12,
        **{name: row[name] for name in names},
        "motion_total": row["motion_total"],
        "motion_early": round(0.6 * row["motion_total"], 4),
        "motion_late": round(0.4 * row["motion_total"], 4),
        "motion_per_frame": round(row["motion_total"] / 39.0, 4),
        "motion_local": 0.8,
        "motion_expected_error": 0.1,
    }
    facts = {"format": "tiff", "shape": [3710, 3838], "stored_frames": 40, "type": "uint8", "gain": ""}
    facts |= {"hot_pixels": rng.integers(0, 3700, (12, 2)).tolist(), "notes": []}
    of_ctf = {
        "defocus": row["defocus"],
        "defocus_range": round(float(np.ptp(surface)), 3),
        "phase_shift": 0.0,
        "tilt_axis": 12.0,
        "defocus_error": 20.0,
        "astigmatism_error": 15.0,
        **{name: value for name, value in row.items() if name not in of_motion},
    }
    results = {
        "motion": {"metrics": of_motion, "model": motion.to_dict(), "movie": facts},
        "ctf": {"metrics": of_ctf, "model": ctf.to_dict()},
    }
    files = {
        "motion": {key: outputs[key] for key in ("average", "motion_star", "thumbnail")},
        "ctf": {key: outputs[key] for key in ("powerspectrum", "powerspectrum_curve")},
    }
    for name, seconds in (("motion", 14.2), ("ctf", 5.1)):
        step = StepRecord("done", prints[name], expected.reads[name], results[name], files[name])
        record = record.with_step(name, step, seconds)
    return record


def _templates(stem: Path, size: int, rng: np.random.Generator) -> dict[str, Path]:
    """One of each kind of file, to be linked to."""
    blobs = np.zeros((size, size))
    for y, x in rng.integers(0, size, (size // 2, 2)):
        yy, xx = np.ogrid[:size, :size]
        blobs -= np.exp(-((yy - y) ** 2 + (xx - x) ** 2) / (2.0 * (size / 40.0) ** 2))
    image = blobs + rng.normal(0, 0.25, blobs.shape)
    r = np.hypot(*np.meshgrid(*[np.arange(size) - size // 2] * 2))
    rings = np.cos(r**2 * math.pi * 8.0 / size**1.5) ** 2 * np.exp(-r / size * 3.0)
    pictures = {"thumbnail": image, "powerspectrum": rings + rng.normal(0, 0.1, rings.shape)}
    out = {}
    for name, picture in pictures.items():
        low, high = np.percentile(picture, (0.5, 99.5))
        grey = np.clip((picture - low) * 255.0 / (high - low), 0, 255).astype(np.uint8)
        out[name] = stem.with_name(f"{stem.name}_{name}.png")
        out[name].write_bytes(imagecodecs.png_encode(grey))
    out["average"] = stem.with_name(f"{stem.name}.mrc")
    mrc.write(out["average"], image.astype(np.float32), 0.85 * 3838 / size)
    out["motion_star"] = stem.with_name(f"{stem.name}.star")
    out["motion_star"].write_text("data_general\n")
    k = np.linspace(0.0, 0.5 / 0.85, 512)
    fit = np.sin(math.pi * 0.0197 * 1.4e4 * k**2 + 0.07) ** 2
    background = np.exp(-k * 4.0) + 0.2
    envelope = np.exp(-((k / 0.25) ** 2))
    power = background * (1.0 + 0.1 * envelope * (fit - 0.5) + rng.normal(0, 0.002, k.shape))
    buffer = io.BytesIO()
    np.savez(buffer, k=k, power=power, background=background, fit=fit, correlation=envelope)
    out["powerspectrum_curve"] = stem.with_name(f"{stem.name}.npz")
    out["powerspectrum_curve"].write_bytes(buffer.getvalue())
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("session", type=Path)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--thumbnail", type=int, default=128, help="pixels")
    given = parser.parse_args()
    start = time.perf_counter()
    make_session(given.session, given.items, thumbnail=given.thumbnail)
    print(f"{given.items} items in {time.perf_counter() - start:.1f} s: {given.session}")
